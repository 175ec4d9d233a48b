"""The records that everything below the language consumes.

A :class:`Target` is a posterior on unconstrained space, prior and likelihood kept apart. Its data are
pytree leaves and its functions are static, so that a compiled program takes new data without retracing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from mcx.model.sites import SiteTable

__all__ = ["LogParts", "Target", "TargetFunctions"]


class LogParts(NamedTuple):
    """Log density, in its two parts.

    prior: log prior density on unconstrained space, log Jacobians included.
    likelihood: log likelihood, ``factor`` terms of kind "likelihood" included.
    """

    prior: Any
    likelihood: Any


class TargetFunctions(NamedTuple):
    """Pure functions of ``(data, z)``, shared by all targets of one structure."""

    log_parts: Callable[[Any, Any], LogParts]
    constrain: Callable[[Any, Any], dict[str, Any]]
    unconstrain: Callable[[Any, Any], dict[str, Any]]
    pointwise: Callable[[Any, Any], dict[str, Any]]
    prior_terms: Callable[[Any, Any], dict[str, Any]]
    replayed: Callable[[Any, Any], Mapping[str, dict[str, Any]]]
    sample_prior: Callable[[Any, Any], dict[str, Any]] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Target:
    """A posterior density on an unconstrained pytree ``z``, one array a latent site.

    Attributes:
        data: the model's data; leaves of the pytree.
        functions: pure functions of ``(data, z)``; static.
        shapes: ``(site, shape)`` of the unconstrained sites in program order; static.
        sites: the model's sites; static.
        feynman_kac: Feynman-Kac models by Markov block; empty for a model without one.
    """

    data: Any
    functions: TargetFunctions = field(metadata={"static": True})
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(metadata={"static": True})
    sites: SiteTable = field(metadata={"static": True})
    feynman_kac: dict[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def log_parts(self, z: Mapping[str, Array]) -> LogParts:
        """Log prior and log likelihood at ``z``, from one run of the model."""
        return self.functions.log_parts(self.data, z)

    def log_prior(self, z: Mapping[str, Array]) -> Float[Array, ""]:
        """Log prior density at ``z``, log Jacobians included."""
        return self.log_parts(z).prior

    def log_likelihood(self, z: Mapping[str, Array]) -> Float[Array, ""]:
        """Log likelihood at ``z``."""
        return self.log_parts(z).likelihood

    def log_density(self, z: Mapping[str, Array]) -> Float[Array, ""]:
        """Log posterior density at ``z``, up to the evidence."""
        prior, likelihood = self.log_parts(z)
        return prior + likelihood

    def constrain(self, z: Mapping[str, Array]) -> dict[str, Array]:
        """Latent and deterministic sites at ``z``, by replay: supports may depend on values."""
        return self.functions.constrain(self.data, z)

    def unconstrain(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The point ``z`` of constrained values of every latent site."""
        return self.functions.unconstrain(self.data, values)

    def pointwise(self, z: Mapping[str, Array]) -> dict[str, Array]:
        """Log likelihood at ``z`` by observed site, one entry an observation."""
        return self.functions.pointwise(self.data, z)

    def prior_terms(self, z: Mapping[str, Array]) -> dict[str, Array]:
        """Log prior density at ``z`` by latent site, on constrained space (no Jacobians)."""
        return self.functions.prior_terms(self.data, z)

    def replayed(self, z: Mapping[str, Array]) -> Mapping[str, dict[str, Any]]:
        """The program's sites at ``z``, as the effect handlers saw them."""
        return self.functions.replayed(self.data, z)

    @property
    def sample_prior(self) -> Callable[[Array], dict[str, Array]] | None:
        """``key -> z``, a draw from the prior; None where the prior is improper or carries factors."""
        draw = self.functions.sample_prior
        return None if draw is None else lambda key: draw(self.data, key)

    def ravel(self, z: Mapping[str, Array]) -> Float[Array, " d"]:
        """Lay ``z`` out as one vector, sites in program order."""
        if not self.shapes:
            return jnp.zeros(0)
        return jnp.concatenate([jnp.reshape(z[name], -1) for name, _ in self.shapes])

    def unravel(self, vector: Float[Array, " d"]) -> dict[str, Array]:
        """Inverse of :meth:`ravel`."""
        z, start = {}, 0
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            z[name] = vector[start:stop].reshape(shape)
            start = stop
        return z

    def with_data(self, data: Any) -> Target:
        """The same target with other data of the same structure."""
        return replace(self, data=data)
