"""SMC samplers as Feynman-Kac models: a path of laws, and moves that leave each of them invariant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.tempering.moves import Moves, cloud_covariance
from mcx.inference.tempering.paths import Path, PathData
from mcx.ops.batches import vmap_in_batches
from mcx.ops.logspace import effective_sample_size, largest, normalize
from mcx.ops.random import choose
from mcx.target import FeynmanKac

__all__ = ["Annealed", "Annealing", "Stage", "with_move"]

_HALVINGS = 50
_DENSE_SHARE = 5  # points a coordinate before a full covariance is fitted


class Stage(NamedTuple):
    """How the stage went that a particle comes from; the same for all particles.

    level: of the path, from 0 to 1.
    ess: effective number of particles after weighting for this level, before resampling.
    step_size: of the moves, adapted.
    acceptance: mean acceptance probability of the last move.
    num_moves: how many there were.
    places, densities: largest correlation of a whitened coordinate, and that of the log density, between the
        end of the moves and their start.
    forced: whether the level was raised by the least step, though the weights asked for less.
    """

    level: Any
    ess: Any
    step_size: Any
    acceptance: Any
    num_moves: Any
    places: Any
    densities: Any
    forced: Any


class Annealed(NamedTuple):
    """A particle: points of a chain, what the path needs to know of them, and the stage.

    position: (p, d), unconstrained.
    base: (p,) of the path.
    terms: (p, groups) of the path.
    stage: see :class:`Stage`.
    """

    position: Any
    base: Any
    terms: Any
    stage: Stage


@dataclass(frozen=True)
class Annealing:
    """How a path is followed; hashable.

    Attributes:
        path: of laws.
        moves: that leave them invariant.
        target_ess: the next level is the one at which the conditional effective sample size falls to this
            share.
        chain_length: p, points that a particle keeps of its moves: 1 is the last only; with more of them
            nothing is wasted, and particles are fewer for the same work.
        levels: given ones, increasing and ending at 1; None to adapt them.
        least_step: levels grow by this much at least.
        dense: whether moves use a full covariance; None where there are enough particles for it.
        first_step_size: of the moves, before it is adapted.
        rest: whether particles stay where they are once the level is 1.
    """

    path: Path
    moves: Moves
    target_ess: float = 0.9
    chain_length: int = 1
    levels: tuple[float, ...] | None = None
    least_step: float = 1e-7
    dense: bool | None = None
    first_step_size: float = 1.0
    rest: bool = False


class _Context(NamedTuple):
    """Data, and what is adapted at each step: the level, the metric, whether to rest, statistics."""

    data: PathData
    level: Any = None
    covariance: Any = None
    resting: Any = None
    ess: Any = None
    forced: Any = None


def with_move(annealing: Annealing, data: PathData, num_stages: int) -> FeynmanKac:
    """The Feynman-Kac model of an SMC sampler: weight for the next level, resample, move.

    The weights of a stage are known before its moves: particles are resampled by them ahead
    (``log_lookahead``), so that they are weighted and chosen first, and moved then. Levels and the moves'
    metric come from the whole population (``adapt``); the moves, too, look at all of it (``population``).

    Args:
        annealing: the path, how to follow it, and the moves.
        data: of the path.
        num_stages: at most; once the level is 1, moves go on at the posterior (or particles rest).

    Returns:
        A model for :func:`mcx.inference.smc.smc.smc`, whose evidence is that of the posterior if the level
        has come to 1. Run it with ``threshold=1``, which resamples at every stage.

    Sources: Del Moral, Doucet and Jasra (2006), with the backward kernel that is the reversal of the moves;
    Chopin (2002); for chains that are kept, Dau and Chopin (2022), Waste-free sequential Monte Carlo.
    """
    functions = _functions(annealing, jnp.result_type(float).name)
    return replace(functions, num_times=num_stages, prepare=jax.tree_util.Partial(_context, data))


def _context(data: PathData, params: Any = None) -> _Context:
    """What the model's functions see, before anything is adapted."""
    return _Context(data)


