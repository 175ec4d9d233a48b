"""``mcx.diffusion.correct``: replicates of a corrected particle system, their draws and diagnostics."""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import InferenceWarning
from mcx.inference.diffusion.correctors.corrector import Corrected, corrector
from mcx.inference.diffusion.models.arguments import EVENT_SHAPE
from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.filtering.kernel import FilterKernel
from mcx.inference.smc.engine import Extras, SMCSettings, SMCState
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.replicates import equal_draws
from mcx.inference.smc.resampling import Resampling, as_resampling, resampling_rule
from mcx.methods.method import interrupted
from mcx.ops.keys import Stream, as_key, stream
from mcx.ops.validation import fraction, instance, integer, one_of, validated
from mcx.results.evidence import log_mean_evidence, replicate_log_weights
from mcx.results.faults import FaultAdvice, raise_faults
from mcx.run.checkpoint import Checkpoint, identified
from mcx.run.devices import Devices
from mcx.run.driver import run
from mcx.types import Array, Float, Key, KeyLike, PyTree, Scalar, Stats

if TYPE_CHECKING:
    import xarray as xr

_MAX_NONFINITE = 0.5
_LEAST_ESS = 0.1  # of the particles, in the end
_LEAST_STARTS = 0.05  # of the particles, that draws descend from
_LARGEST_SD = 1.0  # of a step's log weights
_FAULT_ADVICE = FaultAdvice(
    "take more particles and more levels, or check the reward", "the scores and in the reward"
)
_COMPOSITION = "a composition of diffusion models, such as mcx.diffusion.anneal(model, 2.0)"


@dataclass(frozen=True)
class Corrections:
    """Draws of a composition of diffusion models.

    Attributes:
        x: draws, chain x particle x event, equally weighted within a chain, in no order. A chain is a
            replicate: a particle system of its own.
        weights: log weights of all draws, chain x particle, whose weights sum to 1: the draws of a replicate
            share its evidence; None for a single replicate.
        log_evidence: log of the composition's integral, if the models' densities are normalised.
        log_evidence_se: its standard error, from the spread of the replicates; NaN for a single one.
        stats: by name, chain x step: ``ess``, effective sample size; ``increment_sd``, standard deviation of
            the step's log weights; ``acceptance`` of the refreshment; ``resampled``,
            ``log_evidence_increment``, ``log_evidence``, ``nonfinite``, ``max_log_weight``.
        unique_starts: share of the particles at the first level that draws descend from, (chain,).
        notes: what to be wary of.
        complete: False where the run was stopped early: draws are those of the level it had reached.
        compile_time, run_time: seconds.
    """

    x: Float[np.ndarray, "chain particle ..."]
    weights: Float[np.ndarray, "chain particle"] | None
    log_evidence: float
    log_evidence_se: float
    stats: Stats
    unique_starts: Float[np.ndarray, " chain"]
    notes: tuple[str, ...]
    complete: bool
    compile_time: float
    run_time: float

    def to_datatree(self) -> xr.DataTree:
        """In ArviZ's schema: ``posterior`` has x, ``sample_stats`` log weights, ``smc_stats`` the steps."""
        import xarray as xr
        from arviz_base import from_dict

        groups: dict[str, Any] = {"posterior": {"x": self.x}}
        if self.weights is not None:
            groups["sample_stats"] = {"log_weight": self.weights}
        tree: xr.DataTree = from_dict(groups, name="mcx")
        steps = {name: (("chain", "step"), np.asarray(x)) for name, x in self.stats.items()}
        tree["smc_stats"] = xr.DataTree(xr.Dataset(steps))
        tree.attrs = {"log_evidence": self.log_evidence, "log_evidence_se": self.log_evidence_se}
        return tree

    def __repr__(self) -> str:
        chains, particles, *event = self.x.shape
        lines = [
            f"{chains} replicates x {particles} particles of shape {tuple(event)}, "
            f"log evidence {self.log_evidence:.3f} +- {self.log_evidence_se:.3f}",
            f"effective sample size {self.stats['ess'][:, -1].mean():.0f} in the end, "
            f"draws descend from {self.unique_starts.mean():.0%} of the particles, ran for "
            f"{self.run_time:.1f} s (compile {self.compile_time:.1f} s)",
        ]
        return "\n".join([*lines, *(f"  note: {text}" for text in self.notes)])


