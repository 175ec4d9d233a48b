"""The result of a particle filter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx._version import __version__
from mcx.errors import MethodError
from mcx.inference.filtering.forecast import Forecast, forecast
from mcx.inference.smc.genealogy import fixed_lag_means, trace_paths, unique_ancestors
from mcx.inference.smc.replicates import log_mean_evidence
from mcx.model.bound import BoundModel
from mcx.model.compile import model_sites
from mcx.ops.keys import as_key
from mcx.results.posterior import RunInfo
from mcx.target import StateSpace

if TYPE_CHECKING:
    import xarray as xr

    from mcx.inference.smc.engine import SMCState
    from mcx.inference.smc.history import Record

__all__ = ["Filtered"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Filtered:
    """Filtering laws over time, and the evidence. A pytree.

    Attributes:
        log_evidence: log of the evidence, averaged over replicates (chains).
        log_evidence_se: its standard error: a jackknife over replicates where there are several, else from
            the genealogy of the one run, where resampling is multinomial; NaN otherwise.
        mean, sd: of the state at t given observations up to t, by site: (T, ...); replicates are weighted by
            their evidence up to t.
        quantiles: by site, (k, T, ...), if asked for, averaged over replicates in the same way.
        ess: (T,) effective sample size, the smallest of the replicates.
        stats: by name, chain x T: ess, resampled, log_evidence, log_evidence_increment, nonfinite, ...
        record: what the history kept, chain x T x ...
        state: the particle systems at the last time, chain x ...
        params: what the filter ran with.
        space: the state-space model it ran on.
        bound: the model and its data.
        quantile_levels: probabilities of the quantiles; static.
        info: how the run went; static.
    """

    log_evidence: Any
    log_evidence_se: Any
    mean: dict[str, Any] | None
    sd: dict[str, Any] | None
    quantiles: dict[str, Any] | None
    ess: Any
    stats: dict[str, Any]
    record: Record
    state: SMCState
    params: dict[str, Any]
    space: StateSpace
    bound: BoundModel
    quantile_levels: tuple[float, ...] = field(metadata={"static": True})
    info: RunInfo = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        *,
        bound: BoundModel,
        space: StateSpace,
        params: dict[str, Any],
        record: Record,
        stats: dict[str, Any],
        state: SMCState,
        within: np.ndarray,
        quantile_levels: tuple[float, ...],
        info: RunInfo,
    ) -> Filtered:
        """Put replicates together."""
        log_z = stats["log_evidence"].astype(np.float64)
        log_evidence, error = _combine(log_z[:, -1], within)
        with np.errstate(invalid="ignore"):
            share = np.exp(log_z - log_z.max(0))
            share = share / share.sum(0)  # chain x T
        mean = sd = quantiles = None
        if record.mean is not None:
            mean = {k: _average(share, v) for k, v in record.mean.items()}
            sd = {
                k: np.sqrt(_average(share, record.sd[k] ** 2 + (v - mean[k]) ** 2))
                for k, v in record.mean.items()
            }
        if record.quantiles is not None:
            quantiles = {k: np.moveaxis(_average(share, v), 1, 0) for k, v in record.quantiles.items()}
        ess = stats["ess"].min(0)
        return cls(
            log_evidence, error, mean, sd, quantiles, ess, stats, record, state, params, space, bound,
            quantile_levels, info,
        )  # fmt: skip

    @property
    def num_chains(self) -> int:
        """Number of replicates."""
        return int(self.stats["ess"].shape[0])

    @property
    def num_steps(self) -> int:
        """Number of times filtered."""
        return int(self.stats["ess"].shape[1])

    @property
    def complete(self) -> bool:
        """False where the run was stopped before its end."""
        return self.info.complete

    def forecast(self, num_steps: int, *, key: Any, num_draws: int = 1000, inputs: Any = None) -> Forecast:
        """Draw states and observations of the times after the last.

        Args:
            num_steps: how many times ahead.
            key: a typed JAX key or an int.
            num_draws: number of paths, started from the final particles.
            inputs: the block's inputs for these times, with a leading axis of ``num_steps``; None where it
                has none.

        Returns:
            Draws by site, (num_draws, num_steps, ...), with ``.quantiles(levels)``.

        Raises:
            ModelError: if the model has inputs and none are given, or of another structure.
        """
        return forecast(self, num_steps, as_key(key), num_draws, inputs)

    def paths(self, num_draws: int, *, key: Any) -> dict[str, np.ndarray]:
        """Draw paths of the state from the particles' genealogies.

        They are draws from the smoothing law, but early times have few different values: the number of lines
        shrinks. Needs ``history="full"``.

        Args:
            num_draws: number of paths.
            key: a typed JAX key or an int.

        Returns:
            By site: (num_draws, T, ...).
        """
        self._require("full", "paths")
        key_chain, key_particle = jax.random.split(as_key(key))
        log_z = jnp.asarray(self.stats["log_evidence"][:, -1])
        log_w = jnp.asarray(self.record.log_w[:, -1])
        chains = jax.random.categorical(key_chain, log_z, shape=(num_draws,))
        chosen = jax.random.categorical(key_particle, log_w[chains])
        traced = jax.vmap(trace_paths, (0, 0, None))(
            jnp.asarray(self.record.ancestors), self.record.particles, chosen
        )
        rows = jnp.arange(num_draws)
        paths = jax.tree_util.tree_map(lambda x: x[chains, :, rows], traced)
        return {k: np.asarray(v) for k, v in self.space.states(paths).items()}

    def smoothed_mean(self, lag: int) -> dict[str, np.ndarray]:
        """Means of the states given observations up to ``lag`` steps later (fixed-lag smoothing).

        Needs ``history="full"``. A longer lag has less bias, and more variance where lines coalesce.

        Args:
            lag: number of later observations, at least 0.

        Returns:
            By site: (T, ...).
        """
        self._require("full", "smoothed_mean")
        if lag < 0:
            raise MethodError(
                "smoothed_mean(lag=...) is out of range", expected="an int >= 0", found=repr(lag)
            )
        states = jax.vmap(jax.vmap(jax.vmap(self.space.states)))(self.record.particles)
        means = jax.vmap(lambda a, w, x: fixed_lag_means(a, w, x, lag))(
            jnp.asarray(self.record.ancestors), jnp.asarray(self.record.log_w), states
        )
        log_z = self.stats["log_evidence"].astype(np.float64)
        ahead = np.minimum(np.arange(self.num_steps) + lag, self.num_steps - 1)
        share = np.exp(log_z - log_z.max(0))[:, ahead]
        return {k: _average(share / share.sum(0), np.asarray(v)) for k, v in means.items()}

    def _require(self, kind: str, verb: str) -> None:
        if self.record.particles is None:
            raise MethodError(
                f"{verb} needs the particles of every time",
                expected=f"a filter with history={kind!r}",
                remedy=f"mcx.filter(..., history={kind!r}); it keeps T x N particles",
            )

    def to_datatree(self) -> xr.DataTree:
        """The run as an ``xarray.DataTree``.

        Returns:
            Groups ``filtering`` (mean, sd and quantiles over ``time``, as variables ``site``, ``site_sd``,
            ``site_quantile``), ``smc_stats`` (chain, step), ``observed_data``, and with ``history="full"``
            ``weighted_posterior`` (chain, time, particle), the particles and ``log_weight``.
        """
        return _to_datatree(self)

    def __repr__(self) -> str:
        return _describe(self)

    def _repr_html_(self) -> str:
        return f"<pre>{self!r}</pre>"


def _combine(log_z: np.ndarray, within: np.ndarray) -> tuple[float, float]:
    """Log of the mean evidence over replicates, and its standard error."""
    if len(log_z) == 1:
        return float(log_z[0]), float(within[0])
    return log_mean_evidence(log_z)


def _average(share: np.ndarray, values: Any) -> np.ndarray:
    """Average over chains with weights chain x T."""
    values = np.asarray(values)
    weights = share.reshape(share.shape + (1,) * (values.ndim - 2))
    return np.asarray((weights * values).sum(0), values.dtype)


def _describe(filtered: Filtered) -> str:
    if not isinstance(filtered.ess, np.ndarray):
        return f"Filtered({filtered.space.name}, traced)"
    info, ess = filtered.info, filtered.ess
    replicates = f", {filtered.num_chains} replicates" if filtered.num_chains > 1 else ""
    lines = [
        f"{info.method} of '{filtered.space.name}': {filtered.num_steps} times, "
        f"{info.settings['num_particles']} particles{replicates}"
        f"{'' if info.complete else ' (stopped early)'}",
        f"log evidence {filtered.log_evidence:.3f}" + _plus_minus(filtered),
        f"effective sample size: smallest {ess.min():.0f} at time {int(ess.argmin())}, "
        f"median {np.median(ess):.0f}; resampled at {filtered.stats['resampled'].mean():.0%} of the steps",
    ]
    bad = int(filtered.stats["nonfinite"].sum())
    if bad:
        lines.append(f"potentials that were NaN or +inf, taken as zero: {bad}")
    for name, mean in (filtered.mean or {}).items():
        sd = (filtered.sd or {})[name]
        if mean.ndim == 1:
            lines.append(f"{name} at the last time: {mean[-1]:.4g}, sd {sd[-1]:.3g}")
        else:
            lines.append(f"{name}: mean and sd of shape {mean.shape}")
    lines.append(f"compiled in {info.compile_time:.1f} s, ran for {info.run_time:.2f} s on {info.device}")
    return "\n".join(lines)


def _plus_minus(filtered: Filtered) -> str:
    error = filtered.log_evidence_se
    if math.isfinite(error):
        return f" +- {error:.3f}"
    if math.isinf(error):
        return " (error unknown: all lines of descent have coalesced; take more particles)"
    return " (error unknown from one run with this resampling: num_chains=10 tells it)"


def _to_datatree(filtered: Filtered) -> xr.DataTree:
    from arviz_base import dict_to_dataset
    from xarray import DataTree

    sites = model_sites(filtered.bound)
    names = list(filtered.space.state_names)
    time = sites[names[0]].dims[0]
    steps = filtered.num_steps  # fewer than the data have, where the run was stopped
    coords = {k: v[:steps] if k == time else v for k, v in filtered.info.coords.items()}
    dims = {name: list(sites[name].dims) for name in names}
    observed = {
        k: np.asarray(v)[:steps]
        for k, v in filtered.space.observed(filtered.space.feynman_kac.inputs).items()
    }
    library = {"inference_library": "mcx", "inference_library_version": __version__}

    def dataset(data: Mapping[str, Any], axes: Mapping[Any, Any], leading: list[str], **more: Any) -> Any:
        return dict_to_dataset(
            dict(data), dims=dict(axes), coords={**coords, **more}, sample_dims=leading, attrs=dict(library),
            check_conventions=False,
        )  # fmt: skip

    groups: dict[str, Any] = {}
    if filtered.mean is not None and filtered.sd is not None:
        summary = dict(filtered.mean)
        axes = dict(dims)
        for name in names:
            summary[f"{name}_sd"], axes[f"{name}_sd"] = filtered.sd[name], dims[name]
            if filtered.quantiles is not None:
                summary[f"{name}_quantile"] = filtered.quantiles[name]
                axes[f"{name}_quantile"] = ["quantile", *dims[name]]
        more = {"quantile": list(filtered.quantile_levels)} if filtered.quantiles is not None else {}
        groups["filtering"] = dataset(summary, axes, [], **more)
    stats = {k: np.asarray(v) for k, v in filtered.stats.items()}
    if filtered.record.ancestors is not None:
        stats["unique_ancestors"] = np.asarray(
            jax.vmap(unique_ancestors)(jnp.asarray(filtered.record.ancestors))
        )
    groups["smc_stats"] = dataset(stats, {}, ["chain", "step"])
    if observed:
        groups["observed_data"] = dataset(observed, {k: list(sites[k].dims) for k in observed}, [])
    if filtered.record.particles is not None:
        states = jax.vmap(jax.vmap(jax.vmap(filtered.space.states)))(filtered.record.particles)
        particles = {k: np.asarray(v) for k, v in states.items()}
        axes = {k: dims[k][1:] for k in particles}
        particles["log_weight"] = np.asarray(filtered.record.log_w)
        groups["weighted_posterior"] = dataset(particles, axes, ["chain", time, "particle"])
    tree = DataTree.from_dict(groups, name="mcx")
    tree.attrs = {
        "model": filtered.bound.name,
        "params": json.dumps({k: np.asarray(v).tolist() for k, v in filtered.params.items()}),
        "log_evidence": float(filtered.log_evidence),
        "log_evidence_se": float(filtered.log_evidence_se),
        **filtered.info.attributes(),
    }
    return tree
