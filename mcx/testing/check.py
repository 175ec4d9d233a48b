"""Statistical checks with stated error rates."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import jax
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import McxError


class StatisticalFailure(McxError, AssertionError):
    """A statistical check failed, or could not have found the defect it is there to find."""


def key_for(name: str) -> jax.Array:
    """A random key that is a function of a test's name, such as pytest's node id, so nobody picks seeds."""
    return jax.random.key(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))


def check_mean(
    draws: ArrayLike,
    truth: ArrayLike,
    *,
    delta: ArrayLike,
    alpha: float = 1e-6,
    power: float = 0.99,
    independent: bool = False,
    name: str = "mean",
) -> float:
    """Check that draws have the mean they should.

    A two-sided z test at level ``alpha``, Bonferroni-corrected over the entries of ``truth``. It refuses to
    run where it could not find a bias of ``delta`` with probability ``power``: then take more draws.

    Args:
        draws: chain x draw x ... of a Markov chain, or replicate x ... where ``independent``.
        truth: mean, of the draws' event shape; known without simulation, or far more accurately.
        delta: smallest bias worth finding, a scalar or of ``truth``'s shape.
        alpha: probability that a correct sampler fails.
        power: probability that a bias of ``delta`` fails.
        independent: whether draws are independent replicates along one leading axis.
        name: for the message.

    Returns:
        The largest |z|.

    Raises:
        StatisticalFailure: if the test rejects, if a draw is not finite, or if it lacks power.

    Standard errors: sample sd over sqrt(n) for independent draws, else ArviZ's MCSE of the mean (Vehtari
    et al. 2021).
    """
    values = np.asarray(draws, np.float64)
    truth = np.asarray(truth, np.float64)
    if not np.isfinite(values).all():
        raise StatisticalFailure(
            f"{name}: draws are not finite", found=f"{(~np.isfinite(values)).sum()} entries"
        )
    leading = 1 if independent else 2
    event = values.shape[leading:]
    truth = np.broadcast_to(truth, event)
    mean = values.mean(axis=tuple(range(leading)))
    error = _standard_errors(values, independent)
    level = NormalDist().inv_cdf(1 - alpha / (2 * max(1, truth.size)))
    needed = np.broadcast_to(np.asarray(delta, np.float64), event) / (level + NormalDist().inv_cdf(power))
    if np.any(error > needed):
        worst = np.unravel_index(np.argmax(error / needed), event) if event else ()
        raise StatisticalFailure(
            f"{name}: too few draws to find a bias of {np.broadcast_to(delta, event)[worst]:.3g}",
            expected=f"a standard error of at most {needed[worst]:.3g}",
            found=f"{error[worst]:.3g}",
            remedy=f"take {math.ceil((error[worst] / needed[worst]) ** 2)} times as many draws",
        )
    z = (mean - truth) / error
    largest = float(np.max(np.abs(z))) if z.size else 0.0
    if largest > level:
        worst = np.unravel_index(np.argmax(np.abs(z)), event) if event else ()
        raise StatisticalFailure(
            f"{name}: the mean is off by {z[worst]:.1f} standard errors (alpha {alpha:g})",
            expected=f"{truth[worst]:.6g} at {worst}",
            found=f"{mean[worst]:.6g} +- {error[worst]:.2g}",
        )
    return largest


def _standard_errors(values: np.ndarray, independent: bool) -> np.ndarray:
    if independent:
        return np.asarray(values.std(axis=0, ddof=1) / math.sqrt(values.shape[0]))
    from arviz_stats.base import array_stats

    errors = [
        float(array_stats.mcse(values[(slice(None), slice(None), *i)], method="mean"))
        for i in np.ndindex(*values.shape[2:])
    ]
    return np.asarray(errors).reshape(values.shape[2:])
