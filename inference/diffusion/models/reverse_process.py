"""The reverse process of a diffusion model as a Markov process of Gaussian steps, from noise to data.

A reverse step goes from a level of noise to the next lower one, ``y_after ~ N(mean(y), variance)``. Several
copies of a model, such as the members of a plate, form one process: their points go down together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.models.arguments import ByLevel, Level, Point, Points
from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.diffusion.models.large_noise import moments_by_signs
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.resampling import systematic
from mcx.inference.smc.smc import loop
from mcx.target import FeynmanKac
from mcx.types import Key, PyTree, Scalar

_COMPOSED = 128  # particles that a draw from a composition is chosen among


class Evaluation(NamedTuple):
    """The values of a model at a point and level.

    denoised: the mean of the data given the point; for a composition the average over its models by powers.
    transport, score, rate, reward: see :class:`~.composition.LocalScores`; None unless composed.
    """

    denoised: Point
    transport: Point | None = None
    score: Point | None = None
    rate: Scalar | None = None
    reward: Scalar | None = None


class ReverseStep(NamedTuple):
    """A step: mean and variance of the next point, and the log weight of having left this one."""

    mean: Point
    variance: Scalar
    increment: Scalar


class InitialLaw(NamedTuple):
    """The law at the largest level: mean, variance (a scalar), and the log of its integral."""

    mean: Point
    variance: Scalar
    log_z: Scalar


class StepLevels(NamedTuple):
    """The levels before and after a step, and the model's mean square error before it; scalars."""

    before: Scalar
    rho: Scalar
    error: Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReverseProcess:
    """From ``N(mean, variance)`` at the largest level down to data at the smallest; a pytree.

    Attributes:
        model: a denoiser, or a composition of several.
        rho: levels, strictly falling, (K + 1,).
        error: mean square error of the denoiser per coordinate at the levels, (K + 1,). With it, the variance
            of a step includes the uncertainty of the data; None takes the data for known where a step begins.
        shape: of a point, copies first; static.
        event_shape: of one copy; static.
        noise_gain: of a composition's steps, see :func:`~mcx.diffusion.corrector`; None means the sum of the
            powers, at least 1; static.

    A step of a model is exact if the data are Gaussian of equal variances and ``error`` is known; otherwise
    it is of first order. A step of a composition is Euler-Maruyama's and has a weight.

    Sources: Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models; Bao, Li, Zhu and Zhang
    (2022), Analytic-DPM, for the variance.
    """

    model: Denoiser | Composition
    rho: ByLevel
    error: ByLevel | None = None
    shape: tuple[int, ...] = field(default=(), metadata={"static": True})
    event_shape: tuple[int, ...] = field(default=(), metadata={"static": True})
    noise_gain: float | None = field(default=None, metadata={"static": True})

    @property
    def composed(self) -> bool:
        """Whether the model is a composition, so that steps have weights."""
        return isinstance(self.model, Composition)

    @property
    def num_steps(self) -> int:
        """Number of steps from the largest level to the smallest, K."""
        return int(jnp.shape(self.rho)[0]) - 1

    @property
    def _size(self) -> int:
        return math.prod(self.shape)

    def step_levels(self) -> StepLevels:
        """The levels of all times, (K + 1,) each; before the first level comes itself."""
        error = jnp.zeros_like(self.rho) if self.error is None else self.error
        before, known = (jnp.concatenate([x[:1], x[:-1]]) for x in (self.rho, error))
        return StepLevels(before, self.rho, known)

    def _by_copy[T](self, fn: Callable[[Point], T], y: Point) -> T:
        """``fn`` at every copy; results have a leading axis of copies."""
        return jax.vmap(fn)(y.reshape(-1, *self.event_shape))

    def denoise(self, y: Point, rho: Level) -> Point:
        """The mean of the data given a point, of its shape."""
        return self.evaluate(y, rho).denoised

    def evaluate(self, y: Point, rho: Level) -> Evaluation:
        """The values of the model at a point; costs a call of each model for each copy."""
        model = self.model
        if not isinstance(model, Composition):
            return Evaluation(self._by_copy(lambda v: model.denoise(v, rho), y).reshape(self.shape))
        local = self._by_copy(lambda v: model.at(v, rho), y)
        transport, score = (x.reshape(self.shape) for x in (local.transport, local.score))
        denoised = y + rho**2 * transport / sum(model.powers)
        return Evaluation(denoised, transport, score, jnp.sum(local.rate), jnp.sum(local.reward))

    def reverse_step(self, y: Point, now: Evaluation, u: StepLevels) -> ReverseStep:
        """The step from ``y``, whose evaluation is ``now``, to the next level."""
        model = self.model
        if not isinstance(model, Composition):
            keep = (u.rho / u.before) ** 2
            mean = now.denoised + keep * (y - now.denoised)
            variance = u.rho**2 * (1 - keep) + (1 - keep) ** 2 * u.error
            return ReverseStep(mean, variance, jnp.zeros((), y.dtype))
        assert now.transport is not None and now.score is not None
        assert now.rate is not None and now.reward is not None
        delta = u.before**2 - u.rho**2
        gain: Level | None = self.noise_gain
        if gain is None:
            gain = jnp.maximum(1.0, jnp.asarray(sum(model.powers), float))
        rise = model.strength_at(u.rho) - model.strength_at(u.before)
        mean = y + 0.5 * delta * (now.transport + gain * now.score)
        return ReverseStep(mean, gain * delta, 0.5 * delta * now.rate + rise * now.reward)

    def initial_law(self) -> InitialLaw:
        """The law at the largest level, a Gaussian of equal variances; costs 9 calls of each model."""
        rho, dtype, model = self.rho[0], self.rho.dtype, self.model
        parts = (
            zip(model.models, model.powers, strict=True) if isinstance(model, Composition) else [(model, 1.0)]
        )
        size = math.prod(self.event_shape)
        precision, weighted, moments = jnp.zeros((), dtype), jnp.zeros(self.event_shape, dtype), []
        for part, power in parts:
            mean, variance = moments_by_signs(part, rho, self.event_shape)
            moments.append((power, mean, variance))
            precision, weighted = precision + power / variance, weighted + power * mean / variance
        centre, log_z = weighted / precision, 0.5 * size * jnp.log(2 * math.pi / precision)
        for power, mean, variance in moments:
            square = jnp.sum((centre - mean) ** 2) / variance
            log_z += power * -0.5 * (square + size * jnp.log(2 * math.pi * variance))
        copies = self._size // max(size, 1)
        return InitialLaw(jnp.broadcast_to(centre, self.shape), 1 / precision, copies * log_z)

    def initial_log_weight(self, y: Point, law: InitialLaw) -> Scalar:
        """The log weight of a draw from the initial law: 0 for a model; with a composition's integral."""
        model, rho = self.model, self.rho[0]
        if not isinstance(model, Composition):
            return jnp.zeros((), y.dtype)
        if not model.has_density:
            reward: Level = 0.0
            if model.reward is not None:
                reward = model.strength_at(rho) * jnp.sum(self._by_copy(model.reward, y))
            return law.log_z + reward
        # the Gaussian's error is known where there are densities
        square = jnp.sum((y - law.mean) ** 2) / law.variance
        log_law = -0.5 * (square + self._size * jnp.log(2 * math.pi * law.variance))
        return jnp.sum(self._by_copy(lambda v: model.log_density(v, rho), y)) - log_law

    def draw(self, key: Key) -> Point:
        """A point at the smallest level.

        A model takes K steps of a call and a directional derivative each, which gives the variance of the
        data. For a composition it is chosen among 128 weighted particles, which is right up to order 1 / 128.
        """
        return self.draws(key, 1)[0] if self.composed else self._draw(key)

    def draws(self, key: Key, num: int) -> Points:
        """Points at the smallest level, (num, ...); for a composition all from one particle system."""
        if not self.composed:
            return jax.vmap(self._draw)(jax.random.split(key, num))
        key_run, key_pick = jax.random.split(key)
        settings = SMCSettings(max(num, _COMPOSED), resampling=systematic)
        found = loop(key_run, self.feynman_kac(), None, settings, HistorySettings()).state
        index = systematic(key_pick, found.log_w, settings.num_particles)
        order = jax.random.permutation(jax.random.fold_in(key_pick, 1), settings.num_particles)
        return found.particles[0][index[order[:num]]]

    def feynman_kac(self) -> FeynmanKac:
        """The process without observations, for particles (point, :class:`Evaluation`, log weight)."""
        type Particle = tuple[Point, Evaluation, Scalar]

        def initial(key: Key, ctx: PyTree, u: StepLevels) -> Particle:
            law = self.initial_law()
            y = law.mean + jnp.sqrt(law.variance) * jax.random.normal(key, self.shape, self.rho.dtype)
            return y, self.evaluate(y, u.rho), self.initial_log_weight(y, law)

        def transition(key: Key, ctx: PyTree, x: Particle, u: StepLevels) -> Particle:
            step = self.reverse_step(x[0], x[1], u)
            y = step.mean + jnp.sqrt(step.variance) * jax.random.normal(key, self.shape, self.rho.dtype)
            return y, self.evaluate(y, u.rho), step.increment

        def log_potential(ctx: PyTree, before: Particle | None, x: Particle, u: StepLevels) -> Scalar:
            return x[2]

        return FeynmanKac(initial, transition, log_potential, self.num_steps + 1, self.step_levels())

    def _draw(self, key: Key) -> Point:
        key_initial, key_probe, key_run = jax.random.split(key, 3)
        dtype = self.rho.dtype
        law = self.initial_law()
        y = law.mean + jnp.sqrt(law.variance) * jax.random.normal(key_initial, self.shape, dtype)
        probe = jax.random.rademacher(key_probe, self.shape, dtype)

        def step(y: Point, number_and_levels: tuple[Scalar, StepLevels]) -> tuple[Point, None]:
            number, u = number_and_levels
            # rho^2 times the trace of the denoiser's derivative is the variance of the data given y
            denoised, along = jax.jvp(lambda v: self.denoise(v, u.before), (y,), (probe,))
            share = jnp.clip(jnp.sum(probe * along) / self._size, 0.0, 1.0)
            step = self.reverse_step(y, Evaluation(denoised), u._replace(error=u.before**2 * share))
            noise = jax.random.normal(jax.random.fold_in(key_run, number), self.shape, dtype)
            return step.mean + jnp.sqrt(step.variance) * noise, None

        later = jax.tree_util.tree_map(lambda x: x[1:], self.step_levels())
        return jax.lax.scan(step, y, (jnp.arange(self.num_steps, dtype=jnp.uint32), later))[0]
