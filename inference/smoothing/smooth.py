"""Smoothing of a bound model: expectations of additive functionals of its path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError, WeightCollapse
from mcx.inference.conditional_smc.initial_path import starting_path
from mcx.inference.smc.backward import check_backward
from mcx.inference.smc.engine import SMCInfo
from mcx.inference.smc.history import check_faults
from mcx.inference.smoothing.additive import AdditiveFunctional, Functional, Score, Summand, summand_of
from mcx.inference.smoothing.ffbs import FFBS, ffbs_run
from mcx.inference.smoothing.paris import PaRIS, Recursion, forward, value
from mcx.inference.smoothing.ppg import PPG, ppg_sweep
from mcx.model.bound import BoundModel
from mcx.model.series.state_space import check_params, state_space
from mcx.results.estimate import Estimate, autocorrelation
from mcx.results.posterior import RunInfo
from mcx.run.driver import run
from mcx.target import FeynmanKac

__all__ = ["Smoother", "SmootherKernel", "Swept", "smooth_model", "sweep_once"]

Smoother = FFBS | PaRIS | PPG

_LOW_UPDATE_RATE = 0.02


class Swept(NamedTuple):
    """What one sweep of a smoother gives.

    path: for the next sweep of PPG; None otherwise.
    value: the estimate.
    updated: whether the path left the one before at each time, (T,); None but for PPG.
    info: what happened at each time.
    """

    path: Any
    value: Any
    updated: Any
    info: SMCInfo


def sweep_once(key: Any, recursion: Recursion, method: Smoother, path: Any) -> Swept:
    """One sweep: a run of PaRIS or FFBS, or an iteration of PPG from ``path``."""
    if isinstance(method, PPG):
        return Swept(*ppg_sweep(key, recursion, path))
    if isinstance(method, PaRIS):
        trail, info, _ = forward(key, recursion)
        return Swept(None, value(trail), None, info)
    _, average, info = ffbs_run(key, recursion, method.num_paths)
    return Swept(None, average, None, info)


@dataclass(frozen=True)
class SmootherKernel:
    """A smoother for the driver; its data are context, extra context and inputs. A step is a sweep."""

    fk: FeynmanKac
    summand: Summand
    method: Smoother

    def recursion(self, data: Any) -> Recursion:
        """The recursion with these data."""
        ctx, extra, inputs = data
        return Recursion(replace(self.fk, inputs=inputs), ctx, extra, self.summand, self.method.smoothing)

    def init(self, data: Any, key: Any, start: Any) -> Any:
        """A path to start from, for PPG."""
        if not isinstance(self.method, PPG):
            return None
        fk, ctx, _, _, smoothing = self.recursion(data)
        return starting_path(key, fk, ctx, smoothing.system.num_particles, backward=False)[0]

    def step(self, data: Any, key: Any, state: Any, u: Any) -> tuple[Any, Any]:
        """One sweep."""
        swept = sweep_once(key, self.recursion(data), self.method, state)
        return swept.path, swept

    def collect(self, state: Any, info: Swept) -> tuple[Any, Mapping[str, Any]]:
        """The sweep's estimate, and what happened at each time."""
        step = info.info
        stats = {
            "log_evidence": jnp.sum(step.log_increment),
            "ess": step.ess,
            "log_evidence_increment": step.log_increment,
            "nonfinite": step.num_nonfinite,
            "max_log_weight": step.max_log_weight,
            "resampled": step.resampled,
        }
        if info.updated is not None:
            stats["updated"] = info.updated
        return info.value, stats

    def emit(self, data: Any, draw: Any) -> Any:
        """As it is."""
        return draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Log evidence and the smallest effective sample size of a chunk."""
        return {"log evidence": float(np.mean(stats["log_evidence"])), "ESS": float(np.min(stats["ess"]))}

    def stop(self, stats: Mapping[str, Any]) -> bool:
        """Whether a filter collapsed: there is no point in going on."""
        return bool(np.any(stats["log_evidence"] == -np.inf))


def smooth_model(
    bound: BoundModel,
    functional: Functional,
    *,
    params: Mapping[str, Any] | None,
    method: Smoother,
    key: Any,
    num_chains: int,
    block: str | None,
    coords: Mapping[str, Any],
    **options: Any,
) -> Estimate:
    """Run a smoother. Use :func:`mcx.smooth`, which checks; ``options`` go to the driver."""
    if not isinstance(method, Smoother):
        raise MethodError(
            "not a smoother", expected="mcx.PPG(), mcx.PaRIS() or mcx.FFBS()", found=repr(method)
        )
    name = type(method).__name__
    space = state_space(bound, block)
    fk = space.feynman_kac
    fk.check()
    check_backward(name, fk, method.backward, space.no_density)
    values = check_params(bound, space, params)
    if isinstance(functional, Score):
        _refuse_discrete(values)
    summand = summand_of(functional, fk, space.view)
    kernel = SmootherKernel(fk.functions_only(fk.num_times), summand, method)
    burn_in = method.burn_in if isinstance(method, PPG) else 0
    result = run(
        kernel,
        (fk.prepare(values), summand.prepare(fk, values), fk.inputs),
        key=key,
        num_steps=method.num_iterations if isinstance(method, PPG) else 1,
        num_chains=num_chains,
        num_discard=burn_in,
        title=name,
        **options,
    )
    if result.draws is None:
        _raise_faults(result.stats, method.num_particles, None)
        raise KeyboardInterrupt(f"{name} was interrupted during its burn-in; there is no estimate yet")
    leaf = jax.tree_util.tree_leaves(result.draws)[0]
    info = RunInfo.of(method, result, key=key, coords=coords, dtype=leaf.dtype)
    notes = _notes(method, result.draws, result.stats, burn_in, num_chains)
    finish = functional.finish if isinstance(functional, AdditiveFunctional) else None
    stats = {k: v[:, burn_in:] for k, v in result.stats.items()}
    estimate = Estimate.of(result.draws, stats, info, notes, finish)
    _raise_faults(result.stats, method.num_particles, estimate)
    return estimate


def _refuse_discrete(params: Mapping[str, Any]) -> None:
    for name, given in params.items():
        if not np.issubdtype(given.dtype, np.floating):
            raise CapabilityError(
                "the score is a derivative, and this parameter is discrete",
                site=name,
                expected="continuous parameters",
                remedy="hold it fixed: bound.condition(...)",
            )


def _raise_faults(stats: Mapping[str, Any], num_particles: int, estimate: Estimate | None) -> None:
    """Raise for the first sweep of which nothing can be believed."""
    names = ("ess", "resampled", "log_evidence_increment", "nonfinite", "max_log_weight")
    for where in np.ndindex(stats["log_evidence"].shape):
        try:
            check_faults(SMCInfo(*(stats[k][where] for k in names)), num_particles, 0.5)
        except WeightCollapse as error:
            error.result = estimate
            raise


def _notes(
    method: Smoother, draws: Any, stats: Mapping[str, Any], burn_in: int, num_chains: int
) -> tuple[str, ...]:
    """What to be wary of."""
    if not isinstance(method, PPG):
        biased = f"a bias of order T / N remains; N = {method.num_particles}"
        return (biased, "no standard error from less than 4 chains") if num_chains < 4 else (biased,)
    notes = []
    rates = np.asarray(stats["updated"])[:, burn_in:].mean((0, 1))
    if rates.min() < _LOW_UPDATE_RATE:
        notes.append(
            f"the path at t = {int(rates.argmin())} was renewed in {100 * rates.min():.0f} % of the sweeps: "
            "take more particles, or more steps of backward='imh'"
        )
    leaves = [x for x in jax.tree_util.tree_leaves(draws) if x[0, 0].size == 1]
    correlation = max((autocorrelation(x) for x in leaves), default=np.nan)
    if np.isfinite(correlation):
        notes.append(f"autocorrelation of successive sweeps {correlation:.2f}")
    return tuple(notes)
