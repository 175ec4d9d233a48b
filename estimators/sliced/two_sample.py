"""Do two samples come from one law? A permutation test with the sliced Wasserstein distance."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mcx.errors import MethodError
from mcx.estimators.sliced.directions import direction_kind, draw_directions
from mcx.estimators.sliced.posterior_draws import as_samples, draws_of_both, whiten
from mcx.estimators.sliced.sliced import POWER, centred, sliced_powers
from mcx.ops.keys import as_key
from mcx.ops.validation import integer, optional, validated
from mcx.results.posterior import Posterior
from mcx.types import Array, Float, Int, Key, KeyLike, Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TwoSampleTest:
    """How far apart two samples are, and how far apart halves of one law would be.

    Attributes:
        value: SW_p of the samples.
        p_value: share of permutations, the identity among them, with a distance at least as large.
        null: (num_permutations,) SW_p after random exchanges of points between the samples.
        floor: the median of ``null``: the typical distance between two such samples of one law.
        sizes: numbers of points that were compared, of both samples.
    """

    value: Scalar
    p_value: Scalar
    null: Float[Array, " permutation"]
    floor: Scalar
    sizes: Int[Array, "2"]

    def __repr__(self) -> str:
        n, m = np.asarray(self.sizes)
        return (
            f"TwoSampleTest: {n} and {m} points, SW = {float(self.value):.4g}, "
            f"of one law {float(self.floor):.4g}, p = {float(self.p_value):.3g}"
        )


def two_sample_test(
    x: Posterior | ArrayLike,
    y: Posterior | ArrayLike,
    *,
    p: float = 2,
    num_projections: int = 64,
    num_permutations: int = 199,
    directions: str = "auto",
    batch_size: int | None = None,
    key: KeyLike,
) -> TwoSampleTest:
    """Test whether two samples have the same law.

    The distance between samples of one law is not zero. Random exchanges of points between the samples show
    how large it is, and how it varies: if the law is the same, all exchanges are equally likely, so that the
    test has its level exactly, for any sizes and any number of directions.

    Args:
        x: (n, d) independent points; or a :class:`mcx.Posterior`, whose draws are thinned to about as many
            as its effective sample size, since the test needs draws that are close to independent.
        y: (m, d), likewise.
        p: power of the cost; static.
        num_projections: about how many directions, the same for all exchanges; static.
        num_permutations: number of exchanges; the smallest p-value is 1 / (num_permutations + 1); static.
        directions: their kind, as for :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        batch_size: directions at once; static.
        key: a typed JAX key or an int.

    Returns:
        The test. O(num_permutations L (n log n + n d)); memory for one exchange at a time.

    Raises:
        DataError: if samples are empty, not finite, or of different dimension.
        MethodError: if settings are out of range, and for weighted posteriors: weighted points cannot be
            exchanged.
        PosteriorShapeError: if posteriors have different sites.

    Source: Lehmann and Romano (2005), Testing statistical hypotheses, for permutation tests;
    Ramdas, Garcia Trillos and Cuturi (2017), On Wasserstein two-sample testing, for the statistic.
    """
    validate = functools.partial(validated, "two_sample_test")
    num_permutations = validate("num_permutations", num_permutations, integer(1))
    num_projections = validate("num_projections", num_projections, integer(1))
    batch_size = validate("batch_size", batch_size, optional(integer(1)))
    p = float(validate("p", p, POWER))
    for side in (x, y):
        # replicates of different weights are refused only if weights differ within one of them
        if isinstance(side, Posterior) and side.weights is not None and np.ptp(side.weights, 1).any():
            raise MethodError(
                "weighted draws cannot be exchanged",
                expected="posteriors of equally weighted draws",
                found=f"draws of {side.info.method}, with weights",
                remedy="resample them first",
            )
    if isinstance(x, Posterior) and isinstance(y, Posterior):
        x, y = _thinned(x, y)
    first, second, _, _ = as_samples(x, y)
    d = first.shape[1]
    kind = direction_kind(directions, d, "two_sample_test") if d > 1 else "iid"
    return _test(as_key(key), first, second, (p, num_projections, num_permutations, kind, batch_size))


@functools.partial(jax.jit, static_argnums=3)
def _test(key: Key, x: Array, y: Array, settings: tuple[float, int, int, str, int | None]) -> TwoSampleTest:
    p, num_projections, num_permutations, kind, batch_size = settings
    n, d = x.shape
    x, y = centred(x, y)
    both = jnp.concatenate([x, y])
    key_directions, key_permutations = jax.random.split(key)
    theta = jnp.ones((1, 1), x.dtype)
    if d > 1:
        theta = draw_directions(key_directions, kind, num_projections, d, x.dtype, num_replicates=1).theta

    def power(points: Array) -> Scalar:
        return jnp.mean(sliced_powers(theta, points[:n], points[n:], p=p, batch_size=batch_size))

    keys = jax.random.split(key_permutations, num_permutations)
    null = jax.lax.map(lambda k: power(jax.random.permutation(k, both)), keys)
    found = power(both)
    # exchanges that change nothing must count, whatever the rounding
    tied = null >= found * (1 - 100 * jnp.finfo(x.dtype).eps)
    p_value = (1 + jnp.sum(tied)) / (num_permutations + 1)
    root = null ** (1 / p)
    return TwoSampleTest(found ** (1 / p), p_value, root, jnp.median(root), jnp.array([n, y.shape[0]]))


def _thinned(x: Posterior, y: Posterior) -> tuple[Array, Array]:
    """Nearly independent draws of both, whitened alike: by the moments of all of them together."""
    parts = [side[:: _stride(post)] for side, post in zip(draws_of_both(x, y), (x, y), strict=True)]
    both = np.concatenate(parts)
    white, _ = whiten(both, both)
    return white[: len(parts[0])], white[len(parts[0]) :]


def _stride(posterior: Posterior) -> int:
    """By how much to thin the draws so that the rest are nearly independent."""
    from arviz_stats.base import array_stats

    chains, draws = posterior.num_chains, posterior.num_draws
    points = np.asarray(posterior.unconstrained, np.float64).reshape(chains, draws, -1)
    least = min(float(array_stats.ess(points[:, :, i])) for i in range(points.shape[2]))
    return max(1, math.ceil(chains * draws / max(least, 2.0)))
