"""Weights kept as logarithms, and sums that keep the digits float32 drops.

Everywhere in mcx NaN counts as -inf, that is as weight zero, and where some weights are +inf, only those
count, equally. All is differentiable, and no gradient is NaN because a weight is zero, or because all are.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def largest(log_w: ArrayLike, axis: int = -1) -> Array:
    """The largest log weight along an axis."""
    return _max(_without_nan(log_w), axis)


def relative_weights(log_w: ArrayLike, axis: int = -1) -> Array:
    """Weights in [0, 1], divided by the largest of them along an axis.

    All ones where all of ``log_w`` is -inf, so that draws in proportion to them are uniform.
    """
    shifted, top, _ = _shift(log_w, axis)
    return jnp.where(top == -jnp.inf, 1.0, jnp.exp(shifted))


def log_sum_exp(log_w: ArrayLike, axis: int = -1) -> Array:
    """``log(sum(exp(log_w)))`` along an axis, with zero gradients where that is infinite."""
    shifted, top, shift = _shift(log_w, axis)
    log_total = jnp.where(jnp.isfinite(top), _log_share(shifted, axis) + shift, jax.lax.stop_gradient(top))
    return jnp.squeeze(log_total, axis)


def normalize(log_w: ArrayLike, axis: int = -1) -> tuple[Any, Any]:
    """Log weights scaled to a sum of 1 along an axis, and the log of their sum; both -inf where all are."""
    shifted, _, _ = _shift(log_w, axis)
    return shifted - _log_share(shifted, axis), log_sum_exp(log_w, axis)


def effective_sample_size(log_w: ArrayLike, axis: int = -1) -> Array:
    """How many equal weights would be worth as much: ``(sum w)^2 / sum w^2`` in [1, n]; 0 where all are zero.

    Source: Kong, Liu & Wong (1994).
    """
    shifted, top, _ = _shift(log_w, axis)
    empty = jnp.squeeze(top, axis) == -jnp.inf
    w = jnp.exp(jnp.where(top == -jnp.inf, 0.0, shifted))
    # the largest weight is 1, so neither sum can underflow; rounding may leave the bounds by an ulp
    size = jnp.clip(jnp.sum(w, axis) ** 2 / jnp.sum(w**2, axis), 1.0, w.shape[axis])
    return jnp.where(empty, 0.0, size)


def weighted_sum(w: Array, x: Array) -> Array:
    """Sum of ``w_i x_i`` over leading axes; entries of weight zero may be anything, infinity included."""
    zero = (w == 0).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.tensordot(w, jnp.where(zero, 0.0, x), 1, precision="highest")


class Compensated(NamedTuple):
    """A running sum as two floats: their exact sum has about twice the digits of one."""

    total: Array  # the sum, rounded
    carry: Array  # the rounding error, at most half an ulp of the total


def compensated(x: ArrayLike) -> Compensated:
    """Start a compensated sum at ``x``."""
    x = as_float(x)
    return Compensated(x, jnp.zeros_like(x))


def add(c: Compensated, x: Array) -> Compensated:
    """Add ``x`` to a compensated sum, with a relative error of at most 2 u^2, where u is the unit roundoff.

    Once the sum is infinite it is the plain sum. Source: Joldes, Muller & Popescu (2017), Algorithm 4, with
    Knuth's TwoSum.
    """
    a = c.total
    s = a + x
    x_seen = s - a
    lost = (a - (s - x_seen)) + (x - x_seen)
    # Neumaier's variant adds up what is lost on its own and so drops digits of that; handing it back to the
    # total after each addition keeps the carry small, hence exact
    rest = c.carry + lost
    total = s + rest
    finite = jnp.isfinite(s)  # infinities have no remainder: inf - inf is NaN
    return Compensated(jnp.where(finite, total, s), jnp.where(finite, rest - (total - s), 0.0))


def value(c: Compensated) -> Array:
    """Round a compensated sum to one float."""
    return c.total + c.carry


def as_float(x: ArrayLike) -> Array:
    """Make an array of ``x``; integers and booleans become JAX's default float."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _without_nan(log_w: ArrayLike) -> Array:
    log_w = as_float(log_w)
    return jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max(x: Array, axis: int) -> Array:
    """Maximum of floats that are not NaN, by their bits: on CPU that takes XLA a third of the time."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    magnitude = jnp.iinfo(bits.dtype).max
    top = jnp.max(jnp.where(bits < 0, bits ^ magnitude, bits), axis)
    return jax.lax.bitcast_convert_type(jnp.where(top < 0, top ^ magnitude, top), x.dtype)


@_max.defjvp
def _max_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """That of the largest entry; of the mean of them where several are."""
    top = _max(primals[0], axis)
    attained = primals[0] == jnp.expand_dims(top, axis)
    slope = jnp.sum(jnp.where(attained, tangents[0], 0.0), axis) / jnp.sum(attained, axis)
    return top, slope.astype(top.dtype)


def _shift(log_w: ArrayLike, axis: int) -> tuple[Any, Any, Any]:
    """``log_w`` less a finite shift with a largest entry of 0 (or -inf if all are), its top, the shift."""
    log_w = _without_nan(log_w)
    top = jnp.expand_dims(_max(log_w, axis), axis)
    # subtracting an infinite top would give NaN, in the gradient even where the value is not used
    shift = jnp.where(jnp.isfinite(top), top, 0.0)
    only_infinite = jnp.where(log_w == jnp.inf, 0.0, -jnp.inf)
    return jnp.where(top == jnp.inf, only_infinite, log_w - shift), top, shift


def _log_share(shifted: Array, axis: int) -> Array:
    """Logarithm of the sum of weights whose largest is 1; 0 where all are zero."""
    total = jnp.sum(jnp.exp(shifted), axis, keepdims=True)
    # the derivative of log at 0 is infinite, and times zero NaN: keep 0 out of it
    return jnp.log(jnp.where(total > 0.0, total, 1.0))
