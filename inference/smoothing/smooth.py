"""Smoothing of a bound model: expectations of additive functionals of its path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError
from mcx.inference.conditional_smc.initial_path import starting_path
from mcx.inference.smc.backward import check_backward
from mcx.inference.smc.faults import FILTER_ADVICE
from mcx.inference.smoothing.additive import AdditiveFunctional, Functional, Score, Summand, summand_of
from mcx.inference.smoothing.recursion import Recursion
from mcx.inference.smoothing.smoother import Smoother, Swept
from mcx.methods.method import interrupted
from mcx.model.bound import BoundModel
from mcx.model.series.state_space import check_params, state_space
from mcx.results.estimate import Estimate
from mcx.results.faults import raise_faults
from mcx.results.posterior import RunInfo
from mcx.results.precision import size_advice
from mcx.run.driver import run
from mcx.run.kernel import Kernel
from mcx.target import FeynmanKac
from mcx.types import Array, Key, PyTree, SiteValues, Stats

_MAX_NONFINITE = 0.5


@dataclass(frozen=True)
class SmootherKernel(Kernel):
    """A smoother for the driver; its data are context, extra context and inputs. A step is a sweep."""

    fk: FeynmanKac
    summand: Summand
    method: Smoother

    def recursion(self, data: PyTree) -> Recursion:
        """The recursion with these data."""
        ctx, extra, inputs = data
        return Recursion(replace(self.fk, inputs=inputs), ctx, extra, self.summand, self.method.smoothing)

    @override
    def init(self, data: PyTree, key: Key, start: PyTree) -> PyTree:
        """A path to start from, for smoothers that need one."""
        if not self.method.has_path:
            return None
        fk, ctx, _, _, smoothing = self.recursion(data)
        return starting_path(key, fk, ctx, smoothing.system.num_particles, backward=False)[0]

    @override
    def step(self, data: PyTree, key: Key, state: PyTree, u: PyTree) -> tuple[PyTree, Swept]:
        swept = self.method.sweep(key, self.recursion(data), state)
        return swept.path, swept

    @override
    def collect(self, state: PyTree, info: Swept) -> tuple[PyTree, Mapping[str, Array]]:
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

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        return {"log evidence": float(np.mean(stats["log_evidence"])), "ESS": float(np.min(stats["ess"]))}

    @override
    def stop(self, stats: Stats) -> bool:
        return bool(np.any(stats["log_evidence"] == -np.inf))


def smooth_model(
    bound: BoundModel,
    functional: Functional,
    method: Smoother,
    *,
    params: SiteValues | None,
    key: Key,
    num_chains: int,
    block: str | None,
    coords: Mapping[str, Any],
    **options: Any,
) -> Estimate:
    """Run a smoother. Users call :func:`mcx.smooth`, which checks; ``options`` go to the driver."""
    space = state_space(bound, block)
    fk = space.feynman_kac
    fk.check()
    check_backward(method.name, fk, method.backward, space.no_density)
    values = check_params(bound, space, params)
    if isinstance(functional, Score):
        _refuse_discrete(values)
    summand = summand_of(functional, fk, space.view)
    result = run(
        SmootherKernel(fk.functions_only(fk.num_times), summand, method),
        (fk.prepare(values), summand.extra_context(fk, values), fk.inputs),
        key=key,
        num_steps=method.num_sweeps,
        num_chains=num_chains,
        num_discard=method.num_warmup,
        title=method.name,
        **options,
    )
    estimate = None
    if result.draws is not None:
        dtype = jax.tree.leaves(result.draws)[0].dtype
        stats = {k: v[:, method.num_warmup :] for k, v in result.stats.items()}
        sizes = [stats["log_evidence_increment"]]
        estimate = Estimate.of(
            result.draws,
            stats,
            RunInfo.of(method, result, key=key, coords=coords, dtype=dtype),
            (*method.notes(result.draws, stats), *(f"{a.code}  {a.text}" for a in size_advice(sizes, dtype))),
            functional.finish if isinstance(functional, AdditiveFunctional) else None,
        )
    if result.stats:
        raise_faults(result.stats, method.num_particles, _MAX_NONFINITE, FILTER_ADVICE, result=estimate)
    if estimate is None:
        interrupted(method.name, "warm-up", result)
    return estimate


def _refuse_discrete(params: Mapping[str, np.ndarray]) -> None:
    for name, value in params.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise CapabilityError(
                "the score is a derivative, and this parameter is discrete",
                site=name,
                expected="continuous parameters",
                remedy="hold it fixed: bound.condition(...)",
            )
