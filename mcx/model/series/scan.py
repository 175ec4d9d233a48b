"""The Feynman-Kac functions of a ``numpyro.contrib.control_flow.scan`` with latent and observed sites.

The scan's body, run for one step with draws for its latent sites, is the transition; its observed sites and
factors are the potential. The structure of the program is read by :mod:`mcx.model.series.scan_analysis`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution

from mcx.errors import DataError
from mcx.model.capture import Message, SiteTrace
from mcx.model.density import site_log_prob, total
from mcx.model.series.block import Functions, examples
from mcx.model.series.capture_scan import ScanStatement, run_body, scans_taken
from mcx.model.series.reading import latent_shapes, run_program
from mcx.model.series.scan_analysis import ScanFacts, analyse
from mcx.ops.batched_draws import ParticleKey, draw, of_site
from mcx.target import Target
from mcx.types import Key, PyTree, Scalar, SiteValues


class ScanBlock:
    """A scan of a program, by its first latent site; see :class:`~mcx.model.series.block.Block`.

    A particle is a dictionary. "sites" holds the values of the step's latent sites by name, "carry" the
    entries of the new carry that are not among these, and "before" the entries of the carry before the step
    that the observations depend on: time 0, which has no particle before it, and draws of observations need
    them, while everything else takes them from the particle before. "start" holds the values of the sites
    drawn along with x_0 if ``whole``, as methods on whole paths need; they are zeros after time 0.

    Raises:
        CapabilityError: if particles cannot be weighted within the scan; the error names the site and shows
            how to rewrite the model.
    """

    guided = looks_ahead = False

    def __init__(self, target: Target, name: str, whole: bool = False) -> None:
        self.target, self.name = target, name
        self.facts: ScanFacts = analyse(target, name)
        facts = self.facts
        self.length, self.params = facts.length, facts.params
        self.state_names = facts.latent
        self.start_names = facts.initial_sites if whole else ()
        self.own_names = (*facts.initial_sites, *facts.latent, *facts.observed, *facts.factors)
        self._memory = whole and bool(self.start_names or facts.kept_before or None in facts.aliases)
        self.no_density, self.no_forecast = facts.no_density, facts.no_forecast
        self._keys = {site: site if len(facts.observed) > 1 else "" for site in facts.observed}
        u = jax.eval_shape(
            lambda data: jax.tree_util.tree_map(lambda x: x[0], self.series(data)), target.data
        )
        x = jax.eval_shape(lambda data: self._example(data, u), target.data)
        start, values = dict(x["start"]), dict(x["sites"])
        places = {"place_0": ({**start, **values}, u), "place": (x, values, u)}
        self.examples = {**examples(x, u), **places}

    def states(self, x: PyTree) -> dict[str, Array]:
        """See :class:`~mcx.model.series.block.Block`."""
        return dict(x["sites"])

    def view(self, x: PyTree) -> PyTree:
        """See :class:`~mcx.model.series.block.Block`."""
        return self.states(x)

    def path_values(self, path: PyTree) -> dict[str, Array]:
        """See :class:`~mcx.model.series.block.Block`."""
        return {**path["sites"], **{site: x[0] for site, x in path["start"].items()}}

    def path_of(self, values: SiteValues) -> PyTree:
        """See :class:`~mcx.model.series.block.Block`."""
        sites = {site: values[site] for site in self.state_names}
        return {"sites": sites, "carry": (), "before": (), "start": {}}

    def observed(self, u: PyTree) -> dict[str, Array]:
        """See :class:`~mcx.model.series.block.Block`."""
        return {site: u["y"][key] for site, key in self._keys.items()}

    def supports(self, data: PyTree, params: SiteValues) -> dict[str, Any]:
        """See :class:`~mcx.model.series.block.Block`."""
        sites = run_program(self.target, data, params, scans=scans_taken())
        return {k: sites[k]["fn"].support for k in params}

    def series(self, data: PyTree) -> dict[str, PyTree]:
        """See :class:`~mcx.model.series.block.Block`; one observed site alone has the key ``""``."""
        sites = run_program(self.target, data, {})
        xs = jax.tree_util.tree_leaves(self._read(data, {}).xs)
        inputs = [x if needed else None for x, needed in zip(xs, self.facts.needed_inputs, strict=True)]
        return {
            "u": jax.tree_util.tree_unflatten(self.facts.inputs_tree, inputs),
            "y": {key: jnp.asarray(sites[site]["value"]) for site, key in self._keys.items()},
            "missing": {},
        }

    def functions(self, data: PyTree, params: SiteValues) -> Functions:
        """See :class:`~mcx.model.series.block.Block`."""
        scan = self._read(data, params)

        def step(
            particle_key: ParticleKey, carry: PyTree, u: PyTree, start: SiteValues | None = None
        ) -> PyTree:
            """Draw the step's latent sites."""
            values: dict[str, Array] = {}

            def draw_site(name: str, msg: Message) -> Array:
                values[name] = _strong(draw(of_site(particle_key, len(values)), _law(msg)))
                return values[name]

            new, _ = self._run(scan, carry, u, draw_site)
            return self._particle(carry, values, new, start)

        def initial(particle_key: ParticleKey, u: PyTree) -> PyTree:
            if not self.facts.initial_sites:
                return step(particle_key, self._cast(scan.init), u)
            init, start = self._drawn(data, params, particle_key)
            return step(particle_key, self._cast(init), u, start)

        def place_0(values: SiteValues, u: PyTree) -> PyTree:
            first = self._read(data, {**params, **{k: values[k] for k in self.start_names}})
            return placed(self._cast(first.init), values, u, values)

        def place(x_prev: PyTree, values: SiteValues, u: PyTree) -> PyTree:
            return placed(self._carry(x_prev), values, u)

        def placed(carry: PyTree, values: PyTree, u: PyTree, start: SiteValues | None = None) -> PyTree:
            new, _ = self._run(scan, carry, u, lambda name, msg: values[name])
            return self._particle(carry, {k: values[k] for k in self.state_names}, new, start)

        def transition(particle_key: ParticleKey, x_prev: PyTree, u: PyTree) -> PyTree:
            return step(particle_key, self._carry(x_prev), u)

        def likelihood(carry: PyTree, x: PyTree, u: PyTree) -> Scalar:
            sites = self._sites(scan, carry, x, u)
            return total([jnp.sum(site_log_prob(s)) for n, s in sites.items() if n not in self.state_names])

        def potential_0(x: PyTree, u: PyTree) -> Scalar:
            return likelihood(self._before(x), x, u)

        def potential(x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
            return likelihood(self._carry(x_prev), x, u)

        def density(x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
            sites = self._sites(scan, self._carry(x_prev), x, u)
            return total([jnp.sum(site_log_prob(sites[n])) for n in self.state_names])

        def density_0(x: PyTree, u: PyTree) -> Scalar:
            sites = self._sites(scan, self._cast(scan.init), x, u)
            return total([jnp.sum(site_log_prob(sites[n])) for n in self.state_names])

        def observe(key: Key, x: PyTree, u: PyTree) -> dict[str, Array]:
            drawn: dict[str, Array] = {}

            def value(name: str, msg: Message) -> Array | None:
                if name in x["sites"]:
                    return x["sites"][name]
                drawn[name] = _law(msg).sample(jax.random.fold_in(key, len(drawn)))
                return drawn[name]

            run_body(scan, self._before(x), self._inputs(u), value)
            return {site: drawn[site] for site in self.facts.observed}

        functions: Functions = {
            **({"place_0": place_0, "place": place} if self._memory else {}),
            "initial": initial,
            "transition": transition,
            "potential_0": potential_0,
            "potential": potential,
            "density": density,
            "observe": observe,
        }
        # sites that reach the initial carry are drawn with x_0 and forgotten, so that x_0 has no density
        return functions if self.facts.initial_sites else {**functions, "density_0": density_0}

    def _read(self, data: PyTree, params: SiteValues, draw: Any = None) -> ScanStatement:
        taken = scans_taken()
        run_program(self.target, data, params, draw, taken)
        return taken.scans[self.facts.number]

    def _drawn(self, data: PyTree, params: SiteValues, particle_key: ParticleKey) -> tuple[PyTree, PyTree]:
        """The scan's initial carry with draws for the sites that reach it, and these draws."""
        first = len(self.state_names)
        numbers = {name: first + i for i, name in enumerate(self.facts.initial_sites)}
        drawn: dict[str, Array] = {}

        def draw_site(msg: Message) -> Array | None:
            number = numbers.get(msg["name"]) if msg["type"] == "sample" else None
            if number is None:
                return None
            drawn[msg["name"]] = draw(of_site(particle_key, number), _law(msg))
            return drawn[msg["name"]]

        return self._read(data, params, draw_site).init, drawn

    def _example(self, data: PyTree, u: PyTree) -> PyTree:
        """A particle."""
        scan = self._read(data, {})
        carry = self._cast(scan.init)
        values = {}

        def zeros(name: str, msg: Message) -> Array:
            values[name] = _strong(jnp.asarray(_law(msg).sample(jax.random.key(0))))
            return values[name]

        u = jax.tree_util.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), u)
        new, _ = self._run(scan, carry, u, zeros)
        return self._particle(carry, values, new)

    def _run(
        self, scan: ScanStatement, carry: PyTree, u: PyTree, latent: Callable[[str, Message], Array]
    ) -> tuple[Any, SiteTrace]:
        """One step, with the observations as they are."""

        def value(name: str, msg: Message) -> Array | None:
            if name in self.state_names:
                return latent(name, msg)
            return observation(msg, u["y"][self._keys[name]])

        return run_body(scan, carry, self._inputs(u), value)

    def _sites(self, scan: ScanStatement, carry: PyTree, x: PyTree, u: PyTree) -> SiteTrace:
        return self._run(scan, carry, u, lambda name, msg: x["sites"][name])[1]

    def _inputs(self, u: PyTree) -> PyTree:
        """The body's second argument; observations in it are zeros, as their sites have them already."""
        kept = iter(jax.tree_util.tree_leaves(u["u"]))
        leaves = [
            next(kept) if needed else jnp.zeros(s.shape, s.dtype)
            for s, needed in zip(self.facts.input_shapes, self.facts.needed_inputs, strict=True)
        ]
        return jax.tree_util.tree_unflatten(self.facts.inputs_tree, leaves)

    def _cast(self, carry: PyTree) -> PyTree:
        """An initial carry with the dtypes of later ones: Python's numbers have weak ones."""
        return jax.tree_util.tree_map(lambda x, s: jnp.asarray(x, s.dtype), carry, self.facts.carry)

    def _particle(
        self, before: PyTree, values: PyTree, new: PyTree, start: SiteValues | None = None
    ) -> PyTree:
        old, leaves = jax.tree_util.tree_leaves(before), jax.tree_util.tree_leaves(new)
        entries = zip(leaves, self.facts.aliases, strict=True)
        shapes = latent_shapes(self.target)
        return {
            "start": {
                k: jnp.zeros(shapes[k].shape, shapes[k].dtype) if start is None else _strong(start[k])
                for k in self.start_names
            },
            "sites": values,
            "carry": tuple(_strong(x) for x, site in entries if site is None),
            "before": tuple(old[i] for i in self.facts.kept_before),
        }

    def _carry(self, x: PyTree) -> PyTree:
        """The new carry of a particle."""
        own = iter(x["carry"])
        leaves = [next(own) if site is None else x["sites"][site] for site in self.facts.aliases]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(self.facts.carry), leaves)

    def _before(self, x: PyTree) -> PyTree:
        """The carry before a particle's step; entries that no observation depends on are zeros."""
        shapes, tree = jax.tree_util.tree_flatten(self.facts.carry)
        leaves = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        for i, value in zip(self.facts.kept_before, x["before"], strict=True):
            leaves[i] = value
        return jax.tree_util.tree_unflatten(tree, leaves)


