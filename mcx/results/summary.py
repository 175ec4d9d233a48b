"""The table of a posterior and its one-screen description. Diagnostics are ArviZ's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mcx.errors import PosteriorShapeError
from mcx.model.compile import model_sites
from mcx.results.weights import draw_weights, error_over_replicates

if TYPE_CHECKING:
    import pandas as pd

    from mcx.results.posterior import Posterior

__all__ = ["Summary", "describe", "effective_sizes", "scalars", "summarize"]


class Summary:
    """Rows of scalars, columns of moments, quantiles and diagnostics; prints as a table.

    Attributes:
        names: row labels, such as ``theta[3]`` (indices start at 0) or ``theta[Lincoln]``.
        columns: values by column name, in order: mean, sd, quantiles, ess_bulk, ess_tail, r_hat,
            mcse_mean.
        head: a line about the run.
    """

    def __init__(self, names: list[str], columns: dict[str, np.ndarray], head: str = "") -> None:
        self.names, self.columns, self.head = names, columns, head

    def __getitem__(self, name: str) -> dict[str, float]:
        row = self.names.index(name)
        return {column: float(values[row]) for column, values in self.columns.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def to_dataframe(self) -> pd.DataFrame:
        """The table as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.columns, index=self.names)

    def _cells(self) -> list[list[str]]:
        return [
            [name, *(_format(column, values[row]) for column, values in self.columns.items())]
            for row, name in enumerate(self.names)
        ]

    def __str__(self) -> str:
        table = [["", *self.columns], *self._cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in table
        ]
        return "\n".join(([self.head] if self.head else []) + lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{c}</th>" for c in ("", *self.columns))
        rows = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in self._cells())
        return f"<table><caption>{self.head}</caption><tr>{head}</tr>{rows}</table>"


def _format(column: str, value: float) -> str:
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else str(value)
    if column.startswith("ess"):
        return f"{value:.0f}"
    if column == "r_hat":
        return f"{value:.3f}"
    digits = 3 if value == 0 else max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}" if 1e-4 < abs(value) < 1e6 or value == 0 else f"{value:.2e}"


def site_names(posterior: Posterior) -> list[str]:
    """The draws' sites in program order (a pytree's dictionaries are sorted by name)."""
    return [s.name for s in model_sites(posterior.bound) if s.name in posterior.draws]


def scalars(posterior: Posterior, names: list[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Every scalar of the draws, chain x draw in float64, labelled by coordinates where there are any."""
    sites = model_sites(posterior.bound)
    coords = posterior.info.coords
    for name in site_names(posterior) if names is None else names:
        values = np.asarray(posterior.draws[name])
        if values.dtype.kind not in "biuf":
            values = values.astype(np.float32)  # bfloat16 and relatives
        dims = sites[name].dims if name in sites else ()
        axes = [coords.get(dim, range(size)) for dim, size in zip(dims, values.shape[2:], strict=True)]
        for index in np.ndindex(*values.shape[2:]):
            label = ", ".join(str(axis[i]) for axis, i in zip(axes, index, strict=True))
            yield (
                f"{name}[{label}]" if index else name,
                values[(slice(None), slice(None), *index)].astype(np.float64),
            )


def effective_sizes(x: np.ndarray) -> tuple[float, float]:
    """Bulk and tail (5 % and 95 %) effective sample size of chain x draw."""
    from arviz_stats.base import array_stats

    return float(array_stats.ess(x, method="bulk")), float(
        array_stats.ess(x, method="tail", prob=(0.05, 0.95))
    )


def summarize(posterior: Posterior, names: list[str] | None, prob: float) -> Summary:
    """See :meth:`Posterior.summary`."""
    from arviz_stats.base import array_stats

    unknown = [n for n in names or () if n not in posterior.draws]
    if unknown:
        raise PosteriorShapeError(
            "no such site among the draws", site=unknown[0], expected="one of " + ", ".join(posterior.draws)
        )
    cloud = posterior.info.cloud
    weights = draw_weights(posterior)
    tail = (1 - prob) / 2
    low, high = f"{100 * tail:g}%", f"{100 * (1 - tail):g}%"
    labels: list[str] = []
    rows: list[list[float]] = []
    for label, x in scalars(posterior, names):
        labels.append(label)
        quantiles = (
            np.quantile(x, [tail, 0.5, 1 - tail], weights=weights, method="inverted_cdf")
            if weights is not None
            else np.quantile(x, [tail, 0.5, 1 - tail])
        )
        constant = np.ptp(x) == 0
        diagnostics = [math.nan] * 4
        if not constant and np.isfinite(x).all() and x.shape[1] >= 4:
            diagnostics = [
                *effective_sizes(x),
                float(array_stats.rhat(x)) if x.shape[0] > 1 else math.nan,
                float(error_over_replicates(x, weights) if cloud else array_stats.mcse(x, method="mean")),
            ]
        rows.append([*_moments(x, weights), *quantiles, *diagnostics])
    columns = ["mean", "sd", low, "50%", high, "ess_bulk", "ess_tail", "r_hat", "mcse_mean"]
    table = np.asarray(rows, float).reshape(len(rows), len(columns))
    return Summary(labels, {c: table[:, i] for i, c in enumerate(columns)}, _head(posterior))


def _moments(x: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    if weights is None:
        return x.mean(), x.std(ddof=1) if x.size > 1 else math.nan
    mean = np.average(x, weights=weights)
    return mean, math.sqrt(np.average((x - mean) ** 2, weights=weights))


def _head(posterior: Posterior) -> str:
    info = posterior.info
    text = f"{info.method}: {posterior.num_chains} chains x {posterior.num_draws} draws"
    if info.num_warmup:
        text += f" after {info.num_warmup} warm-up steps"
    return text if posterior.complete else text + " (stopped early)"


def describe(posterior: Posterior, rows: int = 12) -> str:
    """One screen: the run, the first rows of the table, what to watch."""
    if any(not isinstance(x, np.ndarray) for x in posterior.draws.values()):
        shapes = ", ".join(f"{k}{tuple(np.shape(v))}" for k, v in posterior.draws.items())
        return f"Posterior({posterior.info.method}; {shapes})"
    info = posterior.info
    small: list[str] = []
    room = rows
    for name in site_names(posterior):
        size = math.prod(posterior.draws[name].shape[2:])
        if size <= room:
            small.append(name)
            room -= size
    lines = [str(posterior.summary(small))]
    rest = [f"{n}{posterior.draws[n].shape[2:]}" for n in site_names(posterior) if n not in small]
    if rest:
        lines.append("not shown: " + ", ".join(rest))
    if posterior.log_evidence is not None:
        lines.append(f"log evidence {posterior.log_evidence:.3f} +- {posterior.log_evidence_se:.3f}")
    if "diverging" in posterior.stats:
        lines.append(f"divergences: {int(np.sum(posterior.stats['diverging']))}")
    lines.append(f"compiled in {info.compile_time:.1f} s, ran for {info.run_time:.1f} s on {info.device}")
    return "\n".join(lines)
