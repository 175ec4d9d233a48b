"""Estimates of many expectations from weighted points, with all control variates that fit."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import DTypeLike

from mcx.errors import NonFiniteError
from mcx.estimators.control_variates.regression import Fitted, regress
from mcx.estimators.importance.integrals import Integrals
from mcx.estimators.importance.proposals import log_densities
from mcx.estimators.pareto import pareto_khat
from mcx.estimators.polynomials.hermite import Hermite, highest_degree
from mcx.estimators.polynomials.independent_inputs import Inputs, Products
from mcx.ops.logspace import effective_sample_size
from mcx.results.estimate import Estimate
from mcx.types import Array, Float

_POINTS_PER_CONTROL = 40


class KnownControls(NamedTuple):
    """The user's control variates at the points, and their means under the law, known or estimated.

    error: (K, K), a root of the covariance of estimated means, R'R; None of known ones.
    """

    values: Float[Array, "n K"]
    means: Float[Array, " K"]
    error: Float[Array, "K K"] | None = None


@partial(jax.jit, static_argnames=("basis", "many_laws", "controls", "fit"))
def _estimated(
    law: dist.Distribution,
    values: Array,
    log_components: Array,
    log_q: Array,
    x: Array,
    reference: tuple[Array, Array] | None,
    means: Array,
    own: tuple[Array, Array] | None,
    known: KnownControls | None,
    *,
    basis: int | Products,
    many_laws: bool,
    controls: bool,
    fit: str,
) -> dict[str, Array]:
    """Values and standard errors (J,), diagnostics, and which integrands are zero everywhere (J,)."""
    log_w = log_densities(law, x) - log_q[:, None]
    w = jnp.exp(log_w)
    y = w * values
    added = jnp.zeros((len(x), 0), y.dtype) if known is None else w * (known.values - known.means)
    tried: list[tuple[Fitted, int]]  # and numbers of control variates
    if own is not None:
        log_own, coefficients = own
        ratio = jnp.exp(log_own - log_q[:, None])
        tried = [(regress(y - coefficients * (ratio - 1), added, fit=fit), added.shape[1] + 1)]
    elif not controls:
        tried = [(regress(y, added, fit=fit), added.shape[1])]
    else:
        ratios = jnp.exp(log_components - log_q[:, None]) - 1
        polynomials = _polynomials(law, x, reference, basis)
        sizes = _sizes(basis, x.shape[1])
        if many_laws and polynomials.shape[1]:
            tried = [(_by_surrogate(values, w, polynomials[:, :k], means[:, :k]), k) for k in sizes]
            *_, y = _most_certain(tried, 0)
        elif many_laws:
            tried = [(regress(y, ratios, fit=fit), ratios.shape[1])]
        else:
            # under the sampling density: w (p_k - E p_k), w - 1 and g_k / q - 1 have mean zero
            centred, others = w * (polynomials - means), jnp.concatenate([w - 1, ratios], 1)
            every = [jnp.concatenate([added, centred[:, :k], others], 1) for k in sizes]
            tried = [(regress(y, columns, fit=fit), columns.shape[1]) for columns in every]
    value, se, columns, slopes, _ = _most_certain(tried, added.shape[1])
    if known is not None and known.error is not None:
        se = jnp.hypot(se, jnp.sqrt(jnp.sum((known.error @ slopes) ** 2, 0)))
    return {
        "value": value,
        "se": se,
        "num_controls": jnp.max(columns),
        "ess": effective_sample_size(log_w, 0).min(),
        "khat": jnp.max(pareto_khat(log_w.T, log=True)),
        "khat_integrand": pareto_khat(jnp.log(jnp.abs(y)).T, log=True),
        "unseen": jnp.all(w * values == 0, 0),
    }


def _most_certain(tried: list[tuple[Fitted, int]], added: int) -> tuple[Array, Array, Array, Array, Array]:
    """Of each value the fit of least error: estimate, error, columns; first ``added`` slopes; residuals.

    Polynomials of high degree do more harm than good where proposals go beyond the law's mass.
    """
    se = jnp.stack([found.se for found, _ in tried])
    best = jnp.argmin(jnp.where(jnp.isnan(se), jnp.inf, se), 0)  # (J,)

    def chosen(name: str, rows: int | None = None) -> Array:
        every = jnp.stack([getattr(found, name)[:rows] for found, _ in tried])
        return jnp.take_along_axis(every, best.reshape(1, *[1] * (every.ndim - 2), -1), 0)[0]

    columns = jnp.asarray([count for _, count in tried])[best]
    return chosen("value"), chosen("se"), columns, chosen("coefficients", added), chosen("residuals")


def _sizes(basis: int | Products, d: int) -> list[int]:
    """How many polynomials there are up to the degree, up to half of it, and none, in that order."""
    degree = basis.degree if isinstance(basis, Products) else basis
    if isinstance(basis, Products):
        d = sum(f is not None for f in basis.families)
    return sorted({math.comb(d + k, d) - 1 for k in (degree, degree // 2, 0)}, reverse=True)


def _by_surrogate(values: Array, w: Array, polynomials: Array, means: Array) -> Fitted:
    """Fit one surrogate for all laws, whose means under each are known, and average the rest.

    The points have the weights of the laws taken together, so that a heavy tail of proposals is not fitted.
    """
    if not polynomials.shape[1]:
        return regress(w * values, None)
    surrogate = regress(values[:, 0], polynomials, jnp.mean(w, 1), fit="cross_fit")
    exact = surrogate.value + means @ surrogate.coefficients
    y = w * (surrogate.residuals - surrogate.value)[:, None]
    found = regress(y, None)
    # what rounding leaves of sums of large terms, where nothing else is left
    terms = jnp.abs(surrogate.value) + jnp.abs(means) @ jnp.abs(surrogate.coefficients)
    return found._replace(value=exact + found.value, se=jnp.hypot(found.se, jnp.finfo(y.dtype).eps * terms))


def _polynomials(
    law: dist.Distribution, x: Array, reference: tuple[Array, Array] | None, basis: int | Products
) -> Array:
    """Polynomials: up to a degree in the reference's coordinates, or products in independent ones."""
    if isinstance(basis, Products):
        found = basis.values(Inputs.of(law).standard(x))[:, 1:]
    elif reference is not None:
        found = Hermite(reference[0], reference[1], basis).values(x)
    else:
        return x[:, :0]
    # beyond the support they may be NaN, and far out, where no law has mass, powers overflow
    return jnp.where(jnp.isfinite(found), found, 0.0)


