"""Products of powers of diffusion models, tilted by a reward: what correctors sample from.

A composition is the path ``p_rho(y) ~ prod_i q_{i,rho}(y)^{beta_i} exp(c(rho) r(y))`` over noise levels. It
is not the noised version of its end: the score of the path is known, but the reverse equation with that score
samples something else, off by weights that :mod:`.correctors` computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.models.scores import Denoiser

__all__ = ["Composition", "Local", "anneal", "geometric", "product"]


class Local(NamedTuple):
    """A composition at a point and level.

    score: of the whole, S = sum beta_i s_i + c grad r.
    transport: sum beta_i s_i, half of which is the drift that carries the noise out.
    rate: of the log weight, a unit of falling rho^2 / 2: ``transport . S - sum beta_i |s_i|^2``.
    reward: r, 0 where there is none.
    """

    score: Any
    transport: Any
    rate: Any
    reward: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Composition:
    """``prod_i q_i^{beta_i} exp(strength r)`` over noise levels; a pytree.

    Attributes:
        models: denoisers.
        powers: beta_i, one a model; negative ones, too, if their sum is positive.
        reward: ``y -> scalar``, differentiable in y; None without.
        strength: of the reward at no noise.
        fade: ``rho -> factor`` of the strength, 1 at 0 and small at large noise; static. By default
            ``1 / (1 + rho^2)``, for data of unit scale.
    """

    models: tuple[Denoiser, ...]
    powers: tuple[Any, ...]
    reward: Any = None
    strength: Any = 0.0
    fade: Callable[[Any], Any] | None = field(default=None, metadata={"static": True})

    @property
    def has_density(self) -> bool:
        """Whether all models have one."""
        return all(model.has_density for model in self.models)

    def tilt(
        self, reward: Callable[[Any], Any], strength: float = 1.0, fade: Callable[[Any], Any] | None = None
    ) -> Composition:
        """The same times ``exp(strength reward(x_0))``."""
        if self.reward is not None:
            raise MethodError(
                "the composition has a reward already", remedy="add the rewards up in one function"
            )
        if not isinstance(reward, jax.tree_util.Partial):
            reward = jax.tree_util.Partial(reward)
        return replace(self, reward=reward, strength=strength, fade=fade)

    def __mul__(self, other: Composition) -> Composition:
        """The product of two compositions, of which one at most has a reward."""
        if self.reward is not None and other.reward is not None:
            raise MethodError("both compositions have a reward", remedy="add the rewards up in one function")
        tilted = self if other.reward is None else other
        return replace(tilted, models=self.models + other.models, powers=self.powers + other.powers)

    def __pow__(self, power: Any) -> Composition:
        """All powers, and the strength of the reward, times ``power``."""
        powers = tuple(power * p for p in self.powers)
        return replace(self, powers=powers, strength=power * self.strength)

    def strength_at(self, rho: Any) -> Any:
        """Strength of the reward at a level."""
        if self.reward is None:
            return jnp.zeros_like(jnp.asarray(rho, float))
        fade = self.fade or _fade
        return self.strength * fade(rho)

    def at(self, y: Any, rho: Any) -> Local:
        """Scores and the rate of the log weight at a point. Costs a call of each model.

        Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion; annealing, geometric averages,
        products and rewards in one formula.
        """
        scores = [(model.denoise(y, rho) - y) / rho**2 for model in self.models]
        transport = sum(p * s for p, s in zip(self.powers, scores, strict=True))
        reward, slope = jnp.zeros((), y.dtype), jnp.zeros_like(y)
        if self.reward is not None:
            reward, slope = jax.value_and_grad(self.reward)(y)
        score = transport + self.strength_at(rho) * slope
        squares = sum(p * jnp.sum(s**2) for p, s in zip(self.powers, scores, strict=True))
        return Local(score, transport, jnp.sum(transport * score) - squares, reward)

    def log_density(self, y: Any, rho: Any) -> Any:
        """Unnormalised log density at a level.

        Raises:
            CapabilityError: if a model is a score alone.
        """
        if not self.has_density:
            raise CapabilityError(
                "a model of this composition has a score and no density",
                expected="GaussianMixture, or Score(..., kind='energy')",
            )
        found = sum(p * m.log_density(y, rho) for p, m in zip(self.powers, self.models, strict=True))
        return found if self.reward is None else found + self.strength_at(rho) * self.reward(y)

    def start(self, rho: Any, like: Any) -> tuple[Any, Any, Any]:
        """The law at a level of large noise, where every model is close to a Gaussian.

        Each ``q_i`` is taken for ``N(m, v + rho^2)`` with the mean and the variance that its denoiser shows
        at that level, where it is affine: v by coordinate.

        Args:
            rho: the level.
            like: of y's shape.

        Returns:
            Mean and variance of the product, by coordinate, and the log of its integral.
        """
        precision, weighted, log_z = jnp.zeros_like(like), jnp.zeros_like(like), jnp.zeros((), like.dtype)
        parts = []
        for model, power in zip(self.models, self.powers, strict=True):
            mean, variance = _moments(model, rho, like)
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


def anneal(model: Denoiser, power: Any) -> Composition:
    """``q^power``: colder than the model for powers above 1, warmer below."""
    return Composition((model,), (power,))


def geometric(first: Denoiser, second: Denoiser, guidance: Any) -> Composition:
    """``q_1^(1 - g) q_2^g``; classifier-free guidance where q_1 has no condition and q_2 has."""
    return Composition((first, second), (1 - guidance, guidance))


def product(*models: Denoiser) -> Composition:
    """``q_1 q_2 ...``, a product of experts."""
    return Composition(models, (1.0,) * len(models))


def _fade(rho: Any) -> Any:
    return 1 / (1 + jnp.square(rho))


def _moments(model: Denoiser, rho: Any, like: Any) -> tuple[Any, Any]:
    """Mean, and variance of y by coordinate, of a model at large noise.

    The denoiser is ``m + v / (v + rho^2) (y - m)`` there, so that ``D(0) = m rho^2 / (v + rho^2)``, and the
    share is the diagonal of its derivative, seen by a central difference along every axis.
    """
    shape = like.shape
    axes = jnp.eye(like.size, dtype=like.dtype).reshape(-1, *shape)

    def share(axis: Any) -> Any:
        ahead, behind = (model.denoise(sign * rho * axis, rho) for sign in (1.0, -1.0))
        return jnp.sum(axis * (ahead - behind)) / (2 * rho)

    shares = jnp.clip(jax.lax.map(share, axes).reshape(shape), 0.0, 0.99)
    mean = model.denoise(jnp.zeros_like(like), rho) / (1 - shares)
    return mean, rho**2 / (1 - shares)
