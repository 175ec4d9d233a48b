"""Posteriors of diffusion priors as Feynman-Kac models: the reverse chain, led to the observations.

With the reverse chain ``p(y_K) prod_k p(y_k | y_{k+1})`` and a positive guess ``h_k(y_k)`` at the likelihood
that a point will have in the end, exact there (``h_0`` is the likelihood), particles are proposed with the
guess in view and weighted by ``p h_k / (q h_{k+1})``. The guesses cancel but for the last: whatever they are,
the particles sample the chain's posterior, and their evidence is its evidence without bias. Good ones keep
weights equal.

- **twisted**: the likelihood of the denoised point, to a power; proposals follow its gradient through the
  denoiser.
- **linear_gaussian**: the density of the observation around the denoised point, its noise and the error of
  the denoiser added up along every singular direction; the proposal is the exact conditional of that.
- **soft_value**: the guess of "twisted" without gradients: several children a particle, one of which is taken
  in proportion to its guess, while the mean of all is kept as the weight.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham (2023), Practical and asymptotically exact conditional
sampling in diffusion models (TDS); Cardoso, Janati El Idrissi, Le Corff and Moulines (2023), Monte Carlo
guided diffusion for Bayesian linear inverse problems (MCGDiff); Li et al. (2024), Derivative-free guidance
with soft value-based decoding (SVDD), which has no weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.guided.calibration import GuidedData, Guiding, Levels
from mcx.inference.diffusion.guided.observation import log_likelihood
from mcx.inference.diffusion.models.reverse_process import Evaluation, ReverseStep
from mcx.ops.logspace import log_sum_exp
from mcx.ops.random import choose
from mcx.target import FeynmanKac

__all__ = ["Guided", "code", "guided", "path_of"]

_FARTHEST = 3.0  # a step is led so many of its standard deviations a coordinate, at most


class Guided(NamedTuple):
    """A particle.

    position: y, at the noise level of the step.
    seen: what the model shows there.
    log_guess: log h.
    place: of "linear_gaussian", where the data are thought to be, along the directions; else None.
    slope: its gradient, of "twisted"; else None.
    bonus: log weight that is no function of the position and the one before: that of the start's law, and
        with "soft_value" the log of the mean over children.
    """

    position: Any
    seen: Evaluation
    log_guess: Any
    place: Any
    slope: Any
    bonus: Any


def guided(how: Guiding, data: GuidedData) -> FeynmanKac:
    """The Feynman-Kac model of a posterior, for :func:`mcx.smc`; K + 1 steps of particles :class:`Guided`."""
    context = jax.tree_util.Partial(_context, data)
    return replace(code(how), num_times=data.chain.num_steps + 1, inputs=data.levels, prepare=context)


def _context(data: GuidedData, params: Any = None) -> GuidedData:
    return data


@lru_cache(maxsize=64)
def code(how: Guiding) -> FeynmanKac:
    """The functions, the same objects for equal settings: compiled programs are found by them.

    Their context is a :class:`~.calibration.GuidedData`, a step's input its row of levels.
    """
    soft, linear = how.kind == "soft_value", how.kind == "linear_gaussian"

    def led(ctx: GuidedData, x: Guided, u: Levels) -> tuple[ReverseStep, Any]:
        """The chain's step, and how the proposal differs: a shift, or its moments along directions."""
        move = ctx.chain.reverse_step(x.position, x.seen, u.steps)
        if linear:
            return move, _conditional(ctx, move, x.place, u, how.noised)
        if soft:
            return move, None
        shift = move.variance * x.slope
        length, farthest = jnp.sqrt(jnp.sum(shift**2)), _FARTHEST * jnp.sqrt(move.variance * shift.size)
        return move, shift * jnp.minimum(1.0, farthest / jnp.maximum(length, farthest * 1e-6))

    def log_ratio(ctx: GuidedData, move: ReverseStep, lead: Any, y: Any) -> Any:
        """Log density of the chain's step over that of the proposal."""
        moved = y - move.mean
        if linear:
            return _conditional_ratio(ctx, move, lead, moved)
        return jnp.sum(lead * (0.5 * lead - moved)) / move.variance

    def initial(key: Any, ctx: GuidedData, u: Levels) -> Guided:
        start = ctx.chain.initial_law()
        shape, dtype = ctx.chain.shape, ctx.chain.rho.dtype
        noise = jax.random.normal(key, shape, dtype)
        if linear and how.noised:  # the guess is sharp from the start
            move = ReverseStep(start.mean, start.variance, jnp.zeros((), dtype))
            lead = _conditional(ctx, move, None, u, True)
            y = start.mean + _stretched(ctx, move, lead, noise)
            bonus = log_ratio(ctx, move, lead, y)
        else:
            y, bonus = start.mean + jnp.sqrt(start.variance) * noise, jnp.zeros((), dtype)
        return _look(how, ctx, y, u, bonus + ctx.chain.initial_log_weight(y, start))

    def transition(key: Any, ctx: GuidedData, x: Guided, u: Levels) -> Guided:
        move, lead = led(ctx, x, u)
        shape, dtype, zero = ctx.chain.shape, ctx.chain.rho.dtype, jnp.zeros((), ctx.chain.rho.dtype)
        if not soft:
            noise = jax.random.normal(key, shape, dtype)
            step = _stretched(ctx, move, lead, noise) if linear else lead + jnp.sqrt(move.variance) * noise
            return _look(how, ctx, move.mean + step, u, zero)
        key_draw, key_pick = jax.random.split(key)
        noise = jax.random.normal(key_draw, (how.num_children, *shape), dtype)
        children = jax.vmap(lambda y: _look(how, ctx, y, u, zero))(
            move.mean + jnp.sqrt(move.variance) * noise
        )
        pick = choose(key_pick, children.log_guess)
        picked: Guided = jax.tree_util.tree_map(lambda a: a[pick], children)
        return picked._replace(bonus=_log_mean(children.log_guess))

    def log_potential(ctx: GuidedData, before: Guided | None, x: Guided, u: Levels) -> Any:
        if before is None:
            return x.log_guess + x.bonus
        move, lead = led(ctx, before, u)
        if soft:
            gained = x.bonus
        else:
            gained = x.log_guess + log_ratio(ctx, move, lead, x.position)
        dead = before.log_guess == -jnp.inf
        value = move.increment + gained - jnp.where(dead, 0.0, before.log_guess)
        return jnp.where(dead, -jnp.inf, value)

    def log_transition(ctx: GuidedData, before: Guided, x: Guided, u: Levels) -> Any:
        move, lead = led(ctx, before, u)
        square = jnp.sum((x.position - move.mean) ** 2) / move.variance
        log_p = -0.5 * (square + x.position.size * jnp.log(2 * jnp.pi * move.variance))
        return log_p - log_ratio(ctx, move, lead, x.position)

    return FeynmanKac(initial, transition, log_potential, 1, log_transition=None if soft else log_transition)


