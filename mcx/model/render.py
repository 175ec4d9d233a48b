"""A picture of a model as text: Mermaid or Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from numpyro.infer.inspect import get_dependencies

from mcx.errors import MethodError
from mcx.model.capture import StandIns
from mcx.model.compile import compile_model
from mcx.model.program import BoundProgram
from mcx.sites import Site


class _Language(NamedTuple):
    """What diagrams consist of: formats of an identifier and a title, or of an edge's ends."""

    head: str
    plate: str
    latent: str
    observed: str
    end: str
    edge: str
    tail: tuple[str, ...]
    escape: dict[int, str]


_DOT_NODE = '{{0}} [label="{{1}}" style=filled fillcolor={}];'
_LANGUAGES = {
    "mermaid": _Language(
        "graph TD", 'subgraph {}["{}"]', '{}(["{}"])', '{}["{}"]', "end", "{} --> {}", (),
        str.maketrans({'"': "#quot;"}),
    ),
    "dot": _Language(
        "digraph {", 'subgraph cluster_{} {{ label="{}";', _DOT_NODE.format("white"),
        _DOT_NODE.format("lightgrey"), "}", "{} -> {};", ("}",),
        str.maketrans({"\\": r"\\", '"': r"\""}),
    ),
}  # fmt: skip


def render(bound: BoundProgram, format: str) -> str:
    """See :meth:`BoundModel.render`."""
    if str(format) not in _LANGUAGES:
        raise MethodError("unknown diagram format", expected='"mermaid" or "dot"', found=repr(format))
    language = _LANGUAGES[format]
    target = compile_model(bound)
    sites = target.sites
    shown = sites.of_kind("latent", "discrete", "observed")
    names = [s.name for s in shown]
    # with JAX's arrays, if it can be
    program = target.data if isinstance(target.data, BoundProgram) else bound

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
    lines = []
    for plates, members in groups.items():
        for depth, plate in enumerate(plates):
            label = "_".join(identifiers[p] for p in plates[: depth + 1])
            title = f"{plate.translate(language.escape)} ({sizes[plate]})"
            lines.append(language.plate.format(label, title))
        for s in members:
            node = language.observed if s.kind == "observed" else language.latent
            title = f"{s.name.translate(language.escape)} ~ {s.distribution}"
            lines.append(node.format(identifiers[s.name], title))
        lines += [language.end] * len(plates)
    lines += [language.edge.format(identifiers[a], identifiers[b]) for a, b in edges]
    return "\n".join([language.head, *(f"  {line}" for line in lines), *language.tail])


def _identifiers(names: Iterable[str]) -> dict[str, str]:
    """Names that both languages allow, one for each name."""
    found: dict[str, str] = {}
    for name in names:
        identifier = "s_" + re.sub(r"\W", "_", name)
        while identifier in found.values():
            identifier += "_"
        found[name] = identifier
    return found
