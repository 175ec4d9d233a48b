"""Means of samples with the help of control variates: least squares, ridge, and errors that hold.

Control variates are functions of mean zero. With many of them for few samples residuals are far smaller than
errors, so standard errors come from leave-one-out residuals (HC3), or from coefficients fitted on other
samples (cross-fitting), which also leaves the estimate unbiased.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import scipy.special
from jax.typing import ArrayLike

from mcx.errors import DataError, MethodError
from mcx.ops.arrays import array_argument
from mcx.ops.validation import integer, one_of, optional, validated
from mcx.types import Array, Bool, Float, Int, Scalar

FITS = ("least_squares", "jackknife", "ridge", "cross_fit")

_FOLDS = 5
_PENALTIES = 25


class Fitted(NamedTuple):
    """Means estimated with control variates; values (n,) have no axis J.

    value: (J,) estimates.
    se: (J,) standard errors.
    residuals: (n, J) what control variates leave of the values, with coefficients of other samples
        (cross-fitting) or as if of other samples (HC3). Their weighted mean is not ``value``.
    coefficients: (K, J), of the controls in their own units.
    rank: number of controls that are not combinations of the others, up to rounding.
    r_squared: (J,) share of the values' variance that the controls explain.
    leverage: largest share of a single sample in its own fitted value; near 1 errors cannot be trusted.
    """

    value: Float[Array, "..."]
    se: Float[Array, "..."]
    residuals: Float[Array, "n ..."]
    coefficients: Float[Array, "K ..."]
    rank: Int[Array, ""]
    r_squared: Float[Array, "..."]
    leverage: Scalar


def regress(
    values: ArrayLike,
    controls: ArrayLike | None,
    weights: ArrayLike | None = None,
    *,
    fit: str = "least_squares",
    num_groups: int | None = None,
) -> Fitted:
    """Estimate means by regression on control variates.

    Args:
        values: (n, J) or (n,); all share the controls, and the decomposition of their matrix.
        controls: (n, K), whose (weighted) means are zero; None or K = 0 for a plain mean.
        weights: (n,), non-negative, of any scale: means are weighted, and normalised by the weights' sum.
        fit: "least_squares"; "jackknife", the same less its bias, which is of order K / n and not small
            beside the error where the controls explain the values in part; "ridge", whose penalty generalised
            cross-validation chooses for each value, from next to none to one that removes the controls;
            "cross_fit", in which each fifth of the samples takes coefficients from the others: unbiased where
            weights are equal, and the samples come in no order.
        num_groups: the samples are this many independent groups, one after the other and equally large,
            within which they may depend on each other; weights are equal, and the fit is "cross_fit", which
            leaves out whole groups. Standard errors come from the groups' means, and are multiplied by the
            ratio of Student's to the normal 97.5 % quantile: plus and minus 1.96 of them is a 95 % interval,
            however few the groups are. None: all samples are independent.

    Returns:
        Estimates and standard errors. Where the values are combinations of the controls and a constant the
        estimate is exact. Costs O(n K^2 + n K J); five times that with "cross_fit".

    Raises:
        MethodError: for an unknown fit, and for groups with weights or another fit than "cross_fit".
        DataError: if the shapes do not fit.

    Sources: Glynn and Szechtman (2002) for regression; Leluc, Portier, Segers and Zhuman (2022) for
    weights; Miller (1974) for the jackknife; MacKinnon and White (1985) for HC3; Golub,
    Heath and Wahba (1979) for the penalty.
    """
    fit = validated("regress", "fit", fit, one_of(*FITS))
    num_groups = validated(
        "regress", "num_groups", num_groups, optional(integer(2), "for independent samples")
    )
    values = jnp.asarray(array_argument("regress", "values", values))
    if not values.ndim:
        raise DataError("regress(values=...) has no samples", expected="(n, J) or (n,)", found="a number")
    flat = values.ndim == 1
    y = values[:, None] if flat else values
    n = y.shape[0]
    controls = jnp.zeros((n, 0)) if controls is None else array_argument("regress", "controls", controls)
    w = jnp.ones(n) if weights is None else array_argument("regress", "weights", weights)
    h, w = jnp.asarray(controls, y.dtype), jnp.asarray(w, y.dtype)
    if y.ndim != 2 or h.ndim != 2 or h.shape[0] != n or w.shape != (n,):
        raise DataError(
            "values, controls and weights do not fit each other",
            expected="(n, J), (n, K) and (n,)",
            found=f"{values.shape}, {h.shape} and {w.shape}",
        )
    if num_groups is not None:
        if weights is not None or (h.shape[1] and fit != "cross_fit"):
            raise MethodError("groups need equal weights and fit='cross_fit'", found=repr(fit))
        if n % num_groups:
            raise DataError("groups are equally large", found=f"{num_groups} groups of {n} samples")
    w = w / jnp.sum(w)
    # squares of numbers below 1e-19 are zero in float32, and errors would be, too
    unit = jnp.max(jnp.abs(y), 0)
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1.0)
    y = y / unit
    if h.shape[1] == 0:
        found = _plain(y, w, num_groups)
    elif fit == "cross_fit":
        found = _cross_fit(y, h, w, num_groups)
    else:
        found = _in_sample(y, h, w, fit)
    scaled = ("value", "se", "residuals", "coefficients")
    found = found._replace(**{name: getattr(found, name) * unit for name in scaled})
    if flat:
        one = {name: getattr(found, name)[0] for name in ("value", "se", "r_squared")}
        found = found._replace(**one, residuals=found.residuals[:, 0], coefficients=found.coefficients[:, 0])
    return found


class Decomposed(NamedTuple):
    """sqrt(w) (h - mean) / scale = u s v': what a regression needs of the controls; zero where s is small."""

    mean: Float[Array, " K"]
    scale: Float[Array, " K"]
    u: Float[Array, "n r"]
    s: Float[Array, " r"]
    v: Float[Array, "K r"]
    kept: Bool[Array, " r"]


