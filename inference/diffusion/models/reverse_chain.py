"""The reverse process of a diffusion model as a Markov chain of Gaussian steps, from noise to data.

A step goes from a level of noise to the next lower one, ``y_after ~ N(mean(y), variance)``. Several copies of
a model, such as the members of a plate, are one chain: their points go down side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.resampling import systematic
from mcx.inference.smc.smc import loop
from mcx.ops.closure_conversion import ConvertedClosure, convert_closure
from mcx.target import FeynmanKac

__all__ = ["Move", "ReverseChain", "Seen", "Start", "Steps", "closure_converted"]

_PROBES = 4
_COMPOSED = 128  # particles that a draw from a composition is chosen among


class Seen(NamedTuple):
    """What a model shows at a point and level.

    denoised: the mean of the data given the point; of a composition the average over its models by powers.
    transport, score, rate, reward: of a composition, see :class:`~mcx.diffusion.Local`; None of a model.
    """

    denoised: Any
    transport: Any = None
    score: Any = None
    rate: Any = None
    reward: Any = None


class Move(NamedTuple):
    """A step: the law of the next point, and the log weight of having left this one."""

    mean: Any
    variance: Any
    increment: Any


class Start(NamedTuple):
    """The law at the largest level: mean, variance (a scalar), log of the integral."""

    mean: Any
    variance: Any
    log_z: Any


class Steps(NamedTuple):
    """Levels of a step, a scalar each: before and after, and the model's mean square error before."""

    before: Any
    rho: Any
    error: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReverseChain:
    """From ``N(mean, variance)`` at the largest level down to data at the smallest.

    Attributes:
        model: a denoiser, or a composition of some.
        rho: levels, strictly falling, (K + 1,).
        error: mean square error of the denoiser a coordinate at the levels, (K + 1,), or None: then the data
            are taken for known where a step begins. With it the variance of a step counts what is not known.
        shape: of a point, copies first; static.
        event_shape: of one copy; static.
        noise_gain: of a composition's steps, see :func:`~mcx.diffusion.corrector`; None is the sum of the
            powers, at least 1; static.

    A step of a model is exact where its data are Gaussian of equal variances and ``error`` is known, and of
    first order otherwise. That of a composition is Euler-Maruyama's, and has a weight.

    Sources: Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models; Bao, Li, Zhu and Zhang
    (2022), Analytic-DPM, for the variance.
    """

    model: Any
    rho: Any
    error: Any = None
    shape: tuple[int, ...] = field(default=(), metadata={"static": True})
    event_shape: tuple[int, ...] = field(default=(), metadata={"static": True})
    noise_gain: float | None = field(default=None, metadata={"static": True})

    @property
    def composed(self) -> bool:
        """Whether the chain is a composition's, so that its steps have weights."""
        return isinstance(self.model, Composition)

    @property
    def num_steps(self) -> int:
        """Steps from the largest level to the smallest, K."""
        return int(jnp.shape(self.rho)[0]) - 1

    @property
    def _size(self) -> int:
        return math.prod(self.shape)

    def steps(self) -> Steps:
        """Levels by time, (K + 1,) each; what comes before the first is itself."""
        error = jnp.zeros_like(self.rho) if self.error is None else self.error
        before, known = (jnp.concatenate([x[:1], x[:-1]]) for x in (self.rho, error))
        return Steps(before, self.rho, known)

    def _copies(self, fn: Callable[[Any], Any], y: Any) -> Any:
        """``fn`` at every copy, results with a leading axis of copies."""
        return jax.vmap(fn)(y.reshape(-1, *self.event_shape))

    def denoise(self, y: Any, rho: Any) -> Any:
        """The mean of the data given a point, of its shape."""
        return self.see(y, rho).denoised

    def see(self, y: Any, rho: Any) -> Seen:
        """What the model shows at a point. Costs a call of each model and copy."""
        model = self.model
        if not isinstance(model, Composition):
            return Seen(self._copies(lambda v: model.denoise(v, rho), y).reshape(self.shape))
        local = self._copies(lambda v: model.at(v, rho), y)
        transport, score = (x.reshape(self.shape) for x in (local.transport, local.score))
        denoised = y + rho**2 * transport / sum(model.powers)
        return Seen(denoised, transport, score, jnp.sum(local.rate), jnp.sum(local.reward))

    def gain(self) -> Any:
        """Squared diffusion of a composition's steps in units of the noising process'."""
        if self.noise_gain is not None:
            return self.noise_gain
        return jnp.maximum(1.0, jnp.asarray(sum(self.model.powers), float))

    def move(self, y: Any, seen: Seen, u: Steps) -> Move:
        """The step from ``y``, where the model has shown ``seen``, to the next level."""
        if not self.composed:
            keep = (u.rho / u.before) ** 2
            mean = seen.denoised + keep * (y - seen.denoised)
            variance = u.rho**2 * (1 - keep) + (1 - keep) ** 2 * u.error
            return Move(mean, variance, jnp.zeros((), y.dtype))
        delta = u.before**2 - u.rho**2
        gain = self.gain()
        rise = self.model.strength_at(u.rho) - self.model.strength_at(u.before)
        mean = y + 0.5 * delta * (seen.transport + gain * seen.score)
        return Move(mean, gain * delta, 0.5 * delta * seen.rate + rise * seen.reward)

    def start(self) -> Start:
        """The law at the largest level, where every model is close to a Gaussian of equal variances.

        Costs 9 calls of each model and copy.
        """
        rho, dtype = self.rho[0], self.rho.dtype
        if isinstance(self.model, Composition):
            models, powers = self.model.models, self.model.powers
        else:
            models, powers = (self.model,), (1.0,)
        size = math.prod(self.event_shape)
        precision, weighted, parts = jnp.zeros((), dtype), jnp.zeros(self.event_shape, dtype), []
        for model, power in zip(models, powers, strict=True):
            mean, variance = _moments(model, rho, self.event_shape)
            parts.append((power, mean, variance))
            precision, weighted = precision + power / variance, weighted + power * mean / variance
        centre, log_z = weighted / precision, 0.5 * size * jnp.log(2 * math.pi / precision)
        for power, mean, variance in parts:
            square = jnp.sum((centre - mean) ** 2) / variance
            log_z += power * -0.5 * (square + size * jnp.log(2 * math.pi * variance))
        copies = self._size // max(size, 1)
        return Start(jnp.broadcast_to(centre, self.shape), 1 / precision, copies * log_z)

    def start_increment(self, y: Any, start: Start) -> Any:
        """Log weight of a draw from the start: none of a model; of a composition its integral."""
        if not self.composed:
            return jnp.zeros((), y.dtype)
        model, rho = self.model, self.rho[0]
        if not model.has_density:
            reward = 0.0
            if model.reward is not None:
                reward = model.strength_at(rho) * jnp.sum(self._copies(model.reward, y))
            return start.log_z + reward
        # what the Gaussian gets wrong is known
        square = jnp.sum((y - start.mean) ** 2) / start.variance
        log_start = -0.5 * (square + self._size * jnp.log(2 * math.pi * start.variance))
        return jnp.sum(self._copies(lambda v: model.log_density(v, rho), y)) - log_start

    def draw(self, key: Any) -> Any:
        """A point at the smallest level.

        Of a model by K steps, at a call and a directional derivative each, which gives the variance that the
        data have at a step. Of a composition it is chosen among 128 weighted particles, which is right up to
        order 1 / 128.
        """
        return self.draws(key, 1)[0] if self.composed else self._draw(key)

    def draws(self, key: Any, num: int) -> Any:
        """Points at the smallest level, (num, ...); of a composition all from one particle system."""
        if not self.composed:
            return jax.vmap(self._draw)(jax.random.split(key, num))
        key_run, key_pick = jax.random.split(key)
        settings = SMCSettings(max(num, _COMPOSED), resampling=systematic)
        found = loop(key_run, self.feynman_kac(), None, settings, HistorySettings()).state
        index = systematic(key_pick, found.log_w, settings.num_particles)
        order = jax.random.permutation(jax.random.fold_in(key_pick, 1), settings.num_particles)
        return found.particles[0][index[order[:num]]]

    def feynman_kac(self) -> FeynmanKac:
        """The chain alone, of particles (point, what the model shows there, log weight)."""

        def initial(key: Any, ctx: Any, u: Steps) -> Any:
            start = self.start()
            y = start.mean + jnp.sqrt(start.variance) * jax.random.normal(key, self.shape, self.rho.dtype)
            return y, self.see(y, u.rho), self.start_increment(y, start)

        def transition(key: Any, ctx: Any, x: Any, u: Steps) -> Any:
            step = self.move(x[0], x[1], u)
            y = step.mean + jnp.sqrt(step.variance) * jax.random.normal(key, self.shape, self.rho.dtype)
            return y, self.see(y, u.rho), step.increment

        return FeynmanKac(initial, transition, lambda ctx, a, x, u: x[2], self.num_steps + 1, self.steps())

    def _draw(self, key: Any) -> Any:
        key_start, key_probe, key_run = jax.random.split(key, 3)
        dtype = self.rho.dtype
        start = self.start()
        y = start.mean + jnp.sqrt(start.variance) * jax.random.normal(key_start, self.shape, dtype)
        probe = jax.random.rademacher(key_probe, self.shape, dtype)

        def step(y: Any, u: Any) -> tuple[Any, None]:
            number, now = u
            # rho^2 times the trace of the denoiser's derivative is the variance of the data given y
            denoised, along = jax.jvp(lambda v: self.denoise(v, now.before), (y,), (probe,))
            share = jnp.clip(jnp.sum(probe * along) / self._size, 0.0, 1.0)
            move = self.move(y, Seen(denoised), now._replace(error=now.before**2 * share))
            noise = jax.random.normal(jax.random.fold_in(key_run, number), self.shape, dtype)
            return move.mean + jnp.sqrt(move.variance) * noise, None

        later = jax.tree_util.tree_map(lambda x: x[1:], self.steps())
        return jax.lax.scan(step, y, (jnp.arange(self.num_steps, dtype=jnp.uint32), later))[0]


