"""Optimal transport between weighted samples of the line, many pairs at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.ops.sort import argsort, merge_order, sort

__all__ = ["Ordered", "match", "order", "wasserstein_1d"]


class Ordered(NamedTuple):
    """Samples in ascending order.

    values: (..., n), sorted along the last axis.
    cumulative: (..., n) distribution function at the values, the last one 1; None for equal weights.
    """

    values: Any
    cumulative: Any = None


def order(values: Any, weights: Any = None) -> Ordered:
    """Sort samples, and add up their weights.

    Args:
        values: (..., n).
        weights: (n,), non-negative, not necessarily normalised; the same for all leading axes. None: equal.

    Returns:
        The sorted samples; O(n log n) each. Differentiable in values and weights.
    """
    if weights is None:
        return Ordered(sort(values))
    permutation = argsort(values)
    taken = jnp.take_along_axis(values, permutation, -1, mode="promise_in_bounds")
    total = jnp.cumsum((weights / jnp.sum(weights))[permutation], -1)
    # rounding must leave no mass above the last value
    return Ordered(taken, jnp.minimum(total / total[..., -1:], 1.0).at[..., -1].set(1.0))


def match(x: Ordered, y: Ordered, p: float = 2.0) -> Any:
    """The p-th power of the Wasserstein distance between sorted samples.

    The optimal plan on the line matches quantiles: W_p^p is the integral over u in (0, 1) of
    |F^-1(u) - G^-1(u)|^p, a finite sum over the steps of either function.

    Args:
        x: n samples, sorted.
        y: m samples, sorted; leading axes broadcast.
        p: at least 1; static.

    Returns:
        Of the shape of the leading axes; O(n + m). Differentiable almost everywhere: in values, and in
        weights, where the gradient is the dual potential. For equal weights and n different from m, where
        the steps are does not depend on the samples: no search and no third sort is needed.

    Source: Peyré and Cuturi (2019), Computational Optimal Transport, remark 2.30.
    """
    n, m = x.values.shape[-1], y.values.shape[-1]
    if x.cumulative is None and y.cumulative is None:
        if n == m:
            return jnp.mean(_cost(x.values - y.values, p), -1)
        grid_x, grid_y, widths = _steps(n, m)
        gap = _columns(x.values, grid_x) - _columns(y.values, grid_y)
        return _cost(gap, p) @ jnp.asarray(widths, gap.dtype)
    xs, ys = (_steps_of(side) for side in (x, y))
    xs, ys = _broadcast(xs, ys)
    merged = merge_order(xs, ys)
    levels = jnp.concatenate([xs, ys], -1)
    levels = jnp.take_along_axis(levels, merged, -1, mode="promise_in_bounds")
    from_x = merged < n
    before = jnp.cumsum(from_x, -1, dtype=jnp.int32) - from_x
    left = jnp.minimum(before, n - 1)
    right = jnp.minimum(jnp.arange(n + m, dtype=jnp.int32) - before, m - 1)
    lead = levels.shape[:-1]
    gap = _pick(x.values, left, lead) - _pick(y.values, right, lead)
    width = jnp.diff(levels, axis=-1, prepend=0.0)
    return jnp.sum(_cost(gap, p) * width, -1)


def wasserstein_1d(x: Any, y: Any, x_weights: Any = None, y_weights: Any = None, p: float = 2.0) -> Any:
    """The p-th power of the Wasserstein distance between samples of the line.

    Args:
        x: (..., n).
        y: (..., m).
        x_weights: (n,), or None for equal weights.
        y_weights: (m,), likewise.
        p: at least 1; static.

    Returns:
        Of the shape of the leading axes; see :func:`order` and :func:`match`.
    """
    return match(order(x, x_weights), order(y, y_weights), p)


def _cost(gap: Any, p: float) -> Any:
    if p == 1:
        return jnp.abs(gap)
    if p == 2:
        return gap * gap
    return jnp.abs(gap) ** p


def _steps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of n and of m equally likely values are quantiles of each step, and the steps' widths."""
    # multiples of 1 / (n m), exact in integers
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return (starts // m).astype(np.int32), (starts // n).astype(np.int32), (ends - starts) / (n * m)


def _columns(values: Any, index: np.ndarray) -> Any:
    return values.at[..., index].get(mode="promise_in_bounds", indices_are_sorted=True)


def _steps_of(side: Ordered) -> Any:
    if side.cumulative is not None:
        return side.cumulative
    n = side.values.shape[-1]
    return jnp.arange(1, n + 1, dtype=side.values.dtype) / n


def _broadcast(a: Any, b: Any) -> tuple[Any, Any]:
    lead = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return jnp.broadcast_to(a, (*lead, a.shape[-1])), jnp.broadcast_to(b, (*lead, b.shape[-1]))


def _pick(values: Any, index: Any, lead: tuple[int, ...]) -> Any:
    values = jnp.broadcast_to(values, (*lead, values.shape[-1]))
    index = jax.lax.stop_gradient(index)
    return jnp.take_along_axis(values, index, -1, mode="promise_in_bounds")
