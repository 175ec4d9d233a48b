"""Control variates from the first two moments of the samples."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcx.estimators.sliced.directions import direction_kind, draw_directions, random_rotation
from mcx.estimators.sliced.fit import fit_controls
from mcx.types import Array, Float, Key, Scalar

_PIECES = 8  # independent replicates of the cheap directions, at least
_ENTRIES_A_PIECE = 1 << 21
_SOBOL_DIMENSION = 8  # up to here point sets cover the sphere better than frames, and fewer will do
_SOBOL_POINTS = 1 << 17


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of a weighted sample."""

    mean: Float[Array, " d"]
    cov: Float[Array, "d d"]


def moments(x: Float[Array, "n d"], weights: Float[Array, " n"] | None = None) -> Moments:
    """Mean and covariance of points with weights of any scale, or equal ones; O(n d^2)."""
    w = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype) if weights is None else weights / jnp.sum(weights)
    mean = jnp.matmul(w, x, precision="highest")
    centred = x - mean
    return Moments(mean, jnp.matmul(centred.T * w, centred, precision="highest"))


def bounds(theta: Float[Array, "L d"], x: Moments, y: Moments, which: str) -> Float[Array, "L K"]:
    """The "lower" or "upper" bound of the cost between projected Gaussians, or both ("bounds"), centred.

    The lower bound is the squared difference of the means; the upper one adds both variances.

    Source: Nguyen and Ho (2024), Sliced Wasserstein estimation with control variates.
    """
    gap, d = x.mean - y.mean, theta.shape[1]
    lower = _dot(theta, gap) ** 2 - jnp.sum(gap * gap) / d
    total = x.cov + y.cov
    upper = lower + _form(theta, total) - jnp.trace(total) / d
    return jnp.stack({"lower": [lower], "upper": [upper], "bounds": [lower, upper]}[which], 1)


def gaussian_cost(theta: Float[Array, "L d"], x: Moments, y: Moments, p: float = 2.0) -> Float[Array, " L"]:
    """Squared Wasserstein distances of projected Gaussians, to the power p / 2; O(d^2) a direction."""
    tiny = jnp.finfo(theta.dtype).tiny
    sd_x, sd_y = (jnp.sqrt(jnp.maximum(_form(theta, side.cov), tiny)) for side in (x, y))
    square = _dot(theta, x.mean - y.mean) ** 2 + (sd_x - sd_y) ** 2
    return square if p == 2 else jnp.maximum(square, tiny) ** (p / 2)


def gaussian_mean(key: Key, x: Moments, y: Moments, p: float, num: int) -> tuple[Scalar, Scalar]:
    """Mean of :func:`gaussian_cost` over the sphere, and its standard error, from ``num`` cheap directions.

    Costs O(num d^2) in time; memory is bounded.
    """
    d = x.mean.shape[0]
    if 3 < d <= _SOBOL_DIMENSION:
        num = min(num, _SOBOL_POINTS)
    pieces = max(_PIECES, num * d // _ENTRIES_A_PIECE)
    size = max(d, num // pieces)

    @jax.checkpoint
    def piece(k: Key) -> Scalar:
        if d > _SOBOL_DIMENSION:
            theta = _many_frames(k, size, d, x.mean.dtype)
        else:
            kind = direction_kind("auto", d)
            theta = draw_directions(k, kind, size, d, x.mean.dtype, num_replicates=1).theta
        return jnp.mean(gaussian_cost(theta, x, y, p))

    fit = fit_controls(jax.lax.map(piece, jax.random.split(key, pieces)))
    return fit.value, fit.se


def _many_frames(key: Key, num: int, d: int, dtype: DTypeLike) -> Array:
    """Orthonormal frames, any two of which are independent: products of pairs of few random rotations.

    The product of a random rotation and any other is a random rotation, and the variance of a mean depends on
    pairs alone. So these are as good as independent frames, without a decomposition for each.
    """
    few = max(1, round((num / d) ** 0.5))
    left, right = (
        jax.vmap(lambda k: random_rotation(k, d, dtype))(jax.random.split(k, few))
        for k in jax.random.split(key)
    )
    return jnp.einsum("aij,bjk->abik", left, right, precision="highest").reshape(-1, d)


def _dot(theta: Array, v: Array) -> Array:
    return jnp.matmul(theta, v, precision="highest")


def _form(theta: Array, matrix: Array) -> Array:
    return jnp.sum(jnp.matmul(theta, matrix, precision="highest") * theta, -1)