def estimate_from(
    problem: Integrals,
    x: Float[Array, "n d"],
    values: Float[Array, "n J"],
    log_q: Float[Array, " n"],
    *,
    log_components: Float[Array, "n C"] | None = None,
    own: tuple[Float[Array, "n J"], Float[Array, " J"]] | None = None,
    known: KnownControls | None = None,
    controls: bool = True,
    fit: str = "cross_fit",
    num_evaluations: int | None = None,
) -> Estimate:
    """Estimate expectations from independent draws of a known density, with all control variates that fit.

    Args:
        problem: what to estimate.
        x: the draws.
        values: the function there, as ``Integrals.values`` gives it.
        log_q: their log density.
        log_components: log densities of other normalised laws, such as the components of a mixture; their
            ratios to the sampling density are control variates.
        own: log densities of a normalised law for each integrand, whose ratio to the sampling density is its
            only control variate, and coefficients that are known beforehand.
        known: further control variates of a single law.
        controls: whether to use polynomials, where laws are Gaussian or have independent components, the
            weights of a single law, whose mean is 1, and ``log_components``.
        fit: see :func:`~mcx.estimators.control_variates.regression.regress`.
        num_evaluations: of the function, in all; n by default.

    Returns:
        Values and standard errors in the structure of the function's, or (J,) for J laws. ``stats``: ``ess``
        (the least over laws, of the weights), ``khat``, ``khat_integrand`` (J,), ``num_samples``,
        ``num_controls``, ``num_evaluations``. Of fits to all polynomials, to those up to half the degree, and
        to none, each value takes the one with the smallest standard error. Costs O(n K^2).

    Raises:
        NonFiniteError: if an estimate or a standard error is not finite.
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
        problem.law, values, log_components, log_q, x, reference, means, own, known,
        basis=basis, many_laws=many, controls=controls, fit=fit,
    )  # fmt: skip
    found = {name: np.asarray(a) for name, a in found.items()}
    if not (np.isfinite(found["value"]).all() and np.isfinite(found["se"]).all()):
        raise NonFiniteError(
            "an estimate is not finite, though the function is finite where it was evaluated",
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
    notes: tuple[str, ...] = ()
    if unseen := found["unseen"].sum():
        zero = f"{unseen} of {problem.count} integrands are zero at all samples"
        notes = (f"{zero}: their errors of 0 mean nothing",)
    value, se = (problem.shaped(found[name]) for name in ("value", "se"))
    return Estimate(value, se, stats=stats, notes=notes)


def _reference(problem: Integrals, degree: int, dtype: DTypeLike) -> tuple[tuple[Array, Array] | None, Array]:
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