def correct(
    composition: Composition,
    event_shape: tuple[int, ...],
    rho: ArrayLike,
    *,
    key: KeyLike,
    num_particles: int = 1000,
    num_chains: int = 4,
    noise_gain: ArrayLike | None = None,
    refresh: bool | Literal["auto"] = "auto",
    resampling: str | Resampling = "systematic",
    threshold: float = 0.5,
    progress: bool | str = True,
    warnings: Literal["warn", "ignore"] = "warn",
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
) -> Corrections:
    """Draw from a composition of diffusion models by weighted particles.

    Args:
        composition: what to sample; see :func:`~mcx.diffusion.corrector`.
        event_shape: shape of a point.
        rho: noise levels, strictly falling, (K + 1,); see :func:`~mcx.diffusion.levels`.
        key: a typed JAX key or an int.
        num_particles: N, of a replicate.
        num_chains: number of independent replicates.
        noise_gain: as for :func:`~mcx.diffusion.corrector`.
        refresh: as for :func:`~mcx.diffusion.corrector`; "auto" refreshes if all models have densities.
        resampling: a scheme by name, or a function ``(key, log_w, num) -> ancestors``; "birth_death" with
            ``threshold=1`` is the jump process of the paper.
        threshold: resample below this effective sample size, as a fraction of N; 1 is at every step.
        progress: as for :func:`mcx.infer`.
        warnings: "warn" or "ignore" weights that make draws unreliable.
        checkpoint: as for :func:`mcx.infer`.
        devices: as for :func:`mcx.infer`.

    Returns:
        :class:`Corrections`. Costs N calls of each model per step and replicate, with ``refresh`` four times
        as many.

    Raises:
        WeightCollapse: if all weights of a replicate are zero; ``.result`` has the run so far.
        NonFiniteError: if most weights of a step are NaN; ``.result`` has the run so far.
        MethodError: if an argument is out of range.
        CapabilityError: for ``refresh=True`` without densities.

    Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion.
    """
    validated("correct", "composition", composition, instance(Composition, _COMPOSITION))
    event_shape = validated("correct", "event_shape", event_shape, EVENT_SHAPE)
    num_particles = validated("correct", "num_particles", num_particles, integer(2))
    num_chains = validated("correct", "num_chains", num_chains, integer(1))
    refresh = validated("correct", "refresh", refresh, one_of(True, False, "auto"))
    validated("correct", "resampling", resampling, resampling_rule())
    threshold = validated("correct", "threshold", threshold, fraction())
    validated("correct", "warnings", warnings, one_of("warn", "ignore"))
    key = as_key(key)
    refreshed = composition.has_density if refresh == "auto" else bool(refresh)
    model = corrector(composition, jnp.zeros(event_shape), rho, noise_gain=noise_gain, refresh=refreshed)
    first = jax.tree_util.tree_map(lambda x: x[0], model.inputs)
    kernel = FilterKernel(
        model.functions_only(),
        SMCSettings(num_particles, threshold, as_resampling(resampling), extras=_STARTS),
        HistorySettings("moments", states=_observed),
        _MAX_NONFINITE,
    )
    result = run(
        kernel,
        (model.prepare(None), first),
        key=key,
        num_steps=model.num_times - 1,
        num_chains=num_chains,
        inputs=jax.tree_util.tree_map(lambda x: x[1:], model.inputs),
        progress=progress,
        title="correctors",
        checkpoint=identified(checkpoint, resampling=resampling, threshold=threshold),
        devices=devices,
    )
    if result.draws is None:
        interrupted("correct", "first step", result)
    stats = dict(result.stats)
    raise_faults(stats, num_particles, _MAX_NONFINITE, _FAULT_ADVICE, result=result)
    stats["increment_sd"] = np.asarray(result.draws["sd"]["increment"])
    stats["acceptance"] = np.asarray(result.draws["mean"]["accepted"])
    x, starts = jax.device_get(_resampled(stream(key, Stream.CORRECTED_DRAWS), result.state))
    unique = np.array([len(np.unique(s)) / num_particles for s in starts])
    log_z = np.asarray(stats["log_evidence"][:, -1], np.float64)
    total, se = log_mean_evidence(log_z)
    weights = replicate_log_weights(log_z, num_particles)
    notes = _notes(stats, unique, num_particles)
    if notes and warnings == "warn":
        python_warnings.warn("correctors finished, but " + "; ".join(notes), InferenceWarning, stacklevel=2)
    return Corrections(
        x=x,
        weights=None if weights is None else np.asarray(weights),
        log_evidence=float(total),
        log_evidence_se=float(se),
        stats=stats,
        unique_starts=unique,
        notes=notes,
        complete=result.complete,
        compile_time=result.compile_time,
        run_time=result.run_time,
    )


def _observed(particles: Corrected) -> dict[str, Float[Array, " N"]]:
    return {"increment": particles.increment, "accepted": particles.accepted}


def _start(ctx: PyTree, x: Corrected, u: PyTree) -> Scalar:
    return x.position.ravel()[0]  # tells particles apart


def _inherit(ctx: PyTree, start: Scalar, before: Corrected, x: Corrected, u: PyTree) -> Scalar:
    return start


_STARTS = Extras(_start, _inherit)


@jax.jit
def _resampled(
    key: Key, state: SMCState
) -> tuple[Float[Array, "chain particle ..."], Float[Array, "chain particle"]]:
    """Equally weighted points of all replicates, in no order, and where their lineages start."""
    chosen = equal_draws(key, state.log_w)
    found: tuple[Array, Array] = jax.vmap(lambda a, i: jax.tree_util.tree_map(lambda x: x[i], a))(
        (state.particles.position, state.extras), chosen
    )
    return found


def _notes(stats: Stats, unique: Float[np.ndarray, " chain"], num: int) -> tuple[str, ...]:
    notes = []
    ess = stats["ess"][:, -1].min() / num
    if ess < _LEAST_ESS:
        notes.append(
            f"the effective sample size is {ess:.1%} of the particles in the end: take more of them, "
            "threshold=0.5, or a larger noise_gain"
        )
    if unique.min() < _LEAST_STARTS:
        notes.append(
            f"all draws of a replicate descend from {unique.min():.1%} of its first particles: shares of "
            "modes that were decided early are unreliable. Take more particles, or a larger noise_gain; "
            "weights vary more the more dimensions there are"
        )
    worst = float(np.nanmax(stats["increment_sd"]))
    if worst > _LARGEST_SD:
        notes.append(
            f"log weights of a single step have a standard deviation of {worst:.2g}: take more levels"
        )
    return tuple(notes)