def path_of(how: Guiding, ctx: GuidedData, key: Any, positions: Any) -> Guided:
    """Particles along positions, as if they had been drawn.

    Args:
        how: the guidance.
        ctx: the data.
        key: of the siblings of "soft_value", which are drawn anew: given a path they are independent.
        positions: y at every level, from the noisiest, (K + 1, ...).
    """
    zero = jnp.zeros((), positions.dtype)
    path = jax.vmap(lambda y, u: _look(how, ctx, y, u, zero))(positions, ctx.levels)
    first = ctx.chain.initial_log_weight(positions[0], ctx.chain.initial_law())
    rest = jnp.zeros(len(positions) - 1, positions.dtype)
    if how.kind == "soft_value":

        def mean(key: Any, y: Any, seen: Evaluation, guess: Any, u: Levels) -> Any:
            move = ctx.chain.reverse_step(y, seen, u.steps)
            noise = jax.random.normal(key, (how.num_children - 1, *y.shape), y.dtype)
            others = jax.vmap(lambda e: _look(how, ctx, move.mean + jnp.sqrt(move.variance) * e, u, zero))
            return _log_mean(jnp.concatenate([guess[None], others(noise).log_guess]))

        before, after = (
            jax.tree_util.tree_map(lambda x, s=s: x[s], (path, ctx.levels))
            for s in (slice(-1), slice(1, None))
        )
        keys = jax.random.split(key, len(rest))
        rest = jax.vmap(mean)(keys, before[0].position, before[0].seen, after[0].log_guess, after[1])
    return path._replace(bonus=jnp.concatenate([first[None], rest]))


