"""SMC samplers as Feynman-Kac models: a path of laws, and moves that leave each of these invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.tempering.moves import CloudMoves, cloud_moments
from mcx.inference.tempering.paths import LawPath, LawPathData
from mcx.ops.batches import vmap_in_batches
from mcx.ops.logspace import effective_sample_size, largest, normalize
from mcx.ops.random import choose
from mcx.target import FeynmanKac
from mcx.types import Array, Flags, Float, Int, Key, LogWeights, PyTree, Scalar, Vector

_HALVINGS = 50
_DENSE_SHARE = 5  # points a coordinate before a full covariance is fitted


class Stage(NamedTuple):
    """What happened at the stage that a particle comes from; the same for all particles.

    level: of the path, from 0 to 1.
    ess: effective number of particles after weighting for this level, before resampling.
    step_size: of the moves, adapted.
    acceptance: mean acceptance probability of the last move.
    num_moves: number of moves.
    places, densities: largest correlation of a whitened coordinate, and that of the log density, between the
        start and the end of the moves.
    forced: whether the level was raised by the least step although the weights asked for less.
    """

    level: Scalar
    ess: Scalar
    step_size: Scalar
    acceptance: Scalar
    num_moves: Int[Array, ""]
    places: Scalar
    densities: Scalar
    forced: Flags


class Annealed(NamedTuple):
    """A particle: unconstrained points of its moves, base and terms of their log densities, and the stage."""

    position: Float[Array, "p d"]
    base: Float[Array, " p"]
    terms: Float[Array, "p groups"]
    stage: Stage


@dataclass(frozen=True)
class Annealing:
    """How a path is followed; hashable.

    Attributes:
        path: of laws.
        moves: that leave them invariant.
        target_ess: the next level is the one at which the conditional effective sample size falls to this
            share.
        waste_free_length: p, number of points that a particle keeps of its moves. 1 keeps the last only; with
            more, no move is wasted, and there are fewer particles for the same work.
        levels: fixed levels, increasing and ending at 1; None to adapt them.
        least_step: least increase of the level.
        dense: whether moves use a full covariance; None does so where there are enough particles for it.
        first_step_size: of the moves, before it is adapted.
        rest: whether particles stay where they are once the level is 1.
    """

    path: LawPath
    moves: CloudMoves
    target_ess: float = 0.9
    waste_free_length: int = 1
    levels: tuple[float, ...] | None = None
    least_step: float = 1e-7
    dense: bool | None = None
    first_step_size: float = 1.0
    rest: bool = False


class _Context(NamedTuple):
    """Data, and what is adapted at each stage: level, metric, whether to rest, statistics."""

    data: LawPathData
    level: PyTree = None
    covariance: PyTree = None
    resting: PyTree = None
    ess: PyTree = None
    forced: PyTree = None


def with_moves(annealing: Annealing, data: LawPathData, num_stages: int) -> FeynmanKac:
    """The Feynman-Kac model of an SMC sampler: weight for the next level, resample, move.

    The weights of a stage are known before its moves, so particles are resampled by them first
    (``log_lookahead``), and moved then. Levels and the metric of the moves are computed from the whole
    population (``adapt``), and so are the moves (``population``).

    Returns:
        A model for :func:`mcx.inference.smc.smc.smc`, whose evidence is that of the posterior if the level
        reaches 1 within ``num_stages``; from then on moves go on at the posterior, or particles rest. Run it
        with ``threshold=1``, which resamples at every stage.

    Sources: Del Moral, Doucet and Jasra (2006), with the backward kernel that is the reversal of the moves;
    Chopin (2002); for several points a particle, Dau and Chopin (2022), Waste-free sequential Monte Carlo.
    """
    functions = _functions(annealing, jnp.result_type(float).name)
    return replace(functions, num_times=num_stages, prepare=jax.tree_util.Partial(_context, data))


def _context(data: LawPathData, params: PyTree = None) -> _Context:
    return _Context(data)


@lru_cache(maxsize=64)
def _functions(annealing: Annealing, dtype: str) -> FeynmanKac:
    """The functions, which are the same objects for equal settings: compiled programs are found by them."""
    path, moves, p = annealing.path, annealing.moves, annealing.waste_free_length

    def initial(key: Key, ctx: _Context, u: PyTree) -> Annealed:
        x = jax.vmap(lambda k: path.initial(ctx.data, k))(jax.random.split(key, p))
        base, terms = jax.vmap(lambda v: path.parts(ctx.data, v))(x)
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        stage = Stage(
            zero, one, one * annealing.first_step_size, one, jnp.int32(0), zero, zero, jnp.asarray(False)
        )
        return Annealed(x, base, terms, stage)

    def increments(particle: Annealed, level: Scalar) -> Float[Array, " p"]:
        return path.increment(particle.terms, particle.stage.level, level)

    def adapt(ctx: _Context, particles: Annealed, log_w: LogWeights, u: PyTree) -> _Context:
        before = particles.stage.level[0]
        # log weights of points, which share the weight of their particle
        log_v = jnp.repeat(log_w, p) - jnp.log(p)
        terms = particles.terms.reshape(-1, path.groups)
        terms = jnp.where(jnp.isnan(terms) | (terms == jnp.inf), -jnp.inf, terms)  # as in the engine
        if annealing.levels is None:
            level, forced = _next_level(
                path, terms, log_v, before, annealing.target_ess, annealing.least_step
            )
        else:
            levels = jnp.asarray(annealing.levels, dtype)
            level = jnp.min(jnp.where(levels > before, levels, 1.0))
            forced = jnp.asarray(False)
        log_u, _ = normalize(log_v + path.increment(terms, before, level))
        x = particles.position.reshape(len(log_u), -1)
        dense = len(log_u) >= _DENSE_SHARE * x.shape[1] if annealing.dense is None else annealing.dense
        return ctx._replace(
            level=level,
            covariance=cloud_moments(x, log_u, dense)[1],
            resting=(before >= 1) & annealing.rest,
            ess=effective_sample_size(log_u),
            forced=forced,
        )

    def log_lookahead(ctx: _Context, particle: Annealed, u: PyTree) -> Scalar:
        values = increments(particle, ctx.level)
        if p > 1:  # points that are NaN do not spoil a particle, unless all are
            bad = jnp.isnan(values)
            values = jnp.where(bad & ~jnp.all(bad), -jnp.inf, values)
        return jax.nn.logsumexp(values) - jnp.log(p)

    def log_potential(ctx: _Context, before: Annealed | None, particle: Annealed, u: PyTree) -> Scalar:
        return jnp.zeros((), dtype) if before is None else log_lookahead(ctx, before, u)

    def transition(key: Key, ctx: _Context, particles: Annealed, u: PyTree) -> Annealed:
        key_pick, key_move = jax.random.split(key)

        def log_density(v: Vector) -> Scalar:
            return path.log_density(ctx.data, ctx.level, v)

        x, size = particles.position[:, 0], particles.stage.step_size[0]
        if p > 1:
            log_u = jax.vmap(lambda particle: increments(particle, ctx.level))(particles)
            pick = jax.vmap(choose)(jax.random.split(key_pick, len(x)), log_u)
            x = jnp.take_along_axis(particles.position, pick[:, None, None], 1)[:, 0]
            moved, kept = moves.waste_free(key_move, log_density, x, size, ctx.covariance, p, ctx.resting)
        else:
            moved = moves.until_decorrelated(key_move, log_density, x, size, ctx.covariance, ctx.resting)
            kept = moved.state[0][:, None]
        base, terms = in_batches(lambda v: path.parts(ctx.data, v), kept, moves.batch_size)
        stage = Stage(
            ctx.level, ctx.ess, moved.step_size, moved.acceptance, moved.num_moves, moved.places,
            moved.densities, ctx.forced,
        )  # fmt: skip
        stage = jax.tree.map(
            lambda new, old: jnp.broadcast_to(new, old.shape).astype(old.dtype), stage, particles.stage
        )
        return Annealed(kept, base, terms, stage)

    return FeynmanKac(
        initial, transition, log_potential, 1,
        log_lookahead=log_lookahead, adapt=adapt, population=True,
    )  # fmt: skip


def in_batches(fn: Callable[[Vector], PyTree], x: Float[Array, "n p d"], batch_size: int | None) -> PyTree:
    """A function of a vector (d,), computed at points (n, p, d)."""
    flat = vmap_in_batches(fn, (0,), batch_size)(x.reshape(-1, x.shape[-1]))
    return jax.tree.map(lambda a: a.reshape(*x.shape[:2], *a.shape[1:]), flat)


def _next_level(
    path: LawPath,
    terms: Float[Array, "n groups"],
    log_w: LogWeights,
    before: Scalar,
    target: float,
    least: float,
) -> tuple[Scalar, Flags]:
    """The next level, and whether it had to be larger than the weights allow.

    At that level the conditional effective sample size of Zhou, Johansen and Aston (2016) is ``target`` times
    its value for the smallest step, as particles without any likelihood are lost whatever the step.
    """

    def share(level: Scalar) -> Scalar:
        log_g = path.increment(terms, before, level)
        log_g = log_g - largest(log_g)
        return jnp.exp(2 * jax.nn.logsumexp(log_w + log_g) - jax.nn.logsumexp(log_w + 2 * log_g))

    smallest = jnp.maximum(least, 4 * jnp.finfo(log_w.dtype).eps * before)
    room = 1 - before
    possible = path.increment(terms, before, before + jnp.minimum(smallest, room)) > -jnp.inf
    limit = target * jnp.sum(jnp.exp(log_w) * possible)

    def halve(_: Int[Array, ""], bounds: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = bounds
        middle = 0.5 * (low + high)
        fine = share(before + jnp.exp(middle)) >= limit
        return jnp.where(fine, middle, low), jnp.where(fine, high, middle)

    ends = (jnp.log(smallest), jnp.log(jnp.maximum(room, smallest)))
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    whole = share(jnp.ones_like(before)) >= limit
    step = jnp.exp(low)
    forced = ~whole & (step <= 1.01 * smallest) & (room > smallest)
    return jnp.where(whole | (room <= smallest), 1.0, jnp.minimum(before + step, 1.0)), forced