def observation(msg: Message, value: Array) -> Array:
    """An observed value in the site's shape and dtype: the series may have further axes of size one."""
    msg["is_observed"] = True
    raw = msg["value"]
    return value if raw is None else jnp.reshape(value, jnp.shape(raw)).astype(jnp.result_type(raw))


def _law(msg: Message) -> Distribution:
    """The distribution of a site's value, with its sample shape."""
    shape = tuple(msg["kwargs"].get("sample_shape", ()))
    return msg["fn"].expand(shape + tuple(msg["fn"].batch_shape)) if shape else msg["fn"]


def _strong(x: PyTree) -> Array:
    return jnp.asarray(x, jnp.result_type(x))


def refuse_missing(block: ScanBlock, series: PyTree) -> None:
    """Raise DataError if an observation is NaN."""
    for site, values in block.observed(series).items():
        if isinstance(values, jax.core.Tracer) or not jnp.issubdtype(values.dtype, jnp.floating):
            continue
        count = int(np.isnan(np.asarray(values)).sum())
        if count:
            raise DataError(
                f"{count} of the observed values are NaN",
                site=site,
                expected="finite data: a scan has no missing observations",
                remedy="replace them by any supported value and mask the site (dist.Normal(...).mask(seen)), "
                "with the mask among the scan's inputs; mcx.markov(obs=) takes NaN as missing",
            )
