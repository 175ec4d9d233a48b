"""Sequential Monte Carlo as a pure function: for ``jit``, ``vmap`` and gradients."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import (
    Extras,
    SMCSettings,
    SMCState,
    end_block,
    first_and_rest,
    initialize,
    move,
    prepended,
)
from mcx.inference.smc.faults import FILTER_ADVICE, fault_stats
from mcx.inference.smc.history import HISTORY, QUANTILES, HistorySettings, Record, record
from mcx.inference.smc.resampling import Resampling, as_resampling
from mcx.inference.smc.variance import default_lag, log_evidence_variance
from mcx.ops.keys import as_key
from mcx.ops.validation import fraction, integer, validated
from mcx.results.faults import raise_faults
from mcx.target import FeynmanKac
from mcx.types import Key, KeyLike, PyTree, Scalar


class SMCResult(NamedTuple):
    """A particle system at its last step, and what was kept of the others.

    state: at t = T - 1.
    log_evidence: log of the estimated evidence; the estimate itself (not its log) is unbiased.
    log_evidence_se: standard error from within the run; NaN unless resampling is multinomial.
    history: one record a step, leading axis T.
    """

    state: SMCState
    log_evidence: Scalar
    log_evidence_se: Scalar
    history: Record


def smc(
    key: KeyLike,
    fk: FeynmanKac,
    params: PyTree = None,
    *,
    num_particles: int,
    resampling: str | Resampling = "multinomial",
    threshold: float = 0.5,
    history: Literal["none", "moments", "ancestors", "full"] = "none",
    quantiles: tuple[float, ...] = (),
    extras: Extras | None = None,
    max_nonfinite: float = 0.5,
) -> SMCResult:
    """Run a particle system over all steps of a Feynman-Kac model.

    Args:
        key: a typed JAX key or an int.
        fk: the model.
        params: its parameters, given to ``fk.prepare``.
        num_particles: N.
        resampling: a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        threshold: resample below this effective sample size, as a fraction of N; 1 is every step.
        history: "none", "moments", "ancestors" or "full".
        quantiles: probabilities; weighted quantiles are kept along with moments.
        extras: statistics that travel with the particles.
        max_nonfinite: largest tolerated share of potentials that are NaN or +inf, which count as -inf.

    Returns:
        An :class:`SMCResult`. Costs O(T N); memory O(N), and O(T N) with history "ancestors" and "full".

    Raises:
        WeightCollapse, NonFiniteError: outside of ``jit`` and ``vmap``. Within, nothing can be raised: a
            collapse shows as a log evidence of -inf and moments of NaN.
        MethodError, ModelError: on settings that make no sense.

    Source: Del Moral (2004); Chopin and Papaspiliopoulos (2020), chapter 10.
    """
    fk.check()
    num_particles = validated("smc", "num_particles", num_particles, integer(1))
    threshold = validated("smc", "threshold", threshold, fraction())
    max_nonfinite = validated("smc", "max_nonfinite", max_nonfinite, fraction())
    keep = HistorySettings(
        validated("smc", "history", history, HISTORY), validated("smc", "quantiles", quantiles, QUANTILES)
    )
    scheme = as_resampling(resampling)
    lag = default_lag(num_particles) if scheme is as_resampling("multinomial") and num_particles > 1 else None
    settings = SMCSettings(num_particles, threshold, scheme, extras, lag)
    result = _run(as_key(key), fk, params, settings, keep)
    if not isinstance(result.log_evidence, jax.core.Tracer):
        stats = fault_stats(result.history.info)
        raise_faults(stats, num_particles, max_nonfinite, FILTER_ADVICE, result=result)
    return result


def step_keys(key: Key, num_times: int) -> tuple[Key, Key]:
    """The key of t = 0, and those of the later steps: each depends on its number alone."""
    key_start, key_run = jax.random.split(key)
    times = jnp.arange(1, num_times, dtype=jnp.uint32)
    return key_start, jax.vmap(jax.random.fold_in, (None, 0))(key_run, times)


def loop(key: Key, fk: FeynmanKac, ctx: PyTree, settings: SMCSettings, keep: HistorySettings) -> SMCResult:
    """The particle system over all steps, given the context. See :func:`smc`; checks and raises nothing."""
    return loop_with(*step_keys(key, fk.num_times), fk, ctx, settings, keep)


def loop_with(
    key_start: Key, keys: Key, fk: FeynmanKac, ctx: PyTree, settings: SMCSettings, keep: HistorySettings
) -> SMCResult:
    """The same, given the key of every step."""
    first, rest = first_and_rest(fk.inputs)
    state = initialize(key_start, fk, ctx, first, settings)

    def body(state: SMCState, x: PyTree) -> tuple[SMCState, Record]:
        key, t, u = x
        state = move(key, fk, ctx, state, u, settings)
        if settings.lag is not None:
            state = jax.lax.cond(t % settings.lag == 0, end_block, lambda state: state, state)
        return state, record(state, keep)

    start = record(state, keep)
    state, later = jax.lax.scan(body, state, (keys, jnp.arange(1, fk.num_times), rest))
    history = prepended(start, later)
    se = jnp.full_like(state.log_w[0], jnp.nan)
    if state.origins is not None:
        se = jnp.sqrt(jnp.maximum(log_evidence_variance(state.origins, state.log_w), 0.0))
    return SMCResult(state, state.log_evidence, jax.lax.stop_gradient(se), history)


@partial(jax.jit, static_argnames=("settings", "keep"))
def _run(key: Key, fk: FeynmanKac, params: PyTree, settings: SMCSettings, keep: HistorySettings) -> SMCResult:
    return loop(key, fk, fk.prepare(params), settings, keep)
