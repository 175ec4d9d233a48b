"""A picture of a model as text: Mermaid or Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from numpyro.infer.inspect import get_dependencies

from mcx.errors import MethodError
from mcx.model.capture import StandIns
from mcx.model.compile import compile_model
from mcx.model.program import BoundProgram
from mcx.sites import Site

__all__ = ["render"]


def render(bound: BoundProgram, format: str) -> str:
    """See :meth:`BoundModel.render`."""
    target = compile_model(bound)
    sites = target.sites
    shown = sites.of_kind("latent", "discrete", "observed")
    names = [s.name for s in shown]
    program = (
        target.data if isinstance(target.data, BoundProgram) else bound
    )  # with JAX's arrays, if it can be

    def run() -> None:
        with StandIns():
            program.run()

    found = get_dependencies(run)["prior_dependencies"]
    edges = [(a, b) for b, parents in found.items() for a in parents if a != b and {a, b} <= set(names)]
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in shown:
        plates = tuple(name for name, _, _ in sorted(site.plates, key=lambda p: p[1]))
        groups.setdefault(plates, []).append(site)
    sizes = {name: size for s in shown for name, _, size in s.plates}  # those inside of scans, too
    sizes |= {s.name: s.size or 0 for s in sites.of_kind("plate")}
    identifiers = _identifiers([*names, *sizes])
    if format == "mermaid":
        return _mermaid(groups, edges, sizes, identifiers)
    if format == "dot":
        return _dot(groups, edges, sizes, identifiers)
    raise MethodError("unknown diagram format", expected='"mermaid" or "dot"', found=repr(format))


def _identifiers(names: Iterable[str]) -> dict[str, str]:
    """Names that both languages allow, one for each name."""
    found: dict[str, str] = {}
    for name in names:
        identifier = "s_" + re.sub(r"\W", "_", name)
        while identifier in found.values():
            identifier += "_"
        found[name] = identifier
    return found


def _mermaid(
    groups: Mapping[tuple[str, ...], list[Site]],
    edges: list[tuple[str, str]],
    sizes: Mapping[str, int],
    identifiers: dict[str, str],
) -> str:
    def text(label: str) -> str:
        return label.replace('"', "#quot;")

    lines = ["graph TD"]
    for plates, members in groups.items():
        for depth, plate in enumerate(plates):
            label = "_".join(identifiers[p] for p in plates[: depth + 1])
            lines.append(f'  subgraph {label}["{text(plate)} ({sizes[plate]})"]')
        for s in members:
            shape = '["{}"]' if s.kind == "observed" else '(["{}"])'
            lines.append(f"  {identifiers[s.name]}" + shape.format(text(f"{s.name} ~ {s.distribution}")))
        lines += ["  end"] * len(plates)
    lines += [f"  {identifiers[a]} --> {identifiers[b]}" for a, b in edges]
    return "\n".join(lines)


def _dot(
    groups: Mapping[tuple[str, ...], list[Site]],
    edges: list[tuple[str, str]],
    sizes: Mapping[str, int],
    identifiers: dict[str, str],
) -> str:
    def text(label: str) -> str:
        return label.replace("\\", r"\\").replace('"', r"\"")

    lines = ["digraph {"]
    for plates, members in groups.items():
        for depth, plate in enumerate(plates):
            label = "_".join(identifiers[p] for p in plates[: depth + 1])
            lines.append(f'  subgraph cluster_{label} {{ label="{text(plate)} ({sizes[plate]})";')
        for s in members:
            fill = "lightgrey" if s.kind == "observed" else "white"
            lines.append(
                f'  {identifiers[s.name]} [label="{text(s.name)} ~ {s.distribution}" style=filled '
                f"fillcolor={fill}];"
            )
        lines += ["  }"] * len(plates)
    lines += [f"  {identifiers[a]} -> {identifiers[b]};" for a, b in edges]
    return "\n".join([*lines, "}"])
