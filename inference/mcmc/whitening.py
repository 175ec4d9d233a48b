"""Linear change of variables x = L w with L L^T the adapted covariance, diagonal or dense."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg

__all__ = ["Whitening"]


class Whitening:
    """``w -> x = L w``, where ``covariance`` is (d,) variances or a (d, d) matrix."""

    def __init__(self, covariance: Any) -> None:
        self._dense = jnp.ndim(covariance) == 2
        self._factor = jnp.linalg.cholesky(covariance) if self._dense else jnp.sqrt(covariance)

    def __call__(self, w: Any) -> Any:
        """``w -> x``."""
        return self._factor @ w if self._dense else self._factor * w

    def inverse(self, x: Any) -> Any:
        """``x -> w``."""
        if self._dense:
            return jax.scipy.linalg.solve_triangular(self._factor, x, lower=True)
        return x / self._factor

    def pull_gradient(self, gradient: Any) -> Any:
        """Gradient in w from the gradient in x."""
        return self._factor.T @ gradient if self._dense else self._factor * gradient

    def push_gradient(self, gradient: Any) -> Any:
        """Gradient in x from the gradient in w."""
        if self._dense:
            return jax.scipy.linalg.solve_triangular(self._factor, gradient, lower=True, trans=1)
        return gradient / self._factor
