"""Linear change of variables x = x_0 + L w with L L^T the adapted covariance, diagonal or dense.

In w the metric is the identity, so that kinetic energies are sums of squares: those of a dense metric, sums
of terms of both signs, overflow to minus infinity where a step was too long, and would be accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg

__all__ = ["Whitened", "Whitening", "whitened"]


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


class Whitened(NamedTuple):
    """A state ``(position, log density, gradient)`` as seen from w.

    start: the same state, at w = 0.
    log_density: as a function of w.
    metric: the inverse mass matrix there, ones.
    whitening: w -> x - x_0.
    back: a state in w as one in x; where nothing moved, exactly the state that there was.
    """

    start: tuple[Any, Any, Any]
    log_density: Callable[[Any], Any]
    metric: Any
    whitening: Whitening
    back: Callable[[tuple[Any, Any, Any]], tuple[Any, Any, Any]]


def whitened(state: tuple[Any, Any, Any], log_density: Callable[[Any], Any], covariance: Any) -> Whitened:
    """Whiten about the present position: displacements then lose no digits to the position's size."""
    position, value, gradient = state
    whitening = Whitening(covariance)

    def back(new: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        w, new_value, slope = new
        stayed = jnp.all(w == 0)
        return (
            jnp.where(stayed, position, position + whitening(w)),
            new_value,
            jnp.where(stayed, gradient, whitening.push_gradient(slope)),
        )

    return Whitened(
        (jnp.zeros_like(position), value, whitening.pull_gradient(gradient)),
        lambda w: log_density(position + whitening(w)),
        jnp.ones_like(position),
        whitening,
        back,
    )
