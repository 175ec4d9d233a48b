"""Products of powers of diffusion models, tilted by a reward: what correctors sample from.

A composition is the path ``p_rho(y) ~ prod_i q_{i,rho}(y)^{beta_i} exp(c(rho) r(y))`` over noise levels. It
is not the noised version of its end: the reverse equation with its score samples something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.models.arguments import DENOISER, Level, Point, pytree_function
from mcx.inference.diffusion.models.large_noise import moments_by_axes
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import function, optional, validated
from mcx.types import Scalar

_ADD_REWARDS = "add the rewards in one function"


class LocalScores(NamedTuple):
    """A composition at a point and level.

    score: of the whole composition, ``S = sum beta_i s_i + c grad r``.
    transport: ``sum beta_i s_i``; half of it is the drift that carries the noise out.
    rate: of the log weight per unit of falling ``rho^2 / 2``: ``transport . S - sum beta_i |s_i|^2``.
    reward: r, or 0 without a reward.
    """

    score: Point
    transport: Point
    rate: Scalar
    reward: Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Composition:
    """``prod_i q_i^{beta_i} exp(strength r)`` over noise levels; a pytree.

    Compositions multiply and take powers: ``one * other``, ``one ** 0.5``.

    Attributes:
        models: the denoisers.
        powers: beta_i, one for each model; they may be negative if their sum is positive.
        reward: ``y -> scalar``, differentiable in y; None for no reward.
        strength: of the reward at no noise.
        fade: ``rho -> factor`` of the strength, 1 at 0 and small at large noise; static. By default
            ``1 / (1 + rho^2)``, which suits data of unit scale.
    """

    models: tuple[Denoiser, ...]
    powers: tuple[Level, ...]
    reward: Callable[[Point], Scalar] | None = None
    strength: Level = 0.0
    fade: Callable[[Level], Level] | None = field(default=None, metadata={"static": True})

    @property
    def has_density(self) -> bool:
        """Whether every model has a density."""
        return all(model.has_density for model in self.models)

    def tilt(
        self,
        reward: Callable[[Point], Scalar],
        strength: Level = 1.0,
        fade: Callable[[Level], Level] | None = None,
    ) -> Composition:
        """The same composition times ``exp(strength reward(x_0))``.

        Raises:
            MethodError: if it has a reward already, or if ``reward`` or ``fade`` is no function.
        """
        if self.reward is not None:
            raise MethodError("the composition has a reward already", remedy=_ADD_REWARDS)
        reward = validated("tilt", "reward", reward, pytree_function("a function of one point"))
        fade = validated("tilt", "fade", fade, optional(function("a function of rho")))
        return replace(self, reward=reward, strength=strength, fade=fade)

    def __mul__(self, other: Composition) -> Composition:
        """The product of two compositions, at most one of which has a reward."""
        if self.reward is not None and other.reward is not None:
            raise MethodError("both compositions have a reward", remedy=_ADD_REWARDS)
        tilted = self if other.reward is None else other
        return replace(tilted, models=self.models + other.models, powers=self.powers + other.powers)

    def __pow__(self, power: Level) -> Composition:
        """All powers and the strength of the reward, times ``power``."""
        powers = tuple(power * p for p in self.powers)
        return replace(self, powers=powers, strength=power * self.strength)

    def strength_at(self, rho: Level) -> Level:
        """The strength of the reward at a level."""
        if self.reward is None:
            return jnp.zeros_like(jnp.asarray(rho, float))
        return self.strength * (1 / (1 + jnp.square(rho)) if self.fade is None else self.fade(rho))

    def at(self, y: Point, rho: Level) -> LocalScores:
        """The scores and the rate of the log weight at a point; costs a call of each model.

        Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion, all cases in one formula.
        """
        scores = [(model.denoise(y, rho) - y) / rho**2 for model in self.models]
        transport = _total(p * s for p, s in zip(self.powers, scores, strict=True))
        reward, slope = jnp.zeros((), y.dtype), jnp.zeros_like(y)
        if self.reward is not None:
            reward, slope = jax.value_and_grad(self.reward)(y)
        score = transport + self.strength_at(rho) * slope
        squares = _total(p * jnp.sum(s**2) for p, s in zip(self.powers, scores, strict=True))
        return LocalScores(score, transport, jnp.sum(transport * score) - squares, reward)

    def log_density(self, y: Point, rho: Level) -> Scalar:
        """The unnormalised log density at a level; raises CapabilityError if a model is a score alone."""
        if not self.has_density:
            raise CapabilityError(
                "a model of this composition has a score and no density",
                expected="GaussianMixture, or Score(..., kind='energy')",
            )
        found = _total(p * m.log_density(y, rho) for p, m in zip(self.powers, self.models, strict=True))
        return found if self.reward is None else found + self.strength_at(rho) * self.reward(y)

    def initial_law(self, rho: Level, like: Point) -> tuple[Point, Point, Scalar]:
        """Mean and variance by coordinate of the Gaussian near the product at large noise; its log integral.

        Each ``q_i`` is taken for the Gaussian that its denoiser shows; see :mod:`.large_noise`. Costs ``2 d +
        1`` calls of each model.
        """
        precision, weighted, log_z = jnp.zeros_like(like), jnp.zeros_like(like), jnp.zeros((), like.dtype)
        parts = []
        for model, power in zip(self.models, self.powers, strict=True):
            mean, variance = moments_by_axes(model, rho, like)
            parts.append((power, mean, variance))
            precision = precision + power / variance
            weighted = weighted + power * mean / variance
        centre = weighted / precision
        for power, mean, variance in parts:
            log_z += power * jnp.sum(
                -0.5 * (centre - mean) ** 2 / variance - 0.5 * jnp.log(2 * math.pi * variance)
            )
        log_z += 0.5 * jnp.sum(jnp.log(2 * math.pi / precision))
        return centre, 1 / precision, log_z


def anneal(model: Denoiser, power: Level) -> Composition:
    """``q^power``: colder than the model for powers above 1, warmer for powers below.

    Args:
        model: anything with ``denoise(y, rho)``, such as a :class:`~mcx.diffusion.Score`.
        power: a number, or an array without axes.
    """
    return Composition((validated("anneal", "model", model, DENOISER),), (power,))


def geometric(first: Denoiser, second: Denoiser, guidance: Level) -> Composition:
    """``q_1^(1 - g) q_2^g``: classifier-free guidance if q_1 is unconditional and q_2 is conditional.

    Args:
        first: the model q_1, anything with ``denoise(y, rho)``.
        second: the model q_2, of points of the same shape.
        guidance: the weight g; 0 gives the first model, 1 the second, and more than 1 goes beyond it.
    """
    first = validated("geometric", "first", first, DENOISER)
    second = validated("geometric", "second", second, DENOISER)
    return Composition((first, second), (1 - guidance, guidance))


def product(*models: Denoiser) -> Composition:
    """``q_1 q_2 ...``, a product of experts.

    Args:
        models: at least one object with ``denoise(y, rho)``, all of points of the same shape.
    """
    if not models:
        raise MethodError("product() needs a model", expected=DENOISER.expected, found="none")
    checked = tuple(validated("product", "models", model, DENOISER) for model in models)
    return Composition(checked, (1.0,) * len(models))


def _total(terms: Iterable[Point]) -> Point:
    return sum(terms)  # type: ignore[return-value]  # there is at least one term
