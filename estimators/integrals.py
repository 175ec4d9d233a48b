"""Many expectations from one sample: one function under many laws, or many functions under one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.errors import DataError, NonFiniteError
from mcx.estimators.evaluation import at_points, refuse_nothing
from mcx.estimators.hermite import Hermite, highest_degree
from mcx.estimators.independent import Inputs, Products
from mcx.estimators.pareto import pareto_khat
from mcx.estimators.proposals import log_densities
from mcx.estimators.regression import regress
from mcx.ops.logspace import effective_sample_size
from mcx.ops.tracing import refuse_tracing
from mcx.results.estimate import Estimate

__all__ = ["Given", "Integrals", "Values", "estimate_from", "gaussian_moments", "integrals"]

_POINTS_PER_CONTROL = 40


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


class Given(NamedTuple):
    """Control variates from outside, functions whose means under the law are known or estimated.

    values: (n, K), of the functions at the points.
    means: (K,).
    error: (K, K), a root of the covariance of estimated means, R'R; None of known ones.
    """

    values: Any
    means: Any
    error: Any = None


@partial(jax.jit, static_argnames=("basis", "many_laws", "controls", "fit"))
def _estimated(
    law: Any,
    values: Any,
    log_components: Any,
    log_q: Any,
    x: Any,
    reference: Any,
    means: Any,
    own: Any,
    given: Any,
    *,
    basis: int | Products,
    many_laws: bool,
    controls: bool,
    fit: str,
) -> dict[str, Any]:
    """Values and standard errors (J,), diagnostics, and which integrands are zero everywhere (J,)."""
    log_w = log_densities(law, x) - log_q[:, None]
    w = jnp.exp(log_w)
    y = w * values
    added = jnp.zeros((len(x), 0), y.dtype) if given is None else w * (given.values - given.means)
    columns = added.shape[1]
    if own is not None:
        log_own, coefficients = own
        ratio = jnp.exp(log_own - log_q[:, None])
        found = regress(y - coefficients * (ratio - 1), added, fit=fit)
        columns += 1
    elif not controls:
        found = regress(y, added, fit=fit)
    else:
        ratios = jnp.exp(log_components - log_q[:, None]) - 1
        polynomials = _polynomials(law, x, reference, basis)
        if many_laws and polynomials.shape[1]:
            columns += polynomials.shape[1]
            # One surrogate for all laws, whose means under each are known; what it leaves is averaged. Points
            # count as under the laws taken together: a heavy tail of proposals is not to be fitted.
            surrogate = regress(values[:, 0], polynomials, jnp.mean(w, 1), fit="cross_fit")
            known = surrogate.value + means @ surrogate.coefficients
            y = w * (surrogate.residuals - surrogate.value)[:, None]
            found = regress(y, w[:, :0], fit="least_squares")
            # what rounding leaves of sums of large terms, where nothing else is left
            terms = jnp.abs(surrogate.value) + jnp.abs(means) @ jnp.abs(surrogate.coefficients)
            se = jnp.hypot(found.se, jnp.finfo(y.dtype).eps * terms)
            found = found._replace(value=known + found.value, se=se)
        elif many_laws:
            columns += ratios.shape[1]
            found = regress(y, ratios, fit=fit)
        else:
            # under the sampling density: w (p_k - E p_k), w - 1 and g_k / q - 1 have mean zero
            every = jnp.concatenate([added, w * (polynomials - means), w - 1, ratios], 1)
            columns = every.shape[1]
            found = regress(y, every, fit=fit)
    if given is not None and given.error is not None:
        slopes = found.coefficients[: added.shape[1]]
        of_means = jnp.sqrt(jnp.sum((given.error @ slopes) ** 2, 0))
        found = found._replace(se=jnp.hypot(found.se, of_means))
    return {
        "value": found.value,
        "se": found.se,
        "num_controls": columns,
        "ess": effective_sample_size(log_w, 0).min(),
        "khat": jnp.max(pareto_khat(log_w.T, log=True)),
        "khat_integrand": pareto_khat(jnp.log(jnp.abs(y)).T, log=True),
        "unseen": jnp.all(w * values == 0, 0),
    }


def _polynomials(law: Any, x: Any, reference: Any, basis: int | Products) -> Any:
    """Polynomials (n, K): of a degree in the reference's coordinates, or products in independent ones."""
    if isinstance(basis, Products):
        found = basis.values(Inputs.of(law).standard(x))[:, 1:]
        # beyond the support they count for nothing, but may be NaN
        return jnp.where(jnp.isfinite(found), found, 0.0)
    if not basis:
        return x[:, :0]
    found = Hermite(reference[0], reference[1], basis).values(x)
    # far out, where heavy-tailed proposals go and no law has mass, powers overflow
    return jnp.where(jnp.isfinite(found), found, 0.0)


