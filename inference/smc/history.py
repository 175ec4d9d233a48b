"""What is kept of a particle system's past, and how its faults are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError, NonFiniteError, WeightCollapse
from mcx.inference.smc.engine import SMCInfo, SMCState
from mcx.ops.cdf import monotone_cdf
from mcx.ops.logspace import largest, relative_weights
from mcx.ops.sort import argsort

__all__ = ["KINDS", "HistorySettings", "Record", "check_faults", "record", "weighted_quantiles"]

_COLLAPSE = {
    "filter": "take more particles, check that observation and the emission's support, or propose with the "
    "observation in view (proposal=)",
    "sampler": "check the observations and their distributions' supports, take more particles, or start from "
    "a law nearer to the posterior (start=)",
    "corrector": "take more particles and more levels, or check the reward",
    "guided": "check the observations and their distributions' supports, or take more particles",
    "smc2": "check that observation and the emission's support, take more parameters and particles, start "
    "from a law nearer to the posterior (start=), or propose with the observation in view (proposal=)",
}

_LOOK_AT = {"sampler": "likelihood", "guided": "likelihood", "corrector": "scores and in the reward"}

KINDS = ("none", "moments", "ancestors", "full")


def _as_they_are(particles: Any) -> Any:
    return particles


@dataclass(frozen=True)
class HistorySettings:
    """What to keep of every step; static.

    Attributes:
        kind: "none" (evidence and effective sample size), "moments" (and weighted means and standard
            deviations), "ancestors" (and parents and weights, N each), or "full" (and the particles).
        quantiles: probabilities of weighted quantiles, kept along with moments. They cost a sort a step.
        states: ``particle -> pytree`` of what to summarise.
    """

    kind: str = "none"
    quantiles: tuple[float, ...] = ()
    states: Callable[[Any], Any] = _as_they_are

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MethodError(
                "unknown history", expected="one of " + ", ".join(map(repr, KINDS)), found=repr(self.kind)
            )
        if not all(0 <= p <= 1 for p in self.quantiles):
            raise MethodError(
                "quantiles are probabilities", expected="0 <= p <= 1", found=f"{self.quantiles}"
            )


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
    log_evidence: Any
    mean: Any = None
    sd: Any = None
    quantiles: Any = None
    ancestors: Any = None
    log_w: Any = None
    particles: Any = None


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
        kept = kept._replace(
            quantiles=jax.tree_util.tree_map(
                lambda x: weighted_quantiles(x, state.log_w, probabilities), states
            )
        )
    if settings.kind in ("ancestors", "full"):
        kept = kept._replace(ancestors=state.ancestors, log_w=state.log_w)
    if settings.kind == "full":
        kept = kept._replace(particles=state.particles)
    return kept


def _moments(states: Any, w: Any) -> tuple[Any, Any]:
    def average(x: Any) -> Any:
        # particles of weight zero may be anywhere, infinity included
        return jnp.tensordot(w, jnp.where(_column(w == 0, x), 0.0, x), 1, precision="highest")

    mean = jax.tree_util.tree_map(lambda x: average(x.astype(w.dtype)), states)
    square = jax.tree_util.tree_map(lambda x, m: average((x.astype(w.dtype) - m) ** 2), states, mean)
    return mean, jax.tree_util.tree_map(jnp.sqrt, square)


def _column(x: Any, like: Any) -> Any:
    return x.reshape((-1,) + (1,) * (like.ndim - 1))


def weighted_quantiles(x: Any, log_w: Any, probabilities: Any) -> Any:
    """Quantiles of a weighted sample: the smallest value whose cumulative weight reaches p.

    Args:
        x: (N, ...).
        log_w: log weights (N,).
        probabilities: (k,).

    Returns:
        (k, ...); NaN where all weights are zero. Costs a sort of N for every entry.
    """
    columns = x.reshape(x.shape[0], -1).astype(log_w.dtype)
    w = relative_weights(log_w)
    # the least value is the one of the least particle that has any weight
    reach = jnp.maximum(probabilities, jnp.finfo(w.dtype).tiny)

    def one(column: Any) -> Any:
        order = argsort(column)
        return column[order][jnp.searchsorted(monotone_cdf(w[order]), reach, side="left")]

    found = jax.vmap(one, 1, 1)(columns).reshape((probabilities.shape[0], *x.shape[1:]))
    return jnp.where(largest(log_w) == -jnp.inf, jnp.nan, found)


def check_faults(
    info: SMCInfo, num_particles: int, max_nonfinite: float, first: int = 0, *, of: str = "filter"
) -> None:
    """Raise if a step went wrong.

    Args:
        info: of consecutive steps, (T,) each; numpy.
        num_particles: N.
        max_nonfinite: largest tolerated share of potentials that are NaN or +inf.
        first: number of the first of these steps.
        of: "filter", "sampler" (of an unconstrained vector a particle), "corrector" (of diffusion models),
            "guided" (of a diffusion prior) or "smc2", for the advice.

    Raises:
        NonFiniteError: if more potentials of a step than that are NaN or +inf.
        WeightCollapse: if all weights of a step are zero.
    """
    too_many = np.asarray(info.num_nonfinite) > max_nonfinite * num_particles
    collapsed = np.asarray(info.log_increment) == -np.inf
    if not (too_many.any() or collapsed.any()):
        return
    at = int(np.argmax(too_many | collapsed))
    if too_many[at]:
        raise NonFiniteError(
            f"step {first + at}: the log potential is NaN or +inf for "
            f"{int(info.num_nonfinite[at])} of {num_particles} particles",
            expected=f"at most {max_nonfinite:.0%} of them",
            remedy="look for divisions by zero, logs and square roots of negative numbers in the "
            + _LOOK_AT.get(of, "emission")
            + "; a potential of zero is -inf, which is fine",
        )
    before = f", {float(info.ess[at - 1]):.1f} at the step before" if at else ""
    error = WeightCollapse(
        f"step {first + at}: all {num_particles} particles have weight zero (largest log weight "
        f"{float(info.max_log_weight[at])}; effective sample size 0{before})",
        expected="a particle that can explain the observation",
        remedy=_COLLAPSE[of],
    )
    error.step = first + at
    raise error
