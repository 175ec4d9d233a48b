"""An estimate and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mcx.ops.tracing import is_traced
from mcx.results.posterior import RunInfo
from mcx.types import PyTree

if TYPE_CHECKING:
    import xarray as xr

_ENOUGH_CHAINS = 4
_LEAST_ESS = 50


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """Expectations with their standard errors. A pytree.

    Attributes:
        value: the estimates, a pytree.
        se: their standard errors, of the same structure. Those of a run of chains come from the spread of the
            chains where there are at least 4 of them, else from the autocorrelation within chains; they are
            NaN where both are unknown.
        draws: the values that were averaged, chain x iteration x ...; None without a run of chains.
        stats: statistics by name: chain x iteration x ... of a run of chains, else of the estimator.
        info: how the run went; None without a run of chains; static.
        notes: reasons not to rely on the estimate; static.
    """

    value: PyTree
    se: PyTree
    draws: PyTree = None
    stats: dict[str, Any] = field(default_factory=dict)
    info: RunInfo | None = field(default=None, metadata={"static": True})
    notes: tuple[str, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(
        cls,
        draws: PyTree,
        stats: Mapping[str, Any],
        info: RunInfo,
        notes: tuple[str, ...] = (),
        finish: Callable[[Any], Any] | None = None,
    ) -> Estimate:
        """Average draws, chain x iteration x ..., and apply ``finish``, whose error is a jackknife."""
        draws = jax.tree_util.tree_map(np.asarray, draws)
        means = jax.tree_util.tree_map(lambda x: x.mean(1, dtype=np.float64), draws)  # chain x ...
        value = jax.tree_util.tree_map(lambda m: m.mean(0), means)
        if finish is None:
            se = jax.tree_util.tree_map(standard_error, draws)
        else:
            value = jax.tree_util.tree_map(np.asarray, finish(value))
            se = _jackknife(finish, means, value)
        return cls(value, se, draws, dict(stats), info, notes)

    @property
    def num_chains(self) -> int:
        """Number of independent chains."""
        return int(jax.tree_util.tree_leaves(self.draws)[0].shape[0])

    @property
    def complete(self) -> bool:
        """False where the run was stopped before its end."""
        return self.info is None or self.info.complete

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to rely on the standard errors: the notes, and those that the statistics show."""
        return (*self.notes, *cautions(self.stats))

    def to_datatree(self) -> xr.DataTree:
        """The run as an ``xarray.DataTree``: ``estimates`` (value and se), ``draws`` and ``smc_stats``.

        Without a run of chains the groups are ``estimates`` and ``estimate_stats``.
        """
        import xarray as xr

        def named(tree: PyTree, prefix: str) -> dict[str, Any]:
            leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
            return {
                prefix + (jax.tree_util.keystr(path, simple=True, separator=".") or "value"): np.asarray(x)
                for path, x in leaves
            }

        def dataset(variables: Mapping[str, Any], lead: list[str]) -> xr.Dataset:
            return xr.Dataset(
                {
                    name: ((*lead, *(f"{name}_dim_{i}" for i in range(x.ndim - len(lead)))), x)
                    for name, x in variables.items()
                }
            )

        groups = {"estimates": dataset({**named(self.value, ""), **named(self.se, "se_")}, [])}
        if self.draws is None:
            groups["estimate_stats"] = dataset(named(self.stats, ""), [])
        else:
            dims = ["chain", "iteration", "time"]
            stats = {name: (dims[: np.ndim(x)], np.asarray(x)) for name, x in self.stats.items()}
            groups["draws"] = dataset(named(self.draws, ""), ["chain", "iteration"])
            groups["smc_stats"] = xr.Dataset(stats)
        tree = xr.DataTree.from_dict(groups, name="mcx")
        if self.info is not None:
            tree.attrs = self.info.attributes()
        return tree

    def __repr__(self) -> str:
        leaves = jax.tree_util.tree_leaves((self.value, self.se, self.stats))
        if is_traced(leaves):
            return f"Estimate(value={self.value!r}, se={self.se!r})"
        lines = [*_rows(self.value, self.se), *(f"  note: {text}" for text in self.warnings)]
        return "\n".join([self._head(), *lines])

    def _head(self) -> str:
        if self.info is None or self.draws is None:
            shown = {n: np.asarray(x) for n, x in self.stats.items() if np.size(x) == 1}
            return "Estimate: " + ", ".join(f"{n} {x.item():.4g}" for n, x in shown.items())
        info = self.info
        iterations = jax.tree_util.tree_leaves(self.draws)[0].shape[1]
        size = f"chains x {iterations} iterations" if iterations > 1 else "runs"
        head = f"{info.method}: {self.num_chains} {size}, {info.run_time:.1f} s"
        head += f" (compile {info.compile_time:.1f} s)"
        if not self.complete:
            head += ", stopped early"
        return head


