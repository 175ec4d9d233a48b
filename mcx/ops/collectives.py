"""Sums over all chains of a run, from within one chain: across the vectorised axis and across devices.

Results are the same for every chain, and JAX knows it: a loop bound that is computed from them stays one
number under ``vmap``. Over an axis that does not exist (a single chain, a single device) nothing is pooled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mcx.types import PyTree

VMAP_AXIS = "mcx_lane"  # the vmap over the chains of a device; checkpoints compare programs with this name
MESH_AXIS = "chain"  # the mesh axis that chains are spread over


def _axes() -> tuple[str, ...]:
    return tuple(axis for axis in (VMAP_AXIS, MESH_AXIS) if _bound(axis))


def _bound(axis: str) -> bool:
    try:
        jax.lax.axis_size(axis)
    except NameError:
        return False
    return True


def _over_axes(reduce: Callable[[Any, str], Any], tree: PyTree) -> PyTree:
    for axis in _axes():
        tree = reduce(tree, axis)
    return tree


def size() -> int:
    """Number of chains."""
    count = 1
    for axis in _axes():
        count *= jax.lax.axis_size(axis)
    return count


def index() -> Array:
    """Number of this chain among all of them."""
    place: Any = jnp.int32(0)
    for axis in reversed(_axes()):
        place = place * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
    return place


def mean(tree: PyTree) -> PyTree:
    """Mean over chains, leaf by leaf."""
    return _over_axes(jax.lax.pmean, tree)


def agreed(tree: PyTree) -> PyTree:
    """A value that all chains share, as one value; the largest where they differ."""
    return _over_axes(jax.lax.pmax, tree)


def every(tree: PyTree) -> PyTree:
    """The values of all chains, along a new leading axis in the order of :func:`index`."""

    def gather(x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        whole = x[None]
        for axis in _axes():
            whole = jax.lax.all_gather(whole, axis, axis=0, tiled=True)
        return whole

    return jax.tree.map(gather, tree)
