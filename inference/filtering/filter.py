"""A run of a particle filter on a bound model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from mcx.errors import InferenceWarning
from mcx.inference.filtering.filtered import Filtered
from mcx.inference.filtering.kernel import FilterKernel
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.faults import FILTER_ADVICE
from mcx.inference.smc.history import HistorySettings, Record
from mcx.inference.smc.variance import log_evidence_variance
from mcx.model.bound import BoundModel
from mcx.model.compile import model_sites
from mcx.model.series.state_space import check_params
from mcx.results.faults import raise_faults
from mcx.results.posterior import RunInfo
from mcx.results.precision import size_advice
from mcx.run.driver import run
from mcx.types import Array, Float, Key, PyTree, SiteValues

_PARTICLE_STEPS_PER_CHUNK = 20_000_000  # a second or less between two looks at the host
_BUFFER_BYTES = 64 * 2**20


def filter_model(
    bound: BoundModel,
    method: ParticleFilter,
    *,
    params: SiteValues | None,
    num_particles: int,
    key: Key,
    num_chains: int,
    history: str,
    quantiles: tuple[float, ...],
    block: str | None,
    coords: Mapping[str, Any],
    **options: Any,
) -> Filtered:
    """Run a particle filter. Users call :func:`mcx.filter`, which checks; ``options`` go to the driver."""
    space = method.state_space(bound, block)
    values = check_params(bound, space, params)
    fk = space.feynman_kac
    fk.check()
    settings = method.settings(num_particles)
    keep = HistorySettings(history, quantiles, space.states)
    kernel = FilterKernel(fk.functions_only(), settings, keep, method.max_nonfinite)
    inputs = jax.tree.map(np.asarray, fk.inputs)
    num_steps = fk.num_times - 1
    sites = model_sites(bound)
    entries = sum(math.prod(sites[name].shape[1:]) for name in space.state_names)
    at_start: list[PyTree] = []
    result = run(
        kernel,
        (fk.prepare(values), jax.tree.map(lambda x: x[0], inputs)),
        key=key,
        num_steps=num_steps,
        num_chains=num_chains,
        inputs=jax.tree.map(lambda x: x[1:], inputs),
        chunk_size=max(1, _PARTICLE_STEPS_PER_CHUNK // (num_particles * num_chains)),
        capacity=max(1, min(num_steps, _BUFFER_BYTES // (num_chains * _bytes_kept(kernel, entries)))),
        title=method.name,
        on_start=lambda state: at_start.append(_first(kernel, state)),
        **options,
    )
    kept, stats = jax.tree.map(lambda x: x[:, None], jax.device_get(at_start[0]))
    if result.num_steps:
        later = (result.draws, result.stats)
        kept, stats = jax.tree.map(lambda a, b: np.concatenate([a, b], 1), (kept, stats), later)
    within = np.full(num_chains, np.nan)
    if settings.lag is not None:
        within = np.sqrt(np.maximum(jax.device_get(_variances(result.state)), 0.0))
    info = RunInfo.of(
        method,
        result,
        key=key,
        coords=coords,
        dtype=stats["log_evidence"].dtype,
        settings={"num_particles": num_particles},
        num_nonfinite=int(stats["nonfinite"].sum()),
    )
    filtered = Filtered.of(
        bound, space, values, Record(None, None, **kept), stats, result.state, within, quantiles, info
    )
    raise_faults(stats, num_particles, method.max_nonfinite, FILTER_ADVICE, result=filtered)
    steps = np.diff(stats["log_evidence"], prepend=0.0)
    for advice in size_advice([steps], info.dtype):
        warnings.warn(f"{method.name}: {advice.code}  {advice.text}", InferenceWarning, stacklevel=3)
    return filtered


def _bytes_kept(kernel: FilterKernel, entries: int) -> int:
    """Bytes of a step's record; counted, as tracing the kernel for the shapes takes longer than filtering."""
    kind, num_quantiles = kernel.keep.kind, len(kernel.keep.quantiles)
    summaries = (0 if kind == "none" else 2) + num_quantiles
    per_particle = {"none": 0, "moments": 0, "ancestors": 2, "full": 2 + entries}[kind]
    return 8 * (6 + summaries * entries + per_particle * kernel.settings.num_particles)


@partial(jax.jit, static_argnums=0)
def _first(kernel: FilterKernel, state: SMCState) -> PyTree:
    """Records and statistics of all replicates at t = 0."""
    return jax.vmap(lambda s: kernel.collect(s, None))(state)


@jax.jit
def _variances(state: SMCState) -> Float[Array, " chain"]:
    return jax.vmap(lambda s: log_evidence_variance(s.origins, s.log_w))(state)
