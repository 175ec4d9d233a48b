"""Warm-up of many chains together: each finds the typical set by itself, then all tune one sampler.

Approach. Chains start where the log density may be 10^9 below its maximum, and each needs another step size:
a common one is too small for most, or too large for some. So each chain adapts its own, on short
trajectories, while the metric is common to all (:mod:`~mcx.inference.mcmc.pooled_metric`); chains that are
left behind are moved, see :func:`relocate`. Tuning. Chains share the step size (by the harmonic mean of their
acceptance probabilities), the trajectory length (:mod:`~mcx.inference.mcmc.trajectory_length`) and the
metric. Afterwards all is frozen, and chains are independent given it. Codes say what happens at a step, so
that one program serves any length of warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation

from mcx.inference.mcmc import trajectory_length
from mcx.inference.mcmc.pooled_metric import Moments, Spread, covariance, metric_of, variances
from mcx.inference.mcmc.warmup import as_types
from mcx.ops import collectives
from mcx.types import Array, Covariance, Flags, Float, Int, Key, PyTree, Scalar, Vector

if TYPE_CHECKING:
    from blackjax.optimizers.dual_averaging import DualAveragingState


FROZEN, APPROACH, TUNE = range(3)
NOTHING, GATHER, NEW_METRIC, FINISH = range(4)

_APPROACH_ACCEPT = 0.65
_APPROACH_STEPS = 10  # leapfrog steps of the longest trajectory of an approach
# Averages over many chains are hardly noisy, and a strong pull to the middle (BlackJAX's default is 0.05,
# made for one chain) keeps the step size from swinging by factors of ten.
_PULL = 0.4
_LEAST_ACCEPTANCE = 0.05  # so that no single chain brings the harmonic mean to 0
_LEFT_BEHIND, _LEFT_BEHIND_PER_DIM = 20.0, 5.0  # nats


class WarmupPlan(NamedTuple):
    """What happens at a step; with a leading axis of steps, at each of them.

    phase: FROZEN, APPROACH or TUNE.
    event: what happens at the end of the step: NOTHING, GATHER, NEW_METRIC or FINISH.
    jitter: factor of the trajectory length in (0, 1), the same for all chains.
    """

    phase: Int[Array, "*step"] | np.ndarray
    event: Int[Array, "*step"] | np.ndarray
    jitter: Float[Array, "*step"] | np.ndarray


class Shared(NamedTuple):
    """What all chains have in common: the tuned step size, metric and length, and what they come from."""

    step_size: Scalar
    inverse_mass_matrix: Covariance
    mass_matrix: Covariance
    averaging: DualAveragingState
    length: trajectory_length.LengthState
    spread: Spread
    moments: Moments


class PooledState(NamedTuple):
    """Adaptation state of one chain: its own step size, for the approach, and what is the same in all."""

    averaging: DualAveragingState
    shared: Shared


type _Branch = Callable[[PooledState], PooledState]


def schedule(num_warmup: int, num_samples: int) -> WarmupPlan:
    """The plan of all steps: approach, tuning, then sampling.

    Half of the warm-up is the approach, within which chains left behind are looked for three times. The
    metric is renewed after a fifth and after a half of the tuning.
    """
    total = num_warmup + num_samples
    phase, event = np.full(total, FROZEN, np.int32), np.full(total, NOTHING, np.int32)
    if num_warmup:
        near = num_warmup // 2
        left = num_warmup - near
        phase[:near], phase[near:num_warmup] = APPROACH, TUNE
        if near:
            event[[near // 2, 3 * near // 4, near - 1]] = GATHER
        event[[near + left // 5, near + left // 2]] = NEW_METRIC
        event[num_warmup - 1] = FINISH
    return WarmupPlan(phase, event, _van_der_corput(total).astype(np.float32))


def _van_der_corput(count: int) -> np.ndarray:
    """The first numbers of van der Corput's sequence in base 2, all in (0, 1)."""
    index, value, digit = np.arange(1, count + 1), np.zeros(count), 0.5
    while (index > 0).any():
        value += digit * (index % 2)
        index, digit = index // 2, digit / 2
    return value


def init(dim: int, step_size: float, length: float, dense: bool) -> PooledState:
    """The state before the first step, with a unit metric."""
    start, _, _ = dual_averaging_adaptation(_APPROACH_ACCEPT)
    inverse, mass = metric_of(jnp.ones(dim), dense)
    shared = Shared(
        jnp.asarray(step_size, float),
        inverse,
        mass,
        start(step_size),
        trajectory_length.init(length),
        Spread.blank(dim),
        Moments.blank(dim, dense),
    )
    return PooledState(start(step_size), shared)


def step_size_of(state: PooledState, plan: WarmupPlan) -> Scalar:
    """Step size of this step's trajectory: the chain's own during the approach."""
    return jnp.where(plan.phase == APPROACH, jnp.exp(state.averaging.log_step_size), state.shared.step_size)


