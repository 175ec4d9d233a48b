"""Feynman-Kac correctors at work: replicates of a corrected particle system, their draws and diagnostics."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import InferenceWarning, MethodError
from mcx.inference.diffusion.correctors.correctors import Corrected, corrector
from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.filtering.particle_filter import FilterKernel
from mcx.inference.smc.engine import Extras, SMCSettings, SMCState
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.replicates import equal_draws, island_log_weights, log_mean_evidence, raise_faults
from mcx.inference.smc.resampling import as_resampling
from mcx.ops.checks import is_count
from mcx.ops.keys import as_key
from mcx.run.checkpoint import Checkpoint, identified
from mcx.run.devices import Devices
from mcx.run.driver import run

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Corrections", "correct"]

_MOST_NONFINITE = 0.5
_LEAST_ESS = 0.1  # of the particles, in the end
_LEAST_STARTS = 0.05  # of the particles, that draws descend from
_LARGEST_SD = 1.0  # of a step's log weights


@dataclass(frozen=True)
class Corrections:
    """Draws of a composition of diffusion models.

    Attributes:
        x: draws, chain x particle x event, equally weighted within a chain, in no order. A chain is a
            replicate: a particle system of its own.
        weights: log weights of all draws, chain x particle of sum 1: those of a replicate share its
            evidence; None of a single replicate.
        log_evidence: log of the composition's integral, of models whose densities are normalised.
        log_evidence_se: its standard error, from the spread of the replicates; NaN of one.
        stats: by name, chain x step: ``ess``, effective sample size; ``increment_sd``, standard deviation of
            the step's log weights; ``acceptance`` of the refreshment; ``resampled``,
            ``log_evidence_increment``, ``log_evidence``, ``nonfinite``, ``max_log_weight``.
        unique_starts: share of particles at the first level that draws descend from, (chain,).
        notes: what to be wary of.
        complete: False where the run was stopped early: draws are those of the level it came to.
        compile_time, run_time: seconds.
    """

    x: np.ndarray
    weights: np.ndarray | None
    log_evidence: float
    log_evidence_se: float
    stats: Mapping[str, np.ndarray]
    unique_starts: np.ndarray
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
    rho: Any,
    *,
    key: Any,
    num_particles: int = 1000,
    num_chains: int = 4,
    noise_gain: Any = None,
    refresh: bool | str = "auto",
    resampling: str | Callable[..., Any] = "systematic",
    threshold: float = 0.5,
    progress: Any = True,
    warnings: str = "warn",
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
        num_chains: independent replicates.
        noise_gain: as for :func:`~mcx.diffusion.corrector`.
        refresh: as for :func:`~mcx.diffusion.corrector`; "auto" does where all models have densities.
        resampling: a scheme by name, or a function; "birth_death" with ``threshold=1`` is the jump process of
            the paper.
        threshold: resample below this effective sample size, as a fraction of N; 1 is every step.
        progress: as for :func:`mcx.infer`.
        warnings: "warn" or "ignore": about weights that make draws unreliable.
        checkpoint: as for :func:`mcx.infer`.
        devices: as for :func:`mcx.infer`.

    Returns:
        :class:`Corrections`. Costs N calls of each model a step and replicate, with ``refresh`` four.

    Raises:
        WeightCollapse: if all weights are zero.
        NonFiniteError: if most of a step's are NaN.
        MethodError: on settings that make no sense.
        CapabilityError: for ``refresh=True`` without densities.

    Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion.
    """
    for name, fine, expected, found in (
        ("num_particles", is_count(num_particles, 2), "an int >= 2", num_particles),
        ("event_shape", all(is_count(n) for n in event_shape), "ints >= 1", event_shape),
        ("refresh", refresh in (True, False, "auto"), "True, False or 'auto'", refresh),
        ("warnings", warnings in ("warn", "ignore"), "'warn' or 'ignore'", warnings),
    ):
        if not fine:
            raise MethodError(f"correct({name}=...) is out of range", expected=expected, found=repr(found))
    key = as_key(key)
    refresh = composition.has_density if refresh == "auto" else bool(refresh)
    like = jnp.zeros(tuple(event_shape))
    model = corrector(composition, like, rho, noise_gain=noise_gain, refresh=refresh)
    first = jax.tree_util.tree_map(lambda x: x[0], model.inputs)
    kernel = FilterKernel(
        model.functions_only(),
        SMCSettings(num_particles, threshold, as_resampling(resampling), extras=_STARTS),
        HistorySettings("moments", states=_observed),
        _MOST_NONFINITE,
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
    stats = dict(result.stats)
    raise_faults(stats, num_particles, _MOST_NONFINITE, "corrector")
    observed = result.draws
    stats["increment_sd"] = np.asarray(observed["sd"]["increment"])
    stats["acceptance"] = np.asarray(observed["mean"]["accepted"])
    x, starts = jax.device_get(_resampled(jax.random.fold_in(key, 5), result.state))
    unique = np.array([len(np.unique(s)) / num_particles for s in starts])
    log_z = np.asarray(stats["log_evidence"][:, -1], np.float64)
    total, se = log_mean_evidence(log_z)
    notes = _notes(stats, unique, num_particles)
    if notes and warnings == "warn":
        python_warnings.warn("correctors finished, but " + "; ".join(notes), InferenceWarning, stacklevel=2)
    return Corrections(
        x, island_log_weights(log_z, num_particles), float(total), float(se), stats, unique, notes,
        result.complete, result.compile_time, result.run_time,
    )  # fmt: skip


def _observed(particles: Corrected) -> dict[str, Any]:
    return {"increment": particles.increment, "accepted": particles.accepted}


def _start(ctx: Any, x: Corrected, u: Any) -> Any:
    return x.position.ravel()[0]  # tells particles apart


def _inherit(ctx: Any, start: Any, before: Corrected, x: Corrected, u: Any) -> Any:
    return start


_STARTS = Extras(_start, _inherit)


@partial(jax.jit)
def _resampled(key: Any, state: SMCState) -> tuple[Any, Any]:
    """Equally weighted points of all replicates, in no order, and the starts of their lineages."""
    chosen = equal_draws(key, state.log_w)
    found: tuple[Any, Any] = jax.vmap(lambda a, i: jax.tree_util.tree_map(lambda x: x[i], a))(
        (state.particles.position, state.extras), chosen
    )
    return found


def _notes(stats: Mapping[str, np.ndarray], unique: np.ndarray, num: int) -> tuple[str, ...]:
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
