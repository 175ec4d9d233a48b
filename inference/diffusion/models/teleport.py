"""Analytical teleportation: at large noise a diffusion model is Gaussian, and its flow is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import MethodError
from mcx.inference.diffusion.models.arguments import (
    DENOISER,
    EVENT_SHAPE,
    ByLevel,
    Level,
    Point,
    noise_levels,
)
from mcx.inference.diffusion.models.scores import Denoiser, GaussianMixture
from mcx.ops.keys import as_key
from mcx.ops.validation import integer, number, validated
from mcx.types import Key, KeyLike, Scalar, Vector


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teleport:
    """The probability flow of a Gaussian, in one step between any two levels; a pytree, and a denoiser.

    Where noise is a few times the data's spread, the flow of a diffusion model is that of the Gaussian with
    the data's mean and covariance, so that steps can be left out there. A call costs O(d), or O(d^2) with
    axes.

    Attributes:
        mean: of the data, (d,) in flattened order.
        variances: along the axes, (d,); they may be 0.
        axes: principal axes as columns, (d, d); None if those are the coordinates.

    Source: Wang and Vastola (2024), The unreasonable effectiveness of Gaussian score approximation for
    diffusion models and its applications.
    """

    mean: Vector
    variances: Vector
    axes: jax.Array | None = None
    has_density: ClassVar[bool] = True

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike) -> Teleport:
        """From moments; costs O(d^3) for a covariance matrix.

        Args:
            mean: of an event's shape; d numbers.
            covariance: (d, d), or variances of the mean's shape or a scalar; none negative.

        Raises:
            MethodError: if shapes do not fit, or the matrix is not symmetric and positive semidefinite.
        """
        mean = np.asarray(mean, float)
        found = np.asarray(covariance, float)
        axes = None
        if found.shape == (mean.size, mean.size) and found.shape != mean.shape:
            size = np.abs(found).max()
            if not np.allclose(found, found.T, atol=1e-6 * size):
                raise MethodError("Teleport.of(covariance=...) is not symmetric")
            variances, axes = np.linalg.eigh(0.5 * (found + found.T))
            if variances.min() > -1e-6 * size:  # negative by rounding
                variances = np.maximum(variances, 0.0)
        elif found.shape in ((), mean.shape):
            variances = np.broadcast_to(found, mean.shape).ravel()
        else:
            variances = np.full(1, np.nan)
        if not (np.isfinite(mean).all() and np.isfinite(variances).all() and (variances >= 0).all()):
            raise MethodError(
                "Teleport.of(...) does not make a Gaussian",
                expected=f"a finite mean, and a covariance matrix {(mean.size, mean.size)} or variances "
                f"of shape () or {mean.shape}, none negative",
                found=f"shapes {mean.shape} and {found.shape}",
            )
        turned = None if axes is None else jnp.asarray(axes, float)
        return cls(jnp.asarray(mean.ravel(), float), jnp.asarray(variances, float), turned)

    @classmethod
    def from_data(cls, data: ArrayLike) -> Teleport:
        """From data (n, *event), n >= 2; costs O(n d^2 + d^3). Raises MethodError for fewer points."""
        data = np.asarray(data, float)
        if data.ndim < 2 or len(data) < 2:
            raise MethodError(
                "Teleport.from_data(...) has no covariance",
                expected="(n, *event), n >= 2",
                found=str(data.shape),
            )
        flat = data.reshape(len(data), -1)
        if flat.shape[1] == 1:
            return cls.of(flat.mean(0), flat.var(0, ddof=1))
        return cls.of(flat.mean(0), np.cov(flat.T))

    @classmethod
    def from_mixture(cls, model: GaussianMixture) -> Teleport:
        """From the exact mean and covariance of a mixture."""
        means, weights, variances = (
            np.asarray(x, float) for x in (model.means, model.weights, model.variances)
        )
        mean = weights @ means
        if model.rotations is None:
            within = np.diag(weights @ variances)
        else:
            axes = np.asarray(model.rotations, float)
            within = np.einsum("k,kij,kj,klj->il", weights, axes, variances, axes)
        return cls.of(mean, within + np.einsum("k,ki,kj->ij", weights, means - mean, means - mean))

    @property
    def spread(self) -> Scalar:
        """The root of the mean variance of a coordinate."""
        return jnp.sqrt(jnp.mean(self.variances))

    def denoise(self, y: Point, rho: Level) -> Point:
        """``E[x_0 | y]`` under the Gaussian."""
        return self._scale(y, self.variances / (self.variances + rho**2))

    def log_density(self, y: Point, rho: Level) -> Scalar:
        """The log density of the Gaussian at a level, normalised."""
        variance = self.variances + rho**2
        z = self._turn(y.ravel() - self.mean)
        return -0.5 * jnp.sum(z**2 / variance + jnp.log(2 * jnp.pi * variance))

    def jump(self, y: Point, rho: Level, after: Level) -> Point:
        """Where the flow carries a point from a positive level ``rho`` to ``after``, up or down."""
        return self._scale(y, jnp.sqrt((self.variances + after**2) / (self.variances + rho**2)))

    def at(self, z: Point, rho: Level) -> Point:
        """A draw of the law at a level, from standard normal ``z`` of the event's shape."""
        back = jnp.sqrt(self.variances + rho**2) * z.ravel()
        return (self.mean + (back if self.axes is None else self.axes @ back)).reshape(z.shape)

    def reach(
        self,
        model: Denoiser,
        levels: ArrayLike,
        event_shape: tuple[int, ...],
        *,
        key: KeyLike,
        tolerance: float = 0.05,
        num: int = 16,
    ) -> float:
        """The smallest level down to which a model is this Gaussian, from the first one on.

        Args:
            model: a denoiser.
            levels: falling levels to try; a last level of 0 is skipped.
            event_shape: shape of a point.
            key: a typed JAX key or an int.
            tolerance: the largest difference of the denoisers, as root mean square over ``num`` draws of the
                Gaussian and over coordinates, in units of :attr:`spread`.
            num: draws at each level.

        Returns:
            The last level before the difference first exceeds the tolerance: jump to there. Costs
            ``num * len(levels)`` calls of the model.

        Raises:
            MethodError: if the difference exceeds it at the first level already, or an argument makes no
                sense.
        """
        model = validated("Teleport.reach", "model", model, DENOISER)
        shape = validated("Teleport.reach", "event_shape", event_shape, EVENT_SHAPE)
        tolerance = validated("Teleport.reach", "tolerance", tolerance, number(above=0))
        num = validated("Teleport.reach", "num", num, integer(1))
        rho = noise_levels("Teleport.reach", "levels", levels, zero=True, fewest=1)
        rho = rho[rho > 0]
        apart = np.asarray(_apart(as_key(key), self, model, jnp.asarray(rho, float), shape, num))
        near = apart <= tolerance
        if not len(near) or not near[0]:
            raise MethodError(
                "Teleport.reach(...): the model is not this Gaussian at the first level",
                expected=f"denoisers at most {tolerance} spreads apart",
                found=f"{apart[0]:.3g}" if len(near) else "no positive level",
                remedy="levels that start higher, or the moments of what the model was trained with",
            )
        return float(rho[len(rho) - 1 if near.all() else int(np.argmin(near)) - 1])

    def _turn(self, x: Vector) -> Vector:
        return x if self.axes is None else x @ self.axes

    def _scale(self, y: Point, factors: Vector) -> Point:
        z = factors * self._turn(y.ravel() - self.mean)
        return (self.mean + (z if self.axes is None else self.axes @ z)).reshape(y.shape)


@partial(jax.jit, static_argnums=(4, 5))
def _apart(
    key: Key, law: Teleport, model: Denoiser, rho: ByLevel, shape: tuple[int, ...], num: int
) -> ByLevel:
    z = jax.random.normal(key, (num, *shape))  # the same draws at all levels

    def at_level(r: Scalar) -> Scalar:
        def difference(z: Point) -> Scalar:
            y = law.at(z, r)
            return jnp.mean((model.denoise(y, r) - law.denoise(y, r)) ** 2)

        return jnp.sqrt(jnp.mean(jax.vmap(difference)(z))) / law.spread

    return jax.lax.map(at_level, rho)
