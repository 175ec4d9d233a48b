"""SMC^2: moves of parameters that carry particle systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import override

import jax
import jax.numpy as jnp

from mcx.inference.mcmc.whitening import Whitening
from mcx.inference.smc2.nested import (
    Context,
    Nested,
    NestedFilterData,
    NestedFilters,
    Stage,
    Times,
    nest,
    populate,
)
from mcx.inference.tempering.moves import cloud_moments, until_decorrelated
from mcx.ops.batches import vmap_in_batches
from mcx.ops.random import accept
from mcx.ops.validation import Rule, Settings, integer, number, optional
from mcx.target import FeynmanKac
from mcx.types import Array, Float, IntLike, Key, LogWeights, Scalar, Vector

# Scales of the random walk, in standard deviations of the cloud times d^-1/2: up to the best one for a
# Gaussian, which noise in the evidence hardly changes (Sherlock et al. 2015), and smaller ones for other
# laws.
_SCALES = (0.25, 2.5)
_DENSE_SHARE = 5  # particles a coordinate before a full covariance is fitted
_TAILS = 5.0  # degrees of freedom of proposals that do not depend on where a particle is


@dataclass(frozen=True)
class PMMHMoves(Settings):
    """How parameters are moved; hashable.

    Attributes:
        threshold: parameters are resampled and moved where their effective number is below this fraction.
        max_correlation: they are moved until neither coordinates nor estimated log densities have a larger
            correlation than this with their former values.
        max_moves: largest number of moves at one time.
        batch_size: number of parameters that move at once; None is all.
    """

    threshold: float = 0.5
    max_correlation: float = 0.2
    max_moves: int = 30
    batch_size: int | None = None

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "threshold": number(above=0, most=1),
            "max_correlation": number(above=0, below=1),
            "max_moves": integer(1),
            "batch_size": optional(integer(1)),
        }


def with_pmmh(nesting: NestedFilters, moves: PMMHMoves, data: NestedFilterData) -> FeynmanKac:
    """SMC^2: a nested model whose parameters are moved by PMMH where few of them are left.

    A move proposes a point from a Student law fitted to the cloud or, with the same probability, from a
    random walk with the cloud's covariance. It runs new particle systems up to the present time, and accepts
    by their estimated evidence, which leaves the law of parameters and systems invariant. The first kind
    decorrelates particles at once where the posterior is nearly Gaussian; the second works for any posterior.

    Returns:
        A model for :func:`mcx.inference.smc.smc.smc`; run it with ``threshold=moves.threshold``, so that
        particles are moved whenever they have been resampled.

    Source: Chopin, Jacob and Papaspiliopoulos (2013), SMC^2, section 3.2.
    """
    plain = nest(nesting, data)
    moved = _functions(plain.functions_only(), nesting, moves)
    return replace(moved, num_times=plain.num_times, inputs=plain.inputs, prepare=plain.prepare)


@lru_cache(maxsize=64)
def _functions(plain: FeynmanKac, nesting: NestedFilters, moves: PMMHMoves) -> FeynmanKac:
    """The functions of :func:`with_pmmh`, the same objects for equal settings."""

    def adapt(ctx: Context, particles: Nested, log_w: LogWeights, u: Times) -> Context:
        num, dim = particles.position.shape
        size = jnp.clip(1.0 / jnp.sum(jnp.exp(log_w) ** 2), 1.0, num)  # as in the engine
        centre, covariance = cloud_moments(particles.position, log_w, num >= _DENSE_SHARE * dim)
        due = (size < moves.threshold * num) | u.last
        return ctx._replace(due=due, centre=centre, covariance=covariance)

    def transition(key: Key, ctx: Context, particles: Nested, u: Times) -> Nested:
        key_move, key_step = jax.random.split(key)
        present = jnp.where(u.last, u.t, u.t - 1)
        particles = _move(nesting, moves, key_move, ctx, particles, present)

        def go_on(particles: Nested) -> Nested:
            step = vmap_in_batches(lambda k, x: plain.transition(k, ctx, x, u), (0, 0), moves.batch_size)
            return step(jax.random.split(key_step, len(particles.position)), particles)

        return jax.lax.cond(u.last, lambda particles: particles, go_on, particles)

    return replace(plain, transition=transition, adapt=adapt, population=True)


def _move(
    nesting: NestedFilters, moves: PMMHMoves, key: Key, ctx: Context, particles: Nested, t: IntLike
) -> Nested:
    """Metropolis-Hastings moves that leave the law given y_0, ..., y_t invariant, if they are due."""
    num, dim = particles.position.shape
    to_scale = Whitening(ctx.covariance)

    def one(key: Key, particle: Nested, scale: Scalar) -> tuple[Nested, Scalar]:
        key_kind, key_afresh, key_walk, key_run, key_accept = jax.random.split(key, 5)
        here = to_scale.inverse(particle.position - ctx.centre)
        afresh = jax.random.bernoulli(key_kind) & jnp.all(jnp.isfinite(here))
        there, log_turn = _student(key_afresh, here)
        noise = jax.random.normal(key_walk, (dim,), particle.position.dtype)
        walked = particle.position + to_scale(scale * noise)
        position = jnp.where(afresh, ctx.centre + to_scale(there), walked)
        proposal = populate(nesting, ctx.data, key_run, position, t)
        log_ratio = proposal.log_target - particle.log_target + jnp.where(afresh, log_turn, 0.0)
        accepted = accept(key_accept, log_ratio)
        held = None if particle.held is None else particle.held._replace(on=jnp.asarray(False))
        proposal = proposal._replace(stage=particle.stage, held=held)
        new: Nested = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposal, particle)
        return new, jnp.nan_to_num(jnp.exp(jnp.minimum(log_ratio, 0.0)))

    each = vmap_in_batches(one, (0, 0, 0), moves.batch_size)
    low, high = (jnp.log(c / dim**0.5) for c in _SCALES)

    def once(key: Key, state: Nested, step_size: Scalar) -> tuple[Nested, Scalar, Scalar]:
        key_size, key_own = jax.random.split(key)
        sizes = jnp.exp(jax.random.uniform(key_size, (num,), state.position.dtype, low, high))
        state, rate = each(jax.random.split(key_own, num), state, sizes)
        return state, jnp.mean(rate), step_size

    def look(state: Nested) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        return state.position, state.log_target

    one_step = jnp.ones((), particles.position.dtype)
    # `rest` in place of a conditional, of which `vmap` would run both branches
    found = until_decorrelated(
        key, once, particles, look, one_step, ctx.covariance, moves.max_correlation, moves.max_moves, ~ctx.due
    )
    stage = Stage(ctx.due, found.acceptance, found.num_moves, found.places, found.densities)
    new: Nested = found.state
    stage = jax.tree.map(
        lambda x, old: jnp.broadcast_to(x, old.shape).astype(old.dtype), stage, particles.stage
    )
    return new._replace(stage=stage)


def _student(key: Key, here: Vector) -> tuple[Vector, Scalar]:
    """A draw from the standard Student law, and the log ratio of its density ``here`` to that at the draw."""
    key_direction, key_scale = jax.random.split(key)
    chi2 = 2 * jax.random.gamma(key_scale, _TAILS / 2, dtype=here.dtype)
    there = jax.random.normal(key_direction, here.shape, here.dtype) * jnp.sqrt(_TAILS / chi2)
    far = [jnp.log1p(jnp.sum(w**2) / _TAILS) for w in (there, here)]
    return there, 0.5 * (_TAILS + here.size) * (far[0] - far[1])