def cautions(stats: Mapping[str, Any]) -> list[str]:
    """Reasons in the statistics of a weighted sample not to rely on an estimate's standard error.

    Of interest are ``khat`` (of the weights), ``khat_integrand`` (of integrand x weight), ``ess``,
    ``num_samples`` and ``num_controls``, where present. Source: for the limits on k, Vehtari, Simpson,
    Gelman, Yao and Gabry (2024), section 3.2.4.
    """
    found = []
    size = float(np.max(stats["num_samples"])) if "num_samples" in stats else math.inf
    limit = min(1 - 1 / math.log10(size), 0.7) if 1 < size < math.inf else 0.7
    for name, of in (("khat", "weights"), ("khat_integrand", "integrand x weight")):
        # an unknown k, as of a tail of equal values, neither gives a warning nor silences one
        k = float(np.fmax.reduce(np.ravel(stats[name]), initial=-np.inf)) if name in stats else -math.inf
        if k > limit:
            found.append(f"Pareto k = {k:.2f} of the {of} is above {limit:.2f}: the error may be far larger")
    if "ess" in stats and float(np.min(stats["ess"])) < _LEAST_ESS:
        found.append(f"the effective sample size is only {float(np.min(stats['ess'])):.0f}")
    controls = float(np.max(stats["num_controls"])) if "num_controls" in stats else 0.0
    if controls > size / 3:
        found.append(f"{controls:.0f} control variates are many for {size:.0f} samples")
    return found


def _rows(value: PyTree, se: PyTree, most: int = 12) -> list[str]:
    rows = []
    errors = jax.tree_util.tree_leaves(se)
    for (path, x), e in zip(jax.tree_util.tree_flatten_with_path(value)[0], errors, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        x, e = np.asarray(x), np.asarray(e)
        for index in np.ndindex(x.shape):
            label = name + (f"[{', '.join(map(str, index))}]" if index else "")
            rows.append(f"  {label or 'value'} = {x[index]:.6g} +- {e[index]:.2g}")
    if len(rows) > most:
        return [*rows[: most - 1], f"  ... and {len(rows) - most + 1} more"]
    return rows


def standard_error(x: np.ndarray) -> np.ndarray:
    """Standard error of the mean of (chain, iteration, ...); see :class:`Estimate`."""
    chains, iterations = x.shape[:2]
    if chains >= _ENOUGH_CHAINS:
        means = x.mean(1, dtype=np.float64)
        return np.asarray(means.std(0, ddof=1) / math.sqrt(chains))
    if iterations < 4:
        return np.full(x.shape[2:], np.nan)
    from arviz_stats.base import array_stats

    flat = x.reshape(chains, iterations, -1).astype(np.float64)
    errors = [array_stats.mcse(flat[:, :, i], method="mean") for i in range(flat.shape[2])]
    return np.asarray(errors, np.float64).reshape(x.shape[2:])


def _jackknife(finish: Callable[[Any], Any], means: PyTree, value: PyTree) -> PyTree:
    chains = jax.tree_util.tree_leaves(means)[0].shape[0]
    if chains < _ENOUGH_CHAINS:
        return jax.tree_util.tree_map(lambda v: np.full(v.shape, np.nan), value)
    left_out = []
    for c in range(chains):
        rest = jax.tree_util.tree_map(lambda m, c=c: np.delete(m, c, 0).mean(0), means)
        left_out.append(jax.tree_util.tree_map(np.asarray, finish(rest)))

    def spread(*parts: np.ndarray) -> np.ndarray:
        x = np.stack(parts)
        return np.sqrt((chains - 1) / chains * ((x - x.mean(0)) ** 2).sum(0))

    return jax.tree_util.tree_map(spread, *left_out)


def autocorrelation(x: np.ndarray) -> float:
    """Lag-one autocorrelation of (chain, iteration, ...), the entries' largest; NaN for short chains."""
    if x.shape[1] < 4:
        return math.nan
    centred = x - x.mean((0, 1), keepdims=True)
    power = (centred**2).mean((0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (centred[:, 1:] * centred[:, :-1]).mean((0, 1)) / power
    return float(np.nanmax(found)) if np.isfinite(found).any() else math.nan
