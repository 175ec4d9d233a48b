"""The result of an inference run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from mcx._version import __version__
from mcx.errors import PosteriorShapeError
from mcx.model.bound import BoundModel
from mcx.model.compile import model_sites
from mcx.ops.validation import number, validated
from mcx.results.datatree import to_datatree
from mcx.results.predictions import Predictions
from mcx.results.summary import Summary, drawn_sites, scalars, summarize
from mcx.results.weights import draw_weights
from mcx.run.driver import Run
from mcx.types import Key, PyTree

if TYPE_CHECKING:
    import xarray as xr

_ROWS_SHOWN = 12


@dataclass(frozen=True, eq=False)
class RunInfo:
    """How a posterior was made; static.

    Attributes:
        method: name of the method; ``settings``: its fields.
        num_warmup: steps before the first draw.
        complete: False where the run was stopped early.
        compile_time, run_time: seconds.
        key: data and implementation of the random key.
        coords: coordinate values by dimension, as the user gave them.
        versions, device, dtype: where it ran.
        num_nonfinite: draws with a NaN or an infinity.
        cloud: whether the draws of a chain are the particles of one cloud, in no particular order.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_warmup: int = 0
    complete: bool = True
    compile_time: float = math.nan
    run_time: float = math.nan
    key: str = ""
    coords: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    num_nonfinite: int = 0
    cloud: bool = False

    @classmethod
    def of(
        cls,
        method: Any,
        result: Run,
        *,
        key: Key,
        coords: Mapping[str, Any],
        dtype: object,
        settings: Mapping[str, Any] | None = None,
        num_nonfinite: int | None = None,
    ) -> RunInfo:
        """How a run of the driver went, with settings beside the method's fields."""
        return cls(
            method=type(method).__name__,
            settings={**fields_of(method), **(settings or {})},
            num_warmup=result.num_discard,
            complete=result.complete,
            compile_time=result.compile_time,
            run_time=result.run_time,
            dtype=str(dtype),
            num_nonfinite=result.num_nonfinite if num_nonfinite is None else num_nonfinite,
            **_where(key, coords),
        )

    @classmethod
    def exact(cls, *, key: Key, coords: Mapping[str, Any], run_time: float) -> RunInfo:
        """How exact draws were made, without any method."""
        dtype = str(jnp.result_type(float))
        return cls(method="Exact", compile_time=0.0, run_time=run_time, dtype=dtype, **_where(key, coords))

    def attributes(self) -> dict[str, Any]:
        """As attributes of a file: strings and numbers, which every format can hold."""
        return {
            "mcx_version": __version__,
            "method": self.method,
            "settings": json.dumps(dict(self.settings), default=str),
            "key": self.key,
            "num_warmup": self.num_warmup,
            "complete": int(self.complete),
            "num_nonfinite": self.num_nonfinite,
            "compile_time": self.compile_time,
            "run_time": self.run_time,
            "dtype": self.dtype,
            "device": self.device,
            "versions": json.dumps(dict(self.versions)),
        }


def _where(key: Key, coords: Mapping[str, Any]) -> dict[str, Any]:
    """With which key, labels, versions, and on what a run was made."""
    return {
        "key": f"{jax.random.key_impl(key)}:{np.asarray(jax.random.key_data(key)).tolist()}",
        "coords": dict(coords),
        "versions": {"mcx": __version__, "jax": jax.__version__, "numpyro": numpyro.__version__},
        "device": str(jax.devices()[0].device_kind),
    }