def _moments(model: Any, rho: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Mean, and variance of y a coordinate, of a model at large noise.

    The denoiser is ``m + v / (v + rho^2) (y - m)`` there: D(0) gives m, and the share ``v / (v + rho^2)`` is
    the mean diagonal of its derivative, seen by central differences along random signs.
    """
    signs = jax.random.rademacher(jax.random.key(0), (_PROBES, *shape), rho.dtype)

    def share(sign: Any) -> Any:
        ahead, behind = (model.denoise(s * rho * sign, rho) for s in (1.0, -1.0))
        return jnp.mean(sign * (ahead - behind)) / (2 * rho)

    found = jnp.clip(jnp.mean(jax.vmap(share)(signs)), 0.0, 0.99)
    mean = model.denoise(jnp.zeros(shape, rho.dtype), rho) / (1 - found)
    return mean, rho**2 / (1 - found)


# --- code and values apart -------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Bare:
    """A function, whatever it closed over taken out: its code is static, its values are leaves."""

    code: ConvertedClosure = field(metadata={"static": True})
    values: Any

    def __call__(self, *args: Any) -> Any:
        return self.code(list(self.values), *args)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _BareModel:
    """A denoiser of bare functions."""

    denoiser: _Bare
    density: _Bare | None

    @property
    def has_density(self) -> bool:
        return self.density is not None

    def denoise(self, y: Any, rho: Any) -> Any:
        return self.denoiser(y, rho)

    def log_density(self, y: Any, rho: Any) -> Any:
        assert self.density is not None
        return self.density(y, rho)


def _bare(fn: Callable[..., Any], *like: Any) -> _Bare:
    code, values = convert_closure(fn, *like)
    return _Bare(code, values)


def closure_converted(chain: ReverseChain) -> ReverseChain:
    """The chain with code and values of its functions apart.

    Functions written within a model may close over what that model was given, such as a network's parameters:
    values of one run of it. Called there, this takes them out, so that they can be given to other programs.
    """
    y, rho = jnp.zeros(chain.event_shape, chain.rho.dtype), chain.rho[0]

    def model(found: Any) -> _BareModel:
        density = _bare(found.log_density, y, rho) if found.has_density else None
        return _BareModel(_bare(found.denoise, y, rho), density)

    if not isinstance(chain.model, Composition):
        return replace(chain, model=model(chain.model))
    reward = None if chain.model.reward is None else _bare(chain.model.reward, y)
    models = tuple(model(m) for m in chain.model.models)
    powers = tuple(jnp.asarray(p, chain.rho.dtype) for p in chain.model.powers)
    strength = jnp.asarray(chain.model.strength, chain.rho.dtype)
    return replace(
        chain, model=replace(chain.model, models=models, powers=powers, reward=reward, strength=strength)
    )
