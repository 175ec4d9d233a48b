"""Integrals by least squares, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import NonFiniteError
from mcx.estimators.least_squares.basis import Basis
from mcx.estimators.least_squares.designs import design, is_unbiased
from mcx.estimators.least_squares.fit import fit
from mcx.ops.keys import as_key
from mcx.ops.validation import integer, validated
from mcx.results.estimate import Estimate
from mcx.types import Array, Key, KeyLike

_BIASED = "least squares is biased for this design; the standard error does not include the bias"


def integrate(
    fn: Callable[[Array], Array],
    basis: Basis,
    n: int,
    *,
    scheme: str = "volume",
    replicates: int = 8,
    key: KeyLike,
) -> Estimate:
    """Estimate the integral of a function under a basis's reference measure.

    Each replicate is the integral of a least-squares fit to a design of its own. With ``"volume"``, and with
    ``"dpp"`` where n = m (the estimator of Ermakov & Zolotukhin 1960), it is unbiased; its variance for n = m
    is the squared L2 distance of the function to the span, whatever m is (if the constant is in the span), so
    that it falls as fast as the functions approximate.

    Args:
        fn: takes a point (d,) to a number or an array; traced by JAX. For a function that JAX cannot trace,
            draw a :func:`design`, and call :func:`fit` with the values.
        basis: m functions; the reference measure is theirs.
        n: evaluations in a replicate, at least m.
        scheme: of :func:`design`.
        replicates: number of them, at least 2; the standard error, from their spread, has
            ``replicates - 1`` degrees of freedom.
        key: a typed key, or an int.

    Returns:
        The value and its standard error, of the shape of the function's values. ``stats``: ``num_samples``
        (evaluations in all), ``replicates``, and ``condition`` and ``gram_error`` of the worst fit. A note
        says so where least squares is biased for the design.

    Raises:
        MethodError: for fewer than 2 replicates, and what :func:`design` raises.
        NonFiniteError: if the function or a fit is not finite.

    Source: Gautier, Bardenet & Valko (2019), On two ways to use determinantal point processes for Monte Carlo
    integration, for n = m.
    """
    replicates = validated("integrate", "replicates", replicates, integer(2))
    n = validated("integrate", "n", n, integer(1))
    found, condition, gram_error, fine = _run(as_key(key), basis, fn, n, scheme, replicates)
    if not bool(fine):
        raise NonFiniteError(
            "the function is not finite at some of the points",
            remedy="give it a value wherever the reference measure has mass",
        )
    found = np.asarray(found, np.float64)
    if not np.isfinite(found).all():
        raise NonFiniteError(
            "a least-squares fit is not finite", remedy="take more points, or another scheme than 'iid'"
        )
    stats = {
        "num_samples": n * replicates,
        "replicates": replicates,
        "condition": float(np.max(condition)),
        "gram_error": float(np.max(gram_error)),
    }
    se = found.std(0, ddof=1) / np.sqrt(replicates)
    notes = () if is_unbiased(scheme, n, basis.size) else (_BIASED,)
    return Estimate(np.asarray(found.mean(0)), np.asarray(se), stats=stats, notes=notes)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _run(
    key: Key, basis: Basis, fn: Callable[[Array], Array], n: int, scheme: str, replicates: int
) -> tuple[Array, Array, Array, Array]:
    def once(k: Key) -> tuple[Array, Array, Array, Array]:
        drawn = design(basis, n, scheme=scheme, key=k)
        values = jax.vmap(fn)(drawn.points)
        fitted = fit(drawn, values)
        return fitted.integral, fitted.condition, fitted.gram_error, jnp.all(jnp.isfinite(values))

    integral, condition, gram_error, fine = jax.vmap(once)(jax.random.split(key, replicates))
    return integral, condition, gram_error, jnp.all(fine)
