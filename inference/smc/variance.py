"""Variance of the log evidence from one run, by tracing where the final particles came from.

The estimator of Lee and Whiteley (2018): with ``S_e`` the normalised weight of the descendants of particle e
and r resampling steps since, ``m = (N / (N - 1))^(r + 1) (1 - sum_e S_e^2)`` times the squared evidence
estimate has the squared evidence as its mean, so the variance of its logarithm is about ``-log m``. That
degenerates once all particles descend from a few; so early times are cut off after a lag, as Olsson and Douc
(2019) do for expectations: differences of ``log m`` between successive origins telescope to the whole.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcx.types import Array, Float, Index, LogWeights, PyTree, Scalar


class Origins(NamedTuple):
    """Where particles came from, at two points of the past.

    index: each particle's ancestor at the newer origin, int32 (N,).
    before: the ancestor at the older origin of each particle at the newer one, int32 (N,).
    resamplings: (2,) resampling steps since the older and since the newer origin.
    variance: of the log evidence, contributed by the times before the older origin.
    """

    index: PyTree  # not Index: tuples have a method of this name
    before: Index
    resamplings: Float[Array, "2"]
    variance: Scalar


def default_lag(num_particles: int) -> int:
    """Steps between origins: long enough to forget, short beside the time in which lineages coalesce."""
    return max(4, min(64, round(0.7 * num_particles**0.5)))


def origins(num_particles: int, dtype: DTypeLike) -> Origins:
    """Registers at t = 0: both origins are the particles themselves."""
    index = jnp.arange(num_particles, dtype=jnp.int32)
    return Origins(index, index, jnp.zeros(2, dtype), jnp.zeros((), dtype))


def move_on(state: Origins, log_w: LogWeights) -> Origins:
    """Put the newer origin where the particles are now, and take stock of the older one's share."""
    older, newer = _log_variances(state, log_w)
    fresh = jnp.arange(log_w.shape[0], dtype=jnp.int32)
    return Origins(
        fresh,
        state.index,
        jnp.stack([state.resamplings[1], jnp.zeros_like(state.resamplings[1])]),
        # lineages that have coalesced since the newer origin leave nothing to tell the difference by
        state.variance + jnp.where(jnp.isinf(newer), newer, older - newer),
    )


def log_evidence_variance(state: Origins, log_w: LogWeights) -> Scalar:
    """Estimated variance of the log evidence of one particle system.

    It is infinite where all lineages have coalesced, NaN after a collapse and for a single particle. It is
    right for multinomial resampling only: other schemes' offspring are not independent, and it is then too
    small, or negative. Past a variance of about 1 it is too small as well.
    """
    older, _ = _log_variances(state, log_w)
    return state.variance + older


def _log_variances(state: Origins, log_w: LogWeights) -> tuple[Scalar, Scalar]:
    """``-log m`` of the module's docstring, for both origins."""
    num = log_w.shape[0]
    w = jnp.exp(log_w)
    collapsed = jnp.max(log_w) == -jnp.inf
    log_factor = (1.0 + state.resamplings) * -jnp.log1p(-1.0 / num)
    by_newer = jax.ops.segment_sum(w, state.index, num)
    by_older = jax.ops.segment_sum(by_newer, state.before, num)
    same = [jnp.sum(by_older**2), jnp.sum(by_newer**2)]
    older, newer = (
        jnp.where(collapsed, jnp.nan, -log_factor[i] - jnp.log1p(-jnp.minimum(same[i], 1.0)))
        for i in range(2)
    )
    return older, newer
