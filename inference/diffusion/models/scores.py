"""Scores: what a diffusion model knows of its data, in whatever parametrisation.

Everything here is about ``q_rho``, the law of ``y = x_0 + rho noise``. A score gives the denoiser
``D(y, rho) = E[x_0 | y]``; by Tweedie's formula ``grad log q_rho(y) = (D - y) / rho^2``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.diffusion.models.schedules import Schedule

__all__ = ["KINDS", "Denoiser", "GaussianMixture", "Score"]

KINDS = ("score", "noise", "denoised", "velocity", "flow", "energy")


class Denoiser(Protocol):
    """A diffusion model in the coordinates ``y = x / alpha``, ``rho = sigma / alpha``; a pytree."""

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_density` is there."""
        ...

    def denoise(self, y: Any, rho: Any) -> Any:
        """``E[x_0 | y]``, of y's shape; for one point."""
        ...

    def log_density(self, y: Any, rho: Any) -> Any:
        """``log q_rho(y)`` up to a constant that does not depend on y or rho."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Score:
    """A function ``(x, t) -> array`` as a diffusion model.

    Attributes:
        fn: any function of one point x and a scalar time, of JAX operations. Networks with parameters:
            ``jax.tree_util.Partial(apply, params)``, so that the parameters are data.
        schedule: that it was trained with.
        kind: what it gives: "score" (gradient of the log density of x_t), "noise", "denoised" (the mean of
            x_0), "velocity" (``alpha noise - sigma x_0``), "flow" (``dx/dt`` of the probability flow), or
            "energy" (minus the log density of x_t, a scalar).
    """

    fn: Any
    schedule: Schedule = field(metadata={"static": True})
    kind: str = field(default="score", metadata={"static": True})

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MethodError(
                "Score(kind=...) is unknown", expected="one of " + ", ".join(KINDS), found=repr(self.kind)
            )
        if callable(self.fn) and not isinstance(self.fn, jax.tree_util.Partial):
            object.__setattr__(self, "fn", jax.tree_util.Partial(self.fn))

    @property
    def has_density(self) -> bool:
        """Whether it is an energy."""
        return self.kind == "energy"

    def denoise(self, y: Any, rho: Any) -> Any:
        """``E[x_0 | y]``. Costs one call of ``fn``, of an energy its gradient."""
        schedule = self.schedule
        t = schedule.time(rho)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * y
        if self.kind == "energy":
            return y + rho**2 * jax.grad(self.log_density)(y, rho)
        found = self.fn(x, t)
        if jnp.shape(found) != jnp.shape(y):
            raise MethodError(
                f"Score(fn, kind={self.kind!r}): the function gives another shape than its argument's",
                expected=str(jnp.shape(y)),
                found=str(jnp.shape(found)),
                remedy="it is called with one point, not with a batch of them",
            )
        if self.kind == "denoised":
            return found
        if self.kind == "score":
            return y + sigma * rho * found  # the score in y is alpha times that in x
        if self.kind == "velocity":  # solve with x = alpha D + sigma noise
            return (alpha * x - sigma * found) / (alpha**2 + sigma**2)
        if self.kind == "flow":
            slope_alpha, slope_sigma = (jax.grad(f)(jnp.asarray(t)) for f in (schedule.alpha, schedule.sigma))
            return (sigma * found - slope_sigma * x) / (sigma * slope_alpha - slope_sigma * alpha)
        return y - rho * found

    def log_density(self, y: Any, rho: Any) -> Any:
        """``log q_rho(y)`` from an energy, the Jacobian of ``y -> x`` included."""
        t = self.schedule.time(rho)
        alpha = self.schedule.alpha(t)
        return -self.fn(alpha * y, t) + jnp.size(y) * jnp.log(alpha)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians, whose noised densities and denoisers are exact.

    Attributes:
        means: (k, d).
        variances: (k, d), along the axes of ``rotations``.
        weights: (k,), of sum 1.
        rotations: (k, d, d) whose columns are the principal axes; None where those are the coordinates.
    """

    means: Any
    variances: Any
    weights: Any
    rotations: Any = None

    @classmethod
    def of(cls, means: Any, covariances: Any, weights: Any = None) -> GaussianMixture:
        """A mixture from its usual parameters.

        Args:
            means: (k, d), or (d,) of a single Gaussian.
            covariances: variances, a scalar or (k,) or (k, d), or covariance matrices (k, d, d); of a single
                Gaussian (d,) or (d, d) will do.
            weights: (k,), positive; equal by default.
        """
        means = np.atleast_2d(np.asarray(means, float))
        num, dim = means.shape
        found = np.asarray(covariances, float)
        if num == 1 and found.shape in ((dim,), (dim, dim)):  # of a single Gaussian
            found = found[None]
        weights = np.full(num, 1 / num) if weights is None else np.asarray(weights, float)
        shapes = ((), (num,), (num, dim), (num, dim, dim))
        rotations = None
        if found.shape == shapes[3] and dim > 1:
            found, rotations = np.linalg.eigh(found)
        fine = found.shape in shapes[:3] and weights.shape == (num,)
        if not fine or (found <= 0).any() or (weights <= 0).any():
            raise MethodError(
                "GaussianMixture.of(...) does not make a mixture",
                expected="positive variances of shape "
                + ", ".join(map(str, shapes[:3]))
                + f" or covariance matrices {shapes[3]}, and ({num},) positive weights",
                found=f"covariances {np.shape(covariances)}, weights {weights.shape}",
            )
        variances = np.broadcast_to(found[:, None] if found.ndim == 1 else found, (num, dim))
        leaves = (means, variances, weights / weights.sum(), rotations)
        return cls(*(None if x is None else jnp.asarray(x, float) for x in leaves))

    @property
    def has_density(self) -> bool:
        """It has."""
        return True

    # Components come last, one beside the other: of many points at once, sums over coordinates, which may be
    # few, are then sums of long rows.
    def _terms(self, y: Any, rho: Any) -> tuple[Any, Any, Any]:
        """Log of weight times density by component (k,); principal coordinates, their variances: (d, k)."""
        z = y[:, None] - self.means.T
        if self.rotations is not None:
            z = jnp.einsum("kji,jk->ik", self.rotations, z)
        variance = self.variances.T + rho**2
        log_p = -0.5 * (jnp.sum(z**2 * (1 / variance), 0) + jnp.sum(jnp.log(2 * jnp.pi * variance), 0))
        return jnp.log(self.weights) + log_p, z, variance

    def denoise(self, y: Any, rho: Any) -> Any:
        """``E[x_0 | y]``."""
        log_p, z, variance = self._terms(y, rho)
        of = jax.nn.softmax(log_p)
        gain, rest = self.variances.T / variance, rho**2 / variance
        if self.rotations is None:  # products with tables that all points share
            return (rest * self.means.T) @ of + y * (gain @ of)
        back = jnp.einsum("kij,jk->ik", self.rotations, z * gain)
        return jnp.sum((self.means.T + back) * of, -1)

    def log_density(self, y: Any, rho: Any) -> Any:
        """``log q_rho(y)``, normalised."""
        return jax.nn.logsumexp(self._terms(y, rho)[0])

    def sample(self, key: Any, num: int) -> Any:
        """Draws of the data, (num, d)."""
        key_which, key_where = jax.random.split(key)
        which = jax.random.choice(key_which, len(self.weights), (num,), p=self.weights)
        z = jax.random.normal(key_where, (num, self.means.shape[1])) * jnp.sqrt(self.variances[which])
        if self.rotations is not None:
            z = jnp.einsum("nij,nj->ni", self.rotations[which], z)
        return self.means[which] + z
