"""The compiled programs behind a run: the start, a chunk of steps, the emission of draws.

One program serves every chunk length: the trip count is an argument. The key of step t is
``fold_in(chain_key, t)``, so results do not depend on how steps are cut into chunks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from mcx.ops import collectives
from mcx.ops.batches import vmap_in_batches
from mcx.ops.lru_cache import LRUCache
from mcx.run.devices import CHAINS, REPLICATED, STEPS_CHAINS, over_devices, placed
from mcx.run.kernel import Kernel
from mcx.types import Array, Int, IntLike, Key, Keys, PyTree

_BUFFER_BYTES = 64 * 2**20
_MAX_CAPACITY = 512


class Programs(NamedTuple):
    """Compiled programs of one kernel at one set of shapes.

    Attributes:
        start: ``(data, keys, start) -> state``; None in the cache of steps.
        chunk: ``(data, keys, first, count, state, inputs) -> (state, draws, stats)``.
        emit: ``(data, draws, shift) -> emitted draws``, each moved on by ``shift``, round the end.
        capacity: steps that a buffer holds.
        stats, emitted: shapes and dtypes of a full buffer of statistics and of emitted draws.
        mesh: devices that chains are spread over; None for the default one.
        code: the traced chunk of steps.
    """

    start: Any
    chunk: Callable[..., tuple[PyTree, PyTree, PyTree]]
    emit: Callable[[PyTree, PyTree, IntLike | np.integer[Any]], PyTree]
    capacity: int
    stats: PyTree
    emitted: PyTree
    mesh: Mesh | None
    code: ClosedJaxpr


_WHOLE: LRUCache[Programs] = LRUCache()
_STEPS: LRUCache[Programs] = LRUCache()  # without the start, which depends on initial points


@partial(jax.jit, static_argnums=1)
def chain_keys(key: Key, num_chains: int) -> tuple[Keys, Keys]:
    """Keys of the chains' starts and steps, by index: of ``Stream.INITIAL_STATES`` and ``Stream.STEPS``."""
    chains = jnp.arange(num_chains, dtype=jnp.uint32)
    each = jax.vmap(jax.random.fold_in, (None, 0))
    key_start, key_run = jax.random.split(key)
    return each(key_start, chains), each(key_run, chains)


def over_chains(
    fn: Callable[..., PyTree], in_axes: tuple[int | None, ...], num_chains: int, batch_size: int | None = None
) -> Callable[..., PyTree]:
    """``vmap`` over chains; a single chain goes without it, so that conditionals stay conditionals.

    Kernels may pool over the chains (:mod:`mcx.ops.collectives`) unless these come in batches.
    """
    if num_chains > 1:
        return vmap_in_batches(fn, in_axes, batch_size, collectives.VMAP_AXIS)

    def one(*args: PyTree) -> PyTree:
        own = (
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for arg, axis in zip(args, in_axes, strict=True)
        )
        return jax.tree.map(lambda x: jnp.asarray(x)[None], fn(*own))

    return one


def start_chains(
    kernel: Kernel, data: PyTree, keys: Keys, start: PyTree, batch_size: int | None = None
) -> PyTree:
    """States of all chains at step 0. ``start`` has a leading chain axis, or is None."""
    in_axes = (None, 0, None if start is None else 0)
    if batch_size is not None:
        empty = jax.eval_shape(kernel.init, data, keys[0], jax.tree.map(lambda x: x[0], start))
        if not jax.tree.leaves(empty):  # batches of nothing are no loop that JAX knows
            return empty
    state = over_chains(kernel.init, in_axes, keys.shape[0], batch_size)(data, keys, start)
    return jax.tree.map(_strong, state)