def _look(how: Guiding, ctx: GuidedData, y: Any, u: Levels, bonus: Any) -> Guided:
    """The particle at a position: what the model shows there, and the guess."""

    def guess(y: Any) -> tuple[Any, tuple[Evaluation, Any]]:
        seen = ctx.chain.evaluate(y, u.steps.rho)
        if how.kind == "linear_gaussian":
            place = u.offset + u.gain * _along(ctx, y if how.noised else seen.denoised)
            value = log_likelihood(how.functions, how.name, ctx.model, y, ctx.given)
            value = jnp.where(u.last, value, _linear_guess(ctx, place, u))
        else:
            place, point = None, jnp.where(u.last, y, u.offset + u.gain * seen.denoised)
            value = log_likelihood(how.functions, how.name, ctx.model, point, ctx.given)
        # a point without likelihood on the way may have one in the end
        lost = ~(jnp.isfinite(value) | u.last)
        return jnp.where(lost, u.power * ctx.floor, u.power * value), (seen, place)

    if how.kind == "twisted":
        (value, (seen, place)), slope = jax.value_and_grad(guess, has_aux=True)(y)
        return Guided(y, seen, value, place, jnp.where(jnp.isfinite(slope), slope, 0.0), bonus)
    value, (seen, place) = guess(y)
    return Guided(y, seen, value, place, None, bonus)


# --- linear Gaussian observations ------------------------------------------------------------------


def _along(ctx: GuidedData, x: Any) -> Any:
    assert ctx.linear is not None
    return ctx.linear.directions @ jnp.ravel(x)


def _linear_guess(ctx: GuidedData, place: Any, u: Levels) -> Any:
    """Log density of the observation around a place along the directions, its error added to the noise."""
    linear = ctx.linear
    assert linear is not None
    variance = 1 + linear.scale**2 * u.error
    residual = linear.value - linear.scale * place
    return linear.constant - 0.5 * jnp.sum(residual**2 / variance + jnp.log(2 * jnp.pi * variance))


def _conditional(ctx: GuidedData, move: ReverseStep, place: Any, u: Levels, noised: bool) -> tuple[Any, Any]:
    """Mean, from the step's, and variance of the next point along the directions, given the observation.

    On average the data will be thought to be where they are now, and that follows the next point by
    ``u.share``.
    """
    linear = ctx.linear
    assert linear is not None
    centre = _along(ctx, move.mean)
    if not noised:
        centre = jnp.where(u.last, centre, place)
    slope, noise = linear.scale * u.share, 1 + linear.scale**2 * u.error
    variance = 1 / (1 / move.variance + slope**2 / noise)
    residual = linear.value - linear.scale * centre
    return variance * slope * residual / noise, variance


def _stretched(ctx: GuidedData, move: ReverseStep, lead: tuple[Any, Any], noise: Any) -> Any:
    """Noise of the step, moved and narrowed along the directions."""
    assert ctx.linear is not None
    mean, variance = lead
    sd = jnp.sqrt(move.variance)
    along = mean + (jnp.sqrt(variance) - sd) * _along(ctx, noise)
    return sd * noise + (along @ ctx.linear.directions).reshape(noise.shape)


def _conditional_ratio(ctx: GuidedData, move: ReverseStep, lead: tuple[Any, Any], moved: Any) -> Any:
    mean, variance = lead
    along = _along(ctx, moved)
    log_p = along**2 / move.variance + jnp.log(move.variance)
    log_q = (along - mean) ** 2 / variance + jnp.log(variance)
    return 0.5 * jnp.sum(log_q - log_p)


def _log_mean(log_w: Any) -> Any:
    """Log of the mean of weights; NaN where all are, for the loop to count."""
    found = log_sum_exp(log_w) - jnp.log(log_w.shape[0])
    return jnp.where(jnp.all(jnp.isnan(log_w)), jnp.nan, found)
