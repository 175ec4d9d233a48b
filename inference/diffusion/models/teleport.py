"""Analytical teleportation: at large noise a diffusion model is Gaussian, and its flow is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.diffusion.models.scores import Denoiser, GaussianMixture
from mcx.ops.keys import as_key

__all__ = ["Teleport"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teleport:
    """The probability flow of a Gaussian, in one step between any two levels. A pytree, and a denoiser.

    Attributes:
        mean: of the data, (d,) in flattened order.
        variances: along the axes, (d,); they may be 0.
        axes: principal axes as columns, (d, d); None where those are the coordinates.

    Where noise is a few times the data's spread, the flow of a diffusion model is that of the Gaussian with
    the data's mean and covariance, so that steps there can be left out. Source: Wang and Vastola (2024).
    """

    mean: Any
    variances: Any
    axes: Any = None

    @classmethod
    def of(cls, mean: Any, covariance: Any) -> Teleport:
        """From moments.

        Args:
            mean: of an event's shape; d numbers.
            covariance: (d, d), or variances of the mean's shape or a scalar; none negative.
        """
        mean = np.asarray(mean, float)
        found = np.asarray(covariance, float)
        axes = None
        if found.shape == (mean.size, mean.size) and found.shape != mean.shape:
            size = np.abs(found).max()
            if not np.allclose(found, found.T, atol=1e-6 * size):
                raise MethodError("Teleport.of(covariance=...) is not symmetric")
            variances, axes = np.linalg.eigh(0.5 * (found + found.T))
            if variances.min() > -1e-6 * size:  # of rounding
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
        leaves = (mean.ravel(), variances, axes)
        return cls(*(None if x is None else jnp.asarray(x, float) for x in leaves))

    @classmethod
    def from_data(cls, data: Any) -> Teleport:
        """From data, (n, *event), n >= 2: their mean and covariance, which costs O(n d^2 + d^3)."""
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
        """From a mixture: its exact mean and covariance."""
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
    def spread(self) -> Any:
        """Root mean variance of a coordinate."""
        return jnp.sqrt(jnp.mean(self.variances))

    @property
    def has_density(self) -> bool:
        """It has."""
        return True

    def denoise(self, y: Any, rho: Any) -> Any:
        """``E[x_0 | y]`` of the Gaussian."""
        return self._scale(y, self.variances / (self.variances + rho**2))

    def log_density(self, y: Any, rho: Any) -> Any:
        """Log density of the Gaussian at a level, normalised."""
        variance = self.variances + rho**2
        z = self._turn(y.ravel() - self.mean)
        return -0.5 * jnp.sum(z**2 / variance + jnp.log(2 * jnp.pi * variance))

    def jump(self, y: Any, rho: Any, after: Any) -> Any:
        """Where the flow carries a point from level ``rho`` to ``after``, up or down.

        Args:
            y: of the event's shape, at level ``rho``.
            rho: positive.
            after: 0 will do.
        """
        return self._scale(y, jnp.sqrt((self.variances + after**2) / (self.variances + rho**2)))

    def at(self, z: Any, rho: Any) -> Any:
        """A draw of the law at a level, from standard normal ``z`` of the event's shape."""
        back = jnp.sqrt(self.variances + rho**2) * z.ravel()
        return (self.mean + (back if self.axes is None else self.axes @ back)).reshape(z.shape)

    def reach(
        self, key: Any, model: Denoiser, levels: Any, event_shape: Any, tolerance: float = 0.05, num: int = 16
    ) -> float:
        """The smallest level down to which a model is this Gaussian, from the first one on.

        Args:
            key: a random key.
            model: a denoiser.
            levels: falling levels to try; those at 0 are not.
            event_shape: shape of a point.
            tolerance: how far the denoisers may be apart, as root mean square over ``num`` draws of the
                Gaussian and over coordinates, in units of :attr:`spread`.
            num: draws a level.

        Returns:
            The last of the levels before the difference first passes the tolerance: jump to there. Costs
            ``num * len(levels)`` calls of the model.

        Raises:
            MethodError: if even at the first level they are further apart.
        """
        rho = np.asarray(levels, float)
        rho = rho[rho > 0]
        apart = np.asarray(
            _apart(as_key(key), self, model, jnp.asarray(rho, float), tuple(event_shape), int(num))
        )
        fine = apart <= tolerance
        if not len(fine) or not fine[0]:
            raise MethodError(
                "Teleport.reach(...): the model is not this Gaussian at the first level",
                expected=f"denoisers at most {tolerance} spreads apart",
                found=f"{apart[0]:.3g}" if len(fine) else "no positive level",
                remedy="levels that start higher, or moments of what the model was trained with",
            )
        return float(rho[len(rho) - 1 if fine.all() else int(np.argmin(fine)) - 1])

    def _turn(self, x: Any) -> Any:
        return x if self.axes is None else x @ self.axes

    def _scale(self, y: Any, factors: Any) -> Any:
        z = factors * self._turn(y.ravel() - self.mean)
        return (self.mean + (z if self.axes is None else self.axes @ z)).reshape(y.shape)


@partial(jax.jit, static_argnums=(4, 5))
def _apart(key: Any, law: Teleport, model: Denoiser, rho: Any, shape: tuple[int, ...], num: int) -> Any:
    z = jax.random.normal(key, (num, *shape))  # the same for all levels

    def at_level(r: Any) -> Any:
        def difference(z: Any) -> Any:
            y = law.at(z, r)
            return jnp.mean((model.denoise(y, r) - law.denoise(y, r)) ** 2)

        return jnp.sqrt(jnp.mean(jax.vmap(difference)(z))) / law.spread

    return jax.lax.map(at_level, rho)
