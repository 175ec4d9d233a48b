"""Control variates of the user: functions whose means are known, or estimated from many cheap draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError, MethodError
from mcx.estimators.evaluation import Values
from mcx.estimators.importance.integrals import Integrals
from mcx.estimators.importance.weighted_average import KnownControls
from mcx.ops.validation import Rule, Settings, integer
from mcx.types import Array, Float, Key, PyTree

_DRAWS_AT_ONCE = 1 << 15


class Prepared(NamedTuple):
    """Control functions and their means (K,); a root (K, K) of the means' covariance, or None."""

    functions: Values
    means: Float[Array, " K"]
    error: Float[Array, "K K"] | None = None

    def at(self, problem: Integrals, x: Float[Array, "n d"]) -> KnownControls:
        """The control variates at points."""
        return KnownControls(self.functions(x, problem.counts(x)), self.means, self.error)


@dataclass(frozen=True)
class KnownMeans:
    """Functions whose expectations under the law are known, as control variates.

    Attributes:
        functions: of a point (d,), as what is estimated: a number, an array or a pytree; traced by JAX.
        means: their expectations under the law, in the same structure.
    """

    functions: Callable[[Array], PyTree]
    means: PyTree

    def prepare(self, problem: Integrals, key: Key) -> Prepared:
        """Check the means; raises DataError where they do not fit, and MethodError for several laws."""
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
class EstimatedMeans(Settings):
    """Cheap functions that resemble the integrands, as control variates; their means come from many draws.

    The means' errors are part of the standard errors of the result. With R^2 the share of the variance that
    the functions explain, and M draws for the means, the variance of a mean of n draws goes from V / n to
    V (1 - R^2) / n + V R^2 / M.

    Attributes:
        functions: of a point (d,), as what is estimated; far cheaper than that.
        num_draws: M, of the law itself, at least 100, and at least the budget of the method: with fewer the
            functions would cost more accuracy than they bring.

    Sources: Schmeiser, Taaffe and Wang (2001) for control variates with estimated means; Gorodetsky, Geraci,
    Eldred and Jakeman (2020) for approximate control variates.
    """

    functions: Callable[[Array], PyTree]
    num_draws: int = 1_000_000

    def rules(self) -> Mapping[str, Rule]:
        """See :class:`~mcx.ops.validation.Settings`."""
        return {"num_draws": integer(100)}

    def prepare(self, problem: Integrals, key: Key) -> Prepared:
        """Draw from the law, and estimate the means; NonFiniteError if a control function is not finite."""
        values = _values(self.functions, problem)
        size = min(self.num_draws, _DRAWS_AT_ONCE)
        count = -(-self.num_draws // size)
        total, square = np.zeros(values.size), np.zeros((values.size, values.size))
        origin: np.ndarray | None = None
        for k in jax.random.split(key, count):
            x = problem.law.sample(k, (size,)).reshape(size, -1)
            c = np.asarray(values(x), np.float64)
            origin = c.mean(0) if origin is None else origin  # or squares of large means drown the variances
            total, square = total + (c - origin).sum(0), square + (c - origin).T @ (c - origin)
        assert origin is not None
        n = size * count
        mean = total / n
        covariance = (square / n - np.outer(mean, mean)) / n
        eigenvalues, vectors = np.linalg.eigh(covariance)
        root = np.sqrt(eigenvalues.clip(0))[:, None] * vectors.T
        dtype = jnp.result_type(float)
        return Prepared(values, jnp.asarray(origin + mean, dtype), jnp.asarray(root, dtype))


def _values(functions: Callable[[Array], PyTree], problem: Integrals) -> Values:
    if problem.num_laws > 1:
        raise MethodError(
            "control functions are for a single law",
            expected="a law of batch shape ()",
            found=f"{problem.num_laws} laws",
            remedy="call expectations once for each law, or leave controls= out",
        )
    return Values.of(functions, problem.law.event_shape, "a control function")
