"""Posteriors of diffusion priors as Feynman-Kac models: the reverse process, guided to the observations.

With the reverse process ``p(y_K) prod_k p(y_k | y_{k+1})`` and a positive guess ``h_k(y_k)`` at the
likelihood that a point will have in the end, exact there (``h_0`` is the likelihood), particles are proposed
with the guess in view and weighted by ``p h_k / (q h_{k+1})``. The guesses cancel except for the last:
whatever they are, the particles sample the posterior under the process, and their evidence estimates its
evidence without bias. Good guesses keep the weights equal.

- **twisted**: the likelihood of the denoised point, to a power; proposals follow its gradient through the
  denoiser.
- **linear_gaussian**: the density of the observation around the denoised point, with the denoiser's error
  added to the noise along every singular direction; the proposal is the exact conditional of that.
- **soft_value**: the guess of "twisted" without gradients: of several children per particle one is taken in
  proportion to its guess, and the mean over all of them goes into the weight.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham (2023), Practical and asymptotically exact conditional
sampling in diffusion models (TDS); Cardoso, Janati El Idrissi, Le Corff and Moulines (2023), Monte Carlo
guided diffusion for Bayesian linear inverse problems (MCGDiff); Li et al. (2024), Derivative-free guidance
with soft value-based decoding (SVDD), which has no weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.guided.calibration import Guidance, GuidedData, Levels
from mcx.inference.diffusion.guided.observation import LinearObservation, log_likelihood
from mcx.inference.diffusion.models.reverse_process import Evaluation, ReverseStep
from mcx.ops.logspace import log_sum_exp
from mcx.ops.random import choose
from mcx.target import FeynmanKac
from mcx.types import Array, Float, Key, LogWeights, PyTree, Scalar

type Point = Float[Array, "..."]
type Path = Float[Array, "K+1 ..."]
type Along = Float[Array, " r"]

_FARTHEST = 3.0  # a shift is at most so many of the step's standard deviations per coordinate


class Guided(NamedTuple):
    """A particle at the noise level of a step, what the model says there, and the log of the guess h.

    place: of "linear_gaussian", the estimate of the data along the directions; else None.
    slope: gradient of the guess, of "twisted"; else None.
    bonus: the part of the log weight that does not depend on the positions alone: that of the initial law,
        and of "soft_value" the log of the mean over children.
    """

    position: Point
    seen: Evaluation
    log_guess: Scalar
    place: Along | None
    slope: Point | None
    bonus: Scalar


class _Conditional(NamedTuple):
    """Law of a step along the directions given the observation: mean minus the step's own, and variance."""

    mean: Along
    variance: Along


type _Proposal = Point | _Conditional
"""How a proposal differs from the reverse step: a shift, or another law along directions."""


def guided(guidance: Guidance, data: GuidedData) -> FeynmanKac:
    """The Feynman-Kac model of a posterior under a diffusion prior, with a time per level.

    Its context is ``data``, from :func:`~.calibration.calibrate`. Equal guidance shares compiled programs.
    """
    context = jax.tree_util.Partial(_context, data)
    times = data.chain.num_steps + 1
    return replace(_functions(guidance), num_times=times, inputs=data.levels, prepare=context)


def _context(data: GuidedData, params: PyTree = None) -> GuidedData:
    return data


