"""Directions on the sphere: random ones, and randomly rotated sets that cover it evenly."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mcx.errors import MethodError
from mcx.ops.sobol_sequence import shifted, sobol_bits, uniforms
from mcx.ops.validation import one_of, validated
from mcx.types import Array, Float, Key

KINDS = ("auto", "iid", "orthogonal", "sobol", "fibonacci", "spiral", "equispaced")
_DIMENSION = {"fibonacci": 3, "spiral": 3, "equispaced": 2}
_LEAST_BLOCKS = 8  # fewer say too little about their spread


class Directions(NamedTuple):
    """Unit vectors, each of them uniform on the sphere.

    theta: (L, d).
    num_groups: the directions are this many independent groups, one after the other; None: standard errors
        treat all as independent.
    widen: factor of those standard errors that makes up for dependence.
    """

    theta: Float[Array, "L d"]
    num_groups: int | None = None
    widen: float = 1.0


def direction_kind(kind: str, d: int, owner: str = "sliced_wasserstein") -> str:
    """Check the kind of directions in dimension d, and choose it for "auto"; errors name ``owner``.

    Source: for the choice by dimension, Nguyen, Bariletto and Ho (2024), Quasi-Monte Carlo for 3D sliced
    Wasserstein, and measurements of mcx.
    """
    kind = validated(owner, "directions", kind, one_of(*KINDS))
    if kind == "auto":
        return {2: "equispaced", 3: "fibonacci"}.get(d, "sobol" if d <= 8 else "orthogonal")
    if _DIMENSION.get(kind, d) != d:
        raise MethodError(
            f"{kind!r} directions exist in dimension {_DIMENSION[kind]} only",
            expected=f"points of dimension {_DIMENSION[kind]}",
            found=f"dimension {d}",
            remedy='use directions="auto"',
        )
    return kind


def draw_directions(
    key: Key, kind: str, num: int, d: int, dtype: DTypeLike = jnp.float32, num_replicates: int = 4
) -> Directions:
    """Draw about ``num`` directions in dimension d, at least 2: frames and replicates are full ones.

    ``kind`` is "iid"; "orthogonal", frames of d orthonormal vectors; or a point set: "sobol" (a digital shift
    of Sobol' points, mapped by the normal quantile function and normalised), "fibonacci" and "spiral" (of a
    hemisphere, since opposite directions are equivalent; randomly rotated), "equispaced" (angles of half a
    circle, with a random start). With a single replicate of a point set errors are smaller, but their size is
    not known: the standard error is then that of independent directions, usually far too large.

    Frames are independent of each other, but fewer than 8 of them say too little of their spread. Within a
    frame the degree-4 part of an integrand has correlation at most 3 / (d^2 - 1), the degree-2 part a
    negative one, higher degrees next to none: standard errors from independence times sqrt(1 + 3 / (d + 1))
    are large enough.
    """
    if kind == "iid":
        return Directions(_normalised(jax.random.normal(key, (num, d), dtype)))
    if kind == "orthogonal":
        blocks = max(1, round(num / d))
        frames = jax.vmap(lambda k: random_rotation(k, d, dtype))(jax.random.split(key, blocks))
        if blocks < _LEAST_BLOCKS:
            return Directions(frames.reshape(-1, d)[: max(num, 2)], None, math.sqrt(1 + 3 / (d + 1)))
        return Directions(frames.reshape(-1, d), blocks)
    replicates = max(1, min(num_replicates, num // 2))
    size = max(1, num // replicates)
    keys = jax.random.split(key, replicates)
    one = {"sobol": _sobol, "fibonacci": _rotated, "spiral": _rotated, "equispaced": _equispaced}[kind]
    base = {"sobol": sobol_bits, "fibonacci": _fibonacci, "spiral": _spiral, "equispaced": _angles}[kind]
    points = jnp.asarray(base(size, d))
    theta = jax.vmap(lambda k: one(k, points, dtype))(keys).reshape(-1, d)
    return Directions(theta, replicates if replicates > 1 else None)


def random_rotation(key: Key, d: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "d d"]:
    """A uniformly random orthogonal matrix (d, d); O(d^3). Source: Mezzadri (2007)."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (d, d), dtype))
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(dtype)


def _normalised(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _rotated(key: Key, points: Array, dtype: DTypeLike) -> Array:
    rotation = random_rotation(key, points.shape[1], dtype)
    return _normalised(jnp.matmul(points.astype(dtype), rotation, precision="highest"))


def _fibonacci(num: int, d: int) -> np.ndarray:
    z = (np.arange(num) + 0.5) / num
    return _from_height(z, np.arange(num) * math.pi * (math.sqrt(5) - 1))


def _spiral(num: int, d: int) -> np.ndarray:
    """Generalised spiral; Rakhmanov, Saff and Zhou (1994), the upper half of 2 ``num`` points."""
    z = 1 - (np.arange(num) + 0.5) / num
    return _from_height(z, 1.8 * math.sqrt(2 * num) * np.arccos(z))


def _from_height(z: np.ndarray, angle: np.ndarray) -> np.ndarray:
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)


def _angles(num: int, d: int) -> np.ndarray:
    return np.arange(num) / num


def _equispaced(key: Key, points: Array, dtype: DTypeLike) -> Array:
    start = jax.random.uniform(key, (), dtype)
    angle = math.pi * (points.astype(dtype) + start)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)


def _sobol(key: Key, bits: Array, dtype: DTypeLike) -> Array:
    return _normalised(jax.scipy.special.ndtri(uniforms(shifted(key, bits), dtype)))
