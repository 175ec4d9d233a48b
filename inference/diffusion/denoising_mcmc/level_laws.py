"""The law of a point's noise level, from which denoising MCMC draws levels.

Given a point y of the product law ``q_rho(y) p(rho)``, its level has the law ``p(rho | y)``, which is
proportional to ``q_rho(y) p(rho)`` over the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.inference.diffusion.models.arguments import ByLevel, Point, pytree_function
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Rule, Settings, integer, optional
from mcx.types import Scalar


class LevelLaw(Protocol):
    """Log density of the levels at a point; a pytree."""

    def log_density(self, model: Denoiser, y: Point, rho: ByLevel) -> ByLevel:
        """``log q_rho(y)`` at levels (K,), up to a constant that does not depend on the level."""

    def nfe(self, num_levels: int, size: int) -> int:
        """Number of calls of the denoiser for one point of ``size`` numbers."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LevelsFromDensity:
    """Levels by the model's density, exact; costs one density for each level, and no call of the denoiser."""

    def log_density(self, model: Denoiser, y: Point, rho: ByLevel) -> ByLevel:
        """See :class:`LevelLaw`."""
        return jax.vmap(lambda r: model.log_density(y, r))(rho)

    def nfe(self, num_levels: int, size: int) -> int:
        """0."""
        return 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LevelsFromScore(Settings):
    """Levels by the denoiser and its divergence, integrated along the levels.

    The heat equation gives ``d log q / d log rho = div D - d + |D - y|^2 / rho^2``; the trapezoidal rule
    integrates it from level to level, with an error of order h^2, where h is their distance in log rho.

    Attributes:
        num_probes: None for the exact divergence from d directional derivatives at each level; otherwise the
            number of random sign vectors that estimate it. They are fixed and the same at all levels, and
            their noise makes the draw of a level inexact.

    Costs a call of the denoiser and d or ``num_probes`` derivatives of it at every level.
    """

    num_probes: int | None = field(default=None, metadata={"static": True})

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"num_probes": optional(integer(1), "for the exact divergence")}

    def log_density(self, model: Denoiser, y: Point, rho: ByLevel) -> ByLevel:
        """See :class:`LevelLaw`."""
        probes = jnp.eye(y.size, dtype=y.dtype).reshape(-1, *y.shape)
        share = 1.0
        if self.num_probes is not None:
            probes = jax.random.rademacher(jax.random.key(0), (self.num_probes, *y.shape), y.dtype)
            share = 1 / self.num_probes

        def slope(r: Scalar) -> Scalar:
            value, pushed = jax.linearize(lambda v: model.denoise(v, r), y)
            divergence = share * jnp.sum(probes * jax.vmap(pushed)(probes))
            return divergence - y.size + jnp.sum((value - y) ** 2) / r**2

        slopes = jax.lax.map(slope, rho, batch_size=8)
        rises = 0.5 * (slopes[1:] + slopes[:-1]) * jnp.diff(jnp.log(rho))
        return jnp.concatenate([jnp.zeros(1, y.dtype), jnp.cumsum(rises)])

    def nfe(self, num_levels: int, size: int) -> int:
        """The calls of the denoiser and its derivatives."""
        return num_levels * (1 + (size if self.num_probes is None else self.num_probes))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LevelsFromClassifier(Settings):
    """Levels by a classifier, trained on points whose levels were uniform over the same grid.

    Attributes:
        fn: ``y -> logits``, (K,) in rising order of levels. Pass a network with parameters as
            ``jax.tree_util.Partial(apply, params)``, so that the parameters are data.

    Costs a call of the classifier, and no call of the denoiser.
    """

    fn: Callable[[Point], ByLevel]

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"fn": pytree_function("a function y -> logits")}

    def log_density(self, model: Denoiser, y: Point, rho: ByLevel) -> ByLevel:
        """See :class:`LevelLaw`."""
        logits = jnp.asarray(self.fn(y), y.dtype)
        if logits.shape != rho.shape:
            raise MethodError(
                "LevelsFromClassifier(fn): the function has another number of classes than there are levels",
                expected=str(rho.shape),
                found=str(logits.shape),
            )
        return logits

    def nfe(self, num_levels: int, size: int) -> int:
        """0: a call of the classifier is no call of the denoiser."""
        return 0
