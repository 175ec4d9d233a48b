"""Pytrees of arrays as arrays of plain records, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["from_records", "record_type", "to_records"]

_NOTHING = ("nothing", np.dtype("u1"), ())


def record_type(shapes: Any, lead: int) -> np.dtype[Any]:
    """The record that a pytree's leaves make up, one field a leaf.

    Args:
        shapes: a pytree of arrays, or of their shapes and dtypes.
        lead: leading axes that belong to the array of records, such as steps and chains.
    """
    fields = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        plain = _plain_type(leaf)
        fields.append((jax.tree_util.keystr(path) or "value", plain.dtype, plain.shape[lead:]))
    return np.dtype(fields or [_NOTHING])


def to_records(tree: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A pytree of arrays whose leading axes are ``shape`` as an array of records of this shape."""
    leaves = [_plain(x) for x in jax.tree_util.tree_leaves(tree)]
    records = np.zeros(shape, record_type(tree, len(shape)))
    # a pytree without leaves makes records of a single field that means nothing
    for name, leaf in zip(records.dtype.names or (), leaves, strict=False):
        records[name] = leaf
    return records


def from_records(records: np.ndarray, like: Any) -> Any:
    """The pytree again.

    Args:
        records: what :func:`to_records` gave.
        like: a pytree of the same structure, of shapes and dtypes, or of arrays where there are random keys.
    """
    leaves, structure = jax.tree_util.tree_flatten(like)
    fields = (np.ascontiguousarray(records[name]) for name in records.dtype.names or ())
    values = [_restored(x, leaf) for x, leaf in zip(fields, leaves, strict=False)]
    return jax.tree_util.tree_unflatten(structure, values)


def _is_key(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _plain(x: Any) -> np.ndarray:
    """Keys as their data; types that NumPy does not know as unsigned integers of the same bits."""
    found = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
    return found.view(f"u{found.dtype.itemsize}") if found.dtype.kind == "V" else found


def _plain_type(x: Any) -> jax.ShapeDtypeStruct:
    if _is_key(x):
        return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
    dtype = np.dtype(x.dtype)
    return jax.ShapeDtypeStruct(x.shape, f"u{dtype.itemsize}" if dtype.kind == "V" else dtype)


def _restored(x: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(like))
    dtype = np.dtype(like.dtype)
    return x.view(dtype) if dtype.kind == "V" else x
