"""A picture of a model as text: Mermaid or Graphviz."""

from __future__ import annotations

import re
from typing import Any

from numpyro.infer.inspect import get_dependencies

from mcx.errors import MethodError
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.model.sites import Site

__all__ = ["render"]


def render(bound: BoundModel, format: str) -> str:
    """See :meth:`BoundModel.render`."""
    sites = compile_model(bound).sites
    shown = sites.of_kind("latent", "discrete", "observed")
    names = {s.name for s in shown}
    found = get_dependencies(lambda: bound.run())["prior_dependencies"]
    edges = [(a, b) for b, parents in found.items() for a in parents if a != b and {a, b} <= names]
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in shown:
        plates = tuple(name for name, _, _ in sorted(site.plates, key=lambda p: p[1]))
        groups.setdefault(plates, []).append(site)
    sizes = {s.name: s.size for s in sites.of_kind("plate")}
    if format == "mermaid":
        return _mermaid(groups, edges, sizes)
    if format == "dot":
        return _dot(groups, edges, sizes)
    raise MethodError("unknown diagram format", expected='"mermaid" or "dot"', found=repr(format))


def _identifier(name: str) -> str:
    return "s_" + re.sub(r"\W", "_", name)


def _mermaid(groups: Any, edges: Any, sizes: Any) -> str:
    lines = ["graph TD"]
    for plates, members in groups.items():
        for depth, plate in enumerate(plates):
            label = "_".join(_identifier(p) for p in plates[: depth + 1])
            lines.append(f'  subgraph {label}["{plate} ({sizes.get(plate)})"]')
        for s in members:
            shape = '["{}"]' if s.kind == "observed" else '(["{}"])'
            lines.append(f"  {_identifier(s.name)}" + shape.format(f"{s.name} ~ {s.distribution}"))
        lines += ["  end"] * len(plates)
    lines += [f"  {_identifier(a)} --> {_identifier(b)}" for a, b in edges]
    return "\n".join(lines)


def _dot(groups: Any, edges: Any, sizes: Any) -> str:
    lines = ["digraph {"]
    for plates, members in groups.items():
        for depth, plate in enumerate(plates):
            label = "_".join(_identifier(p) for p in plates[: depth + 1])
            lines.append(f'  subgraph cluster_{label} {{ label="{plate} ({sizes.get(plate)})";')
        for s in members:
            fill = "lightgrey" if s.kind == "observed" else "white"
            lines.append(
                f'  {_identifier(s.name)} [label="{s.name} ~ {s.distribution}" style=filled '
                f"fillcolor={fill}];"
            )
        lines += ["  }"] * len(plates)
    lines += [f"  {_identifier(a)} -> {_identifier(b)};" for a, b in edges]
    return "\n".join([*lines, "}"])