def estimate_from(
    problem: Integrals,
    x: Any,
    values: Any,
    log_q: Any,
    *,
    log_components: Any = None,
    own: tuple[Any, Any] | None = None,
    given: Given | None = None,
    controls: bool = True,
    fit: str = "cross_fit",
    num_evaluations: int | None = None,
) -> Estimate:
    """Estimate expectations from points of a known density, with all control variates that fit.

    Args:
        problem: what to estimate.
        x: (n, d) independent draws.
        values: the function there, as ``Integrals.values`` gives it.
        log_q: (n,) log density they were drawn from.
        log_components: (n, C) log densities of other normalised laws, such as the components of a mixture;
            their ratios to the sampling density are control variates.
        own: log densities (n, J) of a normalised law for each integrand, whose ratio to the sampling density
            is its only control variate, and coefficients (J,) that are known beforehand.
        given: further control variates of a single law.
        controls: whether to use polynomials as control variates, where the laws are Gaussian or the
            components of a single one are known to be independent, the weights of a single law, whose mean
            is 1, and ``log_components``. Without, and without ``own`` and ``given``, estimates are plain
            averages.
        fit: see :func:`~mcx.estimators.regression.regress`.
        num_evaluations: of the function, in all; n by default.

    Returns:
        Values and standard errors in the structure of the function's, or (J,) for J laws. ``stats``: ``ess``
        (the least over laws, of the weights), ``khat``, ``khat_integrand`` (J,), ``num_samples``,
        ``num_controls`` (columns of the regression), ``num_evaluations``.
    """
    n, d = x.shape
    many = problem.num_laws > 1
    most = n // _POINTS_PER_CONTROL
    polynomials = controls and own is None
    degree = highest_degree(d, most) if polynomials and problem.moments is not None else 0
    basis: int | Products = degree
    if polynomials and problem.families:
        basis = Products.at_most(problem.families, most)
    log_components = jnp.zeros((n, 0), x.dtype) if log_components is None else log_components[:, :most]
    reference, means = _reference(problem, degree, x.dtype)
    found = _estimated(
        problem.law, values, log_components, log_q, x, reference, means, own, given,
        basis=basis, many_laws=many, controls=controls, fit=fit,
    )  # fmt: skip
    found = {name: np.asarray(a) for name, a in found.items()}
    if not (np.isfinite(found["value"]).all() and np.isfinite(found["se"]).all()):
        raise NonFiniteError(
            "an estimate came out as no number, though the function is finite where it was evaluated",
            found=f"values {found['value'][:4]}, standard errors {found['se'][:4]}",
            remedy="keep a share of the laws in the proposal, defensive=0.1; scale the function's values if "
            "they are near the largest numbers of their type",
        )
    stats = {
        **{name: found[name] for name in ("ess", "khat", "khat_integrand")},
        "num_samples": n,
        "num_controls": int(found["num_controls"]),
        "num_evaluations": n if num_evaluations is None else num_evaluations,
    }
    notes = []
    if unseen := found["unseen"].sum():
        notes.append(
            f"{unseen} of {problem.count} integrands are zero at all samples: their errors of 0 mean nothing"
        )
    return Estimate(
        problem.shaped(found["value"]), problem.shaped(found["se"]), stats=stats, notes=tuple(notes)
    )


def _reference(problem: Integrals, degree: int, dtype: Any) -> tuple[Any, Any]:
    """A Gaussian that covers all laws, and the means (laws, K) of its polynomials under each."""
    if not degree:
        return None, jnp.zeros((problem.num_laws, 1), dtype)
    assert problem.moments is not None
    loc, cov = problem.moments
    middle = loc.mean(0)
    within = cov.mean(0) + (loc - middle).T @ (loc - middle) / len(loc)
    tril = np.linalg.cholesky(within)
    means = Hermite(middle, tril, degree).means(loc, cov)
    return (jnp.asarray(middle, dtype), jnp.asarray(tril, dtype)), jnp.asarray(means, dtype)
