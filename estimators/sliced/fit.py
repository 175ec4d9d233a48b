"""A mean by regression on control variates, differentiable, with a jackknife standard error."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.estimators.control_variates.regression import decompose, solve, student_ratio
from mcx.types import Array, Float, Int, Scalar


class ControlFit(NamedTuple):
    """A mean, estimated by regression on control variates.

    value: the intercept, the estimate of the mean.
    se: its standard error; plus and minus 1.96 of it is a 95 % interval, however few the groups are.
    coefficients: (K,), of the controls.
    weights: (n,), ``value = weights @ values``; they depend on the controls alone, and add up to 1.
    r_squared: share of the values' variance that the controls explain.
    rank: number of controls used, without redundant ones.
    """

    value: Scalar
    se: Scalar
    coefficients: Float[Array, " K"]
    weights: Float[Array, " n"]
    r_squared: Scalar
    rank: Int[Array, ""]


def fit_controls(
    values: Float[Array, " n"], controls: Float[Array, "n K"] | None = None, *, num_groups: int | None = None
) -> ControlFit:
    """Estimate a mean by least squares on controls (n, K) of mean zero; redundant columns do no harm.

    The draws are ``num_groups`` independent groups, one after the other and equally large; None: all are
    independent. Value and first derivatives are those of least squares, in values and in controls; O(n K^2).

    The standard error is a jackknife: leave out a group, or a draw, and fit again, for which a closed form
    exists (HC3; CR3 for groups). The spread of residuals is far too small where controls are many for the
    draws. The error is multiplied by the ratio of Student's to the normal 97.5 % quantile, with one degree of
    freedom less than there are groups.

    Source: Leluc, Portier and Segers (2021), Control variate selection for Monte Carlo integration, for the
    estimator; MacKinnon, Nielsen and Webb (2023), Fast and reliable jackknife and bootstrap methods for
    cluster-robust inference, for the jackknife.
    """
    n = values.shape[0]
    groups = n if num_groups is None else num_groups
    if controls is None or controls.shape[1] == 0:
        controls = jnp.zeros((n, 0), values.dtype)
    y, z = jax.lax.stop_gradient((values, controls))
    equal = jnp.full(n, 1 / n, y.dtype)
    if controls.shape[1]:
        d = decompose(z, equal)
        found = solve(y[:, None], d, equal)
        weights, residuals, coefficients = found.part[:, 0], found.residual[:, 0], found.coefficients[:, 0]
        slope = -(d.v @ (d.v.T @ (d.mean / d.scale) / d.s**2)) / d.scale / n
        u, rank, r_squared = d.u, jnp.sum(d.kept, dtype=jnp.int32), found.explained[0]
    else:
        weights, residuals, coefficients, slope, u = equal, y - jnp.mean(y), z[0], z[0], z
        rank, r_squared = jnp.zeros((), jnp.int32), jnp.zeros((), y.dtype)
    u = jnp.concatenate([jnp.full((n, 1), n**-0.5, y.dtype), u], 1)
    # least squares differentiated by hand: derivatives of a singular value decomposition are not safe
    moved = controls - z
    value = (
        jnp.mean(y) + weights @ (values - jnp.mean(y) - moved @ coefficients) + slope @ (moved.T @ residuals)
    )

    left_out = _left_out(u, weights, residuals, groups)
    se = jnp.full((), jnp.nan, y.dtype)
    if groups > 1:
        se = jnp.sqrt((groups - 1) / groups * jnp.sum(left_out**2)) * student_ratio(groups - 1)
    return ControlFit(value, se, coefficients, weights, r_squared, rank)


def _left_out(u: Array, weights: Array, residuals: Array, groups: int) -> Array:
    """By how much the intercept changes when a group is left out; (groups,)."""
    size, rank = u.shape[0] // groups, u.shape[1]
    parts = u.reshape(groups, size, rank)
    w, e = weights.reshape(groups, size), residuals.reshape(groups, size)
    tiny = jnp.sqrt(jnp.finfo(u.dtype).eps)  # a group that alone determines a coefficient cannot be left out
    if size == 1:
        leverage = jnp.sum(parts**2, (1, 2))
        return w[:, 0] * e[:, 0] / jnp.maximum(1 - leverage, tiny)
    if size <= rank:
        rest = (1 + tiny) * jnp.eye(size, dtype=u.dtype) - parts @ jnp.swapaxes(parts, 1, 2)
        return jnp.sum(w * jnp.linalg.solve(rest, e[..., None])[..., 0], 1)
    rest = (1 + tiny) * jnp.eye(rank, dtype=u.dtype) - jnp.swapaxes(parts, 1, 2) @ parts
    back = jnp.linalg.solve(rest, jnp.einsum("gsr,gs->gr", parts, e)[..., None])[..., 0]
    return jnp.sum(w * (e + jnp.einsum("gsr,gr->gs", parts, back)), 1)
