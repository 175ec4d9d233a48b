"""Pareto smoothed importance sampling, and the Pareto k diagnostic of weights and of any draws.

The largest importance ratios follow a generalised Pareto law whose shape k says how many moments they have:
1/k. A mean of such ratios settles slowly from k = 0.5 and not in practice from k = 0.7, and the estimate
``khat`` shows it without the truth being known. Smoothing replaces the largest weights by the quantiles
of the fitted law, which takes most of the noise out of them for a little bias.

    >>> import jax, jax.numpy as jnp
    >>> from mcx.estimators.pareto import khat_of, psis
    >>> x = jax.random.normal(jax.random.key(0), (4000,))  # N(0, 1) to stand in for N(0, 1.3^2)
    >>> log_w = 0.5 * x**2 * (1 - 1 / 1.3**2)
    >>> smoothed, khat = psis(log_w)  # normalised log weights; khat 0.47
    >>> second_moment = jnp.sum(jnp.exp(smoothed) * x**2)
    >>> worse = khat_of(x**2, log_w)  # 0.66: the terms of the error have a heavier tail than the weights

All functions here are for independent draws, and may be jitted and vmapped. They are not meant to be
differentiated.

Compare ``khat`` with ``min(1 - 1 / log10(S), 0.7)``, the limit for S draws. It is

* -inf where the largest values are all equal, so that there is no tail: there is nothing to worry about;
* +inf where the weights in the lower quarter of the tail are zero beside the largest, as they are in float32
  from 87 below it on a log scale, or all weights are zero: the weights are useless;
* NaN where nothing can be said: fewer than 30 draws, or ties at the lower end of the tail. Hence
  test ``khat <= 0.7`` for "good", not ``khat > 0.7`` for "bad".

Sources: Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72);
Zhang & Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution,
Technometrics 51(3).
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.errors import MethodError
from mcx.ops.arrays import array_argument
from mcx.ops.logspace import as_float, largest, normalize, relative_weights
from mcx.ops.validation import one_of, validated
from mcx.types import Array, Float, LogWeights, Scalar

_LEAST_TAIL = 5


def tail_size(num_draws: int, tail: str = "right") -> int:
    """Count the draws that make up a tail: ``floor(min(S / 5, 3 sqrt(S)))`` of S.

    The paper rounds up; down agrees with ArviZ. For both tails together it is at least 5 and at
    most half of the draws.
    """
    size = math.floor(min(num_draws / 5, 3 * math.sqrt(num_draws)))
    return min(max(size, _LEAST_TAIL), num_draws // 2) if tail == "both" else size


def psis(log_weights: ArrayLike) -> tuple[Float[Array, "... S"], Float[Array, "..."]]:
    """Smooth importance weights, and estimate the shape of their tail.

    Args:
        log_weights: (..., S) unnormalised log weights of S independent draws; -inf is weight zero, as is NaN.

    Returns:
        Normalised log weights (..., S), in the order given, and ``khat`` (...). The weights are smoothed
        whatever ``khat`` is, and left as they are where it is not finite; none is made larger than the
        largest was. All -inf stays so.

    Costs O(S log S) at most, for picking the tail, and O(S^0.75) for the fit.

    Source: Vehtari et al. (2024), Algorithm 1.
    """
    log_w = _draws("psis", "log_weights", log_weights)
    return jnp.vectorize(_smooth, signature="(s)->(s),()")(log_w)


def pareto_khat(x: ArrayLike, *, tail: str = "both", log: bool = False) -> Float[Array, "..."]:
    """Estimate the shape k of the generalised Pareto law that the tail of draws follows.

    Args:
        x: (..., S) independent draws.
        tail: "right", "left" or "both", which is the larger of the two.
        log: whether ``x`` holds logarithms of the draws: of weights, say. Then only the right tail makes
            sense and is taken, and -inf stands for zero.

    Returns:
        ``khat`` (...), see the module; NaN where draws are not finite (with ``log``, only all -inf counts).

    Raises:
        MethodError: for another ``tail``, and for the left one of logarithms.

    Costs as :func:`psis`. Source: Vehtari et al. (2024).
    """
    tail = validated("pareto_khat", "tail", tail, one_of("right", "left", "both"))
    draws = _draws("pareto_khat", "x", x)
    if log:
        if tail == "left":
            raise MethodError(
                "the left tail of logarithms ends at zero",
                expected='tail="right"',
                found='tail="left"',
                remedy="pass the draws themselves and log=False",
            )
        return jnp.vectorize(lambda v: _fit_weights(v)[0], signature="(s)->()")(draws)
    return jnp.vectorize(partial(_khat_of_draws, tail=tail), signature="(s)->()")(draws)


def khat_of(values: ArrayLike, log_weights: ArrayLike) -> Float[Array, "..."]:
    """Estimate the shape of the heaviest tail that matters to self-normalised means of ``values`` (S, ...).

    Such an estimate is a ratio: its numerator averages integrand x weight, its denominator the weights. Of
    interest are the tails of weight x abs(integrand - its mean), of which the estimate's error is an average,
    and of the weights; NaN is left out. The tails of integrand x weight itself would mislead: where many
    weights are next to zero, one of them starts among those, and looks heavy.

    Raises MethodError if the leading axis of ``values`` is not that of ``log_weights`` (S,). Costs as
    :func:`psis` for each integrand. Source: Vehtari et al. (2024).
    """
    log_w: Array = as_float(log_weights)
    integrand: Array = as_float(values)
    if log_w.ndim != 1 or integrand.shape[:1] != log_w.shape:
        raise MethodError(
            "values and weights are not of the same draws",
            expected="(S, ...) values and (S,) log weights",
            found=f"{integrand.shape} and {log_w.shape}",
        )
    of_weights = pareto_khat(log_w, tail="right", log=True)
    w = relative_weights(log_w)
    # zero times infinite is zero here: a draw of weight zero is none
    counted = jnp.where(w > 0, integrand.T, 0.0)  # (..., S)
    mean = jnp.sum(counted * w, -1, keepdims=True) / jnp.sum(w)
    spread = jnp.log(jnp.abs(counted - mean)) + log_w
    constant = jnp.max(spread, -1) == -jnp.inf  # estimated without error, whatever the weights
    of_integrand = jnp.where(constant, jnp.nan, pareto_khat(spread, log=True))
    return jnp.fmax(of_integrand, of_weights).T


def _draws(owner: str, name: str, values: ArrayLike) -> Array:
    x: Array = as_float(array_argument(owner, name, values))
    if x.ndim == 0 or x.shape[-1] == 0:
        raise MethodError("there are no draws", expected="(..., S), S at least 1", found=str(x.shape))
    return x


def _smooth(log_weights: LogWeights) -> tuple[LogWeights, Scalar]:
    """Smooth one vector; see psis."""
    log_w, _ = normalize(log_weights)
    khat, scale, where = _fit_weights(log_weights)
    size = tail_size(log_w.shape[0])
    if size < _LEAST_TAIL:
        return log_w, khat
    order = where[::-1][1:]  # of the tail, ascending; the first is the cutoff
    rank = (jnp.arange(size, dtype=log_w.dtype) + 0.5) / size
    w = relative_weights(log_weights)
    quantile = w[where[-1]] + _quantile(rank, khat, scale)
    # beside the largest weight, which is 1
    log_quantile = jnp.minimum(jnp.log(jnp.where(quantile > 0, quantile, 1.0)), 0.0)
    smoothed = log_w.at[order].set(log_quantile + jnp.max(log_w), unique_indices=True)
    return normalize(jnp.where(jnp.isfinite(khat), smoothed, log_w))[0], khat


def _fit_weights(log_weights: LogWeights) -> tuple[Scalar, Scalar, Array]:
    """Fit the right tail of weights, the largest being 1: k, scale, and where the tail is, descending."""
    w = relative_weights(log_weights)
    size = tail_size(w.shape[0])
    none = jnp.asarray(jnp.nan, w.dtype)
    if size < _LEAST_TAIL:
        return none, none, jnp.zeros(0, jnp.int32)
    # weights underflow: the order is that of the logarithms
    _, where = jax.lax.top_k(jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights), size + 1)
    tail = w[where][::-1]
    khat, scale = _fit(tail[1:] - tail[0])
    positive = tail[1:] > 0
    bounded = (jnp.sum(positive) >= _LEAST_TAIL) & (jnp.min(jnp.where(positive, tail[1:], jnp.inf)) >= 1)
    lost = tail[1:][_quartile(size)] <= 0
    khat = jnp.where(bounded, -jnp.inf, jnp.where(lost, jnp.inf, khat))
    return jnp.where(largest(log_weights) == -jnp.inf, jnp.inf, khat), scale, where


def _khat_of_draws(x: Array, tail: str) -> Scalar:
    """pareto_khat of one vector of draws."""
    size = tail_size(x.shape[0], tail)
    if size < _LEAST_TAIL:
        return jnp.asarray(jnp.nan, x.dtype)
    khat = jnp.asarray(jnp.nan, x.dtype)
    for side, sign in (("right", 1), ("left", -1)):
        if tail in (side, "both"):
            top = jax.lax.top_k(sign * x, size + 1)[0][::-1]
            k = jnp.where(top[-1] == top[1], -jnp.inf, _fit(top[1:] - top[0])[0])
            khat = jnp.fmax(khat, k)  # the one that could be fitted
    return jnp.where(jnp.all(jnp.isfinite(x)), khat, jnp.nan)


def _quartile(n: int) -> int:
    """Where the first quartile of n sorted draws is; Zhang & Stephens (2009)."""
    return int(n / 4 - 0.5)


def _fit(excess: Array) -> tuple[Scalar, Scalar]:
    """Fit a generalised Pareto law to sorted excesses over a cutoff; NaN where the quartile is the minimum.

    The posterior mean of Zhang & Stephens (2009), with their sign of k reversed; the shape is then drawn
    towards 0.5 as ten more draws would (Vehtari et al. 2024).
    """
    n = excess.shape[0]
    num_grid = 30 + math.isqrt(n)
    quartile = excess[_quartile(n)]
    usable = (quartile > excess[0]) & (quartile > 0)
    # in units of the quartile: else 1 / excess may overflow
    x = jnp.where(usable, excess / jnp.where(usable, quartile, 1.0), 1.0)
    j = jnp.arange(1, num_grid + 1, dtype=x.dtype)
    theta = 1 / x[-1] + (1 - jnp.sqrt(num_grid / (j - 0.5))) / 3
    theta = jnp.where(theta == 0, jnp.finfo(x.dtype).eps, theta)  # the likelihood is a limit there
    k = jnp.mean(jnp.log1p(-theta[:, None] * x), axis=1)
    log_likelihood = n * (jnp.log(-theta / k) - k - 1)
    theta = jnp.sum(theta * jax.nn.softmax(log_likelihood))
    k = jnp.mean(jnp.log1p(-theta * x))
    scale = -k / theta * quartile
    return jnp.where(usable, (n * k + 10 * 0.5) / (n + 10), jnp.nan), jnp.where(usable, scale, jnp.nan)


def _quantile(p: Array, k: Scalar, scale: Scalar) -> Array:
    """Quantiles of the generalised Pareto law."""
    log_survival = jnp.log1p(-p)
    flat = jnp.abs(k) < jnp.finfo(p.dtype).tiny
    safe = jnp.where(flat, 1.0, k)
    return scale * jnp.where(flat, -log_survival, jnp.expm1(-safe * log_survival) / safe)
