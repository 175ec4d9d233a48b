"""Draws from a finished cloud of SMC^2: parameters, and paths from filters that are run again."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.replicates import orders
from mcx.inference.smc.resampling import systematic
from mcx.inference.smc2.nested import Nested, NestedFilterData, NestedFilters
from mcx.inference.smc2.nested_paths import nested_path, path_batch_size
from mcx.ops.batches import vmap_in_batches
from mcx.ops.keys import Stream, stream
from mcx.target import Target
from mcx.types import Array, Bool, Flags, Float, Int, Key, Scalar

type Points = Float[Array, "chain draw d"]
type Values = Float[Array, "chain draw"]

_SAME = 1e-2  # log evidences of a filter and of its repetition differ by rounding alone


@partial(jax.jit, static_argnums=0)
def smc2_draws(
    nesting: NestedFilters, conditional: Target, data: NestedFilterData, key: Key, state: SMCState
) -> tuple[Points, Values, dict[str, Array], Bool[Array, "chain draw"]]:
    """Parameters of all replicates in random order, their log densities, values by site with paths.

    The last result says whether the filters of a draw came out as before, judged by their evidence.
    """
    position, log_p, order = _points(key, state)
    chains, num, _ = position.shape
    # the systems themselves are not needed, as they are run again
    particles = (state.particles._replace(systems={}), state.particles.log_evidence)
    particles = jax.vmap(lambda a, i: jax.tree.map(lambda x: x[i], a))(particles, order)

    def one(key: Key, particle: Nested, log_z: Scalar) -> tuple[dict[str, Array], Flags]:
        paths, again = nested_path(nesting, data, key, particle)
        at = conditional.with_data((data.path.model[0], paths))
        return {**at.constrain(at.unravel(particle.position)), **paths}, jnp.abs(again - log_z) < _SAME

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), particles)
    keys = jax.random.split(stream(key, Stream.NESTED_PATHS), chains * num)
    batch_size = path_batch_size(nesting, data, data.num_times, chains * num)
    found = vmap_in_batches(one, (0, 0, 0), batch_size)(keys, *flat)
    sites, same = jax.tree.map(lambda x: x.reshape(chains, num, *x.shape[1:]), found)
    return position, log_p, sites, same


@jax.jit
def params_so_far(marginal: Target, key: Key, state: SMCState) -> tuple[Points, Values, dict[str, Array]]:
    """Resampled parameters given the observations so far, without paths, of a run that was stopped."""
    keys = jax.random.split(stream(key, Stream.RESAMPLED_PARTICLES), len(state.log_w))
    chosen = jax.vmap(lambda k, log_w: systematic(k, log_w, log_w.shape[0]))(keys, state.log_w)
    particles = jax.vmap(lambda a, i: jax.tree.map(lambda x: x[i], a))(state.particles, chosen)
    position, log_p, _ = _points(key, state._replace(particles=particles))
    sites = jax.vmap(jax.vmap(lambda x: marginal.constrain(marginal.unravel(x))))(position)
    return position, log_p, {name: sites[name] for name, _ in marginal.shapes}


def _points(key: Key, state: SMCState) -> tuple[Points, Values, Int[Array, "chain draw"]]:
    """Positions and log densities in random order, and that order, chain x draw."""
    position = state.particles.position
    order = orders(key, *position.shape[:2])
    log_p = jnp.take_along_axis(state.particles.log_target, order, 1)
    return jnp.take_along_axis(position, order[:, :, None], 1), log_p, order
