"""Ancestral lines of a particle system: paths and fixed-lag smoothing from a stored history."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mcx.ops.logspace import weighted_sum
from mcx.ops.random import choose
from mcx.ops.validation import integer, validated
from mcx.types import Array, Float, Index, Int, Key, LogWeights, PyTree


def trace_paths(ancestors: Int[Array, "T N"], particles: PyTree, index: Int[Array, " m"]) -> PyTree:
    """Follow final particles back to time 0.

    Args:
        ancestors: (T, N) int32; row t holds the parents, at t - 1, of the particles at t.
        particles: pytree of (T, N, ...).
        index: (m,) particles at T - 1.

    Returns:
        Pytree of (T, m, ...): one path a particle. Weighted as the final particles they are draws from the
        smoothing law, poor ones for early times, where lines have coalesced. Costs O(T m).

    Source: Kitagawa (1996), section 4.
    """

    def back(index: Int[Array, " m"], row: Index) -> tuple[Int[Array, " m"], Int[Array, " m"]]:
        return row[index], index

    _, lines = jax.lax.scan(back, jnp.asarray(index, ancestors.dtype), ancestors, reverse=True)
    return jax.tree.map(lambda x: jax.vmap(lambda a, i: a[i])(x, lines), particles)


def draw_path(key: Key, ancestors: Int[Array, "T N"], particles: PyTree, log_w: LogWeights) -> PyTree:
    """Draw a final particle by its log weight, and follow it back to time 0, as :func:`trace_paths` does.

    The path, a pytree of (T, ...), is properly weighted together with the estimate of the evidence from the
    same run: ``E[Zhat f(path)] = Z E[f(path) | y]``.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.2.
    """
    last = choose(key, log_w)[None]
    return jax.tree.map(lambda x: x[:, 0], trace_paths(ancestors, particles, last))


def fixed_lag_means(
    ancestors: Int[Array, "T N"], log_w: Float[Array, "T N"], states: PyTree, lag: int
) -> PyTree:
    """Means (T, ...) of each time's state given observations up to ``lag`` steps later, or to the last.

    NaN where all weights are zero. A longer lag has less bias and more variance, and costs O(lag T N).
    Source: Kitagawa and Sato (2001).
    """
    lag = validated("fixed_lag_means", "lag", lag, integer(0))
    num_times, num = ancestors.shape
    times = jnp.arange(num_times)
    line = jnp.broadcast_to(jnp.arange(num, dtype=ancestors.dtype), ancestors.shape)

    def back(i: Int[Array, ""], line: Int[Array, "T N"]) -> Int[Array, "T N"]:
        # the i-th link from the top: from the lag-th time after t downwards, where there is one
        later = times + lag - i
        parents = ancestors[jnp.minimum(later, num_times - 1)]
        inside = (later < num_times)[:, None]
        return jnp.where(inside, jnp.take_along_axis(parents, line, 1), line)

    line = jax.lax.fori_loop(0, lag, back, line)
    log_w = log_w[jnp.minimum(times + lag, num_times - 1)]
    # as for the filter's moments: a collapse has no mean, and weight zero may be anywhere
    w = jnp.where(jnp.max(log_w, 1, keepdims=True) == -jnp.inf, jnp.nan, jnp.exp(log_w))

    def average(x: Float[Array, "N ..."], index: Index, w: Float[Array, " N"]) -> Float[Array, "..."]:
        return weighted_sum(w, x[index].astype(w.dtype))

    return jax.tree.map(lambda x: jax.vmap(average)(x, line, w), states)


def unique_ancestors(ancestors: Int[Array, "T N"]) -> Int[Array, " T"]:
    """Number of different parents at each step: (T, N) to (T,)."""
    num = ancestors.shape[-1]

    def one(row: Index) -> Int[Array, ""]:
        return jnp.sum(jnp.zeros(num, jnp.int32).at[row].set(1))

    return jax.vmap(one)(ancestors)
