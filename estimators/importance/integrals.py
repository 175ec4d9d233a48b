"""Many expectations from one sample: one function under many laws, or many functions under one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.errors import DataError
from mcx.estimators.evaluation import Values
from mcx.estimators.importance.proposals import log_densities
from mcx.estimators.polynomials.independent_inputs import Inputs
from mcx.types import Array, Bool, Float, PyTree


@dataclass(frozen=True)
class Integrals:
    """The expectations E_{f_j} phi_j(X), j = 1 .. J.

    Attributes:
        law: a NumPyro distribution of event shape (d,) and batch shape () or (J,).
        function: takes points (n, d) to values (n, J), or (n, 1) where only laws differ.
        moments: locations and covariances of Gaussian laws, (laws, d) and (laws, d, d), else None.
        families: of the polynomials in each variable of a single law with independent ones, else ().
        by_law: whether results have the law's batch shape, not the structure of the function's values.
    """

    law: dist.Distribution
    function: Values
    num_laws: int
    moments: tuple[np.ndarray, np.ndarray] | None
    families: tuple[str | None, ...]
    by_law: bool = False

    @property
    def num_functions(self) -> int:
        """J, or 1 where only laws differ."""
        return self.function.size

    @property
    def count(self) -> int:
        """J."""
        return max(self.num_laws, self.num_functions)

    def values(self, x: Float[Array, "n d"]) -> Float[Array, "n J"]:
        """The function at points, 0 where no law has mass; raises NonFiniteError where it is not finite."""
        return self.function(x, self.counts(x))

    def counts(self, x: Float[Array, "n d"]) -> Bool[Array, " n"] | None:
        """Whether any law has mass at points (n,); None where all have mass everywhere."""
        return None if self.moments is not None else _inside(self.law, x)

    def shaped(self, flat: np.ndarray) -> PyTree:
        """Numbers (J,) in the structure of the results."""
        return np.asarray(flat) if self.by_law else self.function.shaped(flat)


def integrals(function: Callable[[Array], PyTree], law: dist.Distribution) -> Integrals:
    """Describe the expectations of a function of a point (d,) under a law, or laws; see ``expectations``.

    Raises:
        DataError: if the law has another shape or no density on R^d, if there are several laws and several
            functions, or if the function returns no number.
    """
    batch, event = getattr(law, "batch_shape", None), getattr(law, "event_shape", ())
    if batch is None or len(event) != 1 or len(batch) > 1:
        raise DataError(
            "the law is no distribution of vectors",
            expected="a NumPyro distribution of event shape (d,) and batch shape () or (J,)",
            found=f"{type(law).__name__} of event shape {event} and batch shape {batch}",
            remedy="make it one with .expand([d]).to_event(1)",
        )
    _check_support(law)
    values = Values.of(function, event)
    laws = batch[0] if batch else 1
    if laws > 1 and values.size > 1:
        raise DataError(
            "both the law and the function are many",
            expected="one function under many laws, or many functions under one law",
            found=f"{values.size} values under {laws} laws",
            remedy="call it once for each law",
        )

    moments = gaussian_moments(law)
    families: tuple[str | None, ...] = ()
    if moments is None and isinstance(law, dist.Independent) and not batch and not law.base_dist.event_shape:
        families = Inputs.of(law).sound_families()
    return Integrals(law, values, laws, moments, families, bool(batch) and values.size == 1)


def _check_support(law: dist.Distribution) -> None:
    """Raise for laws without a density on R^d: no proposal could replace them."""
    support, fills = law.support, True
    try:
        fills = support is None or not support.is_discrete
        if support is not None and fills:
            fills = dist.biject_to(support).inverse_shape(law.event_shape) == law.event_shape
    except NotImplementedError:
        pass  # nothing is known of it
    if not fills:
        raise DataError(
            "the law has no density on R^d",
            expected="a continuous law that fills its space",
            found=f"{type(law).__name__} on {support}",
            remedy="sum over discrete variables within the function, and write dependent ones as functions "
            "of independent ones",
        )


@jax.jit
def _inside(law: dist.Distribution, x: Array) -> Array:
    """Whether any of the laws has mass at points (n,)."""
    return jnp.any(log_densities(law, x) > -jnp.inf, 1)


def gaussian_moments(law: dist.Distribution) -> tuple[np.ndarray, np.ndarray] | None:
    """Locations (laws, d) and covariances (laws, d, d) of Gaussian laws; None of others."""
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.Normal | dist.MultivariateNormal):
        return None
    loc = np.asarray(law.mean, np.float64).reshape(-1, law.event_shape[0])
    if isinstance(base, dist.Normal):
        variance = np.asarray(law.variance, np.float64).reshape(loc.shape)
        return loc, variance[:, :, None] * np.eye(loc.shape[1])
    cov = np.asarray(law.covariance_matrix, np.float64)
    return loc, np.broadcast_to(cov, (len(loc), *cov.shape[-2:]))
