"""The one loop body that runs every Feynman-Kac model: resample, move, weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, override

import jax
import jax.numpy as jnp

from mcx.inference.smc.resampling import Resampling, adaptive, multinomial
from mcx.inference.smc.variance import Origins, move_on, origins
from mcx.ops.batched_draws import particle_keys
from mcx.ops.batches import vmap_in_batches
from mcx.ops.logspace import Compensated, add, compensated, largest, normalize, value
from mcx.ops.validation import Rule, Settings, fraction, integer, optional
from mcx.target import FeynmanKac
from mcx.types import Array, Flags, Float, Index, Int, Key, LogWeights, PyTree, Scalar


@dataclass(frozen=True)
class Extras:
    """What travels with the particles: statistics of a particle's own past. Hashable by value.

    Attributes:
        initial: ``(ctx, x_0, u_0) -> extra``.
        update: ``(ctx, extra, x_prev, x, u) -> extra``, given the ancestor's extra and state.
    """

    initial: Callable[[PyTree, PyTree, PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree, PyTree, PyTree], PyTree]


@dataclass(frozen=True)
class SMCSettings(Settings):
    """Settings of a particle system; static.

    Attributes:
        num_particles: N.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step,
            0 is never.
        resampling: the scheme, see :mod:`mcx.inference.smc.resampling`.
        extras: what travels with the particles, or None.
        lag: steps between the points from which the error of the evidence is traced; None does not trace it.
        batch_size: particles that are moved and weighted at once; None is all.
    """

    num_particles: int
    threshold: float = 0.5
    resampling: Resampling = multinomial
    extras: Extras | None = None
    lag: int | None = None
    batch_size: int | None = None

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "num_particles": integer(1),
            "threshold": fraction(),
            "lag": optional(integer(1)),
            "batch_size": optional(integer(1)),
        }


class SMCInfo(NamedTuple):
    """What happened in one step.

    ess: effective sample size after weighting; 0 after a collapse.
    resampled: whether the step began with resampling.
    log_increment: log of the estimated evidence increment.
    num_nonfinite: potentials, or look-aheads if those are more, that were NaN or +inf; they count as -inf.
    max_log_weight: largest log weight before normalisation.
    """

    ess: Scalar
    resampled: Flags
    log_increment: Scalar
    num_nonfinite: Int[Array, ""]
    max_log_weight: Scalar


class SMCState(NamedTuple):
    """A weighted particle system.

    particles: pytree with a leading axis of N.
    log_w: normalised log weights (N,); all -inf after a collapse.
    log_z: log of the estimated evidence so far, a compensated sum.
    ancestors: index of each particle's parent in the system before, int32 (N,).
    extras: what travels with the particles.
    origins: registers for the error of the evidence.
    info: of the last step.
    """

    particles: PyTree
    log_w: LogWeights
    log_z: Compensated
    ancestors: Index
    extras: PyTree
    origins: Origins | None
    info: SMCInfo

    @property
    def log_evidence(self) -> Scalar:
        """Log of the estimated evidence so far."""
        return value(self.log_z)

    @property
    def collapsed(self) -> Flags:
        """Whether all weights are zero."""
        return self.info.ess == 0


def first_and_rest(tree: PyTree) -> tuple[PyTree, PyTree]:
    """A pytree's entries of time 0, and those of all later times."""
    first, rest = (jax.tree.map(lambda x, s=part: jnp.asarray(x)[s], tree) for part in (0, slice(1, None)))
    return first, rest


