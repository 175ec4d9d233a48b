"""Sobol' sensitivity indices by pick-freeze, with polynomials as control variates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.estimators.control_variates.regression import regress
from mcx.estimators.evaluation import Values
from mcx.estimators.pareto import pareto_khat
from mcx.estimators.polynomials.independent_inputs import Inputs, Products
from mcx.estimators.sensitivity.pick_freeze import DESIGNS, draw_pairs
from mcx.ops.keys import as_key
from mcx.ops.tracing import refuse_tracing
from mcx.ops.validation import integer, one_of, refuse, validated
from mcx.results.estimate import Estimate
from mcx.types import Array, KeyLike, PyTree

_FOLDS = 5
_LEAST = 50  # blocks
_MOST = 500  # polynomials: their cost grows with the square of their number
_BLOCKS_PER_CONTROL = 5

type _Found = dict[str, Array]  # of each output, with mean 0 and variance 1: indices (J, d), and numbers (J,)


def sobol_indices(
    function: Callable[[Array], PyTree],
    law: dist.Distribution | Sequence[dist.Distribution],
    *,
    budget: int = 20_000,
    controls: str = "polynomials",
    design: str = "sobol",
    key: KeyLike,
) -> Estimate:
    """Estimate which share of a function's variance each input explains, alone and with the others.

    The first-order index of input i is Var(E[f | X_i]) / Var(f), the total one E[Var(f | all but X_i)] /
    Var(f). Points come in blocks of d + 2: two independent ones, A and B, and A with each of its coordinates
    taken from B, one at a time (pick-freeze).

    Polynomials g are fitted to f by least squares, of a degree that generalised cross-validation chooses.
    Their indices are sums of squares of coefficients; pick-freeze estimates the rest, from r = f - g and from
    products of r and parts of g, averaged over all points. Each sequence of Sobol' points, or fifth of the
    random blocks, takes the coefficients from the others, so that a g that fits badly costs accuracy and
    makes no bias. The product r(A) r(B), and differences of terms of the same mean, are further control
    variates: they turn the estimator of Saltelli and others into that of Janon and others where that is
    better.

    Args:
        function: of a point (d,); returns a number, an array or a pytree; traced by JAX.
        law: of independent inputs: a NumPyro distribution such as ``Uniform(0, 1).expand([d]).to_event(1)``,
            or a list of d distributions of numbers. Discrete ones, and those without a distribution function,
            are left out of the polynomials.
        budget: evaluations of the function, in all; at least 50 (d + 2).
        controls: "polynomials", or "none" for pick-freeze without them.
        design: "sobol" for 8 to 15 independently scrambled Sobol' sequences in 2 d dimensions, of a power of
            two of blocks each, so that up to a ninth of the budget may be left; or "random". Inputs without a
            quantile function are drawn at random, and a note says so.
        key: a typed JAX key or an int.

    Returns:
        ``value`` and ``se`` are dictionaries with "first" and "total", each (d, ...) in the structure of the
        function's values. Estimates are not forced into [0, 1]. Where a value of the function does not vary
        its indices are NaN, and a note says so. ``stats``: ``mean``, ``variance`` and their standard errors
        ``mean_se`` and ``variance_se``, ``r_squared`` (share of the variance that polynomials explain) and
        ``khat_integrand``, all (J,) for the function's J numbers; ``degree`` (the highest allowed),
        ``num_controls`` (polynomials of that degree), ``num_samples`` (blocks), ``num_evaluations``.

    Raises:
        DataError: if the inputs are not known to be independent, or the function returns nothing.
        MethodError: if the budget is too small, or controls or design are unknown; within functions that JAX
            traces.
        NonFiniteError: if the function is not finite where it was evaluated.

    Indices are ratios of estimates, with a bias of the order of their variance: 1 / budget, against errors of
    the order of its root.

    Costs ``budget`` evaluations, O(budget K^2) for K <= 500 polynomials, and memory for budget K / 5 numbers.

    Standard errors are those of a ratio of means (delta method), from random blocks, or from the means of the
    sequences, then with Student's quantile for so few: 1.96 of them make a 95 % interval. They need fourth
    moments; where what polynomials leave of the function has heavy tails, runs that do not see them have
    errors that are too small. ``khat_integrand`` shows this; see ``warnings`` of the result.

    Sources: Sobol' (1993); Saltelli and others (2010) for the blocks and first-order indices; Owen (1997) for
    errors from independent scramblings; Jansen (1999) for total ones; Janon, Klein, Lagnoux, Nodet and Prieur
    (2014) for efficient products; Sudret (2008) for indices of polynomials.

    Example:
        >>> import mcx.dist as dist
        >>> from mcx.estimators import sobol_indices
        >>> law = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> sobol_indices(lambda x: x[0] + 2 * x[1], law, budget=2000, key=0)  # doctest: +SKIP
    """
    refuse_tracing("estimators.sobol_indices", "call it outside of jit, vmap and grad", law, key)
    controls = validated("sobol_indices", "controls", controls, one_of("polynomials", "none"))
    design = validated("sobol_indices", "design", design, one_of(*DESIGNS))
    budget = validated("sobol_indices", "budget", budget, integer(1))
    inputs = Inputs.of(law)
    d = inputs.dim
    blocks = budget // (d + 2)
    if blocks < _LEAST:
        least = _LEAST * (d + 2)
        expected = f"at least {_LEAST} (d + 2) = {least} evaluations for {d} inputs"
        refuse("sobol_indices", "budget", budget, expected, f"raise budget= to {least} or more")
    values = Values.of(function, (d,))
    a, b, groups, notes = draw_pairs(as_key(key), inputs, blocks, design)
    folds = _FOLDS if groups is None else groups
    n = len(a) // folds
    a, b = a[: n * folds], b[: n * folds]
    raw = np.asarray(values(_blocks(a, b).reshape(-1, d)), np.float64)
    t = _blocks(inputs.standard(a), inputs.standard(b)).reshape(folds, n, d + 2, d)

    middle, scale = raw.mean(0), raw.std(0)
    # rounding varies, too
    varies = scale > 8 * np.finfo(a.dtype).eps * np.abs(raw).max(0)
    scale = np.where(varies, scale, 1.0)
    y = jnp.asarray((raw - middle) / scale, a.dtype).reshape(folds, n, d + 2, -1)
    families = inputs.sound_families() if controls == "polynomials" else (None,) * d
    polynomials = Products.at_most(families, min(_MOST, n * (folds - 1) // _BLOCKS_PER_CONTROL))
    found = _analysed(t, y, polynomials=polynomials, groups=groups)
    found = {name: np.asarray(x, np.float64) for name, x in found.items()}

    def pair(first: str, total: str) -> dict[str, PyTree]:
        both = {"first": found[first], "total": found[total]}
        return {name: values.shaped(np.where(varies, x.T, np.nan)) for name, x in both.items()}

    stats = {
        "mean": middle + scale * found["mean"],
        "mean_se": scale * found["mean_se"] * varies,
        "variance": scale**2 * found["variance"] * varies,
        "variance_se": scale**2 * found["variance_se"] * varies,
        "r_squared": found["r_squared"],
        "khat_integrand": np.where(varies, found["khat"], -np.inf),
        "degree": polynomials.degree,
        "num_controls": len(polynomials.exponents) - 1,
        "num_samples": n * folds,
        "num_evaluations": n * folds * (d + 2),
    }
    if constant := int((~varies).sum()):
        text = f"{constant} of {values.size} values of the function do not vary: no input explains them"
        notes = (*notes, text)
    return Estimate(pair("first", "total"), pair("first_se", "total_se"), stats=stats, notes=notes)


def _blocks(a: Array, b: Array) -> Array:
    """A, B, and A with one coordinate of B: (n, d + 2, d)."""
    mixed = jnp.where(jnp.eye(a.shape[1], dtype=bool), b[:, None], a[:, None])
    return jnp.concatenate([a[:, None], b[:, None], mixed], 1)


@partial(jax.jit, static_argnames=("polynomials", "groups"))
def _analysed(t: Array, y: Array, *, polynomials: Products, groups: int | None) -> _Found:
    """From points in standard form (F, n, d + 2, d) and values (F, n, d + 2, J)."""
    coefficients = _cross_fitted(t, y, polynomials)  # (F, K, J)
    return jax.lax.map(
        lambda one: _indices(t, one[0], one[1], polynomials, groups),
        (jnp.moveaxis(y, 3, 0), jnp.moveaxis(coefficients, 2, 0)),
    )


def _cross_fitted(t: Array, y: Array, polynomials: Products) -> Array:
    """Coefficients (F, K, J) for each fold from the other folds, of the degree that suits them."""
    folds, n, points, d = t.shape
    outputs = y.shape[3]
    y = y.reshape(folds, n * points, outputs)
    t = t.reshape(folds, n * points, d)

    def products(fold: tuple[Array, Array]) -> tuple[Array, Array]:
        p = polynomials.values(fold[0])
        return p.T @ p, p.T @ fold[1]

    gram, moment = jax.lax.map(products, (t, y))
    gram, moment = jnp.sum(gram, 0) - gram, jnp.sum(moment, 0) - moment
    total = polynomials.exponents.sum(1)
    size = len(total)
    within = jnp.asarray(total <= np.arange(polynomials.degree + 1)[:, None], y.dtype)  # (P, K)
    constant = (moment[:, :1] / gram[:, :1, :1]) * (jnp.arange(size) == 0)[:, None]

    def solve(g: Array, b: Array) -> Array:
        """Fits (P, K, J) of all degrees: with polynomials in order, the first columns of one factor."""
        jitter = 1e-6 * jnp.trace(g) / size
        lower = jnp.linalg.cholesky(g + jitter * jnp.eye(size, dtype=g.dtype))
        z = jax.scipy.linalg.solve_triangular(lower, b, lower=True)
        return jax.vmap(lambda m: jax.scipy.linalg.solve_triangular(lower.T, m[:, None] * z))(within)

    fits = jax.vmap(solve)(gram, moment)  # (F, P, K, J)
    fits = fits.at[:, 0].set(constant)

    def squares(fold: tuple[Array, Array]) -> Array:
        p = polynomials.values(fold[0])
        return jax.lax.map(lambda c: jnp.sum((fold[1] - jnp.einsum("nk,pkj->pnj", p, c)) ** 2, 1), fits)

    rss = jax.lax.map(squares, (t, y))  # (fold of the points, fold of the fit, P, J)
    rss = jnp.sum(rss, 0) - jnp.einsum("ffpj->fpj", rss)
    # a block holds two independent points: no more are counted
    score = rss / (1 - jnp.sum(within, 1)[:, None] / (2 * n * (folds - 1))) ** 2
    best = jnp.argmin(jnp.where(jnp.isfinite(score), score, jnp.inf), 1)  # (F, J)
    return jnp.take_along_axis(fits, best[:, None, None], 1)[:, 0]


def _indices(t: Array, y: Array, coefficients: Array, polynomials: Products, groups: int | None) -> _Found:
    """Of one output: values (F, n, d + 2) and coefficients (F, K)."""
    folds, n, points, d = t.shape
    exponents = polynomials.exponents
    has = exponents > 0
    alone = jnp.asarray(has & (has.sum(1, keepdims=True) == 1), y.dtype)  # (K, d)
    among = jnp.asarray(has, y.dtype)

    def parts(fold: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        """Residuals, values of the polynomials, and of their parts with one input, alone and among others."""
        p, c = polynomials.values(fold[0].reshape(n * points, d)), fold[2]
        centred = c.at[0].set(0.0)
        g = p @ centred
        rest = fold[1] - (c[0] + g).reshape(n, points)
        of = [(p @ (centred[:, None] * which)).reshape(n, points, d) for which in (alone, among)]
        known = [centred**2 @ which for which in (alone, among)]
        every = [jnp.broadcast_to(k, (n, *k.shape)) for k in (*known, jnp.sum(centred**2), c[0])]
        return rest, g.reshape(n, points), *of, *every

    flat = [x.reshape(folds * n, *x.shape[2:]) for x in jax.lax.map(parts, (t, y, coefficients))]
    r, g, main, among_g, known_first, known_total, known_variance, constant = flat
    r_a, r_b, r_mixed = r[:, :1], r[:, 1:2], r[:, 2:]
    # of equal means at all points of a block: twice a part of g times what is left
    terms = {"first": 2 * main * r[:, :, None], "total": 2 * among_g * r[:, :, None]}  # (n, d + 2, d)
    square = 2 * g * r + r**2  # (n, d + 2)
    both = r_a * r_b  # the square of a mean that is nearly zero
    variances = known_variance + jnp.mean(square, 1) - both[:, 0]
    pick_freeze = {
        "first": known_first + r_b * (r_mixed - r_a),
        "total": known_total + (r_a - r_mixed) ** 2 / 2,
    }
    means = partial(regress, fit="cross_fit", num_groups=groups)
    variance = means(variances, jnp.concatenate([both, _contrasts(square)], 1))

    def index(name: str) -> tuple[Array, Array, Array]:
        sums = pick_freeze[name] + jnp.mean(terms[name], 1)  # (n, d)
        start = jnp.mean(sums, 0) / jnp.mean(variances)

        def one(i: Array) -> tuple[Array, Array, Array]:
            mine = jnp.stack([jnp.zeros((), int), jnp.ones((), int), i + 2])  # A, B and A with i of B
            controls = jnp.concatenate(
                [both, _contrasts(square)[:, mine], _contrasts(terms[name][:, :, i])[:, mine]], 1
            )
            found = means(sums[:, i] - start[i] * variances, controls)
            tail = pareto_khat(jnp.abs(found.residuals - found.value))
            return start[i] + found.value / variance.value, found.se / variance.value, tail

        value, se, tails = jax.lax.map(one, jnp.arange(d))
        tail = jax.lax.reduce(jnp.ravel(tails), jnp.asarray(-jnp.inf, tails.dtype), jnp.fmax, (0,))
        return value, jnp.hypot(se, 4 * jnp.finfo(y.dtype).eps), tail

    first, first_se, first_tail = index("first")
    total, total_se, total_tail = index("total")
    mean = means(constant + jnp.mean(r, 1), None)
    explained = 1 - jnp.mean(r**2) / jnp.mean(y**2)
    return {
        **{"first": first, "first_se": first_se, "total": total, "total_se": total_se},
        **{"mean": mean.value, "mean_se": mean.se, "variance": variance.value, "variance_se": variance.se},
        **{"r_squared": explained, "khat": jnp.fmax(first_tail, total_tail)},
    }


def _contrasts(x: Array) -> Array:
    """Deviations from the mean along axis 1."""
    return x - jnp.mean(x, 1, keepdims=True)
