"""Evidences of replicates: their mean, its error, and the weights that they give to the replicates' draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.types import Array, Float, Scalar


def log_mean_evidence(log_z: Float[Array | np.ndarray, " replicate"]) -> tuple[Scalar, Scalar]:
    """Log of the mean evidence over replicates, and its standard error by the jackknife (NaN of one)."""
    xp: Any = jnp if isinstance(log_z, jax.Array) else np
    log_z = xp.asarray(log_z, None if xp is jnp else np.float64)
    runs = log_z.shape[0]
    total = _log_mean_exp(xp, log_z, runs)
    if runs == 1:
        return total, xp.asarray(xp.nan)[()]
    others = xp.where(xp.eye(runs, dtype=bool), -xp.inf, log_z[None])
    left_out = _log_mean_exp(xp, others, runs - 1)
    # where all the evidence is one replicate's, the others say nothing about its error
    spread = xp.where(xp.isfinite(left_out).all(), left_out, xp.nan)
    return total, xp.sqrt((runs - 1) / runs * xp.sum((spread - spread.mean()) ** 2))


def replicate_log_weights(
    log_z: Float[Array | np.ndarray, " replicate"], num_draws: int
) -> Float[Array, "replicate draw"] | None:
    """Log weights of all replicates' draws, of sum 1, in proportion to evidences; None of a single replicate.

    Source: Verge, Dubarry, Del Moral and Moulines (2015), On parallel implementation of sequential Monte
    Carlo methods: the island particle model.
    """
    runs = len(log_z)
    if runs == 1:
        return None
    xp: Any = jnp if isinstance(log_z, jax.Array) else np
    log_w = log_z - _log_mean_exp(xp, log_z, 1)
    weights: Any = xp.broadcast_to((log_w - np.log(num_draws))[:, None], (runs, num_draws))
    return weights


def _log_mean_exp(xp: Any, x: Any, count: int) -> Any:
    """Over the last axis, of ``count`` terms."""
    top = x.max(-1, keepdims=True)
    top = xp.where(xp.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return top[..., 0] + xp.log(xp.exp(x - top).sum(-1) / count)