def prepended(first: PyTree, rest: PyTree) -> PyTree:
    """The entries of all times, from those of :func:`first_and_rest`."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def initialize(key: Key, fk: FeynmanKac, ctx: PyTree, u: PyTree, settings: SMCSettings) -> SMCState:
    """The particle system at t = 0: N draws from M_0, weighted by G_0; only its functions are used."""
    num = settings.num_particles
    each = partial(vmap_in_batches, batch_size=settings.batch_size)
    particles = _per_particle(fk, fk.initial, key, settings, ctx, (), (u,))
    log_g, num_bad = _potentials(each(lambda x: fk.log_potential(ctx, None, x, u), (0,))(particles))
    equal = jnp.full_like(log_g, -jnp.log(num))
    log_w, log_z, info = _weigh(equal, log_g, num_bad, jnp.asarray(False))
    extras = None
    if settings.extras is not None:
        extras = jax.vmap(settings.extras.initial, (None, 0, None))(ctx, particles, u)
    registers = None if settings.lag is None else origins(num, log_w.dtype)
    ancestors = jnp.arange(num, dtype=jnp.int32)
    return SMCState(particles, log_w, compensated(log_z), ancestors, extras, registers, info)


def move(
    key: Key, fk: FeynmanKac, ctx: PyTree, state: SMCState, u: PyTree, settings: SMCSettings
) -> SMCState:
    """One step: resample where the weights ask for it, draw from M_t, weight by G_t. Costs O(N).

    E[evidence estimate] is the evidence for every N, threshold and unbiased resampling. The gradient through
    ``log_potential`` and the transition's draws is, in expectation, that of the evidence: resampled weights
    carry their ancestors' derivative (Scibior and Wood 2021). Source: Chopin and Papaspiliopoulos (2020),
    algorithms 10.1 and 10.3, and section 10.3.3 (look-ahead).
    """
    each = partial(vmap_in_batches, batch_size=settings.batch_size)
    key_resample, key_move = jax.random.split(key)
    if fk.adapt is not None:
        ctx = fk.adapt(ctx, state.particles, state.log_w, u)
    log_v = state.log_w
    num_blind: Int[Array, ""] | int = 0
    if fk.log_lookahead is not None:
        look = fk.log_lookahead
        ahead, num_blind = _potentials(each(lambda x: look(ctx, x, u), (0,))(state.particles))
        log_v, _ = normalize(state.log_w + ahead)
        # where nobody is promising the look-ahead cannot tell particles apart
        log_v = jnp.where(largest(log_v) == -jnp.inf, state.log_w, log_v)
    carried = (state.particles, state.extras, None if state.origins is None else state.origins.index)
    resample = adaptive(settings.resampling, settings.threshold)
    known = state.info.ess if fk.log_lookahead is None else None
    ancestors, log_w, (x_prev, extras, index), resampled = resample(key_resample, log_v, carried, known)
    if fk.log_lookahead is not None:
        # W/V of the ancestors corrects for having resampled by V; without resampling the weights stay W
        log_w = jnp.where(resampled, log_w + (state.log_w - log_v)[ancestors], state.log_w)
    # resampling makes weights equal, also where all were zero: once collapsed, a system stays so
    log_w = jnp.where(state.collapsed, -jnp.inf, log_w)
    if fk.population:
        particles = fk.transition(key_move, ctx, x_prev, u)
    else:
        particles = _per_particle(fk, fk.transition, key_move, settings, ctx, (x_prev,), (u,))
    potential = each(lambda a, x: fk.log_potential(ctx, a, x, u), (0, 0))
    log_g, num_bad = _potentials(potential(x_prev, particles))
    log_w, increment, info = _weigh(log_w, log_g, jnp.maximum(num_bad, num_blind), resampled)
    if settings.extras is not None:
        extras = jax.vmap(settings.extras.update, (None, 0, 0, 0, None))(ctx, extras, x_prev, particles, u)
    registers = None
    if state.origins is not None:
        registers = state.origins._replace(index=index, resamplings=state.origins.resamplings + resampled)
    return SMCState(particles, log_w, add(state.log_z, increment), ancestors, extras, registers, info)


def end_block(state: SMCState) -> SMCState:
    """Due after every step whose number is a multiple of ``settings.lag``: see :mod:`.variance`."""
    if state.origins is None:
        return state
    return state._replace(origins=move_on(state.origins, jax.lax.stop_gradient(state.log_w)))


def _per_particle(
    fk: FeynmanKac,
    law: Callable[..., PyTree],
    key: Key,
    settings: SMCSettings,
    ctx: PyTree,
    own: tuple[PyTree, ...],
    shared: tuple[PyTree, ...],
) -> PyTree:
    """Draw from a kernel for every particle, from one batch or from a key each."""
    num = settings.num_particles
    mapped = (0, *(0 for _ in own))
    if not fk.batched_draws:
        each = vmap_in_batches(lambda k, *x: law(k, ctx, *x, *shared), mapped, settings.batch_size)
        return each(jax.random.split(key, num), *own)
    particle_key = particle_keys(key, num)
    each = vmap_in_batches(
        lambda i, *x: law(particle_key._replace(index=i), ctx, *x, *shared), mapped, settings.batch_size
    )
    return each(particle_key.index, *own)


def _potentials(log_g: Float[Array, " N"]) -> tuple[Float[Array, " N"], Int[Array, ""]]:
    """Log potentials with NaN and +inf made -inf, and the number of those."""
    bad = jnp.isnan(log_g) | (log_g == jnp.inf)
    return jnp.where(bad, -jnp.inf, log_g), jnp.sum(bad, dtype=jnp.int32)


def _weigh(
    log_w: LogWeights, log_g: Float[Array, " N"], num_bad: Int[Array, ""], resampled: Flags
) -> tuple[LogWeights, Scalar, SMCInfo]:
    top = largest(log_w + log_g)
    log_w, increment = normalize(log_w + log_g)
    # the weights sum to 1 here, which saves two of the three sums of effective_sample_size
    size = jnp.clip(1.0 / jnp.sum(jnp.exp(log_w) ** 2), 1.0, log_w.shape[0])
    ess = jnp.where(increment == -jnp.inf, 0.0, size)
    return log_w, increment, SMCInfo(ess, resampled, increment, num_bad, top)
