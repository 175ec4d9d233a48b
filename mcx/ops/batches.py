"""``vmap`` over a part of the axis at a time, where all of it at once would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mcx.types import PyTree


def map_in_batches(fn: Callable[[Any], Any], points: PyTree, most: int) -> PyTree:
    """``jax.vmap(fn)(points)``, with at most ``most`` entries at once, in batches of equal size.

    The last batch is filled up with copies of the first entry, so that ``fn`` is traced once.
    """
    n = jax.tree.leaves(points)[0].shape[0]
    parts = -(-n // most)
    if parts <= 1:
        return jax.vmap(fn)(points)
    size = -(-n // parts)

    def split(x: Array) -> Array:
        filling = jnp.broadcast_to(x[:1], (parts * size - n, *x.shape[1:]))
        return jnp.concatenate([x, filling]).reshape(parts, size, *x.shape[1:])

    found = jax.lax.map(jax.vmap(fn), jax.tree.map(split, points))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], found)


def vmap_in_batches(
    fn: Callable[..., Any], in_axes: tuple[int | None, ...], batch_size: int | None, axis_name: Any = None
) -> Callable[..., Any]:
    """``jax.vmap`` over leading axes, ``batch_size`` entries at once; None is all of them.

    Intermediate values take memory for ``batch_size`` entries. The last batch may be smaller. ``axis_name``
    is for collectives over the entries, where they are all there at once.
    """
    if batch_size is None:
        return jax.vmap(fn, in_axes, axis_name=axis_name)

    def run(*args: PyTree) -> PyTree:
        def one(own: list[Any]) -> PyTree:
            left = iter(own)
            return fn(*(arg if axis is None else next(left) for arg, axis in zip(args, in_axes, strict=True)))

        mapped = [arg for arg, axis in zip(args, in_axes, strict=True) if axis is not None]
        return jax.lax.map(one, mapped, batch_size=None if batch_size == 1 else batch_size)

    return run