def num_leapfrogs(shared: Shared, plan: WarmupPlan, most: int) -> Int[Array, ""]:
    """Number of leapfrog steps of this step's trajectories, the same for all chains."""
    tuned = jnp.clip(jnp.ceil(plan.jitter * shared.length.length / shared.step_size), 1, most)
    near = jnp.ceil(plan.jitter * min(_APPROACH_STEPS, most))
    return jnp.where(plan.phase == APPROACH, near, tuned).astype(jnp.int32)


def step(
    state: PooledState,
    plan: WarmupPlan,
    position: Vector,
    gradient: Vector,
    proposal: trajectory_length.Proposal,
    num_steps: Int[Array, ""],
    target_accept: float,
    most: int,
) -> PooledState:
    """Adapt after a transition of ``num_steps`` leapfrog steps, of ``most``, that ended at ``position``."""
    dense = state.shared.inverse_mass_matrix.ndim == 2
    _, own_update, _ = dual_averaging_adaptation(_APPROACH_ACCEPT)
    restart, update, final = dual_averaging_adaptation(target_accept, gamma=_PULL)

    def approach(s: PooledState) -> PooledState:
        averaging = own_update(s.averaging, proposal.acceptance_rate)
        spread = s.shared.spread.add(position, gradient)
        inverse, mass = metric_of(variances(spread), dense)
        shared = s.shared._replace(spread=spread, inverse_mass_matrix=inverse, mass_matrix=mass)
        return PooledState(averaging, shared)

    def tune(s: PooledState) -> PooledState:
        old = s.shared
        averaging = update(old.averaging, _harmonic_mean(proposal))
        step_size = jnp.exp(averaging.log_step_size)
        slope = trajectory_length.slope(proposal, old.mass_matrix, num_steps * old.step_size)
        shared = old._replace(
            step_size=step_size,
            averaging=averaging,
            length=trajectory_length.update(old.length, slope, step_size, most * step_size),
            moments=old.moments.add(position),
        )
        return s._replace(shared=shared)

    def with_step_size(s: PooledState, step_size: Scalar, **changed: PyTree) -> PooledState:
        averaging = restart(step_size / 10)  # BlackJAX pulls towards ten times the step size it is given
        shared = s.shared._replace(step_size=step_size, averaging=averaging, **changed)
        return s._replace(shared=shared)

    def gather(s: PooledState) -> PooledState:
        return with_step_size(s, jnp.exp(collectives.mean(s.averaging.log_step_size_avg)))

    def new_metric(s: PooledState) -> PooledState:
        old = s.shared
        step_size = final(old.averaging)
        inverse, mass = metric_of(covariance(old.moments, old.inverse_mass_matrix), dense)
        blank, length = Moments.blank(position.shape[0], dense), trajectory_length.init(old.length.length)
        changed = {"inverse_mass_matrix": inverse, "mass_matrix": mass, "moments": blank, "length": length}
        return with_step_size(s, step_size, **changed)

    def finish(s: PooledState) -> PooledState:
        step_size = final(s.shared.averaging)
        return s._replace(
            shared=s.shared._replace(step_size=step_size, length=trajectory_length.final(s.shared.length))
        )

    def same(s: PooledState) -> PooledState:
        return s

    def choose(code: PyTree, branches: tuple[_Branch, ...], s: PooledState) -> PooledState:
        return jax.lax.switch(code, [lambda s, f=f: as_types(f(s), s) for f in branches], s)

    state = choose(plan.phase, (same, approach, tune), state)
    return choose(plan.event, (same, gather, new_metric, finish), state)


def _harmonic_mean(proposal: trajectory_length.Proposal) -> Scalar:
    """Harmonic mean of the acceptance probabilities of all chains.

    Trajectories that end outside of the support are left out, up to half of all: a hard bound is overstepped
    with any step size, and adapting to that would shrink the step size without end.
    """
    inverse = 1 / jnp.maximum(proposal.acceptance_rate, _LEAST_ACCEPTANCE)
    total, inside = collectives.mean((jnp.where(proposal.outside, 0.0, inverse), 1.0 - proposal.outside))
    return jnp.where(inside > 0, inside / total, 0.0) * jnp.minimum(1.0, 2 * inside)


def relocate(key: Key, chain: PyTree, log_density: Scalar, dim: int) -> tuple[PyTree, Flags]:
    """Move a chain that was left behind to where a random other one is; also whether it was moved.

    Left behind is a log density more than 20 + 5 d nats below the upper quartile of all. A mode that low
    would have to be e^5 = 150 times as wide in every dimension to hold as much mass as the others, so it is a
    plateau on the way, or a mode that no draw should come from. Modes that compete are closer and keep their
    chains.
    """
    everywhere = collectives.every(log_density)
    everywhere = jnp.where(jnp.isfinite(everywhere), everywhere, -jnp.inf)
    quartile = jnp.sort(everywhere)[3 * everywhere.shape[0] // 4]
    line = quartile - (_LEFT_BEHIND + _LEFT_BEHIND_PER_DIM * dim)
    behind = ~(log_density >= line)
    other = jax.random.categorical(key, jnp.where(everywhere >= line, 0.0, -jnp.inf))
    moved = jax.tree.map(
        lambda own, all_: jnp.where(behind, all_[other], own), chain, collectives.every(chain)
    )
    return moved, behind
