"""Paths from nested particle systems, which are run again from their keys; and the growth of systems."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from mcx.inference.conditional_smc.system import conditional, pinned
from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.smc.genealogy import draw_path
from mcx.inference.smc.history import HistorySettings, Record, record
from mcx.inference.smc.smc import loop_with
from mcx.inference.smc2.nested import HeldPaths, Nested, NestedFilterData, NestedFilters, prepared, values_at
from mcx.ops.batches import vmap_in_batches
from mcx.target import FeynmanKac
from mcx.types import Array, Flags, Key, Keys, PyTree, Scalar

_PATH_BYTES = 256 * 2**20


def nested_path(
    nesting: NestedFilters, data: NestedFilterData, key: Key, particle: Nested
) -> tuple[dict[str, Array], Scalar]:
    """A path from a particle's systems, which are run again from their keys with their histories kept.

    The log evidence of the systems shows whether they came out as before: another program rounds sums
    differently, which may change an ancestor. Costs O(T N), and memory O(T N). Source: Chopin, Jacob and
    Papaspiliopoulos (2013), section 3.3: given the parameters, the path of a final particle drawn by its
    weight follows the smoothing law, if parameters keep their weights.
    """
    paths, log_evidence = _drawn(nesting, data, key, particle, data.num_times)
    return {
        k: v for name, path in paths.items() for k, v in data.spaces[name].path_values(path).items()
    }, log_evidence


@partial(jax.jit, static_argnums=(0, 1, 5))
def grow(
    nesting: NestedFilters,
    wider: NestedFilters,
    data: NestedFilterData,
    key: Key,
    particles: Nested,
    num_times: int,
) -> Nested:
    """The same parameters with more inner particles; their weights do not change.

    A path is drawn from each of the old systems, and a larger system is run conditional on that path. If the
    weighted parameters carry systems that follow the extended law of the old size, they then carry systems
    that follow that of the new size: the path follows the posterior, and conditional SMC completes it.

    Args:
        nesting: the nesting so far.
        wider: the nesting with more particles; systems of both resample by independent draws ("multinomial").
        data: of both.
        key: a typed key.
        particles: of all replicates, with any number of leading axes.
        num_times: observations that the systems have seen; static.

    Returns:
        The particles, which hold those paths, as their keys alone would make other systems. Costs
        O(t (N + N')) a particle, or O(t (2 N + N')) if systems have grown before; and memory O(t N) for as
        many particles at once as fit into 256 MiB.

    Source: Chopin, Ridgway, Gerber and Papaspiliopoulos (2015), Towards automatic calibration of the number
    of state particles within the SMC^2 algorithm, which also recovers paths from states of random generators.
    """
    lead = particles.base.shape

    def one(key: Key, particle: Nested) -> Nested:
        key_path, key_run = jax.random.split(key)
        paths, _ = _drawn(nesting, data, key_path, particle, num_times)
        held = HeldPaths(paths, jnp.asarray(True))
        times = jnp.arange(data.num_times, dtype=jnp.uint32)
        keys = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key_run, times))
        new = particle._replace(keys=keys, held=held)
        ran = _rerun(wider, data, key, new, num_times, HistorySettings("none"))
        return new._replace(systems={name: state for name, (state, _) in ran.items()})

    count = math.prod(lead)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), particles)
    each = vmap_in_batches(one, (0, 0), path_batch_size(nesting, data, num_times, count))
    grown = each(jax.random.split(key, count), flat)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), grown)


def path_batch_size(
    nesting: NestedFilters, data: NestedFilterData, num_times: int, wanted: int
) -> int | None:
    """Number of systems whose histories are kept at once; None is all."""
    states = data.path.model[1].values()  # placeholders of the paths
    entries = sum(math.prod(jnp.shape(x)[1:]) for x in states)
    batch_size = _PATH_BYTES // (
        jnp.zeros(()).dtype.itemsize * num_times * nesting.settings.num_particles * (entries + 2)
    )
    return None if batch_size >= wanted else max(1, batch_size)


def _drawn(
    nesting: NestedFilters, data: NestedFilterData, key: Key, particle: Nested, num_times: int
) -> tuple[dict[str, PyTree], Scalar]:
    """Paths by system up to a time, and the log evidence of the systems that were run again."""
    paths: dict[str, PyTree] = {}
    log_evidence = jnp.zeros_like(particle.base)
    ran = _rerun(nesting, data, key, particle, num_times, HistorySettings("full"))
    for i, (name, (state, past)) in enumerate(ran.items()):
        key_path = jax.random.fold_in(key, i)
        paths[name] = draw_path(key_path, past.ancestors, past.particles, past.log_w[-1])
        log_evidence += state.log_evidence
    return paths, log_evidence


def _rerun(
    nesting: NestedFilters,
    data: NestedFilterData,
    key: Key,
    particle: Nested,
    num_times: int,
    keep: HistorySettings,
) -> dict[str, tuple[SMCState, Record]]:
    """Systems by name after their first ``num_times`` steps, run again; ``key`` is any key of their kind."""
    values = values_at(nesting.path, data, particle.position)
    keys = jax.random.wrap_key_data(particle.keys[:num_times], impl=jax.random.key_impl(key))
    ran = {}
    for i, (name, space) in enumerate(sorted(data.spaces.items())):
        fk, ctx = _beginning(space.feynman_kac, num_times), prepared(space, values)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        if particle.held is None:
            result = loop_with(own[0], own[1:], fk, ctx, nesting.settings, keep)
            ran[name] = result.state, result.history
        else:
            path, on = particle.held.paths[name], particle.held.on
            ran[name] = _held_loop(own, fk, ctx, nesting.settings, keep, path, on)
    return ran


def _held_loop(
    keys: Keys,
    fk: FeynmanKac,
    ctx: PyTree,
    settings: SMCSettings,
    keep: HistorySettings,
    path: PyTree,
    on: Flags,
) -> tuple[SMCState, Record]:
    """A system that is run conditional on a path, if that is ``on``, and freely from the path's end on."""
    until = jax.tree.leaves(path)[0].shape[0]
    conditioned = conditional(_beginning(fk, until), path)

    def at(t: int | slice, inputs: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.asarray(x)[t], inputs)

    def conditioned_step(state: SMCState, x: PyTree) -> tuple[SMCState, Record]:
        key, u = x

        def hold(state: SMCState) -> SMCState:
            scheme = pinned(conditioned, ctx, state, u, False)
            return move(key, conditioned, ctx, state, u, replace(settings, resampling=scheme))

        state = jax.lax.cond(on, hold, lambda state: move(key, fk, ctx, state, u[0], settings), state)
        return state, record(state, keep)

    def free_step(state: SMCState, x: PyTree) -> tuple[SMCState, Record]:
        state = move(x[0], fk, ctx, state, x[1], settings)
        return state, record(state, keep)

    first = jax.lax.cond(
        on,
        lambda: initialize(keys[0], conditioned, ctx, at(0, conditioned.inputs), settings),
        lambda: initialize(keys[0], fk, ctx, at(0, fk.inputs), settings),
    )
    state, early = jax.lax.scan(
        conditioned_step, first, (keys[1:until], at(slice(1, None), conditioned.inputs))
    )
    state, late = jax.lax.scan(free_step, state, (keys[until:], at(slice(until, None), fk.inputs)))
    start = jax.tree.map(lambda x: x[None], record(first, keep))
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), start, early, late)


def _beginning(fk: FeynmanKac, num_times: int) -> FeynmanKac:
    inputs = jax.tree.map(lambda x: jnp.asarray(x)[:num_times], fk.inputs)
    return replace(fk, num_times=num_times, inputs=inputs)