def fields_of(method: Any) -> dict[str, Any]:
    """A method's settings by name."""
    return {f.name: getattr(method, f.name) for f in fields(method)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior:
    """Draws from a posterior, with the statistics of the run, the model and its data. A pytree.

    Attributes:
        draws: latent and deterministic sites by name, chain x draw x event; constrained.
        unconstrained: the unconstrained points of the draws, chain x draw x d; of methods that draw some
            sites in other ways, the coordinates of the rest.
        stats: sampler statistics by name, chain x draw.
        warmup_stats: the same during warm-up, chain x step.
        bound: the model and its data.
        info: how the run went; static.
        weights: normalised log weights, chain x draw, where draws are weighted, else None. Replicates of SMC
            samplers weigh as much as their evidence estimates; draws within a replicate weigh the same, and
            each replicate is a sample of the posterior by itself.
        log_evidence, log_evidence_se: log marginal likelihood and its standard error, where the method
            estimates it.
        smc_stats: of methods that draw paths, averages over draws by ``block.statistic``, chain x time; of
            SMC samplers, statistics of the stages, chain x stage, NaN after a replicate's last stage (where
            level and log evidence keep their last values).
    """

    draws: dict[str, Any]
    unconstrained: PyTree
    stats: dict[str, Any]
    warmup_stats: dict[str, Any]
    bound: BoundModel
    info: RunInfo = field(metadata={"static": True})
    weights: PyTree = None
    log_evidence: PyTree = None
    log_evidence_se: PyTree = None
    smc_stats: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.draws[name]

    @property
    def num_chains(self) -> int:
        """Number of independent chains."""
        return int(np.shape(self.unconstrained)[0])

    @property
    def num_draws(self) -> int:
        """Draws a chain."""
        return int(np.shape(self.unconstrained)[1])

    @property
    def complete(self) -> bool:
        """False where the run was stopped before its end."""
        return self.info.complete

    def summary(self, names: Sequence[str] | None = None, prob: float = 0.9) -> Summary:
        """Table of moments, quantiles and diagnostics, one row a scalar.

        Args:
            names: sites to show; all latent and deterministic sites by default.
            prob: mass of the equal-tailed interval, between 0 and 1.

        Returns:
            The table; it prints. Costs O(draws log draws) a scalar.

        Raises:
            MethodError: if ``prob`` is not between 0 and 1.
            PosteriorShapeError: if a site was not drawn, or weights and draws do not fit each other.
            WeightCollapse: if no draw has a positive weight.
        """
        unknown = [n for n in names or () if n not in self.draws]
        if unknown:
            raise PosteriorShapeError(
                "no such site among the draws", site=unknown[0], expected="one of " + ", ".join(self.draws)
            )
        head = f"{self.info.method}: {self.num_chains} chains x {self.num_draws} draws"
        if self.info.num_warmup:
            head += f" after {self.info.num_warmup} warm-up steps"
        if not self.complete:
            head += " (stopped early)"
        prob = validated("Posterior.summary", "prob", prob, number(above=0, below=1))
        rows = scalars(self.draws, model_sites(self.bound), self.info.coords, names)
        return summarize(rows, prob, self.draw_weights(), self.info.cloud, head)

    def draw_weights(self) -> np.ndarray | None:
        """Weights of the draws, chain x draw of sum 1, or None; raises as :func:`~.weights.draw_weights`."""
        return draw_weights(self.weights, (self.num_chains, self.num_draws))

    def to_datatree(self, **groups: Predictions | None) -> xr.DataTree:
        """The run as an ``xarray.DataTree`` in ArviZ's schema.

        Args:
            **groups: ``prior=`` and ``posterior_predictive=`` (or ``predictions=``), results of
                :func:`mcx.predict`, to be stored along.

        Returns:
            Groups ``posterior``, ``sample_stats``, ``log_likelihood``, ``log_prior``, ``observed_data``,
            ``constant_data``, and those asked for. Costs one run of the model a draw for the pointwise
            densities, a block of draws at a time.

        Raises:
            MethodError: if a group has another name.
        """
        attributes = self.info.attributes()
        if self.log_evidence is not None:
            attributes["log_evidence"] = float(np.asarray(self.log_evidence))
            attributes["log_evidence_se"] = float(np.asarray(self.log_evidence_se))
        weights = {} if self.weights is None else {"log_weight": self.weights}
        return to_datatree(
            self.bound,
            self.draws,
            sample_stats={**self.stats, **weights},
            smc_stats=self.smc_stats,
            coords=self.info.coords,
            attributes=attributes,
            groups=groups,
        )

    def __repr__(self) -> str:
        if any(not isinstance(x, np.ndarray) for x in self.draws.values()):
            shapes = ", ".join(f"{k}{tuple(np.shape(v))}" for k, v in self.draws.items())
            return f"Posterior({self.info.method}; {shapes})"
        shown: list[str] = []
        hidden: list[str] = []
        room = _ROWS_SHOWN
        for name in drawn_sites(self.draws, model_sites(self.bound)):
            size = math.prod(self.draws[name].shape[2:])
            (shown if size <= room else hidden).append(name)
            room -= size if size <= room else 0
        lines = [str(self.summary(shown))]
        if hidden:
            lines.append("not shown: " + ", ".join(f"{n}{self.draws[n].shape[2:]}" for n in hidden))
        if self.log_evidence is not None:
            lines.append(f"log evidence {self.log_evidence:.3f} +- {self.log_evidence_se:.3f}")
        if "diverging" in self.stats:
            lines.append(f"divergences: {int(np.sum(self.stats['diverging']))}")
        times = f"compiled in {self.info.compile_time:.1f} s, ran for {self.info.run_time:.1f} s"
        return "\n".join([*lines, f"{times} on {self.info.device}"])

    def _repr_html_(self) -> str:
        return f"<pre>{self!r}</pre>"