def _mean(w: Array, y: Array) -> Array:
    """Weighted mean, in two passes: one float32 sum of 10,000 terms is off by 5e-5, always the same way."""
    first = w @ y
    return first + w @ (y - first)


def decompose(h: Float[Array, "n K"], w: Float[Array, " n"]) -> Decomposed:
    """Decompose controls (n, K), weighted by w (n,) of sum 1. Costs O(n K^2)."""
    mean = _mean(w, h)
    centred = h - mean
    scale = jnp.sqrt(w @ centred**2)
    varies = scale > 4 * jnp.finfo(h.dtype).eps * jnp.max(jnp.abs(h), 0)  # rounding varies, too
    centred, scale = jnp.where(varies, centred, 0.0), jnp.where(varies, scale, 1.0)
    # the factor of a QR decomposition has the same singular values, and is small
    q, r = jnp.linalg.qr(jnp.sqrt(w)[:, None] * (centred / scale))
    left, s, v = jnp.linalg.svd(r, full_matrices=False)
    tolerance = max(1e-6, 10 * float(jnp.finfo(h.dtype).eps) * max(r.shape) ** 0.5)
    kept = s > tolerance * jnp.max(s)
    u = (q @ left) * kept
    return Decomposed(mean, scale, u, jnp.where(kept, s, 1.0), v.T * kept, kept)


class Solved(NamedTuple):
    """A least-squares fit with an intercept: each sample's part in it, factors kept of singular values."""

    value: Float[Array, " J"]
    part: Float[Array, "n J"]
    residual: Float[Array, "n J"]
    coefficients: Float[Array, "K J"]
    factors: Float[Array, "r J"]
    explained: Float[Array, " J"]


def solve(y: Float[Array, "n J"], d: Decomposed, w: Float[Array, " n"], *, ridge: bool = False) -> Solved:
    """Fit values (n, J) to controls decomposed with the same weights. Costs O(n K J)."""
    root = jnp.sqrt(w)[:, None]
    mean = _mean(w, y)
    centred = root * (y - mean)
    c = d.u.T @ centred  # (K, J)
    total = jnp.sum(centred**2, 0)
    factors = jnp.ones_like(c) * d.kept[:, None]
    if ridge:
        factors = _ridge_factors(c, total, d, y.shape[0])
    project = d.v.T @ (d.mean / d.scale)  # (K,)
    solved = factors * c / d.s[:, None]
    part = w[:, None] - root * (d.u @ (factors * (project / d.s)[:, None]))
    residual = (y - mean) - (d.u @ (factors * c)) / jnp.where(root > 0, root, 1.0)
    explained = 1 - jnp.sum(w[:, None] * residual**2, 0) / jnp.where(total > 0, total, 1.0)
    coefficients = (d.v @ solved) / d.scale[:, None]
    return Solved(mean - project @ solved, part, residual, coefficients, factors, explained)