@lru_cache(maxsize=64)
def _functions(how: Annealing, dtype: str) -> FeynmanKac:
    """The functions, the same objects for equal settings: compiled programs are found by them."""
    path, moves, p = how.path, how.moves, how.chain_length

    def initial(key: Any, ctx: _Context, u: Any) -> Annealed:
        x = jax.vmap(lambda k: path.initial(ctx.data, k))(jax.random.split(key, p))
        base, terms = jax.vmap(lambda v: path.parts(ctx.data, v))(x)
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        stage = Stage(zero, one, one * how.first_step_size, one, jnp.int32(0), zero, zero, jnp.asarray(False))
        return Annealed(x, base, terms, stage)

    def increments(particle: Annealed, level: Any) -> Any:
        return path.increment(particle.terms, particle.stage.level, level)

    def adapt(ctx: _Context, particles: Annealed, log_w: Any, u: Any) -> _Context:
        before = particles.stage.level[0]
        # of points: those of a particle share its weight
        log_v = jnp.repeat(log_w, p) - jnp.log(p)
        terms = particles.terms.reshape(-1, path.groups)
        terms = jnp.where(jnp.isnan(terms) | (terms == jnp.inf), -jnp.inf, terms)  # as the engine has them
        if how.levels is None:
            level, forced = _next_level(path, terms, log_v, before, how.target_ess, how.least_step)
        else:
            levels = jnp.asarray(how.levels, dtype)
            level = jnp.min(jnp.where(levels > before, levels, 1.0))
            forced = jnp.asarray(False)
        log_u, _ = normalize(log_v + path.increment(terms, before, level))
        x = particles.position.reshape(len(log_u), -1)
        dense = len(log_u) >= _DENSE_SHARE * x.shape[1] if how.dense is None else how.dense
        return ctx._replace(
            level=level,
            covariance=cloud_covariance(x, log_u, dense),
            resting=(before >= 1) & how.rest,
            ess=effective_sample_size(log_u),
            forced=forced,
        )

    def log_lookahead(ctx: _Context, particle: Annealed, u: Any) -> Any:
        values = increments(particle, ctx.level)
        if p > 1:  # points that are no numbers do not spoil a chain, unless all are
            bad = jnp.isnan(values)
            values = jnp.where(bad & ~jnp.all(bad), -jnp.inf, values)
        return jax.nn.logsumexp(values) - jnp.log(p)

    def log_potential(ctx: _Context, before: Annealed | None, particle: Annealed, u: Any) -> Any:
        return jnp.zeros((), dtype) if before is None else log_lookahead(ctx, before, u)

    def transition(key: Any, ctx: _Context, particles: Annealed, u: Any) -> Annealed:
        key_pick, key_move = jax.random.split(key)

        def log_density(v: Any) -> Any:
            return path.log_density(ctx.data, ctx.level, v)

        x, size = particles.position[:, 0], particles.stage.step_size[0]
        if p > 1:
            log_u = jax.vmap(lambda particle: increments(particle, ctx.level))(particles)
            pick = jax.vmap(choose)(jax.random.split(key_pick, len(x)), log_u)
            x = jnp.take_along_axis(particles.position, pick[:, None, None], 1)[:, 0]
            moved, kept = moves.chain(key_move, log_density, x, size, ctx.covariance, p, ctx.resting)
        else:
            moved = moves.until_forgotten(key_move, log_density, x, size, ctx.covariance, ctx.resting)
            kept = moved.state[0][:, None]
        base, terms = _in_batches(lambda v: path.parts(ctx.data, v), kept, moves.batch_size)
        stage = Stage(
            ctx.level, ctx.ess, moved.step_size, moved.acceptance, moved.num_moves, moved.places,
            moved.densities, ctx.forced,
        )  # fmt: skip
        stage = jax.tree_util.tree_map(
            lambda new, old: jnp.broadcast_to(new, old.shape).astype(old.dtype), stage, particles.stage
        )
        return Annealed(kept, base, terms, stage)

    return FeynmanKac(
        initial, transition, log_potential, 1,
        log_lookahead=log_lookahead, adapt=adapt, population=True,
    )  # fmt: skip


def _in_batches(fn: Any, x: Any, batch_size: int | None) -> Any:
    """``fn`` at points (n, p, d)."""
    flat = vmap_in_batches(fn, (0,), batch_size)(x.reshape(-1, x.shape[-1]))
    return jax.tree_util.tree_map(lambda a: a.reshape(*x.shape[:2], *a.shape[1:]), flat)


def _next_level(
    path: Path, terms: Any, log_w: Any, before: Any, target: float, least: float
) -> tuple[Any, Any]:
    """The next level, and whether it had to be larger than the weights allow.

    The conditional effective sample size of Zhou, Johansen and Aston (2016) falls to ``target`` times its
    value for the smallest step: what has no likelihood at all is lost whatever the step.
    """

    def share(level: Any) -> Any:
        log_g = path.increment(terms, before, level)
        log_g = log_g - largest(log_g)
        return jnp.exp(2 * jax.nn.logsumexp(log_w + log_g) - jax.nn.logsumexp(log_w + 2 * log_g))

    smallest = jnp.maximum(least, 4 * jnp.finfo(log_w.dtype).eps * before)
    room = 1 - before
    possible = path.increment(terms, before, before + jnp.minimum(smallest, room)) > -jnp.inf
    limit = target * jnp.sum(jnp.exp(log_w) * possible)

    def halve(_: Any, bounds: Any) -> Any:
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
