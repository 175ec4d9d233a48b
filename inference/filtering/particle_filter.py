"""Particle filters of state-space models: bootstrap, guided and auxiliary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mcx.errors import CapabilityError, MethodError, WeightCollapse
from mcx.inference.filtering.filtered import Filtered
from mcx.inference.smc.engine import SMCInfo, SMCSettings, SMCState, end_block, initialize, move
from mcx.inference.smc.history import HistorySettings, Record, check_faults, record
from mcx.inference.smc.particle_kernel import ParticleKernel, step_stats
from mcx.inference.smc.resampling import as_resampling, multinomial
from mcx.inference.smc.variance import default_lag, log_evidence_variance
from mcx.model.bound import BoundModel
from mcx.model.compile import model_sites
from mcx.model.series.state_space import check_params, state_space
from mcx.results.posterior import RunInfo
from mcx.run.driver import Run, run
from mcx.target import FeynmanKac, StateSpace

__all__ = ["FilterKernel", "ParticleFilter"]

_KINDS = ("auto", "bootstrap", "guided", "auxiliary")
_PARTICLE_STEPS_PER_CHUNK = 20_000_000  # a second or less between two looks at the host
_BUFFER_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ParticleFilter:
    """Particle filter of a Markov block.

    Attributes:
        kind: "bootstrap" (draw from the transition), "guided" (from the block's ``proposal``), "auxiliary"
            (resample by its ``lookahead``, draw from the proposal if there is one), or "auto": whatever the
            block offers.
        resampling: a scheme by name ("multinomial", "stratified", "systematic", "residual", "ssp", "killing",
            "birth_death") or a function ``(key, log_w, num) -> ancestors``. Multinomial resampling is the one
            whose error can be told from a single run; the others have less of it, which takes replicates to
            see.
        threshold: resample where the effective sample size falls below this fraction of the particles.
        max_nonfinite: largest tolerated share of a step's potentials that are NaN or +inf.
        batch_size: particles moved and weighted at once, where all of them would need too much memory for
            intermediate values; the law is the same.

    Costs O(T N). Source: Gordon, Salmond and Smith (1993); Pitt and Shephard (1999); Chopin and
    Papaspiliopoulos (2020), chapter 10.
    """

    kind: str = "auto"
    resampling: str | Callable[..., Any] = "multinomial"
    threshold: float = 0.5
    max_nonfinite: float = 0.5
    batch_size: int | None = None

    def __post_init__(self) -> None:
        as_resampling(self.resampling)
        if self.kind not in _KINDS:
            raise MethodError(
                "ParticleFilter(kind=...) is unknown",
                expected="one of " + ", ".join(map(repr, _KINDS)),
                found=repr(self.kind),
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise MethodError(
                "ParticleFilter(batch_size=...) is out of range",
                expected="an int >= 1, or None",
                found=repr(self.batch_size),
            )
        for name in ("threshold", "max_nonfinite"):
            if not 0 <= getattr(self, name) <= 1:
                raise MethodError(
                    f"ParticleFilter({name}=...) is out of range",
                    expected="a fraction between 0 and 1",
                    found=repr(getattr(self, name)),
                )

    @property
    def name(self) -> str:
        """Name of the method."""
        return type(self).__name__

    def state_space(self, bound: BoundModel, block: str | None = None, *, whole: bool = False) -> StateSpace:
        """The Feynman-Kac model that the filter runs.

        Args:
            bound: a model with data.
            block: its Markov block, where it has several.
            whole: for methods on whole paths, see :func:`~mcx.model.series.state_space.state_space`.

        Raises:
            CapabilityError: if the block lacks the proposal or look-ahead that ``kind`` asks for.
        """
        guided, auxiliary = self.kind != "bootstrap", self.kind in ("auto", "auxiliary")
        space = state_space(bound, block, guided=guided, auxiliary=auxiliary, whole=whole)
        for kind, there, argument in (
            ("guided", space.guided, "proposal"),
            ("auxiliary", space.feynman_kac.log_lookahead is not None, "lookahead"),
        ):
            if self.kind == kind and not there:
                raise CapabilityError(
                    f"ParticleFilter(kind={kind!r}) needs {argument}=",
                    site=space.name,
                    expected=f"mcx.markov({space.name!r}, ..., {argument}=...)",
                    remedy=f"give the Markov chain a {argument} (NumPyro's scan takes none), or use "
                    "kind='bootstrap'",
                )
        return space

    def settings(self, num_particles: int) -> SMCSettings:
        """Settings of the particle system."""
        scheme = as_resampling(self.resampling)
        traced = scheme is multinomial and num_particles > 1
        lag = default_lag(num_particles) if traced else None
        return SMCSettings(num_particles, self.threshold, scheme, None, lag, self.batch_size)

    def filter(
        self,
        bound: BoundModel,
        *,
        params: Mapping[str, Any] | None,
        num_particles: int,
        key: Any,
        num_chains: int,
        history: str,
        quantiles: tuple[float, ...],
        block: str | None,
        coords: Mapping[str, Any],
        **options: Any,
    ) -> Filtered:
        """Run the filter. Use :func:`mcx.filter`, which checks; ``options`` go to the driver."""
        space = self.state_space(bound, block)
        values = check_params(bound, space, params)
        fk = space.feynman_kac
        fk.check()
        settings = self.settings(num_particles)
        keep = HistorySettings(history, tuple(quantiles), space.states)
        kernel = FilterKernel(fk.functions_only(), settings, keep, self.max_nonfinite)
        inputs = jax.tree_util.tree_map(np.asarray, fk.inputs)
        at_start: list[Any] = []
        result = run(
            kernel,
            (fk.prepare(values), jax.tree_util.tree_map(lambda x: x[0], inputs)),
            key=key,
            num_steps=fk.num_times - 1,
            num_chains=num_chains,
            inputs=jax.tree_util.tree_map(lambda x: x[1:], inputs),
            chunk_size=max(1, _PARTICLE_STEPS_PER_CHUNK // (num_particles * num_chains)),
            capacity=_capacity(bound, space, kernel, num_chains),
            title=self.name,
            on_start=lambda state: at_start.append(_first(kernel, state)),
            **options,
        )
        filtered = self._filtered(bound, space, values, settings, keep, at_start[0], result, key, coords)
        _raise_faults(filtered, num_particles, self.max_nonfinite)
        return filtered

    def _filtered(
        self,
        bound: BoundModel,
        space: StateSpace,
        params: dict[str, Any],
        settings: SMCSettings,
        keep: HistorySettings,
        start: tuple[Any, Any],
        result: Run,
        key: Any,
        coords: Mapping[str, Any],
    ) -> Filtered:
        kept, stats = jax.device_get(start)
        first = (
            jax.tree_util.tree_map(lambda x: x[:, None], kept),
            {k: v[:, None] for k, v in stats.items()},
        )
        if result.num_steps:
            later = (result.draws, result.stats)
            kept, stats = jax.tree_util.tree_map(lambda a, b: np.concatenate([a, b], 1), first, later)
        else:
            kept, stats = first
        within = np.full(stats["log_evidence"].shape[0], np.nan)
        if settings.lag is not None:
            variance = jax.device_get(_variances(result.state))
            within = np.sqrt(np.maximum(variance, 0.0))
        return Filtered.of(
            bound=bound,
            space=space,
            params=params,
            record=Record(None, None, **kept),
            stats=stats,
            state=result.state,
            within=within,
            quantile_levels=keep.quantiles,
            info=RunInfo.of(
                self,
                result,
                key=key,
                coords=coords,
                dtype=stats["log_evidence"].dtype,
                settings={"num_particles": settings.num_particles},
                num_nonfinite=int(stats["nonfinite"].sum()),
            ),
        )


@dataclass(frozen=True)
class FilterKernel(ParticleKernel):
    """A particle system for the driver; its data are the context and the input of t = 0."""

    fk: FeynmanKac
    settings: SMCSettings
    keep: HistorySettings
    max_nonfinite: float
    mesh: Mesh | None = None

    @property
    def block_size(self) -> int | None:
        """Steps between two calls of :meth:`end_block`."""
        return self.settings.lag

    def init(self, data: Any, key: Any, start: Any) -> SMCState:
        """The system at t = 0."""
        ctx, u = data
        return self._spread(initialize(key, self.fk, ctx, u, self.settings))

    def step(self, data: Any, key: Any, state: SMCState, u: Any) -> tuple[SMCState, Any]:
        """One step of the engine."""
        return self._spread(move(key, self.fk, data[0], state, u, self.settings)), None

    def end_block(self, state: SMCState) -> SMCState:
        """Account for the error of the evidence."""
        return end_block(state)

    def collect(self, state: SMCState, info: Any) -> tuple[Any, Mapping[str, Any]]:
        """What the history keeps, and the step's statistics."""
        kept = record(state, self.keep)
        draw = {k: v for k, v in kept._asdict().items() if k not in ("info", "log_evidence")}
        return draw, step_stats(state)

    def emit(self, data: Any, draw: Any) -> Any:
        """As it is."""
        return draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Log evidence, effective sample size and faults of a chunk."""
        last = stats["log_evidence"][-1]
        shown: dict[str, Any] = {"log evidence": float(np.mean(last)), "ESS": float(np.min(stats["ess"]))}
        bad = int(np.sum(stats["nonfinite"]))
        return {**shown, "non-finite": bad} if bad else shown

    def stop(self, stats: Mapping[str, Any]) -> bool:
        """Whether a step went wrong: there is no point in going on."""
        too_many = stats["nonfinite"] > self.max_nonfinite * self.settings.num_particles
        return bool(np.any(too_many) or np.any(stats["log_evidence_increment"] == -np.inf))


def _capacity(bound: BoundModel, space: StateSpace, kernel: FilterKernel, num_chains: int) -> int:
    """Steps whose records the device holds. Counted: tracing for the shapes takes longer than filtering."""
    sites = model_sites(bound)
    entries = sum(math.prod(sites[name].shape[1:]) for name in space.state_names)
    kept = {"none": 0, "moments": 2, "ancestors": 2, "full": 2}[kernel.keep.kind] + len(kernel.keep.quantiles)
    per_particle = {"none": 0, "moments": 0, "ancestors": 2, "full": 2 + entries}[kernel.keep.kind]
    size = 8 * num_chains * (6 + kept * entries + per_particle * kernel.settings.num_particles)
    return max(1, min(space.feynman_kac.num_times - 1, _BUFFER_BYTES // size))


@partial(jax.jit, static_argnums=0)
def _first(kernel: FilterKernel, state: SMCState) -> Any:
    return jax.vmap(lambda s: kernel.collect(s, None))(state)


@jax.jit
def _variances(state: SMCState) -> Any:
    return jax.vmap(lambda s: log_evidence_variance(s.origins, s.log_w))(state)


def _raise_faults(filtered: Filtered, num_particles: int, max_nonfinite: float) -> None:
    stats = filtered.stats
    for chain in range(stats["ess"].shape[0]):
        info = SMCInfo(
            stats["ess"][chain],
            stats["resampled"][chain],
            stats["log_evidence_increment"][chain],
            stats["nonfinite"][chain],
            stats["max_log_weight"][chain],
        )
        try:
            check_faults(info, num_particles, max_nonfinite)
        except WeightCollapse as error:
            error.result = filtered
            raise