def _in_sample(y: Array, h: Array, w: Array, fit: str) -> Fitted:
    d = decompose(h, w)
    found = solve(y, d, w, ridge=fit == "ridge")
    leverage = w[:, None] + d.u**2 @ found.factors  # a sample's part in its own fitted value
    left_out = found.residual / jnp.maximum(1 - leverage, 1e-3)
    noise = _rounding(h, found.coefficients, w)
    se = jnp.hypot(jnp.sqrt(jnp.sum((found.part * left_out) ** 2, 0)), noise)
    value = found.value
    if fit == "jackknife":
        value = value + jnp.sum(found.part * left_out, 0)
    rank = jnp.sum(d.kept)
    return Fitted(value, se, left_out, found.coefficients, rank, found.explained, jnp.max(leverage))


def _ridge_factors(c: Array, total: Array, d: Decomposed, n: int) -> Array:
    """What ridge keeps of each singular direction, (K, J), at the penalty of least cross-validated error."""
    largest = jnp.max(d.s * d.kept)
    penalties = (largest * jnp.logspace(-6.0, 3.0, _PENALTIES, dtype=c.dtype)) ** 2

    def score(penalty: Array) -> Array:
        keep = d.kept * d.s**2 / (d.s**2 + penalty)
        rss = total - jnp.sum(((2 - keep) * keep)[:, None] * c**2, 0)
        return jnp.maximum(rss, 0.0) / (n - 1 - jnp.sum(keep)) ** 2

    best = penalties[jnp.argmin(jax.vmap(score)(penalties), 0)]  # (J,)
    return d.kept[:, None] * d.s[:, None] ** 2 / (d.s[:, None] ** 2 + best)


def _cross_fit(y: Array, h: Array, w: Array, groups: int | None) -> Fitted:
    n = y.shape[0]
    fold = jnp.arange(n) // (1 if groups is None else n // groups) % _FOLDS

    def others(k: Array) -> tuple[Array, Array]:
        rest = jnp.where(fold == k, 0.0, w)
        rest = rest / jnp.sum(rest)
        d = decompose(h, rest)
        centred = jnp.sqrt(rest)[:, None] * (y - _mean(rest, y))
        return (d.v @ ((d.u.T @ centred) / d.s[:, None])) / d.scale[:, None], jnp.sum(d.kept)

    coefficients, ranks = jax.lax.map(others, jnp.arange(_FOLDS))  # (F, K, J)
    # one fold at a time: no array larger than the controls
    residual = y
    for k in range(_FOLDS):
        residual = residual - jnp.where((fold == k)[:, None], h @ coefficients[k], 0.0)
    plain = _plain(residual, w, groups)
    variance = w @ (y - w @ y) ** 2
    explained = 1 - (w @ (residual - plain.value) ** 2) / jnp.where(variance > 0, variance, 1.0)
    # each fold's coefficients count as often as they were used
    shares = jnp.bincount(fold, length=_FOLDS).astype(h.dtype) / n
    coefficients = jnp.tensordot(shares, coefficients, 1)
    return Fitted(
        plain.value,
        jnp.hypot(plain.se, _rounding(h, coefficients, w)),
        residual,
        coefficients,
        jnp.min(ranks),
        explained,
        jnp.max(w),
    )


def _rounding(h: Array, coefficients: Array, w: Array) -> Array:
    """What rounding may do to means of sums of large terms, (J,): all that is left where a fit is exact."""
    return jnp.finfo(h.dtype).eps * (w @ (jnp.abs(h) @ jnp.abs(coefficients)))


def _plain(y: Array, w: Array, groups: int | None = None) -> Fitted:
    """A weighted mean. Residuals are the values."""
    value = _mean(w, y)
    if groups is None:
        se = jnp.sqrt(jnp.sum((w[:, None] / jnp.maximum(1 - w, 1e-3)[:, None] * (y - value)) ** 2, 0))
    else:
        means = jnp.mean((y - value).reshape(groups, -1, y.shape[1]), 1)
        se = student_ratio(groups - 1) * jnp.sqrt(jnp.sum(means**2, 0) / (groups * (groups - 1)))
    zero = jnp.zeros(y.shape[1], y.dtype)
    return Fitted(value, se, y, jnp.zeros((0, y.shape[1]), y.dtype), jnp.zeros((), int), zero, jnp.max(w))


def student_ratio(degrees: int) -> float:
    """The ratio of Student's to the normal 97.5 % quantile, which standard errors from few groups need."""
    return float(scipy.special.stdtrit(degrees, 0.975) / scipy.special.ndtri(0.975))
