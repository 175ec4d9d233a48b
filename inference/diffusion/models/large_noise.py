"""What a denoiser shows of its data at large noise, where every diffusion model is close to a Gaussian.

For data of mean m and covariance V the denoiser is ``m + V (V + rho^2)^-1 (y - m)`` there. Central
differences around the origin give the shares ``V (V + rho^2)^-1``, and values at the origin the mean.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.models.arguments import Level, Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.types import Key, Scalar

_PAIRS = 8
_SIGNS = 4
_LARGEST = 0.99  # share; a larger one would make the variance of the data huge, or negative


def moments_by_axes(model: Denoiser, rho: Level, like: Point) -> tuple[Point, Point]:
    """Mean, and variance of y by coordinate, from differences along axes: ``2 d + 1`` calls."""
    shape = like.shape
    axes = jnp.eye(like.size, dtype=like.dtype).reshape(-1, *shape)

    def share(axis: Point) -> Scalar:
        ahead, behind = (model.denoise(sign * rho * axis, rho) for sign in (1.0, -1.0))
        return jnp.sum(axis * (ahead - behind)) / (2 * rho)

    shares = jnp.clip(jax.lax.map(share, axes).reshape(shape), 0.0, _LARGEST)
    mean = model.denoise(jnp.zeros_like(like), rho) / (1 - shares)
    return mean, rho**2 / (1 - shares)


def moments_by_signs(model: Denoiser, rho: Scalar, shape: tuple[int, ...]) -> tuple[Point, Scalar]:
    """Mean, and mean variance of y's coordinates, along 4 fixed random signs: 9 calls of the model."""
    signs = jax.random.rademacher(jax.random.key(0), (_SIGNS, *shape), rho.dtype)

    def share(sign: Point) -> Scalar:
        ahead, behind = (model.denoise(s * rho * sign, rho) for s in (1.0, -1.0))
        return jnp.mean(sign * (ahead - behind)) / (2 * rho)

    found = jnp.clip(jnp.mean(jax.vmap(share)(signs)), 0.0, _LARGEST)
    mean = model.denoise(jnp.zeros(shape, rho.dtype), rho) / (1 - found)
    return mean, rho**2 / (1 - found)


def moments_by_pairs(key: Key, model: Denoiser, rho: Level, like: Point) -> tuple[Point, Scalar]:
    """Mean, and mean variance of the data's coordinates, from 8 pairs of points ``+-rho z``: 16 calls.

    The points are where a network was trained. Sums of a pair give the mean, differences the variance.
    """
    z = jax.random.rademacher(key, (_PAIRS, *like.shape), like.dtype)
    ahead, behind = (jax.vmap(lambda z, sign=sign: model.denoise(sign * rho * z, rho))(z) for sign in (1, -1))
    share = jnp.clip(jnp.mean(z * (ahead - behind)) / (2 * rho), 0.0, _LARGEST)
    mean = jnp.mean(0.5 * (ahead + behind), 0) / (1 - share)
    return mean, rho**2 * share / (1 - share)
