"""Observed information of a state-space model's parameters, by Louis' identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mcx.inference.particle_gibbs.backward import backward_paths
from mcx.inference.particle_gibbs.paris import Smoothing
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.smc import loop
from mcx.target import FeynmanKac

__all__ = ["complete_log_density", "observed_information"]

_BATCH = 16  # paths whose second derivatives are held at once


def complete_log_density(fk: FeynmanKac, ctx: Any, path: Any) -> Any:
    """Joint log density of a path (T, ...) and the observations. Costs O(T)."""
    density, start = fk.log_transition, fk.log_initial
    assert density is not None and start is not None
    at_start, later = (
        jax.tree_util.tree_map(lambda x, s=part: jnp.asarray(x)[s], (path, fk.inputs))
        for part in (0, slice(1, None))
    )
    before = jax.tree_util.tree_map(lambda x: x[:-1], path)

    def step(x_prev: Any, now: tuple[Any, Any]) -> Any:
        return density(ctx, x_prev, *now) + fk.log_potential(ctx, x_prev, *now)

    first = start(ctx, *at_start) + fk.log_potential(ctx, None, *at_start)
    return first + jnp.sum(jax.vmap(step)(before, later))


def observed_information(
    key: Any,
    fk: FeynmanKac,
    context: Callable[[Any], Any],
    z: Any,
    smoothing: Smoothing,
    num_runs: int,
    num_paths: int,
) -> tuple[Any, Any]:
    """Minus the second derivative of the log likelihood.

    The expectation of minus the complete data's second derivative, less the covariance of their score, both
    given the observations: averages over paths drawn backwards through filters.

    Args:
        key: a typed key.
        fk: the model.
        context: ``z -> ctx``.
        z: parameters, (d,).
        smoothing: settings of filter and backward draws.
        num_runs: independent filters.
        num_paths: paths a filter.

    Returns:
        The information (d, d); and the score (d,), which is zero at the maximum. Costs O(T d) a path more
        than FFBS.

    Source: Louis (1982), equation 3.2; Cappé, Moulines and Rydén (2005), proposition 10.1.6.
    """
    ctx = context(z)
    kind = "exact" if smoothing.backward == "all" else smoothing.backward

    def paths_of(key: Any) -> Any:
        key_filter, key_back = jax.random.split(key)
        kept = loop(key_filter, fk, ctx, smoothing.system, HistorySettings("full")).history
        history = (kept.particles, kept.log_w, kept.ancestors)
        # a draw of PPG or PaRIS renews an index a little; a path of its own takes some steps more
        steps = max(4, smoothing.num_steps)
        paths, _ = backward_paths(key_back, fk, ctx, history, num_paths=num_paths, kind=kind, num_steps=steps)
        return jax.tree_util.tree_map(lambda x: jnp.moveaxis(x, 1, 0), paths)

    def derivatives(path: Any) -> tuple[Any, Any]:
        def log_density(z: Any) -> Any:
            return complete_log_density(fk, context(z), path)

        return jax.grad(log_density)(z), jax.hessian(log_density)(z)

    paths = jax.vmap(paths_of)(jax.random.split(key, num_runs))
    paths = jax.tree_util.tree_map(lambda x: x.reshape(-1, *x.shape[2:]), paths)
    scores, seconds = jax.lax.map(derivatives, paths, batch_size=_BATCH)
    score = jnp.mean(scores, 0)
    centred = scores - score
    missing = jnp.matmul(centred.T, centred, precision="highest") / (scores.shape[0] - 1)
    return -jnp.mean(seconds, 0) - missing, score
