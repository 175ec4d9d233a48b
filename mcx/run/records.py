"""Pytrees of arrays as arrays of plain records, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.types import Array, PyTree

_NOTHING = ("nothing", np.dtype("u1"), ())


def record_type(shapes: PyTree, lead: int) -> np.dtype[Any]:
    """The type of records that hold a pytree, a field a leaf; ``lead`` axes are those of the records."""
    fields = []
    for path, leaf in jax.tree.flatten_with_path(shapes)[0]:
        plain = _plain_type(leaf)
        fields.append((jax.tree_util.keystr(path) or "value", plain.dtype, plain.shape[lead:]))
    return np.dtype(fields or [_NOTHING])


def to_records(tree: PyTree, shape: tuple[int, ...]) -> np.ndarray:
    """An array of records of ``shape`` from a pytree of arrays with these leading axes."""
    leaves = [_plain(x) for x in jax.tree.leaves(tree)]
    records = np.zeros(shape, record_type(tree, len(shape)))
    # a pytree without leaves makes records of a single field that means nothing
    for name, leaf in zip(records.dtype.names or (), leaves, strict=False):
        records[name] = leaf
    return records


def from_records(records: np.ndarray, like: PyTree) -> PyTree:
    """The pytree that :func:`to_records` was given; ``like`` has its structure, shapes, dtypes, and keys."""
    leaves, structure = jax.tree.flatten(like)
    fields = (np.ascontiguousarray(records[name]) for name in records.dtype.names or ())
    values = [_restored(x, leaf) for x, leaf in zip(fields, leaves, strict=False)]
    return jax.tree.unflatten(structure, values)


def _is_key(x: Array | jax.ShapeDtypeStruct) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _plain(x: Array) -> np.ndarray:
    """Keys become their data, and types that NumPy does not know unsigned integers of the same bits."""
    found = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
    return found.view(f"u{found.dtype.itemsize}") if found.dtype.kind == "V" else found


def _plain_type(x: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if _is_key(x):
        return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
    dtype = np.dtype(x.dtype)
    return jax.ShapeDtypeStruct(x.shape, f"u{dtype.itemsize}" if dtype.kind == "V" else dtype)


def _restored(x: np.ndarray, like: Array) -> Array | np.ndarray:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(like))
    dtype = np.dtype(like.dtype)
    return x.view(dtype) if dtype.kind == "V" else x
