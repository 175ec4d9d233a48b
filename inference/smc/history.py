"""What is kept of a particle system's past."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, override

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import SMCInfo, SMCState
from mcx.ops.cdf import monotone_cdf
from mcx.ops.logspace import largest, relative_weights, weighted_sum
from mcx.ops.sort import argsort
from mcx.ops.validation import Rule, Settings, fraction, one_of, tuple_of
from mcx.types import Array, Float, LogWeights, PyTree, Scalar

HISTORY = one_of("none", "moments", "ancestors", "full")
"""The rule of arguments that say what to keep."""
QUANTILES = tuple_of(fraction(), "probabilities between 0 and 1")
"""The rule of the quantiles' probabilities."""


def _as_they_are(particles: PyTree) -> PyTree:
    return particles


@dataclass(frozen=True)
class HistorySettings(Settings):
    """What to keep of every step; static.

    Attributes:
        kind: "none" (evidence and effective sample size), "moments" (and weighted means and standard
            deviations), "ancestors" (and parents and weights, N each), or "full" (and the particles).
        quantiles: probabilities of weighted quantiles, kept along with moments. They cost a sort a step.
        states: ``particle -> pytree`` of what to summarise.
    """

    kind: str = "none"
    quantiles: tuple[float, ...] = ()
    states: Callable[[PyTree], PyTree] = _as_they_are

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {"kind": HISTORY, "quantiles": QUANTILES}


class Record(NamedTuple):
    """What is kept of one step; None where it was not asked for, or is kept elsewhere.

    info: of the step.
    log_evidence: up to this step.
    mean, sd: weighted, of every entry of the state.
    quantiles: the same, with a leading axis of probabilities.
    ancestors, log_w: parents and normalised log weights, (N,).
    particles: with a leading axis of N.
    """

    info: SMCInfo | None
    log_evidence: Scalar | None
    mean: PyTree = None
    sd: PyTree = None
    quantiles: PyTree = None
    ancestors: PyTree = None
    log_w: PyTree = None
    particles: PyTree = None


def record(state: SMCState, settings: HistorySettings) -> Record:
    """Take from a state what its history keeps. Costs O(N), with quantiles O(N log N)."""
    kept = Record(state.info, state.log_evidence)
    if settings.kind == "none":
        return kept
    states = settings.states(state.particles)
    # after a collapse there is no law to summarise, and zero weights would pass for a mean of zero
    mean, sd = _moments(states, jnp.where(state.collapsed, jnp.nan, jnp.exp(state.log_w)))
    kept = kept._replace(mean=mean, sd=sd)
    if settings.quantiles:
        probabilities = jnp.asarray(settings.quantiles, state.log_w.dtype)
        found = jax.tree.map(lambda x: weighted_quantiles(x, state.log_w, probabilities), states)
        kept = kept._replace(quantiles=found)
    if settings.kind in ("ancestors", "full"):
        kept = kept._replace(ancestors=state.ancestors, log_w=state.log_w)
    if settings.kind == "full":
        kept = kept._replace(particles=state.particles)
    return kept


def _moments(states: PyTree, w: Float[Array, " N"]) -> tuple[PyTree, PyTree]:
    mean = jax.tree.map(lambda x: weighted_sum(w, x.astype(w.dtype)), states)
    square = jax.tree.map(lambda x, m: weighted_sum(w, (x.astype(w.dtype) - m) ** 2), states, mean)
    return mean, jax.tree.map(jnp.sqrt, square)


def weighted_quantiles(
    x: Float[Array, "N ..."], log_w: LogWeights, probabilities: Float[Array, " k"]
) -> Float[Array, "k ..."]:
    """Quantiles (k, ...) of a weighted sample: the smallest value whose cumulative weight reaches p.

    NaN where all weights are zero. Costs a sort of N for every entry.
    """
    columns = x.reshape(x.shape[0], -1).astype(log_w.dtype)
    w = relative_weights(log_w)
    # the least value is the one of the least particle that has any weight
    reach = jnp.maximum(probabilities, jnp.finfo(w.dtype).tiny)

    def one(column: Float[Array, " N"]) -> Float[Array, " k"]:
        order = argsort(column)
        return column[order][jnp.searchsorted(monotone_cdf(w[order]), reach, side="left")]

    found = jax.vmap(one, 1, 1)(columns).reshape((probabilities.shape[0], *x.shape[1:]))
    return jnp.where(largest(log_w) == -jnp.inf, jnp.nan, found)
