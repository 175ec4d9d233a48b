"""Scores: what a diffusion model knows of its data, in whatever parametrisation.

Everything here concerns ``q_rho``, the law of ``y = x_0 + rho noise``. A score gives the denoiser
``D(y, rho) = E[x_0 | y]``; by Tweedie's formula ``grad log q_rho(y) = (D - y) / rho^2``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import MethodError
from mcx.inference.diffusion.models.arguments import Level, Point, pytree_function
from mcx.inference.diffusion.models.schedules import Schedule
from mcx.ops.validation import Rule, Settings, instance, one_of
from mcx.types import Array, Float, Key, Scalar


class Denoiser(Protocol):
    """A diffusion model in the coordinates ``y = x / alpha``, ``rho = sigma / alpha``; a pytree."""

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_density` can be called."""

    def denoise(self, y: Point, rho: Level) -> Point:
        """``E[x_0 | y]`` for one point, of y's shape."""

    def log_density(self, y: Point, rho: Level) -> Scalar:
        """``log q_rho(y)`` up to a constant that depends neither on y nor on rho."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Score(Settings):
    """A function ``(x, t) -> array`` as a diffusion model; a pytree.

    Attributes:
        fn: a function of one point x and a scalar time, made of JAX operations. Pass a network with
            parameters as ``jax.tree_util.Partial(apply, params)``, so that the parameters are data.
        schedule: the schedule that it was trained with.
        kind: what it returns: "score" (gradient of the log density of x_t), "noise", "denoised" (the mean of
            x_0), "velocity" (``alpha noise - sigma x_0``), "flow" (``dx/dt`` of the probability flow), or
            "energy" (minus the log density of x_t, a scalar).

    Raises:
        MethodError: if an argument is of another type, or the kind is unknown.
    """

    fn: Callable[[Point, Level], Point]
    schedule: Schedule = field(metadata={"static": True})
    kind: str = field(default="score", metadata={"static": True})

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {
            "fn": pytree_function("a function (x, t) -> array"),
            "schedule": instance(Schedule, "a Schedule, such as mcx.diffusion.vp()"),
            "kind": one_of("score", "noise", "denoised", "velocity", "flow", "energy"),
        }

    @property
    def has_density(self) -> bool:
        """Whether it is an energy."""
        return self.kind == "energy"

    def denoise(self, y: Point, rho: Level) -> Point:
        """``E[x_0 | y]``; costs one call of ``fn``, or its gradient for an energy.

        Raises:
            MethodError: if the function's result has another shape than its argument.
        """
        schedule = self.schedule
        t = schedule.time(rho)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * y
        if self.kind == "energy":
            return y + rho**2 * jax.grad(self.log_density)(y, rho)
        found = self.fn(x, t)
        if jnp.shape(found) != jnp.shape(y):
            raise MethodError(
                f"Score(fn, kind={self.kind!r}): the function's result has another shape than its argument",
                expected=str(jnp.shape(y)),
                found=str(jnp.shape(found)),
                remedy="it is called with one point, not with a batch of them",
            )
        if self.kind == "denoised":
            return found
        if self.kind == "score":
            return y + sigma * rho * found  # the score in y is alpha times that in x
        if self.kind == "velocity":  # solved together with x = alpha D + sigma noise
            return (alpha * x - sigma * found) / (alpha**2 + sigma**2)
        if self.kind == "flow":
            slope_alpha, slope_sigma = (jax.grad(f)(jnp.asarray(t)) for f in (schedule.alpha, schedule.sigma))
            return (sigma * found - slope_sigma * x) / (sigma * slope_alpha - slope_sigma * alpha)
        return y - rho * found

    def log_density(self, y: Point, rho: Level) -> Scalar:
        """``log q_rho(y)`` of an energy, including the Jacobian of ``y -> x``."""
        t = self.schedule.time(rho)
        alpha = self.schedule.alpha(t)
        return -self.fn(alpha * y, t) + jnp.size(y) * jnp.log(alpha)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians, whose noised densities and denoisers are known exactly; a pytree.

    Attributes:
        means: (k, d).
        variances: (k, d), along the axes of ``rotations``.
        weights: (k,), with sum 1.
        rotations: (k, d, d) whose columns are the principal axes; None where those are the coordinates.

    A call of the denoiser costs O(k d), or O(k d^2) with rotations. Use :meth:`of` for the usual parameters.
    """

    means: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    weights: Float[Array, " k"]
    rotations: Float[Array, "k d d"] | None = None
    has_density: ClassVar[bool] = True

    @classmethod
    def of(
        cls, means: ArrayLike, covariances: ArrayLike, weights: ArrayLike | None = None
    ) -> GaussianMixture:
        """A mixture from its usual parameters, which are NumPy arrays or lists.

        Args:
            means: (k, d), or (d,) of a single Gaussian.
            covariances: variances, a scalar or (k,) or (k, d), or covariance matrices (k, d, d); for a single
                Gaussian (d,) or (d, d) is enough.
            weights: (k,), positive; they are normalised, and equal by default.

        Raises:
            MethodError: if shapes do not fit, or variances or weights are not positive.
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
        fits = found.shape in shapes[:3] and weights.shape == (num,)
        if not fits or (found <= 0).any() or (weights <= 0).any():
            raise MethodError(
                "GaussianMixture.of(...) does not make a mixture",
                expected="positive variances of shape "
                + ", ".join(map(str, shapes[:3]))
                + f" or covariance matrices {shapes[3]}, and ({num},) positive weights",
                found=f"covariances {np.shape(covariances)}, weights {weights.shape}",
            )
        variances = np.broadcast_to(found[:, None] if found.ndim == 1 else found, (num, dim))
        axes = None if rotations is None else jnp.asarray(rotations, float)
        shares = jnp.asarray(weights / weights.sum(), float)
        return cls(jnp.asarray(means, float), jnp.asarray(variances, float), shares, axes)

    # Components come last, so that for many points at once sums over coordinates, which may be few, run along
    # long rows.
    def _terms(
        self, y: Point, rho: Level
    ) -> tuple[Float[Array, " k"], Float[Array, "d k"], Float[Array, "d k"]]:
        """Log of weight times density of each component; principal coordinates, and their variances."""
        z = y[:, None] - self.means.T
        if self.rotations is not None:
            z = jnp.einsum("kji,jk->ik", self.rotations, z)
        variance = self.variances.T + rho**2
        log_p = -0.5 * (jnp.sum(z**2 * (1 / variance), 0) + jnp.sum(jnp.log(2 * jnp.pi * variance), 0))
        return jnp.log(self.weights) + log_p, z, variance

    def denoise(self, y: Point, rho: Level) -> Point:
        """``E[x_0 | y]`` of a point (d,)."""
        log_p, z, variance = self._terms(y, rho)
        share = jax.nn.softmax(log_p)
        gain, rest = self.variances.T / variance, rho**2 / variance
        if self.rotations is None:  # matrix products with tables that all points share
            return (rest * self.means.T) @ share + y * (gain @ share)
        back = jnp.einsum("kij,jk->ik", self.rotations, z * gain)
        return jnp.sum((self.means.T + back) * share, -1)

    def log_density(self, y: Point, rho: Level) -> Scalar:
        """``log q_rho(y)`` of a point (d,), normalised."""
        return jax.nn.logsumexp(self._terms(y, rho)[0])

    def sample(self, key: Key, num: int) -> Float[Array, "num d"]:
        """Draws of the data without noise, (num, d); the key comes first, as in NumPyro's distributions."""
        key_which, key_where = jax.random.split(key)
        which = jax.random.choice(key_which, len(self.weights), (num,), p=self.weights)
        z = jax.random.normal(key_where, (num, self.means.shape[1])) * jnp.sqrt(self.variances[which])
        if self.rotations is not None:
            z = jnp.einsum("nij,nj->ni", self.rotations[which], z)
        return self.means[which] + z
