"""Conditional SMC: a Markov kernel on paths, exact for any number of particles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, override

import jax
import jax.numpy as jnp

from mcx.errors import CapabilityError
from mcx.inference.conditional_smc.system import conditional, pinned
from mcx.inference.smc.backward import backward_path
from mcx.inference.smc.engine import SMCSettings, SMCState, first_and_rest, initialize, move, prepended
from mcx.inference.smc.genealogy import trace_paths, unique_ancestors
from mcx.ops.random import choose
from mcx.ops.validation import Rule, Settings, fraction, integer, one_of
from mcx.target import FeynmanKac, StateSpace
from mcx.types import Array, Bool, Float, Int, Key, PyTree, Scalar

_FORMER = {"exact": "backward"}  # how checkpoints of older versions name the draws


@dataclass(frozen=True, kw_only=True)
class ConditionalSMC(Settings):
    """Settings of a conditional SMC kernel.

    Ancestors are drawn independently, and particle 0 follows the present path: the scheme for which the
    kernel is exact (other schemes need a conditional version of their own, not just an overwritten particle).

    Attributes:
        num_particles: N, at least 2.
        backward: how the new path is drawn: "exact" (backward sampling, from the last time back, among all
            particles: mixes best), "ancestor" (ancestors of the present path are drawn on the way), or "none"
            (one line of descent; needs no transition density, and mixes badly at early times).
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3; see :func:`sweep` for the draws.
    """

    num_particles: int = field(default=50, kw_only=False)
    backward: Literal["exact", "ancestor", "none"] = "exact"
    threshold: float = 0.5

    former: ClassVar[Mapping[str, str]] = {"backward": "sampling"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        particles = "an int >= 2: one particle is the present path itself"
        return {
            "num_particles": integer(2)._replace(expected=particles),
            "backward": one_of("exact", "ancestor", "none"),
            "threshold": fraction(),
        }

    @override
    def identifiers(self) -> dict[str, Any]:
        return {**super().identifiers(), "sampling": _FORMER.get(self.backward, self.backward)}


class SweepInfo(NamedTuple):
    """What happened in one sweep.

    log_evidence: of the conditional system. The inverse of the evidence is estimated without bias under
        stationarity: E[1 / Zhat] = 1 / Z.
    ess: effective sample sizes, (T,).
    updated: whether the new path left the old one at each time, (T,).
    unique_ancestors: number of different parents at each time, (T,).
    """

    log_evidence: Scalar
    ess: Float[Array, " T"]
    updated: Bool[Array, " T"]
    unique_ancestors: Int[Array, " T"]


def sweep(
    key: Key, fk: FeynmanKac, ctx: PyTree, path: PyTree, method: ConditionalSMC
) -> tuple[PyTree, SweepInfo]:
    """Draw a new path given the old one.

    Args:
        key: a typed key.
        fk: the model.
        ctx: what ``fk.prepare`` gave for the parameters.
        path: pytree of states with a leading axis of T; finite potentials throughout.
        method: settings.

    Returns:
        The new path, and what happened. Leaves the law ``M_0 G_0 prod_t M_t G_t`` invariant for every N >= 2,
        threshold and way of drawing. Costs O(T N); memory O(T N).

    Raises:
        CapabilityError: for backward and ancestor sampling without a transition density, and for models that
            adapt to the population.

    Source: Andrieu, Doucet and Holenstein (2010), algorithm of section 2.4.3; backward sampling: Whiteley
    (2010); ancestor sampling: Lindsten, Jordan and Schon (2014), algorithm 2.
    """
    if method.backward != "none" and fk.log_transition is None:
        raise CapabilityError(
            f"ConditionalSMC(backward={method.backward!r}) needs the density of the transition",
            remedy="give log_transition=, or use backward='none'",
        )
    if fk.adapt is not None:
        raise CapabilityError(
            "conditional SMC is not exact for a model that adapts to the particles: the path, one of them, "
            "would change the law that it is to be drawn from",
            expected="FeynmanKac(adapt=None)",
            remedy="adapt in a run of mcx.smc beforehand, and hold the result fixed",
        )
    model = conditional(fk, path)
    settings = SMCSettings(method.num_particles, method.threshold)
    key_start, key_run, key_back = jax.random.split(key, 3)
    first, rest = first_and_rest(model.inputs)
    state = initialize(key_start, model, ctx, first, settings)

    def step(state: SMCState, x: tuple[Key, PyTree]) -> tuple[SMCState, PyTree]:
        key, u = x
        scheme = pinned(model, ctx, state, u, method.backward == "ancestor")
        state = move(key, model, ctx, state, u, replace(settings, resampling=scheme))
        return state, (state.particles, state.log_w, state.ancestors, state.info.ess)

    start = (state.particles, state.log_w, state.ancestors, state.info.ess)
    keys = jax.random.split(key_run, fk.num_times - 1)
    state, later = jax.lax.scan(step, state, (keys, rest))
    particles, log_w, ancestors, ess = prepended(start, later)
    if method.backward == "exact":
        new, index = backward_path(key_back, fk, ctx, particles, log_w)
        updated = index != 0
    else:
        last = choose(key_back, log_w[-1])
        new = jax.tree.map(lambda x: x[:, 0], trace_paths(ancestors, particles, last[None]))
        lines = trace_paths(ancestors, jnp.broadcast_to(jnp.arange(log_w.shape[1]), log_w.shape), last[None])
        updated = lines[:, 0] != 0
    return new, SweepInfo(state.log_evidence, ess, updated, unique_ancestors(ancestors))


def refuse_backward(method: ConditionalSMC, space: StateSpace) -> None:
    """Raise if drawing paths in this way needs a transition density that the model lacks; says why."""
    if method.backward != "none" and space.no_density:
        raise CapabilityError(
            f"ConditionalSMC(backward={method.backward!r}) needs the density of the transition, but "
            f"{space.no_density}",
            site=space.name,
            remedy="ConditionalSMC(backward='none', num_particles=...), with many particles; or write the "
            "model so that the state, with all that it remembers, is drawn by its sites",
        )