@lru_cache(maxsize=64)
def _functions(guidance: Guidance) -> FeynmanKac:
    """The model's functions, the same objects for equal guidance: compiled programs are found by them."""
    soft, linear = guidance.kind == "soft_value", guidance.kind == "linear_gaussian"

    def proposal(ctx: GuidedData, move: ReverseStep, x: Guided, u: Levels) -> _Proposal:
        if linear:
            return _conditional(ctx, move, x.place, u, guidance.noised)
        assert x.slope is not None
        shift = move.variance * x.slope
        length, farthest = jnp.sqrt(jnp.sum(shift**2)), _FARTHEST * jnp.sqrt(move.variance * shift.size)
        shortened: Point = shift * jnp.minimum(1.0, farthest / jnp.maximum(length, farthest * 1e-6))
        return shortened

    def initial(key: Key, ctx: GuidedData, u: Levels) -> Guided:
        start = ctx.chain.initial_law()
        shape, dtype = ctx.chain.shape, ctx.chain.rho.dtype
        noise = jax.random.normal(key, shape, dtype)
        if linear and guidance.noised:  # the guess is sharp from the start
            move = ReverseStep(start.mean, start.variance, jnp.zeros((), dtype))
            lead = _conditional(ctx, move, None, u, noised=True)
            y = start.mean + _stretched(ctx, move, lead, noise)
            bonus = _log_ratio(ctx, move, lead, y)
        else:
            y, bonus = start.mean + jnp.sqrt(start.variance) * noise, jnp.zeros((), dtype)
        return _evaluated(guidance, ctx, y, u, bonus + ctx.chain.initial_log_weight(y, start))

    def transition(key: Key, ctx: GuidedData, x: Guided, u: Levels) -> Guided:
        move = ctx.chain.reverse_step(x.position, x.seen, u.steps)
        shape, dtype, zero = ctx.chain.shape, ctx.chain.rho.dtype, jnp.zeros((), ctx.chain.rho.dtype)
        if not soft:
            lead = proposal(ctx, move, x, u)
            noise = jax.random.normal(key, shape, dtype)
            if isinstance(lead, _Conditional):
                step = _stretched(ctx, move, lead, noise)
            else:
                step = lead + jnp.sqrt(move.variance) * noise
            return _evaluated(guidance, ctx, move.mean + step, u, zero)
        key_draw, key_pick = jax.random.split(key)
        noise = jax.random.normal(key_draw, (guidance.num_children, *shape), dtype)
        children = jax.vmap(lambda y: _evaluated(guidance, ctx, y, u, zero))(
            move.mean + jnp.sqrt(move.variance) * noise
        )
        pick = choose(key_pick, children.log_guess)
        picked: Guided = jax.tree_util.tree_map(lambda a: a[pick], children)
        return picked._replace(bonus=_log_mean(children.log_guess))

    def log_potential(ctx: GuidedData, before: Guided | None, x: Guided, u: Levels) -> Scalar:
        if before is None:
            return x.log_guess + x.bonus
        move = ctx.chain.reverse_step(before.position, before.seen, u.steps)
        if soft:
            gained = x.bonus
        else:
            gained = x.log_guess + _log_ratio(ctx, move, proposal(ctx, move, before, u), x.position)
        dead = before.log_guess == -jnp.inf
        value = move.increment + gained - jnp.where(dead, 0.0, before.log_guess)
        return jnp.where(dead, -jnp.inf, value)

    def log_transition(ctx: GuidedData, before: Guided, x: Guided, u: Levels) -> Scalar:
        move = ctx.chain.reverse_step(before.position, before.seen, u.steps)
        lead = proposal(ctx, move, before, u)
        square = jnp.sum((x.position - move.mean) ** 2) / move.variance
        log_p = -0.5 * (square + x.position.size * jnp.log(2 * jnp.pi * move.variance))
        return log_p - _log_ratio(ctx, move, lead, x.position)

    return FeynmanKac(initial, transition, log_potential, 1, log_transition=None if soft else log_transition)


def path_of(guidance: Guidance, ctx: GuidedData, key: Key, positions: Path) -> Guided:
    """Particles along a path (K + 1, ...) as if drawn there; the siblings of "soft_value" are drawn anew."""
    zero = jnp.zeros((), positions.dtype)
    path = jax.vmap(lambda y, u: _evaluated(guidance, ctx, y, u, zero))(positions, ctx.levels)
    first = ctx.chain.initial_log_weight(positions[0], ctx.chain.initial_law())
    rest = jnp.zeros(len(positions) - 1, positions.dtype)
    if guidance.kind == "soft_value":

        def log_mean(key: Key, y: Point, seen: Evaluation, guess: Scalar, u: Levels) -> Scalar:
            move = ctx.chain.reverse_step(y, seen, u.steps)
            noise = jax.random.normal(key, (guidance.num_children - 1, *y.shape), y.dtype)
            others = jax.vmap(
                lambda e: _evaluated(guidance, ctx, move.mean + jnp.sqrt(move.variance) * e, u, zero)
            )
            return _log_mean(jnp.concatenate([guess[None], others(noise).log_guess]))

        before, after = (
            jax.tree_util.tree_map(lambda x, s=s: x[s], (path, ctx.levels))
            for s in (slice(-1), slice(1, None))
        )
        keys = jax.random.split(key, len(rest))
        rest = jax.vmap(log_mean)(keys, before[0].position, before[0].seen, after[0].log_guess, after[1])
    return path._replace(bonus=jnp.concatenate([first[None], rest]))


