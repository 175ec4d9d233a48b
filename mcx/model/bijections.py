"""The maps from unconstrained space to the supports of sites.

They are NumPyro's, but for circles and spheres: a map from an interval would cut these open, and a chain
could not cross the cut. There the unconstrained coordinates are a point of Euclidean space whose direction is
the value; its length has a law of its own, independent of the direction.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import IndependentTransform, ParameterFreeTransform, Transform

_DEGREES = 10  # of freedom of the length: sd 0.24 about 1, and next to nothing at the origin


def bijection(support: Any) -> Transform:
    """The map from unconstrained coordinates to a support; several points may have one value on circles."""
    if is_circular(support):
        circle, event_dim = _Circle(), getattr(support, "reinterpreted_batch_ndims", 0)
        return IndependentTransform(circle, event_dim) if event_dim else circle
    return _Sphere() if support is constraints.sphere else dist.biject_to(support)


def is_circular(support: Any) -> bool:
    """Whether a support is a circle, or several of them, in radians."""
    if isinstance(support, constraints.independent):
        return is_circular(support.base_constraint)
    return isinstance(support, type(constraints.circular))


def radius_log_density(point: Array, degrees: int) -> Array:
    """Log density of a point in n dimensions, given its direction, whose length has a chi law with mode 1.

    With k degrees of freedom that is ``C r^(k-1) exp(-(k-1) r^2 / 2) / r^(n-1)``, which integrates to
    one over all points of a direction.
    """
    n, k = point.shape[-1], degrees
    square = jnp.sum(point**2, -1)
    log_c = math.log(2) + k / 2 * math.log((k - 1) / 2) - math.lgamma(k / 2)
    return log_c + (k - n) / 2 * jnp.log(square) - (k - 1) / 2 * square


class _Direction(ParameterFreeTransform):
    """The direction of a point; the unconstrained origin is the direction of the first axis."""

    domain = constraints.real_vector
    degrees = _DEGREES

    def __call__(self, x: Array) -> Array:
        return self.direction(self._point(x))

    def _point(self, x: Array) -> Array:
        return x.at[..., 0].add(1.0)

    def direction(self, point: Array) -> Array:
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return radius_log_density(self._point(x), self.degrees)


class _Circle(_Direction):
    codomain = constraints.circular

    def direction(self, point: Array) -> Array:
        return jnp.arctan2(point[..., 1], point[..., 0])

    def _inverse(self, y: Array) -> Array:
        return jnp.stack([jnp.cos(y) - 1.0, jnp.sin(y)], -1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[:-1])

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, 2)


class _Sphere(_Direction):
    codomain = constraints.sphere

    def direction(self, point: Array) -> Array:
        return point / jnp.linalg.norm(point, axis=-1, keepdims=True)

    def _inverse(self, y: Array) -> Array:
        return jnp.asarray(y).at[..., 0].add(-1.0)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return radius_log_density(self._point(x), max(self.degrees, x.shape[-1] + 8))
