"""A test of resampling schemes, those of mcx and those of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.testing.check import StatisticalFailure, check_mean
from mcx.types import Key

INF, NAN = float("inf"), float("nan")
# multiples of 1/8: adding 1024 to them is exact in float32
UNEVEN = (-3.5, 0.0, -2.75, -0.5, -1.625)
CASES = {
    "uneven weights": UNEVEN,
    "equal weights": (0.25,) * 5,
    "zero weights": (-INF, 0.0, -INF, 1.0, -INF),
    "NaN": (NAN, 0.0, 1.0, NAN, -INF),
    "all weight on the first": (0.0, *(-INF,) * 4),
    "all weight on the last": (*(-INF,) * 4, -3.0),
    "nearly all weight on one": (-200.0, -300.0, 0.0, -100.0, -INF),
    "subnormal weights": tuple(x - 95.0 for x in UNEVEN),
    "subnormal log weights": (1e-42, -1e-42, 0.0, 3e-42, -INF),
    "no finite weight": (-INF, NAN, -INF, -INF, -INF),
    "infinite weights": (INF, 0.0, -INF, INF, NAN),
}


def check_resampling(
    resampling: Callable[[Any, Any, int], Any],
    key: Key,
    *,
    alpha: float = 1e-6,
    any_num: bool = True,
    num_replicates: int = 1 << 15,
    delta: float = 0.1,
) -> float:
    """Check that a function is a resampling scheme.

    For 2 and 5 particles with uneven, equal, zero, extreme and non-finite weights it checks that ancestors
    are int32 indices in range, that parents of weight zero have no offspring, that parent i has ``num * W_i``
    offspring on average, and that adding a constant to the log weights changes no ancestor. NaN counts as
    -inf; weights that are all zero count as equal; where some are infinite, those alone count, equally.

    Args:
        resampling: ``(key, log_w (n,), num) -> int32 (num,)``, such as
            :func:`mcx.inference.smc.resampling.systematic`.
        key: a typed key.
        alpha: probability that a correct scheme fails, over all the tests together.
        any_num: whether to try numbers of offspring other than n.
        num_replicates: independent runs of each case.
        delta: bias in the number of offspring that each test finds with probability .99, see
            :func:`mcx.testing.check_mean`.

    Returns:
        The largest |z| of the tests of the mean numbers of offspring.

    Raises:
        StatisticalFailure: if the function is no scheme, or if ``num_replicates`` is too small for ``delta``.
    """
    runs = [(name, log_w, 5) for name, log_w in CASES.items()]
    runs.append(("two weights", (0.0, -1.5), 2))
    if any_num:
        runs += [(f"{num} offspring of 5", UNEVEN, num) for num in (3, 11)]
    programs: dict[int, Callable[[Any, Any], Any]] = {}

    def draw(key: Key, log_w: ArrayLike, num: int) -> np.ndarray:
        if num not in programs:
            programs[num] = jax.jit(jax.vmap(lambda key, log_w: resampling(key, log_w, num), (0, None)))
        keys = jax.random.split(key, num_replicates)
        return np.asarray(programs[num](keys, jnp.asarray(log_w, jnp.float32)))

    keys = jax.random.split(key, len(runs))
    largest = 0.0
    for (name, log_w, num), key_run in zip(runs, keys, strict=True):
        ancestors = draw(key_run, log_w, num)
        largest = max(largest, _check_run(name, log_w, num, ancestors, alpha / len(runs), delta))

    for shift in (1024.0, -1024.0):
        there, here = (draw(keys[0], np.asarray(UNEVEN) + c, 5) for c in (shift, 0.0))
        if (there != here).any():
            raise StatisticalFailure(
                f"ancestors change when {shift:g} is added to all log weights",
                found=f"in {np.mean((there != here).any(-1)):.2g} of the runs",
                remedy="subtract the largest log weight before anything else",
            )
    return largest


def _check_run(
    name: str, log_w: tuple[float, ...], num: int, ancestors: np.ndarray, alpha: float, delta: float
) -> float:
    n = len(log_w)
    if ancestors.dtype != np.int32 or ancestors.shape[1:] != (num,):
        raise StatisticalFailure(
            f"{name}: not an array of ancestors",
            expected=f"int32 ({num},)",
            found=f"{ancestors.dtype} {ancestors.shape[1:]}",
        )
    if ancestors.min() < 0 or ancestors.max() >= n:
        raise StatisticalFailure(
            f"{name}: ancestors out of range",
            expected=f"0 to {n - 1}",
            found=f"{ancestors.min()} to {ancestors.max()}",
        )
    # normalised weights, in float64, by other means than the library's
    x = np.nan_to_num(np.asarray(log_w, np.float64), nan=-INF, posinf=INF, neginf=-INF)
    w = (x == x.max()).astype(np.float64) if np.isinf(x.max()) else np.exp(x - x.max())
    law = w / w.sum()
    counts = np.stack([(ancestors == i).sum(-1) for i in range(n)], axis=-1)
    # weights that are zero in float32 alone may be drawn, once in a lifetime; true zeros may not
    if counts[:, law == 0].any():
        raise StatisticalFailure(
            f"{name}: parents of weight zero have offspring",
            expected=f"none of {np.flatnonzero(law == 0)}",
            found=f"log weights {log_w}, mean numbers {counts.mean(0)}",
        )
    # a number that never varies has to be right, and needs no test
    varies = counts.std(0) > 0
    wrong = ~varies & (np.abs(counts[0] - num * law) > 1e-4)
    if wrong.any():
        raise StatisticalFailure(
            f"{name}: numbers of offspring are always the same, and wrong",
            expected=f"on average {num * law[wrong]} of {np.flatnonzero(wrong)}",
            found=f"always {counts[0, wrong]}",
        )
    if not varies.any():
        return 0.0
    draws = counts[:, varies].astype(np.float64)
    truth = num * law[varies]
    return check_mean(draws, truth, delta=delta, alpha=alpha, independent=True, name=f"offspring, {name}")
