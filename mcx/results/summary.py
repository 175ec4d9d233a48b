"""The table of a posterior. Its diagnostics are ArviZ's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mcx.results.weights import error_over_replicates
from mcx.sites import SiteTable
from mcx.types import Draws

if TYPE_CHECKING:
    import pandas as pd


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


class Scalar(NamedTuple):
    """A scalar of the sites' draws.

    site: the site's name; ``label``: with coordinates or indices.
    values: chain x draw, in float64.
    angle: whether they are angles, so that -pi and pi are one.
    """

    site: str
    label: str
    values: np.ndarray
    angle: bool = False

    def smooth(self) -> list[tuple[str, np.ndarray]]:
        """Labelled scalars without a jump, for diagnostics: of an angle its cosine and its sine."""
        if not self.angle:
            return [(self.label, self.values)]
        return [(f"cos {self.label}", np.cos(self.values)), (f"sin {self.label}", np.sin(self.values))]


def scalars(
    draws: Draws, sites: SiteTable, coords: Mapping[str, Any], names: Sequence[str] | None = None
) -> Iterator[Scalar]:
    """Every scalar of the sites' draws, labelled by coordinates if there are any."""
    for name in drawn_sites(draws, sites) if names is None else names:
        values = np.asarray(draws[name])
        if values.dtype.kind not in "biuf":
            values = values.astype(np.float32)  # bfloat16 and relatives
        dims = sites[name].dims if name in sites else ()
        axes = [coords.get(dim, range(size)) for dim, size in zip(dims, values.shape[2:], strict=True)]
        for index in np.ndindex(*values.shape[2:]):
            label = ", ".join(str(axis[i]) for axis, i in zip(axes, index, strict=True))
            yield Scalar(
                name,
                f"{name}[{label}]" if index else name,
                values[(slice(None), slice(None), *index)].astype(np.float64),
                name in sites and sites[name].support.startswith("circular"),
            )


def drawn_sites(draws: Draws, sites: SiteTable) -> list[str]:
    """The draws' sites in program order (a pytree's dictionaries are sorted by name)."""
    return [s.name for s in sites if s.name in draws]


def effective_sizes(x: np.ndarray) -> tuple[float, float]:
    """Bulk and tail (5 % and 95 %) effective sample size of chain x draw."""
    from arviz_stats.base import array_stats

    tail = array_stats.ess(x, method="tail", prob=(0.05, 0.95))
    return float(array_stats.ess(x, method="bulk")), float(tail)


def summarize(
    draws: Iterable[Scalar],
    prob: float,
    weights: np.ndarray | None = None,
    cloud: bool = False,
    head: str = "",
) -> Summary:
    """Summarise scalars, by label, with weights (chain x draw of sum 1) or equal ones.

    Where each chain is one ``cloud`` of particles, errors are known from replicates alone. Angles have
    circular moments, sd ``sqrt(-2 log R)`` with the mean resultant length R, and quantiles about their mean,
    which may leave (-pi, pi).
    """
    tail = (1 - prob) / 2
    low, high = f"{100 * tail:g}%", f"{100 * (1 - tail):g}%"
    labels: list[str] = []
    rows: list[list[float]] = []
    for scalar in draws:
        labels.append(scalar.label)
        x = scalar.values
        how: dict[str, Any] = {} if weights is None else {"weights": weights, "method": "inverted_cdf"}
        probs = [tail, 0.5, 1 - tail]
        if scalar.angle:
            mean, length = _resultant(x, weights)
            about = np.angle(np.exp(1j * (x - mean)))
            moments = (mean, math.sqrt(-2 * math.log(length)) if length > 0 else math.inf)
            quantiles = mean + np.quantile(about, probs, **how)
            parts = [_diagnostics(values, weights, cloud) for _, values in scalar.smooth()]
            least, most = np.min(parts, axis=0), np.max(parts, axis=0)
            error = _diagnostics(np.sin(about), weights, cloud)[3] / max(length, 1e-12)
            diagnostics = [*least[:2], most[2], error]
        else:
            moments, quantiles = _moments(x, weights), np.quantile(x, probs, **how)
            diagnostics = _diagnostics(x, weights, cloud)
        rows.append([*moments, *quantiles, *diagnostics])
    columns = ["mean", "sd", low, "50%", high, "ess_bulk", "ess_tail", "r_hat", "mcse_mean"]
    table = np.asarray(rows, float).reshape(len(rows), len(columns))
    return Summary(labels, {c: table[:, i] for i, c in enumerate(columns)}, head)


def _diagnostics(x: np.ndarray, weights: np.ndarray | None, cloud: bool) -> list[float]:
    """Bulk and tail ESS, r_hat, and the standard error of the mean."""
    from arviz_stats.base import array_stats

    if np.ptp(x) == 0 or not np.isfinite(x).all() or x.shape[1] < 4:
        return [math.nan] * 4
    return [
        *effective_sizes(x),
        float(array_stats.rhat(x)) if x.shape[0] > 1 else math.nan,
        float(error_over_replicates(x, weights) if cloud else array_stats.mcse(x, method="mean")),
    ]


def _resultant(x: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Circular mean of angles and mean resultant length."""
    mean = np.average(np.exp(1j * x), weights=weights)
    return float(np.angle(mean)), float(min(abs(mean), 1.0))


def _moments(x: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    if weights is None:
        return x.mean(), x.std(ddof=1) if x.size > 1 else math.nan
    mean = np.average(x, weights=weights)
    return mean, math.sqrt(np.average((x - mean) ** 2, weights=weights))
