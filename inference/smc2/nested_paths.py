"""Paths out of nested particle systems, which are run once more from their keys; and how systems grow."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mcx.inference.conditional_smc.system import conditional, pinned
from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.smc.genealogy import draw_path
from mcx.inference.smc.history import HistorySettings, Record, record
from mcx.inference.smc.smc import loop_with
from mcx.inference.smc2.nested import Held, Nested, NestedData, Nesting, prepared, values_at
from mcx.ops.batches import vmap_in_batches
from mcx.target import FeynmanKac

__all__ = ["grow", "nested_path", "paths_at_once"]

_PATH_BYTES = 256 * 2**20


def nested_path(nesting: Nesting, data: NestedData, key: Any, particle: Nested) -> tuple[dict[str, Any], Any]:
    """A path out of a particle's systems, which are run once more with their keys, and kept.

    Returns:
        Values by site; and the log evidence of the systems, by which to tell whether they came out as they
        were: in another program sums are rounded otherwise, which may change an ancestor. Costs O(T N),
        memory O(T N).

    Source: Chopin, Jacob and Papaspiliopoulos (2013), section 3.3: given the parameters, the path of a final
    particle, drawn by its weight, follows the smoothing law when parameters are weighted as they are.
    """
    paths, log_evidence = _drawn(nesting, data, key, particle, data.num_times)
    return {
        k: v for name, path in paths.items() for k, v in data.spaces[name].path_values(path).items()
    }, log_evidence


@partial(jax.jit, static_argnums=(0, 1, 5))
def grow(
    nesting: Nesting, wider: Nesting, data: NestedData, key: Any, particles: Nested, num_times: int
) -> Nested:
    """The same parameters with more inner particles; their weights stay as they are.

    A path is drawn from each of the old systems, and a wider one is run given that path. Where parameters,
    weighted as they are, carry systems that follow the extended law of the old size, they then carry such
    of the new size: the path drawn follows the posterior, and conditional SMC completes it.

    Args:
        nesting: as it was.
        wider: as it will be; the systems of both resample by independent draws ("multinomial").
        data: of both.
        key: a typed key.
        particles: of all replicates, with any number of leading axes.
        num_times: observations that the systems have seen; static.

    Returns:
        The particles, which remember those paths: another system would come of their keys alone. Costs
        O(t (N + N')) a particle, where systems grew before O(t (2 N + N')); memory O(t N) for as many at once
        as 256 MiB hold.

    Source: Chopin, Ridgway, Gerber and Papaspiliopoulos (2015), Towards automatic calibration of the number
    of state particles within the SMC^2 algorithm, which also has paths from the states of random generators.
    """
    lead = particles.base.shape

    def one(key: Any, particle: Nested) -> Nested:
        key_path, key_run = jax.random.split(key)
        paths, _ = _drawn(nesting, data, key_path, particle, num_times)
        held = Held(paths, jnp.asarray(True))
        times = jnp.arange(data.num_times, dtype=jnp.uint32)
        keys = jax.random.key_data(jax.vmap(jax.random.fold_in, (None, 0))(key_run, times))
        new = particle._replace(keys=keys, held=held)
        ran = _again(wider, data, key, new, num_times, HistorySettings("none"))
        return new._replace(systems={name: state for name, (state, _) in ran.items()})

    count = math.prod(lead)
    flat = jax.tree_util.tree_map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), particles)
    each = vmap_in_batches(one, (0, 0), paths_at_once(nesting, data, num_times, count))
    grown = each(jax.random.split(key, count), flat)
    return jax.tree_util.tree_map(lambda x: x.reshape(*lead, *x.shape[1:]), grown)


def paths_at_once(nesting: Nesting, data: NestedData, num_times: int, wanted: int) -> int | None:
    """Systems whose histories are kept at once; None is all."""
    states = data.path.model[1].values()  # placeholders of the paths
    entries = sum(math.prod(jnp.shape(x)[1:]) for x in states)
    at_once = _PATH_BYTES // (
        jnp.zeros(()).dtype.itemsize * num_times * nesting.settings.num_particles * (entries + 2)
    )
    return None if at_once >= wanted else max(1, at_once)


def _drawn(
    nesting: Nesting, data: NestedData, key: Any, particle: Nested, num_times: int
) -> tuple[dict[str, Any], Any]:
    """Paths by system up to a time, and the log evidence of the systems run once more."""
    paths: dict[str, Any] = {}
    log_evidence = jnp.zeros_like(particle.base)
    ran = _again(nesting, data, key, particle, num_times, HistorySettings("full"))
    for i, (name, (state, past)) in enumerate(ran.items()):
        key_path = jax.random.fold_in(key, i)
        paths[name] = draw_path(key_path, past.ancestors, past.particles, past.log_w[-1])
        log_evidence += state.log_evidence
    return paths, log_evidence


def _again(
    nesting: Nesting, data: NestedData, key: Any, particle: Nested, num_times: int, keep: HistorySettings
) -> dict[str, tuple[SMCState, Record]]:
    """Systems by name after their first steps, from the keys of those; ``key`` tells the kind of keys."""
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
    keys: Any, fk: FeynmanKac, ctx: Any, settings: SMCSettings, keep: HistorySettings, path: Any, on: Any
) -> tuple[SMCState, Record]:
    """A system that was run given a path, if that is ``on``, and freely from its end on."""
    until = jax.tree_util.tree_leaves(path)[0].shape[0]
    nailed = conditional(_beginning(fk, until), path)

    def at(t: Any, inputs: Any) -> Any:
        return jax.tree_util.tree_map(lambda x: jnp.asarray(x)[t], inputs)

    def given(state: SMCState, x: Any) -> tuple[SMCState, Record]:
        key, u = x

        def hold(state: SMCState) -> SMCState:
            scheme = pinned(nailed, ctx, state, u, False)
            return move(key, nailed, ctx, state, u, replace(settings, resampling=scheme))

        state = jax.lax.cond(on, hold, lambda state: move(key, fk, ctx, state, u[0], settings), state)
        return state, record(state, keep)

    def free(state: SMCState, x: Any) -> tuple[SMCState, Record]:
        state = move(x[0], fk, ctx, state, x[1], settings)
        return state, record(state, keep)

    first = jax.lax.cond(
        on,
        lambda: initialize(keys[0], nailed, ctx, at(0, nailed.inputs), settings),
        lambda: initialize(keys[0], fk, ctx, at(0, fk.inputs), settings),
    )
    state, early = jax.lax.scan(given, first, (keys[1:until], at(slice(1, None), nailed.inputs)))
    state, late = jax.lax.scan(free, state, (keys[until:], at(slice(until, None), fk.inputs)))
    start = jax.tree_util.tree_map(lambda x: x[None], record(first, keep))
    return state, jax.tree_util.tree_map(lambda *x: jnp.concatenate(x), start, early, late)


def _beginning(fk: FeynmanKac, num_times: int) -> FeynmanKac:
    inputs = jax.tree_util.tree_map(lambda x: jnp.asarray(x)[:num_times], fk.inputs)
    return replace(fk, num_times=num_times, inputs=inputs)
