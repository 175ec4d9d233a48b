"""Many expectations from one sample: one function under many laws, or many functions under one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.errors import DataError, NonFiniteError
from mcx.estimators.evaluation import at_points, refuse_nothing
from mcx.estimators.importance.proposals import log_densities
from mcx.estimators.polynomials.independent_inputs import Inputs
from mcx.ops.tracing import refuse_tracing

__all__ = ["Integrals", "Values", "gaussian_moments", "integrals"]


@dataclass(frozen=True)
class Values:
    """A function of points, evaluated at many of them, its values in one row.

    Attributes:
        function: of one point.
        program: the same of many; see :func:`~mcx.estimators.evaluation.at_points`.
        structure: of what the function returns, to give results its shape.
        size: J.
        name: of the function, for errors.
    """

    function: Callable[[Any], Any]
    program: Callable[[Any], Any]
    structure: Any
    size: int
    name: str

    @classmethod
    def of(cls, function: Callable[[Any], Any], event: tuple[int, ...], name: str = "the function") -> Values:
        """Of a function of a point of shape ``event`` that returns a number, an array or a pytree.

        Raises:
            DataError: if it returns no number.
        """
        program = at_points(function)
        like = jax.eval_shape(program, jax.ShapeDtypeStruct((1, *event), jnp.result_type(float)))
        leaves, tree = jax.tree_util.tree_flatten(like)
        refuse_nothing(leaves, name)
        shapes = [leaf.shape[1:] for leaf in leaves]
        return cls(function, program, (tree, shapes), sum(int(np.prod(s)) for s in shapes), name)

    def __call__(self, x: Any, counts: Any = True) -> Any:
        """The function at points, (n, J); 0 where they do not count, (n,).

        Raises:
            NonFiniteError: if a value that counts is NaN or infinite.
            MethodError: if values depend on what JAX traces outside.
        """
        found, bad = _rows(jax.tree_util.tree_leaves(self.program(x)), x)
        refuse_tracing("estimators", "call it outside of jit, vmap and grad", found)
        bad = np.asarray(bad)
        if counts is not True:
            found, bad = jnp.where(counts[:, None], found, 0.0), bad & np.asarray(counts)
        if count := int(bad.sum()):
            row = int(bad.argmax())
            raise NonFiniteError(
                f"{self.name} is not finite at {count} of {found.shape[0]} points",
                found=f"{np.asarray(found[row])} at x = {np.asarray(x[row])}",
                remedy="give it a value wherever the law has mass",
            )
        return found

    def shaped(self, flat: Any) -> Any:
        """Numbers (..., J) in the structure of the function's values, whose leaves keep the leading axes."""
        tree, shapes = self.structure
        flat = np.asarray(flat)
        sizes = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
        parts = np.split(flat, sizes, axis=-1)
        leaves = [p.reshape((*flat.shape[:-1], *s)) for p, s in zip(parts, shapes, strict=True)]
        return jax.tree_util.tree_unflatten(tree, leaves)


@jax.jit
def _rows(leaves: list[Any], x: Any) -> tuple[Any, Any]:
    """Values in one row a point (n, J), and where one is not finite (n,)."""
    found = jnp.concatenate([leaf.reshape(x.shape[0], -1) for leaf in leaves], 1).astype(x.dtype)
    return found, ~jnp.all(jnp.isfinite(found), 1)


@dataclass(frozen=True)
class Integrals:
    """The expectations E_{f_j} phi_j(X), j = 1 .. J.

    Attributes:
        law: a NumPyro distribution of event shape (d,) and batch shape () or (J,).
        function: points (n, d) to values (n, J), or (n, 1) where only laws differ.
        num_laws: one of it and of the number of functions is 1, the other J.
        moments: locations and covariances of Gaussian laws, (laws, d) and (laws, d, d), else None.
        families: of polynomials, of each variable, where a single law has independent ones, else ().
        by_law: whether results have the law's batch shape, not the structure of the function's values.
    """

    law: Any
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

    def values(self, x: Any) -> Any:
        """The function at points; 0 where no law has mass.

        Raises:
            NonFiniteError: if a value is NaN or infinite where there is.
        """
        return self.function(x, self.counts(x))

    def counts(self, x: Any) -> Any:
        """Whether a law has mass at points (n,); True where all have everywhere."""
        return True if self.moments is not None else _inside(self.law, x)

    def shaped(self, flat: Any) -> Any:
        """Numbers (J,) in the structure of the results."""
        return np.asarray(flat) if self.by_law else self.function.shaped(flat)


def integrals(function: Callable[[Any], Any], law: Any) -> Integrals:
    """Describe the expectations of a function under a law, or laws.

    Args:
        function: of a point (d,); returns a number, an array or a pytree, and is traced by JAX.
        law: a NumPyro distribution with one event dimension; with a batch (J,), J laws.

    Raises:
        DataError: if the law has another shape, or both law and function are many.
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


def _check_support(law: Any) -> None:
    """Raise for laws without a density on R^d, which no proposal of points in space could stand for."""
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
def _inside(law: Any, x: Any) -> Any:
    """Whether any of the laws has mass at points (n,)."""
    return jnp.any(log_densities(law, x) > -jnp.inf, 1)


def gaussian_moments(law: Any) -> tuple[np.ndarray, np.ndarray] | None:
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
