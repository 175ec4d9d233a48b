"""The law of a point's noise level: what denoising MCMC draws its levels from.

A point y of the product law ``q_rho(y) p(rho)`` leaves its level to ``p(rho | y)``, in proportion to
``q_rho(y) p(rho)`` over the levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.inference.diffusion.models.scores import Denoiser

__all__ = ["LevelsFromClassifier", "LevelsFromDensity", "LevelsFromScore", "LevelLaw"]


class LevelLaw(Protocol):
    """Log density of the levels at a point; a pytree."""

    def log_density(self, model: Denoiser, y: Any, rho: Any) -> Any:
        """``log q_rho(y)`` at levels (K,), up to a constant that does not depend on the level."""
        ...

    def nfe(self, num_levels: int, size: int) -> int:
        """Calls of the denoiser for one point of ``size`` numbers."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LevelsFromDensity:
    """From the model's density: exact. Costs a density a level, and no call of the denoiser."""

    def log_density(self, model: Denoiser, y: Any, rho: Any) -> Any:
        """See :class:`LevelLaw`."""
        return jax.vmap(lambda r: model.log_density(y, r))(rho)

    def nfe(self, num_levels: int, size: int) -> int:
        """None."""
        return 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LevelsFromScore:
    """From the denoiser and its divergence, by an integral along the levels.

    The heat equation has ``d log q / d log rho = div D - d + |D - y|^2 / rho^2``; the trapezoidal rule
    integrates it from level to level, with an error of order h^2, h their distance in log rho.

    Attributes:
        num_probes: None for the exact divergence, d directional derivatives a level; else so many random
            signs, the same at all levels, drawn once: their noise makes the draw of a level inexact.

    Costs ``num_levels`` calls of the denoiser, and as many times d or ``num_probes`` derivatives of it.
    """

    num_probes: int | None = field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.num_probes is not None and self.num_probes < 1:
            raise MethodError(
                "num_probes is out of range", expected="an int >= 1, or None", found=repr(self.num_probes)
            )

    def log_density(self, model: Denoiser, y: Any, rho: Any) -> Any:
        """See :class:`LevelLaw`."""
        probes = jnp.eye(y.size, dtype=y.dtype).reshape(-1, *y.shape)
        share = 1.0
        if self.num_probes is not None:
            probes = jax.random.rademacher(jax.random.key(0), (self.num_probes, *y.shape), y.dtype)
            share = 1 / self.num_probes

        def slope(r: Any) -> Any:
            value, pushed = jax.linearize(lambda v: model.denoise(v, r), y)
            divergence = share * jnp.sum(probes * jax.vmap(pushed)(probes))
            return divergence - y.size + jnp.sum((value - y) ** 2) / r**2

        slopes = jax.lax.map(slope, rho, batch_size=8)
        rises = 0.5 * (slopes[1:] + slopes[:-1]) * jnp.diff(jnp.log(rho))
        return jnp.concatenate([jnp.zeros(1, y.dtype), jnp.cumsum(rises)])

    def nfe(self, num_levels: int, size: int) -> int:
        """The denoiser itself and its derivatives."""
        return num_levels * (1 + (size if self.num_probes is None else self.num_probes))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LevelsFromClassifier:
    """From a classifier of levels, trained on points whose levels were uniform over the same grid.

    Attributes:
        fn: ``y -> logits``, (K,); with parameters: ``jax.tree_util.Partial(apply, params)``.
    """

    fn: Any

    def __post_init__(self) -> None:
        if callable(self.fn) and not isinstance(self.fn, jax.tree_util.Partial):
            object.__setattr__(self, "fn", jax.tree_util.Partial(self.fn))

    def log_density(self, model: Denoiser, y: Any, rho: Any) -> Any:
        """See :class:`LevelLaw`."""
        logits = jnp.asarray(self.fn(y), y.dtype)
        if logits.shape != rho.shape:
            raise MethodError(
                "the classifier of levels has another number of classes than there are levels",
                expected=str(rho.shape),
                found=str(logits.shape),
            )
        return logits

    def nfe(self, num_levels: int, size: int) -> int:
        """A call of the classifier, which is none of the denoiser."""
        return 0
