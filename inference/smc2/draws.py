"""Draws out of a finished cloud of SMC^2: parameters, and paths from filters that are run once more."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.replicates import orders
from mcx.inference.smc.resampling import systematic
from mcx.inference.smc2.nested import Nested, NestedData, Nesting
from mcx.inference.smc2.nested_paths import nested_path, paths_at_once
from mcx.ops.batches import vmap_in_batches
from mcx.ops.keys import Stream, stream
from mcx.target import Target

__all__ = ["params_so_far", "smc2_draws"]

_SAME = 1e-2  # log evidences of a filter and of the same once more differ by rounding alone


@partial(jax.jit, static_argnums=0)
def smc2_draws(
    nesting: Nesting, given: Target, data: NestedData, key: Any, state: SMCState
) -> tuple[Any, Any, dict[str, Any], Any]:
    """Parameters of all replicates, (chain, draw, d), their log densities, and sites; in no order.

    And whether the filters of a draw came out as they were, by their evidence.
    """
    position, log_p, order = _points(key, state)
    chains, num, _ = position.shape
    # what a path is made of; the systems themselves are run once more
    particles = (state.particles._replace(systems={}), state.particles.log_evidence)
    particles = jax.vmap(lambda a, i: jax.tree_util.tree_map(lambda x: x[i], a))(particles, order)

    def one(key: Any, particle: Nested, log_z: Any) -> tuple[dict[str, Any], Any]:
        paths, again = nested_path(nesting, data, key, particle)
        at = given.with_data((data.path.model[0], paths))
        return {**at.constrain(at.unravel(particle.position)), **paths}, jnp.abs(again - log_z) < _SAME

    flat = jax.tree_util.tree_map(lambda x: x.reshape(-1, *x.shape[2:]), particles)
    keys = jax.random.split(stream(key, Stream.NESTED_PATHS), chains * num)
    at_once = paths_at_once(nesting, data, data.num_times, chains * num)
    found = vmap_in_batches(one, (0, 0, 0), at_once)(keys, *flat)
    sites, same = jax.tree_util.tree_map(lambda x: x.reshape(chains, num, *x.shape[1:]), found)
    return position, log_p, sites, same


@jax.jit
def params_so_far(marginal: Target, key: Any, state: SMCState) -> tuple[Any, Any, dict[str, Any]]:
    """Of a run that was stopped: parameters given the observations so far, resampled; no paths."""
    keys = jax.random.split(stream(key, Stream.RESAMPLED_PARTICLES), len(state.log_w))
    chosen = jax.vmap(lambda k, log_w: systematic(k, log_w, log_w.shape[0]))(keys, state.log_w)
    particles = jax.vmap(lambda a, i: jax.tree_util.tree_map(lambda x: x[i], a))(state.particles, chosen)
    position, log_p, _ = _points(key, state._replace(particles=particles))
    sites = jax.vmap(jax.vmap(lambda x: marginal.constrain(marginal.unravel(x))))(position)
    return position, log_p, {name: sites[name] for name, _ in marginal.shapes}


def _points(key: Any, state: SMCState) -> tuple[Any, Any, Any]:
    """Positions and log densities in a random order, and that order, chain x draw."""
    position = state.particles.position
    order = orders(key, *position.shape[:2])
    log_p = jnp.take_along_axis(state.particles.log_target, order, 1)
    return jnp.take_along_axis(position, order[:, :, None], 1), log_p, order
