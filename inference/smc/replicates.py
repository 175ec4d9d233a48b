"""Replicates of a particle sampler as islands: their clouds side by side, weighted by their evidences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.smc.engine import SMCInfo
from mcx.inference.smc.history import check_faults
from mcx.inference.smc.resampling import systematic

__all__ = ["equal_draws", "island_log_weights", "log_mean_evidence", "orders", "raise_faults"]


def log_mean_evidence(log_z: Any) -> tuple[Any, Any]:
    """Log of the mean evidence over replicates, and its standard error by the jackknife (NaN of one).

    Args:
        log_z: (chain,); in float64 where it is an array of NumPy's.
    """
    xp: Any = jnp if isinstance(log_z, jax.Array) else np
    log_z = xp.asarray(log_z, None if xp is jnp else np.float64)
    runs = log_z.shape[0]
    total = _log_mean_exp(xp, log_z, runs)
    if runs == 1:
        return total, xp.asarray(xp.nan)[()]
    others = xp.where(xp.eye(runs, dtype=bool), -xp.inf, log_z[None])
    left_out = _log_mean_exp(xp, others, runs - 1)
    # where all the evidence is one replicate's, the others say nothing of its error
    spread = xp.where(xp.isfinite(left_out).all(), left_out, xp.nan)
    return total, xp.sqrt((runs - 1) / runs * xp.sum((spread - spread.mean()) ** 2))


def island_log_weights(log_z: Any, num_draws: int) -> Any:
    """Log weights of all draws, (chain, draw), of sum 1; None of a single replicate.

    A replicate's estimate of an expectation times its evidence, summed over replicates, and divided by the
    sum of the evidences: that is how clouds that were run apart make up one.

    Source: Verge, Dubarry, Del Moral and Moulines (2015), On parallel implementation of sequential Monte
    Carlo methods: the island particle model.
    """
    chains = len(log_z)
    if chains == 1:
        return None
    xp: Any = jnp if isinstance(log_z, jax.Array) else np
    log_w = log_z - _log_mean_exp(xp, log_z, 1)
    return xp.broadcast_to((log_w - np.log(num_draws))[:, None], (chains, num_draws))


def orders(key: Any, chains: int, num: int) -> Any:
    """A random order of every replicate's particles, (chain, draw).

    What stands side by side after resampling is akin, and diagnostics would take it for autocorrelation.
    """
    return jax.vmap(lambda k: jax.random.permutation(k, num))(jax.random.split(key, chains))


def equal_draws(key: Any, log_w: Any) -> Any:
    """Indices (chain, num) of equally weighted draws from every replicate's particles, in no order."""
    chains, num = log_w.shape
    key_draw, key_order = jax.random.split(key)
    chosen = jax.vmap(lambda k, w: systematic(k, w, num))(jax.random.split(key_draw, chains), log_w)
    return jnp.take_along_axis(chosen, orders(key_order, chains, num), 1)


def raise_faults(stats: Mapping[str, np.ndarray], num: int, max_nonfinite: float, of: str) -> None:
    """Raise if a replicate lost all its particles, or their potentials were NaN; see :func:`.check_faults`.

    Args:
        stats: of the stages, chain x stage.
        num: of particles.
        max_nonfinite: largest tolerated share.
        of: what they are.
    """
    for chain in range(len(stats["ess"])):
        collapsed = stats["log_evidence_increment"][chain] == -np.inf
        info = SMCInfo(
            np.where(collapsed, 0.0, stats["ess"][chain]),
            np.ones(len(collapsed), bool),
            stats["log_evidence_increment"][chain],
            stats["nonfinite"][chain],
            stats["max_log_weight"][chain],
        )
        check_faults(info, num, max_nonfinite, of=of)


def _log_mean_exp(xp: Any, x: Any, count: int) -> Any:
    """Over the last axis, of ``count`` terms."""
    top = x.max(-1, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return top[..., 0] + xp.log(xp.exp(x - top).sum(-1) / count)
