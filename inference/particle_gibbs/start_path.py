"""A first path for conditional SMC, drawn from a particle filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mcx.inference.particle_gibbs.backward import backward_path
from mcx.inference.particle_gibbs.conditional_smc import ConditionalSMC
from mcx.inference.smc.genealogy import trace_paths
from mcx.inference.smc.smc import smc
from mcx.ops.random import choose
from mcx.target import StateSpace

__all__ = ["filtered_path"]

_MIN_PARTICLES = 100  # a path of positive density is needed, and the filter runs once


def filtered_path(
    key: Any, space: StateSpace, values: Mapping[str, Any], method: ConditionalSMC
) -> dict[str, Any]:
    """Draw a path from a particle filter.

    Args:
        key: a typed key.
        space: the state-space model.
        values: constrained values of its parameters, among others.
        method: how paths will be drawn later.

    Returns:
        Values of the path by site. Of density zero where the filter collapsed, which raises unless traced.
        Costs O(T N) for at least 100 particles.

    Raises:
        WeightCollapse: if no particle explains an observation.
    """
    fk = space.feynman_kac
    key_filter, key_path = jax.random.split(key)
    params = {k: values[k] for k in space.params}
    found = smc(
        key_filter,
        fk,
        params,
        num_particles=max(method.num_particles, _MIN_PARTICLES),
        resampling="systematic",
        history="full",
        max_nonfinite=1.0,
    ).history
    if method.sampling == "backward":
        path, _ = backward_path(key_path, fk, fk.prepare(params), found.particles, found.log_w)
    else:
        last = choose(key_path, found.log_w[-1])
        lines = trace_paths(found.ancestors, found.particles, last[None])
        path = jax.tree_util.tree_map(lambda x: x[:, 0], lines)
    return space.path_values(path)