def _evaluated(guidance: Guidance, ctx: GuidedData, y: Point, u: Levels, bonus: Scalar) -> Guided:
    """The particle at a position: what the model says there, and the guess."""

    def guess(y: Point) -> tuple[Scalar, tuple[Evaluation, Along | None]]:
        seen = ctx.chain.evaluate(y, u.steps.rho)
        place, point = None, y
        if guidance.kind == "linear_gaussian":
            place = u.offset + u.gain * _along(ctx, y if guidance.noised else seen.denoised)
        else:
            point = jnp.where(u.last, y, u.offset + u.gain * seen.denoised)
        value = log_likelihood(guidance.functions, guidance.name, ctx.model, point, ctx.given)
        if place is not None:
            value = jnp.where(u.last, value, _linear_guess(ctx, place, u))
        # a point without likelihood on the way may have one in the end
        lost = ~(jnp.isfinite(value) | u.last)
        return jnp.where(lost, u.power * ctx.floor, u.power * value), (seen, place)

    if guidance.kind == "twisted":
        (value, (seen, place)), slope = jax.value_and_grad(guess, has_aux=True)(y)
        return Guided(y, seen, value, place, jnp.where(jnp.isfinite(slope), slope, 0.0), bonus)
    value, (seen, place) = guess(y)
    return Guided(y, seen, value, place, None, bonus)


def _log_ratio(ctx: GuidedData, move: ReverseStep, lead: _Proposal, y: Point) -> Scalar:
    """Log density of the reverse step minus that of the proposal."""
    moved = y - move.mean
    if isinstance(lead, _Conditional):
        return _conditional_ratio(ctx, move, lead, moved)
    return jnp.sum(lead * (0.5 * lead - moved)) / move.variance


def _linear(ctx: GuidedData) -> LinearObservation:
    assert ctx.linear is not None
    return ctx.linear


def _along(ctx: GuidedData, x: Point) -> Along:
    return _linear(ctx).directions @ jnp.ravel(x)


def _linear_guess(ctx: GuidedData, place: Along, u: Levels) -> Scalar:
    """Log density of the observation around a place along the directions, its error added to the noise."""
    linear = _linear(ctx)
    assert u.error is not None
    variance = 1 + linear.scale**2 * u.error
    residual = linear.value - linear.scale * place
    return linear.constant - 0.5 * jnp.sum(residual**2 / variance + jnp.log(2 * jnp.pi * variance))


def _conditional(
    ctx: GuidedData, move: ReverseStep, place: Along | None, u: Levels, noised: bool
) -> _Conditional:
    """The law of the next point along the directions given the observation; it follows by ``u.share``."""
    linear = _linear(ctx)
    assert u.error is not None and u.share is not None
    centre = _along(ctx, move.mean)
    if not noised:
        assert place is not None
        centre = jnp.where(u.last, centre, place)
    slope, noise = linear.scale * u.share, 1 + linear.scale**2 * u.error
    variance = 1 / (1 / move.variance + slope**2 / noise)
    residual = linear.value - linear.scale * centre
    return _Conditional(variance * slope * residual / noise, variance)


def _stretched(ctx: GuidedData, move: ReverseStep, lead: _Conditional, noise: Point) -> Point:
    """Noise of the step, moved and narrowed along the directions."""
    sd = jnp.sqrt(move.variance)
    along = lead.mean + (jnp.sqrt(lead.variance) - sd) * _along(ctx, noise)
    return sd * noise + (along @ _linear(ctx).directions).reshape(noise.shape)


def _conditional_ratio(ctx: GuidedData, move: ReverseStep, lead: _Conditional, moved: Point) -> Scalar:
    along = _along(ctx, moved)
    log_p = along**2 / move.variance + jnp.log(move.variance)
    log_q = (along - lead.mean) ** 2 / lead.variance + jnp.log(lead.variance)
    return 0.5 * jnp.sum(log_q - log_p)


def _log_mean(log_w: LogWeights) -> Scalar:
    """Log of the mean of weights; NaN if all are NaN, for the particle system to count."""
    found = log_sum_exp(log_w) - jnp.log(log_w.shape[0])
    return jnp.where(jnp.all(jnp.isnan(log_w)), jnp.nan, found)
