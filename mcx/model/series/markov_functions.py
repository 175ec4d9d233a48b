"""The Feynman-Kac functions of an ``mcx.markov`` statement."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution
from numpyro.ops.provenance import eval_provenance

from mcx.errors import CapabilityError
from mcx.model import capture
from mcx.model.density import site_log_prob
from mcx.model.path_law import bare, draw_components, log_density, masked_log_prob, missing_filled
from mcx.model.series.block import Functions, examples
from mcx.model.series.density_bounds import BOUND, has_density_bound, log_density_bound
from mcx.model.series.markov import MarkovStatement, collect_statements
from mcx.model.series.reading import latent_shapes, refuse_dependent_series, run_program
from mcx.ops.batched_draws import ParticleKey
from mcx.ops.closure_conversion import convert_closure
from mcx.ops.dependences import union
from mcx.target import Target
from mcx.types import Key, PyTree, Scalar, SiteValues


class MarkovBlock:
    """The Markov block of an ``mcx.markov`` statement; see :class:`~mcx.model.series.block.Block`.

    ``guided`` draws from the block's proposal, ``auxiliary`` uses its lookahead, if it has one. Raises
    CapabilityError if the path is observed or not emitted, or something else depends on it.
    """

    no_density = no_forecast = ""
    start_names: tuple[str, ...] = ()

    def __init__(self, target: Target, name: str, guided: bool, auxiliary: bool) -> None:
        self.target, self.name = target, name
        self._guided, self._auxiliary = guided, auxiliary
        shapes = latent_shapes(target)
        jax.eval_shape(self._look, target.data)
        found = eval_provenance(self._parts, **shapes)
        own, paths = set(self.state_names), {s.name for s in target.sites if s.markov or s.scanned}
        for site in sorted(union(found["series"]) - own):
            raise refuse_dependent_series(name, site, "the emission or the transition")
        for site, tags in found["outside"].items():
            if own & tags:
                raise self._dependent_site(site)
        # the paths of other blocks are parameters where this one's functions depend on them
        used = union(found["constants"]) - own
        self.params = tuple(k for k in shapes if k not in paths or k in used)

    def functions(self, data: PyTree, params: SiteValues) -> Functions:
        """See :class:`~mcx.model.series.block.Block`."""
        return _functions(self._read(data, params)[0], self._guided, self.looks_ahead, self._bounded)

    def series(self, data: PyTree) -> dict[str, PyTree]:
        """See :class:`~mcx.model.series.block.Block`."""
        return _series(*self._read(data, {}))

    def supports(self, data: PyTree, params: SiteValues) -> dict[str, Any]:
        """See :class:`~mcx.model.series.block.Block`."""
        _, sites = self._read(data, params)
        return {k: sites[k]["fn"].support for k in params}

    def states(self, x: PyTree) -> dict[str, Array]:
        """See :class:`~mcx.model.series.block.Block`."""
        return {site: x[key] if key else x for key, site in self._states.items()}

    def view(self, x: PyTree) -> PyTree:
        """See :class:`~mcx.model.series.block.Block`."""
        return x

    def path_values(self, path: PyTree) -> dict[str, Array]:
        """See :class:`~mcx.model.series.block.Block`."""
        return self.states(path)

    def path_of(self, values: SiteValues) -> PyTree:
        """See :class:`~mcx.model.series.block.Block`."""
        return bare({key: values[site] for key, site in self._states.items()})

    def observed(self, u: PyTree) -> dict[str, Array]:
        """See :class:`~mcx.model.series.block.Block`."""
        return {self._observed[k]: v for k, v in u["y"].items()}

    def _read(self, data: PyTree, params: SiteValues) -> tuple[MarkovStatement, capture.SiteTrace]:
        """The block under these parameters, and all sites."""
        with collect_statements() as blocks:
            sites = run_program(self.target, data, params)
        (block,) = [b for b in blocks if b.name == self.name]
        return block, sites

    def _look(self, data: PyTree) -> PyTree:
        """Note what the block consists of."""
        block, sites = self._read(data, {})
        self._states, self._observed = block.states, block.observed
        self.state_names = tuple(block.states.values())
        self.own_names = (*self.state_names, *block.observed.values())
        self.length = block.law.length
        self.guided = self._guided and block.proposal is not None
        self.looks_ahead = block.lookahead is not None and self._auxiliary
        for site in self.state_names:
            if sites[site]["is_observed"]:
                raise CapabilityError(
                    "the path is observed, so there is nothing to filter", site=site, remedy="leave it free"
                )
        if block.emission is None:
            raise CapabilityError(
                "the Markov block has no emission, so there is nothing to filter by",
                site=self.name,
                remedy="give emission= and obs=; to draw from the chain alone, use simulate",
            )
        zeros = {k: jnp.zeros(s.shape, s.dtype) for k, s in block.law.shapes.items()}
        next_laws = block.law.transition(bare(zeros), block.law.first_input)
        _refuse_improper(block, next_laws)
        self._bounded = not self.guided and all(has_density_bound(fn) for fn in next_laws.values())
        u = jax.tree_util.tree_map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), _series(block, sites)
        )
        self.examples = examples(bare(dict(block.law.shapes)), u)
        return 0

    def _parts(self, **values: Array) -> dict[str, PyTree]:
        """Parts of the program whose dependences on the values of latent sites matter."""
        block, sites = self._read(self.target.data, values)
        functions = _functions(block, self._guided, self.looks_ahead, self._bounded)
        outside = {n: s for n, s in sites.items() if s["type"] == "sample" and n not in self.own_names}
        return {
            "series": _series(block, sites),
            "outside": {n: site_log_prob(s) for n, s in outside.items()},
            "constants": [convert_closure(fn, *self.examples[role])[1] for role, fn in functions.items()],
        }

    def _dependent_site(self, site: str) -> CapabilityError:
        return CapabilityError(
            f"this site depends on the path of '{self.name}', so particles cannot be weighted as they go",
            site=site,
            expected="observations of the block in its emission",
            remedy=f"write it into mcx.markov('{self.name}', emission=lambda x, u: ..., obs=...), "
            "with a dictionary where there are several; MCMC methods take the model as it is",
        )


def _series(block: MarkovStatement, sites: capture.SiteTrace) -> dict[str, PyTree]:
    observed = {k: sites[s]["value"] for k, s in block.observed.items() if sites[s]["is_observed"]}
    return {
        "u": block.law.inputs,
        "y": observed,
        "missing": {k: jnp.asarray(m) for k, m in block.missing.items()},
    }


def _refuse_improper(block: MarkovStatement, next_laws: dict[str, Distribution]) -> None:
    for what, laws in (("initial state", block.law.start), ("next state", next_laws)):
        for key, fn in laws.items():
            if capture.is_improper(fn):
                raise CapabilityError(
                    f"the {what} has no law to draw from",
                    site=block.states[key],
                    expected="a proper distribution",
                    found="an improper one",
                    remedy="give it a proper one; MCMC methods take the model as it is",
                )


def _functions(block: MarkovStatement, guided: bool, looks_ahead: bool, bounded: bool) -> Functions:
    """One time's functions of a block, as the loop needs them; ``u`` holds inputs, observations and masks."""
    law, emission = block.law, block.emission
    assert emission is not None
    guided = guided and bool(block.observed)
    start, step = (block.initial_proposal, block.proposal) if guided else (None, None)

    def emitted(x: PyTree, u: PyTree) -> Scalar:
        laws = emission(x, u["u"])
        terms = (masked_log_prob(laws[k], y, u["missing"].get(k)) for k, y in u["y"].items())
        return sum((jnp.sum(t) for t in terms), start=jnp.zeros(()))

    def first(u: PyTree) -> dict[str, Any]:
        return law.initial(u["u"])

    def then(x_prev: PyTree, u: PyTree) -> dict[str, Any]:
        return law.transition(x_prev, u["u"])

    def known(x: PyTree, u: PyTree) -> tuple[Any, Any]:
        """Observations with missing ones replaced by supported values; whether all are missing."""
        laws = emission(x, u["u"])
        pairs = {k: missing_filled(laws[k], y, u["missing"].get(k)) for k, y in u["y"].items()}
        gone = jnp.asarray([jnp.all(g) for g, _ in pairs.values()])
        return bare({k: y for k, (_, y) in pairs.items()}), jnp.all(gone)

    def cast(x: dict[str, Array]) -> PyTree:
        return bare({k: x[k].astype(law.shapes[k].dtype) for k in law.shapes})

    def initial(particle_key: ParticleKey, u: PyTree) -> PyTree:
        x = cast(draw_components(particle_key, first(u)))
        if start is None:
            return x
        y, gone = known(x, u)
        return _where(gone, x, cast(draw_components(particle_key, start(u["u"], y))))

    def transition(particle_key: ParticleKey, x_prev: PyTree, u: PyTree) -> PyTree:
        x = cast(draw_components(particle_key, then(x_prev, u)))
        if step is None:
            return x
        y, gone = known(x_prev, u)
        return _where(gone, x, cast(draw_components(particle_key, step(x_prev, u["u"], y))))

    def potential_0(x: PyTree, u: PyTree) -> Scalar:
        if start is None:
            return emitted(x, u)
        return emitted(x, u) + _total(first(u), x) - density_0(x, u)

    def density_0(x: PyTree, u: PyTree) -> Scalar:
        log_f = _total(first(u), x)
        if start is None:
            return log_f
        y, gone = known(x, u)
        return jnp.where(gone, log_f, _total(start(u["u"], y), x))

    def density(x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
        log_f = _total(then(x_prev, u), x)
        if step is None:
            return log_f
        y, gone = known(x_prev, u)
        return jnp.where(gone, log_f, _total(step(x_prev, u["u"], y), x))

    def potential(x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
        if step is None:
            return emitted(x, u)
        return emitted(x, u) + _total(then(x_prev, u), x) - density(x_prev, x, u)

    def observe(key: Key, x: PyTree, u: PyTree) -> dict[str, Array]:
        keys = jax.random.split(key, max(len(block.observed), 1))
        laws = emission(x, u["u"])
        return {block.observed[k]: fn.sample(keys[i]) for i, (k, fn) in enumerate(laws.items())}

    def transition_bound(x_prev: PyTree, u: PyTree) -> Scalar:
        return sum((log_density_bound(fn) for fn in then(x_prev, u).values()), start=jnp.zeros(()))

    def lookahead(x: PyTree, u: PyTree) -> Scalar:
        y, gone = known(x, u)
        assert block.lookahead is not None
        return jnp.where(gone, 0.0, block.lookahead(x, u["u"], y))

    functions: Functions = {
        "initial": initial,
        "transition": transition,
        "potential_0": potential_0,
        "potential": potential,
        "density_0": density_0,
        "density": density,
        "observe": observe,
    }
    optional = {"lookahead": (looks_ahead, lookahead), BOUND: (bounded, transition_bound)}
    return functions | {role: fn for role, (wanted, fn) in optional.items() if wanted}


def _total(laws: dict[str, Distribution], x: PyTree) -> Scalar:
    """Joint log density of a state's components."""
    values = x if isinstance(x, dict) else {"": x}
    return sum(log_density(laws, values).values(), start=jnp.zeros(()))


def _where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree_util.tree_map(partial(jnp.where, condition), a, b)
