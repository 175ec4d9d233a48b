"""The result of a particle filter."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.filtering.datatree import filtering_tree
from mcx.inference.filtering.forecast import Forecast, forecast_particles
from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.genealogy import fixed_lag_means, trace_paths
from mcx.inference.smc.history import Record
from mcx.model.bound import BoundModel
from mcx.ops.keys import as_key
from mcx.ops.validation import integer, validated
from mcx.results.evidence import log_mean_evidence
from mcx.results.posterior import RunInfo
from mcx.target import StateSpace
from mcx.types import Float, KeyLike, PyTree, Stats

if TYPE_CHECKING:
    import xarray as xr


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

    log_evidence: float
    log_evidence_se: float
    mean: dict[str, np.ndarray] | None
    sd: dict[str, np.ndarray] | None
    quantiles: dict[str, np.ndarray] | None
    ess: Float[np.ndarray, " T"]
    stats: Stats
    record: Record
    state: SMCState
    params: dict[str, np.ndarray]
    space: StateSpace
    bound: BoundModel
    quantile_levels: tuple[float, ...] = field(metadata={"static": True})
    info: RunInfo = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        bound: BoundModel,
        space: StateSpace,
        params: dict[str, np.ndarray],
        record: Record,
        stats: Stats,
        state: SMCState,
        within: Float[np.ndarray, " chain"],
        quantile_levels: tuple[float, ...],
        info: RunInfo,
    ) -> Filtered:
        """Put replicates together; ``within`` are standard errors of their log evidences."""
        log_z = stats["log_evidence"].astype(np.float64)
        log_evidence, error = (
            (log_z[0, -1], within[0]) if len(log_z) == 1 else log_mean_evidence(log_z[:, -1])
        )
        share = _shares(log_z)
        mean = sd = quantiles = None
        if record.mean is not None:
            mean = {k: _average(share, v) for k, v in record.mean.items()}
            sd = {
                k: np.sqrt(_average(share, record.sd[k] ** 2 + (v - mean[k]) ** 2))
                for k, v in record.mean.items()
            }
        if record.quantiles is not None:
            quantiles = {k: np.moveaxis(_average(share, v), 1, 0) for k, v in record.quantiles.items()}
        return cls(
            float(log_evidence), float(error), mean, sd, quantiles, stats["ess"].min(0), stats, record, state,
            params, space, bound, quantile_levels, info,
        )  # fmt: skip

    @property
    def num_chains(self) -> int:
        """Number of replicates."""
        return int(self.stats["ess"].shape[0])

    @property
    def num_times(self) -> int:
        """Number of times filtered."""
        return int(self.stats["ess"].shape[1])

    @property
    def complete(self) -> bool:
        """False where the run was stopped before its end."""
        return self.info.complete

    def forecast(
        self, horizon: int, *, key: KeyLike, num_draws: int = 1000, inputs: PyTree = None
    ) -> Forecast:
        """Draw states and observations of the times after the last.

        Args:
            horizon: number of times ahead.
            key: a typed JAX key or an int.
            num_draws: number of paths, started from the final particles.
            inputs: the block's inputs for these times, with a leading axis of ``horizon``; None where it has
                none.

        Returns:
            Draws by site, (num_draws, horizon, ...), with ``.quantiles(levels)``. Costs
            O(num_draws horizon).

        Raises:
            MethodError: for counts below 1.
            ModelError: if the model has inputs and none are given, or of another structure.
        """
        # particles of all replicates, which weigh as much as their evidences
        log_w = jnp.asarray(self.state.log_w) + jnp.asarray(self.stats["log_evidence"][:, -1:])
        return forecast_particles(
            self.bound,
            self.space.name,
            self.params,
            jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.state.particles),
            log_w.reshape(-1),
            horizon=horizon,
            key=as_key(key),
            num_draws=num_draws,
            inputs=inputs,
        )

    def paths(self, num_draws: int, *, key: KeyLike) -> dict[str, np.ndarray]:
        """Draw paths of the state from the particles' genealogies.

        They are draws from the smoothing law, but early times have few different values: the number of lines
        shrinks. Needs ``history="full"``.

        Args:
            num_draws: number of paths.
            key: a typed JAX key or an int.

        Returns:
            By site: (num_draws, T, ...). Costs O(num_draws T).

        Raises:
            MethodError: without the particles of every time, or for a count below 1.

        Source: Kitagawa (1996), section 4.
        """
        self._require_particles("paths")
        num_draws = validated("paths", "num_draws", num_draws, integer(1))
        key_chain, key_particle = jax.random.split(as_key(key))
        log_z = jnp.asarray(self.stats["log_evidence"][:, -1])
        log_w = jnp.asarray(self.record.log_w[:, -1])
        chains = jax.random.categorical(key_chain, log_z, shape=(num_draws,))
        chosen = jax.random.categorical(key_particle, log_w[chains])
        traced = jax.vmap(trace_paths, (0, 0, None))(
            jnp.asarray(self.record.ancestors), self.record.particles, chosen
        )
        rows = jnp.arange(num_draws)
        paths = jax.tree.map(lambda x: x[chains, :, rows], traced)
        return {k: np.asarray(v) for k, v in self.space.states(paths).items()}

    def smoothed_mean(self, lag: int) -> dict[str, np.ndarray]:
        """Means of the states given observations up to ``lag`` steps later (fixed-lag smoothing).

        Needs ``history="full"``. A longer lag has less bias, and more variance where lines coalesce.

        Args:
            lag: number of later observations, at least 0.

        Returns:
            By site: (T, ...). Costs O(lag T N).

        Raises:
            MethodError: without the particles of every time, or for a negative lag.

        Source: Kitagawa and Sato (2001).
        """
        self._require_particles("smoothed_mean")
        lag = validated("smoothed_mean", "lag", lag, integer(0))
        states = jax.vmap(jax.vmap(jax.vmap(self.space.states)))(self.record.particles)
        means = jax.vmap(lambda a, w, x: fixed_lag_means(a, w, x, lag))(
            jnp.asarray(self.record.ancestors), jnp.asarray(self.record.log_w), states
        )
        ahead = np.minimum(np.arange(self.num_times) + lag, self.num_times - 1)
        share = _shares(self.stats["log_evidence"].astype(np.float64)[:, ahead])
        return {k: _average(share, np.asarray(v)) for k, v in means.items()}

    def _require_particles(self, verb: str) -> None:
        if self.record.particles is None:
            raise MethodError(
                f"{verb} needs the particles of every time",
                expected="a filter with history='full'",
                remedy="mcx.filter(..., history='full'); it keeps T x N particles",
            )

    def to_datatree(self) -> xr.DataTree:
        """The run as an ``xarray.DataTree``.

        Returns:
            Groups ``filtering`` (mean, sd and quantiles over ``time``, as variables ``site``, ``site_sd``,
            ``site_quantile``), ``smc_stats`` (chain, step), ``observed_data``, and with ``history="full"``
            ``weighted_posterior`` (chain, time, particle), the particles and ``log_weight``.
        """
        summaries = (self.mean, self.sd, self.quantiles)
        tree = filtering_tree(
            self.bound, self.space, summaries, self.quantile_levels, self.stats, self.record, self.info.coords
        )
        tree.attrs = {
            "model": self.bound.name,
            "params": json.dumps({k: np.asarray(v).tolist() for k, v in self.params.items()}),
            "log_evidence": float(self.log_evidence),
            "log_evidence_se": float(self.log_evidence_se),
            **self.info.attributes(),
        }
        return tree

    def __repr__(self) -> str:
        if not isinstance(self.ess, np.ndarray):
            return f"Filtered({self.space.name}, traced)"
        info, ess = self.info, self.ess
        replicates = f", {self.num_chains} replicates" if self.num_chains > 1 else ""
        lines = [
            f"{info.method} of '{self.space.name}': {self.num_times} times, "
            f"{info.settings['num_particles']} particles{replicates}"
            f"{'' if info.complete else ' (stopped early)'}",
            f"log evidence {self.log_evidence:.3f}" + _plus_minus(self),
            f"effective sample size: smallest {ess.min():.0f} at time {int(ess.argmin())}, "
            f"median {np.median(ess):.0f}; resampled at {self.stats['resampled'].mean():.0%} of the steps",
        ]
        bad = int(self.stats["nonfinite"].sum())
        if bad:
            lines.append(f"potentials that were NaN or +inf, taken as zero: {bad}")
        for name, mean in (self.mean or {}).items():
            sd = (self.sd or {})[name]
            if mean.ndim == 1:
                lines.append(f"{name} at the last time: {mean[-1]:.4g}, sd {sd[-1]:.3g}")
            else:
                lines.append(f"{name}: mean and sd of shape {mean.shape}")
        lines.append(f"compiled in {info.compile_time:.1f} s, ran for {info.run_time:.2f} s on {info.device}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{self!r}</pre>"


def _shares(log_z: Float[np.ndarray, "chain T"]) -> Float[np.ndarray, "chain T"]:
    """Weights of the replicates at every time, in proportion to their evidences up to there."""
    with np.errstate(invalid="ignore"):
        share = np.exp(log_z - log_z.max(0))
        return np.asarray(share / share.sum(0))


def _average(share: Float[np.ndarray, "chain T"], values: np.ndarray) -> np.ndarray:
    """Average over replicates of values of every time, (chain, T, ...)."""
    weights = share.reshape(share.shape + (1,) * (values.ndim - 2))
    return np.asarray((weights * values).sum(0), values.dtype)


def _plus_minus(filtered: Filtered) -> str:
    error = filtered.log_evidence_se
    if math.isfinite(error):
        return f" +- {error:.3f}"
    if math.isinf(error):
        return " (error unknown: all lines of descent have coalesced; take more particles)"
    return " (error unknown from one run with this resampling: num_chains=10 tells it)"