def run_steps(
    kernel: Kernel,
    data: PyTree,
    keys: Keys,
    first: IntLike,
    count: IntLike,
    state: PyTree,
    inputs: PyTree,
    capacity: int,
    discard: int = 0,
    batch_size: int | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Take ``count`` steps from step ``first`` on, and keep those after the first ``discard``.

    Gives the state, and draws and statistics in buffers of ``capacity`` x chains. At most ``batch_size``
    chains move at once.
    """

    def one(keys: Keys, state: PyTree, u: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def step(data: PyTree, key: Key, state: PyTree, u: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            new, info = kernel.step(data, key, state, u)
            new = jax.tree.map(_strong, new)
            draw, stats = kernel.collect(new, info)
            return new, draw, dict(stats)

        return over_chains(step, (None, 0, 0, None), num_chains, batch_size)(data, keys, state, u)

    num_chains = keys.shape[0]
    # derived all at once: within the loop a key costs more on a CPU than the steps of some kernels
    times = (first + jnp.arange(discard + capacity)).astype(jnp.uint32)
    step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(keys, times)
    # traced once, as the shapes of the buffers and the loop body come from the same cached trace
    one = jax.jit(one)
    u0 = jax.tree.map(lambda x: x[0], inputs)
    _, draw, stats = jax.eval_shape(one, keys, state, u0)
    buffers = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), (draw, stats))

    def body(i: Int[Array, ""], carry: PyTree) -> PyTree:
        state, buffers = carry
        u = jax.tree.map(lambda x: x[i], inputs)
        state, draw, stats = one(step_keys[i], state, u)
        slot = jnp.maximum(i - discard, 0)
        buffers = jax.tree.map(lambda b, x: b.at[slot].set(x), buffers, (draw, stats))
        return state, buffers

    block = kernel.block_size
    if block is None:
        state, (draws, stats) = jax.lax.fori_loop(0, count, body, (state, buffers))
        return state, draws, stats

    def one_block(outer: PyTree) -> PyTree:
        """The steps up to the end of a block; a conditional in a single loop would cost at every step."""
        i, (state, buffers) = outer
        stop = jnp.minimum(count, i + block - (first + i) % block)
        state, buffers = jax.lax.fori_loop(i, stop, body, (state, buffers))
        full = (first + stop) % block == 0
        end_block = over_chains(kernel.end_block, (0,), num_chains)
        state = jax.lax.cond(full, end_block, lambda state: state, state)
        return stop, (state, buffers)

    outer = (jnp.zeros_like(jnp.asarray(count)), (state, buffers))
    _, (state, (draws, stats)) = jax.lax.while_loop(lambda outer: outer[0] < count, one_block, outer)
    return state, draws, stats


def prepare(
    kernel: Kernel,
    data: PyTree,
    keys: Keys,
    start: PyTree,
    inputs: PyTree,
    while_compiling: Callable[[], None] | None = None,
    capacity: int | None = None,
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> tuple[Programs, float]:
    """Compile the programs of a run, or find them in the cache; also the seconds spent.

    Programs are traced one after the other, as that is Python's work, and compiled side by side. Over a mesh,
    ``data``, ``keys`` and ``start`` have to be placed on it already.
    """
    begun = time.perf_counter()
    slices = jax.tree.map(lambda x: x[:1], inputs)  # of any number of steps
    settings = (kernel, capacity, mesh, batch_size, bool(jax.config.jax_enable_x64))
    key = (settings, _avals((data, keys, start, slices)))

    def compiled_programs() -> Programs:
        with ThreadPoolExecutor(3) as workers:

            def begin(data: PyTree, keys: Keys, start: PyTree) -> PyTree:
                return start_chains(kernel, data, keys, start, batch_size)

            begin = over_devices(begin, mesh, (REPLICATED, CHAINS, CHAINS), CHAINS)
            traced = jax.jit(begin).trace(data, keys, start)
            compiled = workers.submit(traced.lower().compile)
            state = placed(traced.out_info, mesh, CHAINS, kernel.size)
            make = partial(
                _steps,
                workers,
                kernel,
                data,
                keys,
                state,
                slices,
                while_compiling,
                capacity,
                mesh,
                batch_size,
            )
            steps = _STEPS.get((settings, _avals((data, keys, state, slices))), make)
            return steps._replace(start=compiled.result())

    return _WHOLE.get(key, compiled_programs), time.perf_counter() - begun


def _steps(
    workers: ThreadPoolExecutor,
    kernel: Kernel,
    data: PyTree,
    keys: Keys,
    state: PyTree,
    slices: PyTree,
    while_compiling: Callable[[], None] | None,
    capacity: int | None,
    mesh: Mesh | None,
    batch_size: int | None,
) -> Programs:
    """The programs of a run without the start."""
    capacity = _capacity(state) if capacity is None else capacity

    def chunk(
        data: PyTree, keys: Keys, first: IntLike, count: IntLike, state: PyTree, inputs: PyTree
    ) -> tuple[PyTree, PyTree, PyTree]:
        return run_steps(kernel, data, keys, first, count, state, inputs, capacity, batch_size=batch_size)

    ins = (REPLICATED, CHAINS, REPLICATED, REPLICATED, CHAINS, REPLICATED)
    chunk = over_devices(chunk, mesh, ins, (CHAINS, STEPS_CHAINS, STEPS_CHAINS))
    slices = jax.tree.map(lambda x: jax.ShapeDtypeStruct((capacity, *x.shape[1:]), x.dtype), slices)
    zero = np.int32(0)
    traced = jax.jit(chunk).trace(data, keys, zero, zero, state, slices)
    compiled = workers.submit(traced.lower().compile)
    _, draws, stats = traced.out_info
    draws = placed(draws, mesh, STEPS_CHAINS, kernel.size)
    emission = workers.submit(_compile_emit, kernel, data, draws, mesh, batch_size)
    if while_compiling is not None:
        while_compiling()
    emit, emitted = emission.result()
    return Programs(None, compiled.result(), emit, capacity, stats, emitted, mesh, traced.jaxpr)


def _compile_emit(
    kernel: Kernel, data: PyTree, draws: PyTree, mesh: Mesh | None, batch_size: int | None
) -> tuple[Callable[[PyTree, PyTree, IntLike | np.integer[Any]], PyTree], PyTree]:
    if not jax.tree.leaves(draws):
        return (lambda data, draws, shift: draws), draws
    capacity = jax.tree.leaves(draws)[0].shape[0]

    def one(data: PyTree, draw: PyTree) -> PyTree:
        return jax.tree.map(_key_data, kernel.emit(data, draw))

    def emit(data: PyTree, draws: PyTree, shift: IntLike) -> PyTree:
        order = (jnp.arange(capacity) - shift) % capacity
        placed = jax.lax.optimization_barrier(jax.tree.map(lambda x: x[order], draws))
        return jax.vmap(vmap_in_batches(one, (None, 0), batch_size), (None, 0))(data, placed)

    emit = over_devices(emit, mesh, (REPLICATED, STEPS_CHAINS, REPLICATED), STEPS_CHAINS)
    traced = jax.jit(emit).trace(data, draws, np.int32(0))
    return traced.lower().compile(), traced.out_info


def _key_data(x: Array) -> Array:
    """Random keys as integers, which the host can hold."""
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def _capacity(state: PyTree) -> int:
    """Steps that a buffer holds. A draw is about as large as the state it is taken from."""
    size = sum(math.prod(x.shape) * 8 for x in jax.tree.leaves(state))
    return max(1, min(_MAX_CAPACITY, _BUFFER_BYTES // max(size, 1)))


def _strong(x: Array) -> Array:
    """The same value with a strong type, as loop carries must not change type between steps."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, x.dtype)


def _avals(tree: PyTree) -> Hashable:
    """Structure, shapes and dtypes of a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(_aval(x) for x in leaves)


def _aval(x: Any) -> object:
    if hasattr(x, "dtype"):
        extended = jnp.issubdtype(x.dtype, jax.dtypes.extended)
        dtype = x.dtype if extended else jax.dtypes.canonicalize_dtype(x.dtype)
        return (tuple(x.shape), str(dtype), getattr(x, "weak_type", False))
    return type(x)
