"""Control variates that users bring: functions whose means are known, or estimated from many cheap draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError, MethodError
from mcx.estimators.importance.expectations import Integrals, Values
from mcx.estimators.importance.weighted_average import Given

__all__ = ["EstimatedMeans", "KnownMeans", "Prepared"]

_DRAWS_AT_ONCE = 1 << 15


class Prepared(NamedTuple):
    """Control functions and their means (K,); a root (K, K) of the means' covariance, or None."""

    functions: Values
    means: Any
    error: Any = None

    def at(self, problem: Integrals, x: Any) -> Given:
        """As control variates at points (n, d)."""
        return Given(self.functions(x, problem.counts(x)), self.means, self.error)


@dataclass(frozen=True)
class KnownMeans:
    """Functions whose expectations under the law are known, as control variates.

    Attributes:
        functions: of a point (d,), as what is estimated: a number, an array or a pytree; traced by JAX.
        means: their expectations under the law, in the same structure.
    """

    functions: Callable[[Any], Any]
    means: Any

    def prepare(self, problem: Integrals, key: Any) -> Prepared:
        """Check the means.

        Raises:
            DataError: if they do not have the structure of the functions' values, or are not finite.
            MethodError: if there are several laws.
        """
        values = _values(self.functions, problem)
        tree, shapes = values.structure
        leaves, found = jax.tree_util.tree_flatten(self.means)
        if found != tree or [np.shape(leaf) for leaf in leaves] != shapes:
            raise DataError(
                "means of control functions do not fit the functions",
                expected=f"{tree} of shapes {shapes}",
                found=f"{found} of shapes {[np.shape(leaf) for leaf in leaves]}",
            )
        means = np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in leaves])
        if not np.isfinite(means).all():
            raise DataError("means of control functions are not finite", found=repr(means[:4]))
        return Prepared(values, jnp.asarray(means, jnp.result_type(float)))


@dataclass(frozen=True)
class EstimatedMeans:
    """Cheap functions that resemble the integrands, as control variates; their means come from many draws.

    The means' errors are part of the standard errors of the result. With R^2 the share of the variance that
    the functions explain, the variance of one of n draws goes from V / n to V (1 - R^2) / n + V R^2 / M with
    M draws for the means.

    Attributes:
        functions: of a point (d,), as what is estimated; far cheaper than that.
        num_draws: M, of the law itself; at least the budget of the method, else they would cost more accuracy
            than they bring.

    Sources: Schmeiser, Taaffe and Wang (2001) for control variates with estimated means; Gorodetsky, Geraci,
    Eldred and Jakeman (2020) for approximate control variates.
    """

    functions: Callable[[Any], Any]
    num_draws: int = 1_000_000

    def __post_init__(self) -> None:
        if self.num_draws < 100:
            raise MethodError("num_draws is too small", expected="at least 100", found=repr(self.num_draws))

    def prepare(self, problem: Integrals, key: Any) -> Prepared:
        """Draw from the law, and estimate the means.

        Raises:
            MethodError: if there are several laws.
            NonFiniteError: if a control function is not finite.
        """
        values = _values(self.functions, problem)
        size = min(self.num_draws, _DRAWS_AT_ONCE)
        count = -(-self.num_draws // size)
        total, square = np.zeros(values.size), np.zeros((values.size, values.size))
        origin: Any = None
        for k in jax.random.split(key, count):
            x = problem.law.sample(k, (size,)).reshape(size, -1)
            c = np.asarray(values(x), np.float64)
            origin = c.mean(0) if origin is None else origin  # or squares of large means drown the variances
            total, square = total + (c - origin).sum(0), square + (c - origin).T @ (c - origin)
        n = size * count
        mean = total / n
        covariance = (square / n - np.outer(mean, mean)) / n
        eigenvalues, vectors = np.linalg.eigh(covariance)
        root = np.sqrt(eigenvalues.clip(0))[:, None] * vectors.T
        dtype = jnp.result_type(float)
        return Prepared(values, jnp.asarray(origin + mean, dtype), jnp.asarray(root, dtype))


def _values(functions: Callable[[Any], Any], problem: Integrals) -> Values:
    if problem.num_laws > 1:
        raise MethodError(
            "control functions are for a single law",
            expected="a law of batch shape ()",
            found=f"{problem.num_laws} laws",
            remedy="call expectations once for each law, or leave controls= out",
        )
    return Values.of(functions, problem.law.event_shape, "a control function")
