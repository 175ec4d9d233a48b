"""The dependences within a program with a scan, read from one abstract run in which nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.ops.provenance import eval_provenance

from mcx.errors import CapabilityError, McxError
from mcx.model.capture import Message, is_factor
from mcx.model.density import site_log_prob
from mcx.model.series.capture_scan import ScanStatement, run_body, scans_taken
from mcx.model.series.reading import latent_shapes, refuse_dependent_series, run_program
from mcx.model.series.scan_refusals import refuse_likelihood_outside, refuse_statement
from mcx.ops.closure_conversion import convert_closure
from mcx.ops.dependences import Dependences, union
from mcx.target import Target
from mcx.types import PyTree, SiteValues


@dataclass(frozen=True)
class ScanFacts:
    """Structure of a scan, the ``number``-th of its program.

    Attributes:
        latent, observed, factors: names of the body's sites.
        initial_sites: latent sites outside that reach nothing but the initial carry: part of the state's law.
        carry: shapes and dtypes of the carry, a pytree.
        aliases: for every leaf of the carry, the latent site that it is; None where it is none.
        kept_before: leaves of the carry before a step that its observations depend on.
        input_shapes: shapes and dtypes of one time's inputs, the leaves of ``inputs_tree``.
        needed_inputs: which of them reach more than the values of observations.
        no_density, no_forecast: see :class:`~mcx.model.series.block.Block`.
    """

    number: int
    length: int
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    factors: tuple[str, ...]
    initial_sites: tuple[str, ...]
    params: tuple[str, ...]
    carry: PyTree
    aliases: tuple[str | None, ...]
    kept_before: tuple[int, ...]
    input_shapes: tuple[Any, ...]
    needed_inputs: tuple[bool, ...]
    inputs_tree: jax.tree_util.PyTreeDef
    no_density: str
    no_forecast: str


def analyse(target: Target, name: str) -> ScanFacts:
    """Read the structure of a scan by its first latent site; a CapabilityError says how to rewrite it."""
    look = _Look(target, name)
    found = look.dependences()
    _refuse_what_depends(target, look, found)
    initial_sites, params = _split(target, look, found)
    for site in initial_sites:
        if target.sites[site].improper or target.sites[site].weighted:
            raise CapabilityError(
                "the initial state has no law to draw from",
                site=site,
                expected="a proper prior without mask or scale",
                found="an improper prior" if target.sites[site].improper else "a mask or a scale",
                remedy="give the site a proper prior",
            )
    own = look.carry_tags
    step, in_potential = union([found["carry"], found["density"]]), union(found["potential"])
    needed = step | in_potential
    clocks = _clocks(look, found, frozenset(f"param:{site}" for site in initial_sites))
    through = frozenset().union(*(d for i, d in enumerate(found["carry"]) if i not in clocks))
    moving = frozenset(tag for i, tag in enumerate(own) if i not in clocks)
    feedback = step & frozenset(f"value:{site}" for site in look.observed)
    return ScanFacts(
        look.number,
        look.scan.length,
        look.latent,
        look.observed,
        look.factors,
        initial_sites,
        params,
        look.scan.carry,
        look.aliases(),
        tuple(i for i, tag in enumerate(own) if tag in in_potential),
        look.input_shapes,
        tuple(f"input:{i}" in needed for i in range(len(look.input_shapes))),
        look.inputs_tree,
        "the scan's new carry depends on the old one not only through this step's latent sites, so the path "
        f"is no Markov chain in '{name}'"
        if through & moving
        else "",
        "states depend on the observations " + ", ".join(sorted(tag.split(":", 1)[1] for tag in feedback))
        if feedback
        else "",
    )


class _Look:
    """One scan of a program, and the abstract run from which its dependences are read."""

    def __init__(self, target: Target, name: str) -> None:
        self.target = target
        taken = scans_taken()

        def run(data: PyTree) -> PyTree:
            run_program(target, data, {}, scans=taken)
            (self.number,) = [i for i, s in enumerate(taken.scans) if name in s.latent[:1]]
            self.scan: ScanStatement = taken.scans[self.number]
            refuse_statement(target, self.scan)
            self.latent = self.scan.latent
            inputs = jax.tree_util.tree_map(lambda x: jnp.asarray(x)[0], self.scan.xs)
            sites = self._run(self.scan, self._start(self.scan), inputs, {}, {})[1]
            self.observed = tuple(n for n, s in sites.items() if n not in self.latent and not is_factor(s))
            self.factors = tuple(n for n, s in sites.items() if is_factor(s))
            if not self.observed and not self.factors:
                raise CapabilityError(
                    "the scan's body has no observed site, so there is nothing to filter by",
                    site=name,
                    remedy="def body(x_prev, y_t):\n    x = numpyro.sample(..)\n"
                    "    numpyro.sample('y', ..., obs=y_t)\n    return x, x\nscan(body, init, y)",
                )
            values = {n: s["value"] for n, s in sites.items() if not is_factor(s)}
            return self._start(self.scan), inputs, values

        start, inputs, values = jax.eval_shape(run, target.data)
        self.results = list(taken.results)
        leaves, self.inputs_tree = jax.tree_util.tree_flatten(inputs)
        self.input_shapes = tuple(leaves)
        self.carry_shapes, self.carry_tree = jax.tree_util.tree_flatten(start)
        self.carry_tags = [f"carry:{i}" for i in range(len(self.carry_shapes))]
        self.values = values

    def aliases(self) -> tuple[str | None, ...]:
        """For every leaf of the new carry, the latent site whose value it is."""

        def step(carry: PyTree, inputs: PyTree, values: PyTree) -> PyTree:
            scan = self._scan({}, {})[0]
            return self._run(scan, carry, inputs, values, values)[0]

        carry = jax.tree_util.tree_unflatten(self.carry_tree, self.carry_shapes)
        inputs = jax.tree_util.tree_unflatten(self.inputs_tree, self.input_shapes)
        jaxpr = jax.make_jaxpr(step)(carry, inputs, self.values).jaxpr
        names = sorted(self.values)  # the order in which dictionaries are flattened
        sites = dict(zip(names, jaxpr.invars[len(jaxpr.invars) - len(names) :], strict=True))
        return tuple(next((n for n in self.latent if sites[n] is out), None) for out in jaxpr.outvars)

    def dependences(self) -> dict[str, Any]:
        """What each part of the program depends on.

        Dependences are sets of tags: "param:site" is a latent site outside of the scan, "carry:i" and
        "input:i" are leaves of the body's arguments, "value:site" is a site of the body, "scan:i" the result
        of a scan.
        """
        outside = {k: v for k, v in latent_shapes(self.target).items() if not self.target.sites[k].scanned}
        kwargs: dict[str, Any] = {f"param:{k}": v for k, v in outside.items()}
        kwargs |= dict(zip(self.carry_tags, self.carry_shapes, strict=True))
        kwargs |= {f"input:{i}": s for i, s in enumerate(self.input_shapes)}
        kwargs |= {f"value:{k}": v for k, v in self.values.items()}
        kwargs |= {f"scan:{i}": r for i, r in enumerate(self.results)}

        def everything(**tagged: Any) -> dict[str, Any]:
            params = {k: tagged[f"param:{k}"] for k in outside}
            scan, sites, others = self._scan(
                params, {i: tagged[f"scan:{i}"] for i in range(len(self.results))}
            )
            carry = jax.tree_util.tree_unflatten(self.carry_tree, [tagged[t] for t in self.carry_tags])
            inputs = jax.tree_util.tree_unflatten(
                self.inputs_tree, [tagged[f"input:{i}"] for i in range(len(self.input_shapes))]
            )
            values = {k: tagged[f"value:{k}"] for k in self.values}
            new, body = self._run(scan, carry, inputs, values, values)
            raw = self._run(scan, carry, inputs, values, {})[1]
            return {
                "init": jax.tree_util.tree_leaves(scan.init),
                "inputs": jax.tree_util.tree_leaves(scan.xs),
                "outside": {n: site_log_prob(s) for n, s in sites.items() if s["type"] == "sample"},
                "others": [_contents(other) for other in others],
                "carry": jax.tree_util.tree_leaves(new),
                "density": {n: site_log_prob(body[n]) for n in self.latent},
                "potential": {n: site_log_prob(s) for n, s in body.items() if n not in self.latent},
                # the other observed sites have their values by a condition
                "raw": {n: raw[n]["value"] for n in self.observed if raw[n]["is_observed"]},
                "conditions": [dict(values) for _, values in scan.assigned],
            }

        found: dict[str, Any] = eval_provenance(everything, **kwargs)
        return found

    def _scan(
        self, params: SiteValues, outputs: Mapping[int, Any]
    ) -> tuple[ScanStatement, Mapping[str, Any], list[ScanStatement]]:
        taken = scans_taken(outputs)
        sites = run_program(self.target, self.target.data, params, scans=taken)
        return taken.scans[self.number], sites, [s for i, s in enumerate(taken.scans) if i != self.number]

    def _start(self, scan: ScanStatement) -> PyTree:
        return jax.tree_util.tree_map(lambda x, s: jnp.asarray(x, s.dtype), scan.init, scan.carry)

    def _run(
        self, scan: ScanStatement, carry: PyTree, inputs: PyTree, latent: SiteValues, observed: SiteValues
    ) -> tuple[Any, Mapping[str, Any]]:
        """One step with these values of its sites; a site without a value gets a draw, or its observation."""

        def value(name: str, msg: Message) -> Array | None:
            found = (latent if name in scan.latent else observed).get(name)
            if found is not None or msg["value"] is not None:
                return found
            return msg["fn"].sample(jax.random.key(0), msg["kwargs"].get("sample_shape", ()))

        return run_body(scan, carry, inputs, value)


def _contents(scan: ScanStatement) -> PyTree:
    """The parts of a scan: initial carry, inputs, and the values that its body closes over."""

    def body(carry: PyTree, x: PyTree) -> PyTree:
        def value(name: str, msg: Message) -> Array | None:
            if msg["value"] is not None:
                return None
            return msg["fn"].sample(jax.random.key(0), msg["kwargs"].get("sample_shape", ()))

        new, sites = run_body(scan, carry, x, value)
        return new, {n: site_log_prob(s) for n, s in sites.items()}

    init = jax.tree_util.tree_map(lambda x, s: jnp.asarray(x, s.dtype), scan.init, scan.carry)
    try:
        _, consts = convert_closure(body, init, jax.tree_util.tree_map(lambda x: jnp.asarray(x)[0], scan.xs))
    except McxError:
        consts = ()  # particles could not be weighted in this scan, but it is not the one in question
    return scan.init, scan.xs, consts


def _refuse_what_depends(target: Target, look: _Look, found: dict[str, Any]) -> None:
    own = f"scan:{look.number}"
    for site, tags in found["outside"].items():
        if own in tags:
            refuse_likelihood_outside(target, look.scan, look.observed, site)
    if own in union(found["others"]):
        refuse_likelihood_outside(target, look.scan, look.observed, None)
    step = {k: found[k] for k in ("init", "inputs", "carry", "density", "potential", "raw", "conditions")}
    everything = union(step)
    if any(f"scan:{i}" in everything for i in range(len(look.results))):
        raise CapabilityError(
            "the scan depends on the results of another scan",
            site=look.latent[0],
            remedy="write both into one body, with both states in the carry",
        )
    for tag in sorted(union({part: found[part] for part in ("inputs", "raw", "conditions")})):
        kind, _, name = tag.partition(":")
        if kind == "param":
            raise refuse_dependent_series(look.latent[0], name, "the body of the scan")
    for site, tags in found["raw"].items():
        if any(tag.startswith(("carry:", "value:")) for tag in tags):
            raise CapabilityError(
                "the observed value is computed from the state",
                site=site,
                expected="data",
                remedy="observe the data themselves, with the state in their distribution",
            )


def _split(target: Target, look: _Look, found: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Latent sites outside that reach the initial carry alone, and those that are parameters."""
    sites = target.sites
    free = {s.name for s in sites.of_kind("latent", "discrete") if not (s.markov or s.scanned)}
    parts = ("inputs", "carry", "density", "potential", "raw", "conditions", "others")
    elsewhere = union({part: found[part] for part in parts})
    initial = union(found["init"])
    drawn = {n for n in free if f"param:{n}" in initial and f"param:{n}" not in elsewhere}
    while True:
        # a site that the law of a parameter or an observation outside depends on is a parameter, too
        outside = (tags for n, tags in found["outside"].items() if n not in drawn)
        bound = {n for tags in outside for n in drawn if f"param:{n}" in tags}
        if not bound:
            break
        drawn -= bound
    order = [s.name for s in sites.of_kind("latent", "discrete") if not s.scanned]
    used = initial | elsewhere
    params = tuple(n for n in order if n not in drawn and (n in free or f"param:{n}" in used))
    return tuple(n for n in order if n in drawn), params


def _clocks(look: _Look, found: dict[str, Any], drawn: Dependences) -> frozenset[int]:
    """Leaves of the carry that are the same for all particles, such as a counter of time."""
    clocks = {i for i, tags in enumerate(found["init"]) if not tags & drawn}
    latent = frozenset(f"value:{site}" for site in look.latent)
    while True:
        others = latent | {tag for i, tag in enumerate(look.carry_tags) if i not in clocks}
        moving = {i for i in clocks if found["carry"][i] & others}
        if not moving:
            return frozenset(clocks)
        clocks -= moving
