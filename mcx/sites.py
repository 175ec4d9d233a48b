"""The sites of a model: a record of each, and the table that prints them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any


def safe_name(name: str) -> str:
    """A site's name in results: "/", which separates groups there, becomes "."."""
    return name.replace("/", ".")


@dataclass(frozen=True)
class Site:
    """One statement of a model.

    Attributes:
        name: name of the site.
        kind: "latent", "discrete" (latent, without a gradient), "observed", "factor", "deterministic",
            "plate" or "param".
        distribution: name of its distribution.
        batch_shape, event_shape: of its distribution; ``shape``: of its value.
        dtype: of the value.
        support: its constraint.
        dims: a name for each axis of the value (plates where there are any).
        num_terms: number of log-likelihood terms (0 where it is not part of the likelihood).
        likelihood: whether its log density belongs to the likelihood.
        unconstrained_shape: of a latent site.
        improper: whether the prior is improper.
        weighted: whether a mask or a scale changes its log density.
        size: of a plate; ``subsample_size``: of a subsampled plate.
        plates: ``(name, dim, size)`` of the plates around it.
        terms_shape: of an observed site, shape of its log-likelihood terms.
        discrete_support: whether its values are integers by law.
        markov: whether it is a path of an ``mcx.markov`` block, or its observations; its first axis is time.
        emitted: whether it is the observations of an ``mcx.markov`` block.
        scanned: whether it is in the body of a scan; its first axis is time.
        no_density: why its law has no density; empty where it has one.
        diffusion: whether its law is a diffusion model, ``mcx.ScorePrior``.
        imputed: whether ``obs_mask=`` made it: members that are not missing have the observed values.
        num_values: of a discrete site that is summed out: number of values in the sum; 0 for all others.
    """

    name: str
    kind: str
    distribution: str = ""
    batch_shape: tuple[int, ...] = ()
    event_shape: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    support: str = ""
    dims: tuple[str, ...] = ()
    num_terms: int = 0
    likelihood: bool = False
    unconstrained_shape: tuple[int, ...] = ()
    improper: bool = False
    weighted: bool = False
    size: int | None = None
    subsample_size: int | None = None
    plates: tuple[tuple[str, int, int], ...] = ()
    terms_shape: tuple[int, ...] = ()
    discrete_support: bool = False
    markov: bool = False
    emitted: bool = False
    scanned: bool = False
    no_density: str = ""
    diffusion: bool = False
    num_values: int = 0
    imputed: bool = False

    @property
    def observed(self) -> bool:
        """Whether the site has data."""
        return self.kind == "observed"


class SiteTable:
    """The sites of a model, in program order. Indexable by name; prints as a table.

    ``fixed_key`` says whether the program asks for random numbers outside of its sites: they are the same in
    every run. ``refusal`` says why discrete sites cannot be summed out, where that is so.
    """

    def __init__(self, sites: tuple[Site, ...], model: str = "model", fixed_key: bool = False) -> None:
        self._sites = {s.name: s for s in sites}
        self.model, self.fixed_key = model, fixed_key
        self.refusal: Exception | None = None

    def updated(
        self, changes: Mapping[str, Mapping[str, Any]], refusal: Exception | None = None
    ) -> SiteTable:
        """The same table with other fields of some sites, and why discrete sites cannot be summed out."""
        sites = tuple(replace(s, **changes.get(s.name, {})) for s in self)
        table = SiteTable(sites, self.model, self.fixed_key)
        table.refusal = refusal or self.refusal
        return table

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def of_kind(self, *kinds: str) -> tuple[Site, ...]:
        """The sites of these kinds."""
        return tuple(s for s in self if s.kind in kinds)

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(math.prod(s.unconstrained_shape) for s in self.of_kind("latent"))

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, one dictionary a site."""
        return [_row(s) for s in self]

    def __str__(self) -> str:
        rows = self.rows()
        columns = list(rows[0]) if rows else ["site"]
        widths = {c: max(len(c), *(len(r[c]) for r in rows)) if rows else len(c) for c in columns}
        lines = ["  ".join(c.ljust(widths[c]) for c in columns).rstrip()]
        lines += ["  ".join(r[c].ljust(widths[c]) for c in columns).rstrip() for r in rows]
        terms = sum(s.num_terms for s in self)
        lines.append(f"{self.dim} unconstrained parameters, {terms} log-likelihood terms")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Sites of {self.model}\n{self}"

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{c}</th>" for c in rows[0]) if rows else ""
        body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in r.values()) + "</tr>" for r in rows)
        return f"<table><caption>{escape(self.model)}</caption><tr>{head}</tr>{body}</table>"


def _row(site: Site) -> dict[str, str]:
    shape = str(site.size if site.kind == "plate" else site.shape)
    if site.subsample_size is not None:
        shape = f"{site.subsample_size} of {site.size}"
    flags: dict[str, object] = {
        "improper": site.improper,
        "masked or scaled": site.weighted,
        "no density": site.no_density,
    }
    if site.num_values:
        flags[f"summed out: {site.num_values} values"] = True
    return {
        "site": site.name,
        "kind": site.kind,
        "distribution": site.distribution,
        "batch": str(site.batch_shape) if site.distribution else "",
        "event": str(site.event_shape) if site.distribution else "",
        "value": shape,
        "dtype": site.dtype,
        "dims": ", ".join(site.dims),
        "support": site.support,
        "observed": "yes" if site.observed else "",
        "terms": str(site.num_terms) if site.likelihood else "",
        "notes": ", ".join(note for note, on in flags.items() if on),
    }
