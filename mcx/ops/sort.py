"""Sorting: NumPy's vectorised sort on CPU, integer sorts elsewhere.

XLA sorts floats by a comparison that is slow on CPU and that accelerators' radix sorts do not take. On CPU
with AVX-512, in million keys a second for rows of 100, 1e4 and 1e6 float32: ``jnp.sort`` 6, 3 and 2; the same
keys as integers 24, 11 and 8; ``np.sort`` 450, 270 and 180.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from mcx.errors import MethodError

# Below this the call to Python costs more than XLA's sort. Programs that call Python cannot be kept in the
# persistent compilation cache, which is one more reason to leave small sorts where they are.
_LEAST_KEYS = 1 << 15
_KEYS_A_THREAD = 1 << 17
_HOST_TYPES = ("float32", "float64", "int32", "int64", "uint32", "uint64", "float16", "int16", "uint16")
_SWITCH = "MCX_SORT"


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sort(x: ArrayLike, axis: int = -1) -> Array:
    """Sort floats or integers along an axis, ascending, NaN last; the derivative costs an :func:`argsort`.

    On CPU, arrays of 2^15 entries or more are handed to NumPy, whose sort uses the vector units and all
    cores. Set ``MCX_SORT=xla`` before the first call where a program must not call Python: to export it, or
    to keep it in the persistent compilation cache; ``MCX_SORT=host`` hands over every sort. Under ``vmap``
    the size of one batch entry counts. A program that XLA partitions over devices by itself brings all
    entries to one of them for the call; within ``shard_map`` each device sorts its own. Subnormal numbers may
    come back as zeros.
    """
    return _along_last(x, axis, functools.partial(_dispatch, host=_host_sort, xla=_xla_sort))


@sort.defjvp
def _sort_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    order = argsort(x, axis)
    return _take(x, order, axis), _take(dx, order, axis)


def argsort(x: ArrayLike, axis: int = -1) -> Array:
    """The int32 permutation that sorts, without derivative; ties come in an order that varies by device."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    run = functools.partial(_dispatch, host=_host_argsort, xla=_xla_argsort, dtype=np.int32)
    return _along_last(x, axis, run)


def merge_order(a: Array, b: Array) -> Array:
    """The int32 permutation that sorts ``concatenate([a, b], -1)`` of sorted rows, ties of ``a`` first.

    On CPU it costs O(n + m) instead of a sort. It has no derivative.
    """
    both = jax.lax.stop_gradient(jnp.concatenate([a, b], -1))
    return _dispatch(both, host=_host_stable, xla=_xla_stable, dtype=np.int32)


def _take(x: Array, order: Array, axis: int) -> Array:
    return jnp.take_along_axis(x, order, axis, mode="promise_in_bounds")


def _along_last(x: ArrayLike, axis: int, fn: Callable[[Any], Any]) -> Array:
    x = jnp.asarray(x)
    if axis in (-1, x.ndim - 1):
        return fn(x)
    return jnp.moveaxis(fn(jnp.moveaxis(x, axis, -1)), -1, axis)


def _dispatch(
    x: Array, host: Callable[[Any], Any], xla: Callable[[Any], Any], dtype: DTypeLike | None = None
) -> Array:
    """Sort the last axis, on the host or in XLA."""
    if x.size == 0 or x.shape[-1] == 1 or not _to_host(x):
        return xla(x)
    out = jax.ShapeDtypeStruct(x.shape, x.dtype if dtype is None else dtype)

    def call(x: Array) -> Array:
        return jax.pure_callback(host, out, x, vmap_method="expand_dims")

    return jax.lax.platform_dependent(x, cpu=call, default=xla)


def _to_host(x: Array) -> bool:
    switch = os.environ.get(_SWITCH, "auto")
    if switch not in ("auto", "host", "xla"):
        raise MethodError(
            f"the environment variable {_SWITCH} is not understood",
            expected="auto, host or xla",
            found=repr(switch),
        )
    if switch == "xla" or str(x.dtype) not in _HOST_TYPES:
        return False
    return switch == "host" or x.size >= _LEAST_KEYS


# --- on the host ---------------------------------------------------------------------------------------


def _host_sort(x: Array) -> np.ndarray:
    return _rows(np.asarray(x), lambda part: np.sort(part, axis=-1))


def _host_argsort(x: Array) -> np.ndarray:
    return _rows(np.asarray(x), lambda part: np.argsort(part, axis=-1).astype(np.int32))


def _host_stable(x: Array) -> np.ndarray:
    # NumPy's stable sort finds runs that are sorted already, and only merges them
    return _rows(np.asarray(x), lambda part: np.argsort(part, axis=-1, kind="stable").astype(np.int32))


def _rows(x: np.ndarray, fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply ``fn`` to rows, in threads where there are many keys: NumPy's sorts let go of the lock."""
    rows = x.reshape(-1, x.shape[-1])
    parts = min(_num_cores(), rows.shape[0], x.size // _KEYS_A_THREAD)
    if parts < 2:
        return fn(x)
    return np.concatenate(list(_pool().map(fn, np.array_split(rows, parts)))).reshape(x.shape)


@functools.cache
def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_num_cores(), thread_name_prefix="mcx-sort")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


# --- in XLA --------------------------------------------------------------------------------------------


def _image(x: Array) -> Array:
    """Integers in the order of the floats, NaN last; integers as they are."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    dtype = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    return _flip(jax.lax.bitcast_convert_type(jnp.where(jnp.isnan(x), jnp.nan, x), dtype))


def _flip(bits: Array) -> Array:
    """Turn sign and magnitude into two's complement, and back."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _xla_sort(x: Array) -> Array:
    if not x.ndim:
        return x
    image = jax.lax.sort(_image(x), is_stable=False)
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.lax.bitcast_convert_type(_flip(image), x.dtype) if floats else image


def _xla_argsort(x: Array, stable: bool = False) -> Array:
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jax.lax.sort((_image(x), index), num_keys=1, is_stable=stable)[1]


def _xla_stable(x: Array) -> Array:
    # equal floats of different images, 0 and -0, would not be ties
    return _xla_argsort(x + 0.0 if math.prod(x.shape) else x, stable=True)
