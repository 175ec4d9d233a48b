"""An estimate and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mcx.results.posterior import RunInfo

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Estimate", "autocorrelation", "standard_error"]

_ENOUGH_CHAINS = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """Expectations with their standard errors. A pytree.

    Attributes:
        value: the estimates, a pytree.
        se: their standard errors, of the same structure: from the spread of the chains where there are at
            least 4 of them, else from the autocorrelation within chains; NaN where neither can tell.
        draws: what was averaged, chain x iteration x ...
        stats: by name, chain x iteration x ...
        info: how the run went; static.
        notes: what to be wary of; static.
    """

    value: Any
    se: Any
    draws: Any
    stats: dict[str, Any]
    info: RunInfo = field(metadata={"static": True})
    notes: tuple[str, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(
        cls,
        draws: Any,
        stats: Mapping[str, Any],
        info: RunInfo,
        notes: tuple[str, ...] = (),
        finish: Callable[[Any], Any] | None = None,
    ) -> Estimate:
        """Average draws.

        Args:
            draws: pytree, chain x iteration x ...
            stats: see :class:`Estimate`.
            info: see :class:`Estimate`.
            notes: see :class:`Estimate`.
            finish: applied to the average; its standard error is a jackknife over chains.
        """
        draws = jax.tree_util.tree_map(np.asarray, draws)
        means = jax.tree_util.tree_map(lambda x: x.mean(1, dtype=np.float64), draws)  # chain x ...
        value = _over_chains(means)
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
        return self.info.complete

    def to_datatree(self) -> xr.DataTree:
        """The run as an ``xarray.DataTree``: ``estimates`` (value and se), ``draws`` and ``smc_stats``."""
        import xarray as xr

        def named(tree: Any, prefix: str) -> dict[str, Any]:
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

        stats = {}
        for name, x in self.stats.items():
            dims = ["chain", "iteration", "time"][: np.ndim(x)]
            stats[name] = (dims, np.asarray(x))
        tree = xr.DataTree.from_dict(
            {
                "estimates": dataset({**named(self.value, ""), **named(self.se, "se_")}, []),
                "draws": dataset(named(self.draws, ""), ["chain", "iteration"]),
                "smc_stats": xr.Dataset(stats),
            },
            name="mcx",
        )
        tree.attrs = self.info.attributes()
        return tree

    def __repr__(self) -> str:
        info = self.info
        iterations = jax.tree_util.tree_leaves(self.draws)[0].shape[1]
        size = (
            f"{self.num_chains} chains x {iterations} iterations"
            if iterations > 1
            else f"{self.num_chains} runs"
        )
        head = f"{info.method}: {size}, {info.run_time:.1f} s (compile {info.compile_time:.1f} s)"
        if not self.complete:
            head += ", stopped early"
        lines = [head, *_rows(self.value, self.se), *(f"  note: {note}" for note in self.notes)]
        return "\n".join(lines)


def _rows(value: Any, se: Any, most: int = 12) -> list[str]:
    rows = []
    errors = jax.tree_util.tree_leaves(se)
    for (path, x), e in zip(jax.tree_util.tree_flatten_with_path(value)[0], errors, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for index in np.ndindex(x.shape):
            label = name + (f"[{', '.join(map(str, index))}]" if index else "")
            rows.append(f"  {label or 'value'} = {x[index]:.6g} +- {e[index]:.2g}")
    if len(rows) > most:
        return [*rows[: most - 1], f"  ... and {len(rows) - most + 1} more"]
    return rows


def _over_chains(means: Any) -> Any:
    return jax.tree_util.tree_map(lambda m: m.mean(0), means)


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


def _jackknife(finish: Callable[[Any], Any], means: Any, value: Any) -> Any:
    chains = jax.tree_util.tree_leaves(means)[0].shape[0]
    if chains < _ENOUGH_CHAINS:
        return jax.tree_util.tree_map(lambda v: np.full(v.shape, np.nan), value)
    left_out = []
    for c in range(chains):
        rest = jax.tree_util.tree_map(lambda m, c=c: np.delete(m, c, 0).mean(0), means)
        left_out.append(jax.tree_util.tree_map(np.asarray, finish(rest)))

    def spread(*parts: Any) -> Any:
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
