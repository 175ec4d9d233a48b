"""A first path for conditional SMC, drawn from a particle filter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mcx.errors import WeightCollapse
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC
from mcx.inference.smc.backward import backward_path
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.genealogy import draw_path
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.resampling import systematic
from mcx.inference.smc.smc import loop
from mcx.target import FeynmanKac, StateSpace
from mcx.types import Array, Key, PyTree, Scalar, SiteValues

_MIN_PARTICLES = 100  # a path of positive density is needed, and the filter runs once


def starting_path(
    key: Key, fk: FeynmanKac, ctx: PyTree, num_particles: int, *, backward: bool
) -> tuple[PyTree, Scalar]:
    """A path from a filter of at least 100 particles, and its log evidence: -inf after a collapse.

    The path is drawn backwards among all particles, which needs the transition density, or along a line of
    descent. Costs O(T N).
    """
    key_filter, key_path = jax.random.split(key)
    settings = SMCSettings(max(num_particles, _MIN_PARTICLES), resampling=systematic)
    filtered = loop(key_filter, fk, ctx, settings, HistorySettings("full"))
    found = filtered.history
    if backward:
        path, _ = backward_path(key_path, fk, ctx, found.particles, found.log_w)
        return path, filtered.log_evidence
    path = draw_path(key_path, found.ancestors, found.particles, found.log_w[-1])
    return path, filtered.log_evidence


def filtered_path(
    key: Key, space: StateSpace, values: SiteValues, method: ConditionalSMC
) -> tuple[dict[str, Array], Scalar]:
    """Values of such a path by site, and the filter's log evidence.

    Raises:
        WeightCollapse: if no particle explains an observation; not where this is traced.
    """
    fk = space.feynman_kac
    ctx = fk.prepare({k: values[k] for k in space.params})
    exact = method.backward == "exact"
    path, log_z = starting_path(key, fk, ctx, method.num_particles, backward=exact)
    if not isinstance(log_z, jax.core.Tracer) and log_z == -jnp.inf:
        raise WeightCollapse(
            "no particle of the filter that draws the first path explains the observations",
            site=space.name,
            remedy="start from other parameters, or with more particles: ConditionalSMC(num_particles=...)",
        )
    return space.path_values(path), log_z
