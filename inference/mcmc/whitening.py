"""The change of variables x = x_0 + L w, where L L^T is the adapted covariance, diagonal or dense.

In w kinetic energies are sums of squares. With a dense metric they would be sums of terms of both signs,
which overflow to minus infinity after steps that are too long: those would be accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg

from mcx.types import Covariance, PyTree, Scalar, Vector

type Point = tuple[Vector, Scalar, Vector]
"""Position, log density there, gradient."""

type LogDensity = Callable[[Vector], Scalar]
type NewPoint = tuple[Point, dict[str, PyTree]]
"""The point after a transition, and statistics by ArviZ's names."""


class Whitening:
    """``w -> x = L w``, where ``covariance`` is (d,) variances or a (d, d) matrix."""

    def __init__(self, covariance: Covariance) -> None:
        self._dense = jnp.ndim(covariance) == 2
        self._factor = jnp.linalg.cholesky(covariance) if self._dense else jnp.sqrt(covariance)

    def __call__(self, w: Vector) -> Vector:
        """``w -> x``."""
        return self._factor @ w if self._dense else self._factor * w

    def inverse(self, x: Vector) -> Vector:
        """``x -> w``."""
        if self._dense:
            return jax.scipy.linalg.solve_triangular(self._factor, x, lower=True)
        return x / self._factor

    def pull_gradient(self, gradient: Vector) -> Vector:
        """Gradient in w from the gradient in x."""
        return self._factor.T @ gradient if self._dense else self._factor * gradient

    def push_gradient(self, gradient: Vector) -> Vector:
        """Gradient in x from the gradient in w."""
        if self._dense:
            return jax.scipy.linalg.solve_triangular(self._factor, gradient, lower=True, trans=1)
        return gradient / self._factor


class Whitened(NamedTuple):
    """A state ``(position, log density, gradient)`` in the coordinates w.

    start: the state, at w = 0.
    log_density: as a function of w.
    metric: the inverse mass matrix in w, all ones.
    whitening: w -> x - x_0.
    back: takes a state in w to x; a state that did not move comes back with the same bits.
    """

    start: Point
    log_density: LogDensity
    metric: Vector
    whitening: Whitening
    back: Callable[[Point], Point]


def whitened(state: Point, log_density: LogDensity, covariance: Covariance) -> Whitened:
    """Whiten about the present position, so that displacements lose no digits to its size."""
    position, value, gradient = state
    whitening = Whitening(covariance)

    def back(new: Point) -> Point:
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
