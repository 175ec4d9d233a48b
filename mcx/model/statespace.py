"""From a Markov block of a model to a Feynman-Kac model.

The program runs once under the given parameters; the block's functions, which close over what the program
computed from these, are traced and their closed-over values taken out. These values are the context. So the
loop over time runs the block's code only, and parameters are arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.ops.provenance import eval_provenance

from mcx.errors import CapabilityError, ModelError, SupportError
from mcx.model import capture
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.model.density import site_log_prob
from mcx.model.markov import MarkovBlock, collect_blocks
from mcx.model.pathlaw import bare, draw_components, log_density, masked_log_prob, missing_filled
from mcx.ops.hoist import Hoisted, hoist
from mcx.ops.lanes import Lane
from mcx.target import FeynmanKac, StateSpace, Target

__all__ = ["check_params", "state_space"]

_Functions = dict[str, Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class _Reader:
    """Runs the program of a target and finds one Markov block in it."""

    target: Target
    name: str

    def read(self, data: Any, params: Mapping[str, Any]) -> tuple[MarkovBlock, Mapping[str, Any]]:
        """The block under these parameters, and all sites. Latent sites without a value get some value."""

        def value(site: dict[str, Any]) -> Any:
            if site["type"] == "sample" and site["name"] in params:
                return params[site["name"]]
            return None if site["value"] is not None else capture.unconstrained_prototype(site)

        with collect_blocks() as blocks:
            recorder = capture.record(
                self.target.functions.run(data), key=jax.random.key(0), substitute_fn=value
            )
        (block,) = [b for b in blocks if b.name == self.name]
        return block, recorder.sites

    def series(self, data: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        """What changes with time: inputs, observations and their masks."""
        block, sites = self.read(data, params)
        observed = {k: sites[s]["value"] for k, s in block.observed.items() if sites[s]["is_observed"]}
        return {
            "u": block.law.inputs,
            "y": observed,
            "missing": {k: jnp.asarray(m) for k, m in block.missing.items()},
        }


class _Made:
    """Code of a block's Feynman-Kac model, shared by all data of one structure."""

    def __init__(self, target: Target, name: str, guided: bool, auxiliary: bool) -> None:
        self.reader = _Reader(target, name)
        self.name, self.guided, self.auxiliary = name, guided, auxiliary
        self.code: dict[str, Hoisted] = {}
        paths = {s.name for s in target.sites if s.markov}
        latent = target.sites.of_kind("latent", "discrete")
        avals = {s.name: jax.ShapeDtypeStruct(s.shape, s.dtype) for s in latent}
        free = {k: v for k, v in avals.items() if k not in paths}
        jax.eval_shape(lambda params: self._look(target.data, params), free)
        self._refuse_dependent_series(target, free)
        self._refuse_dependent_sites(target, {s: avals[s] for s in self.states_of.values()})
        others = {k: v for k, v in avals.items() if k in paths and k not in self.states_of.values()}
        used = self._used(target, others)
        self.params = tuple(s.name for s in latent if s.name in free or s.name in used)
        jax.eval_shape(self._contexts, target.data, {k: avals[k] for k in self.params})
        self.contexts = jax.jit(self._contexts)
        self.series = jax.jit(lambda data: self.reader.series(data, {}))
        self.valid = jax.jit(self._valid)

    # what the loop calls -------------------------------------------------------------------------

    def prepare(self, data: Any, params: Any) -> Any:
        """The context: constants of every function."""
        strong = {k: jnp.asarray(v, jnp.result_type(v)) for k, v in dict(params or {}).items()}
        return self.contexts(data, strong)

    def initial(self, lane: Lane, ctx: Any, u: Any) -> Any:
        return self.code["initial"](ctx["initial"], lane, u)

    def transition(self, lane: Lane, ctx: Any, x_prev: Any, u: Any) -> Any:
        return self.code["transition"](ctx["transition"], lane, x_prev, u)

    def log_potential(self, ctx: Any, x_prev: Any, x: Any, u: Any) -> Any:
        if x_prev is None:
            return self.code["potential_0"](ctx["potential_0"], x, u)
        return self.code["potential"](ctx["potential"], x_prev, x, u)

    def log_transition(self, ctx: Any, x_prev: Any, x: Any, u: Any) -> Any:
        return self.code["density"](ctx["density"], x_prev, x, u)

    def log_lookahead(self, ctx: Any, x: Any, u_next: Any) -> Any:
        return self.code["lookahead"](ctx["lookahead"], x, u_next)

    def observe(self, key: Any, ctx: Any, x: Any, u: Any) -> dict[str, Any]:
        drawn = self.code["observe"](ctx["observe"], key, x, u)
        return {self.observed_sites[k]: v for k, v in drawn.items()}

    def states(self, x: Any) -> dict[str, Any]:
        return {site: x[key] if key else x for key, site in self.states_of.items()}

    def observed(self, u: Any) -> dict[str, Any]:
        return {self.observed_sites[k]: v for k, v in u["y"].items()}

    # reading the program -------------------------------------------------------------------------

    def _look(self, data: Any, params: Any) -> Any:
        """Take note of what the block consists of."""
        block, sites = self.reader.read(data, params)
        self.states_of, self.observed_sites = block.states, block.observed
        self.length = block.law.length
        self.has_proposal = self.guided and block.proposal is not None
        self.looks_ahead = block.lookahead is not None and self.auxiliary
        self.state_avals = bare(dict(block.law.shapes))
        for key, site in block.states.items():
            if sites[site]["is_observed"]:
                raise CapabilityError(
                    "the path is observed, so there is nothing to filter", site=site, remedy="leave it free"
                )
        if block.emission is None:
            raise CapabilityError(
                "the Markov chain has no emission, so there is nothing to filter by",
                site=self.name,
                remedy="give emission= and obs=; draws from the chain alone are those of simulate",
            )
        series = self.reader.series(data, params)
        self.input_avals = jax.tree_util.tree_map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), series
        )
        return 0

    def _contexts(self, data: Any, params: Any) -> dict[str, Any]:
        block, _ = self.reader.read(data, params)
        key = jax.eval_shape(lambda: jax.random.key(0))
        lane = Lane(key, jax.ShapeDtypeStruct((), jnp.int32))
        x, u = self.state_avals, self.input_avals
        examples = {
            "initial": (lane, u),
            "transition": (lane, x, u),
            "potential_0": (x, u),
            "potential": (x, x, u),
            "density": (x, x, u),
            "observe": (key, x, u),
            "lookahead": (x, u),
        }
        consts = {}
        for role, fn in _functions(block, self.guided, self.looks_ahead).items():
            code, consts[role] = hoist(fn, *examples[role])
            kept = self.code.setdefault(role, code)
            if kept.avals != code.avals:
                raise ModelError(
                    "the functions of the Markov chain close over different values each time the model runs",
                    site=self.name,
                    expected=str(kept.avals),
                    found=str(code.avals),
                    remedy="build them from the model's arguments and parameters alone",
                )
        return consts

    def _valid(self, data: Any, params: Any) -> dict[str, Any]:
        """Whether each parameter lies in its site's support."""
        _, sites = self.reader.read(data, params)
        supports = {k: sites[k]["fn"].support for k in params}
        return {
            k: jnp.asarray(True) if s is None else jnp.all(s(jnp.asarray(params[k])))
            for k, s in supports.items()
        }

    def _refuse_dependent_series(self, target: Target, free: dict[str, Any]) -> None:
        def series(**params: Any) -> Any:
            return self.reader.series(target.data, params)

        for name in _sources(series, free):
            raise CapabilityError(
                f"observations or inputs of '{self.name}' are computed from this parameter",
                site=name,
                expected="data that do not change with the parameters",
                remedy="move the computation into the emission or the transition",
            )

    def _refuse_dependent_sites(self, target: Target, paths: dict[str, Any]) -> None:
        own = {*self.states_of.values(), *self.observed_sites.values()}

        def densities(**values: Any) -> Any:
            _, sites = self.reader.read(target.data, values)
            rest = (s for n, s in sites.items() if s["type"] == "sample" and n not in own)
            return {s["name"]: site_log_prob(s) for s in rest}

        provenance = eval_provenance(densities, **paths)
        for name, sources in provenance.items():
            if sources:
                raise CapabilityError(
                    f"this site depends on the path of '{self.name}', so particles cannot be weighted as they go",
                    site=name,
                    expected="observations of the chain in its emission",
                    remedy=f"write it into mcx.markov('{self.name}', emission=lambda x, u: ..., obs=...), with "
                    "a dictionary where there are several; MCMC methods take the model as it is",
                )

    def _used(self, target: Target, others: dict[str, Any]) -> frozenset[str]:
        """Other blocks' paths that this block's functions depend on."""
        if not others:
            return frozenset()

        def contexts(**values: Any) -> Any:
            return self._contexts(target.data, values)

        used = _sources(contexts, others)
        self.code.clear()
        return used


def _sources(fn: Callable[..., Any], avals: dict[str, Any]) -> frozenset[str]:
    """The keyword arguments that a function's results depend on."""
    if not avals:
        return frozenset()
    found = jax.tree_util.tree_leaves(
        eval_provenance(fn, **avals), is_leaf=lambda x: isinstance(x, frozenset)
    )
    return frozenset().union(*found)


def _functions(block: MarkovBlock, guided: bool, looks_ahead: bool) -> _Functions:
    """One time's functions of a block, as the loop needs them; ``u`` holds inputs, observations and masks."""
    law, emission = block.law, block.emission
    assert emission is not None
    start, step = _proposals(block) if guided else (None, None)

    def emitted(x: Any, u: Any) -> Any:
        laws = emission(x, u["u"])
        terms = (masked_log_prob(laws[k], y, u["missing"].get(k)) for k, y in u["y"].items())
        return sum((jnp.sum(t) for t in terms), start=jnp.zeros(()))

    def first(u: Any) -> dict[str, Any]:
        return law.initial(u["u"])

    def then(x_prev: Any, u: Any) -> dict[str, Any]:
        return law.transition(x_prev, u["u"])

    def known(x: Any, u: Any) -> tuple[Any, Any]:
        """Observations with missing ones replaced by supported values; whether all are missing."""
        laws = emission(x, u["u"])
        pairs = {k: missing_filled(laws[k], y, u["missing"].get(k)) for k, y in u["y"].items()}
        gone = jnp.asarray([jnp.all(g) for g, _ in pairs.values()])
        return bare({k: y for k, (_, y) in pairs.items()}), jnp.all(gone)

    def cast(x: dict[str, Any]) -> Any:
        return bare({k: x[k].astype(law.shapes[k].dtype) for k in law.shapes})

    def initial(lane: Lane, u: Any) -> Any:
        x = cast(draw_components(lane, first(u)))
        if start is None:
            return x
        y, gone = known(x, u)
        return _where(gone, x, cast(draw_components(lane, start(u["u"], y))))

    def transition(lane: Lane, x_prev: Any, u: Any) -> Any:
        x = cast(draw_components(lane, then(x_prev, u)))
        if step is None:
            return x
        y, gone = known(x_prev, u)
        return _where(gone, x, cast(draw_components(lane, step(x_prev, u["u"], y))))

    def potential_0(x: Any, u: Any) -> Any:
        if start is None:
            return emitted(x, u)
        y, gone = known(x, u)
        ratio = _total(first(u), x) - _total(start(u["u"], y), x)
        return emitted(x, u) + jnp.where(gone, 0.0, ratio)

    def density(x_prev: Any, x: Any, u: Any) -> Any:
        log_f = _total(then(x_prev, u), x)
        if step is None:
            return log_f
        y, gone = known(x_prev, u)
        return jnp.where(gone, log_f, _total(step(x_prev, u["u"], y), x))

    def potential(x_prev: Any, x: Any, u: Any) -> Any:
        if step is None:
            return emitted(x, u)
        return emitted(x, u) + _total(then(x_prev, u), x) - density(x_prev, x, u)

    def observe(key: Any, x: Any, u: Any) -> dict[str, Any]:
        keys = jax.random.split(key, max(len(block.observed), 1))
        return {k: fn.sample(keys[i]) for i, (k, fn) in enumerate(emission(x, u["u"]).items())}

    def lookahead(x: Any, u: Any) -> Any:
        y, gone = known(x, u)
        assert block.lookahead is not None
        return jnp.where(gone, 0.0, block.lookahead(x, u["u"], y))

    functions: _Functions = {
        "initial": initial,
        "transition": transition,
        "potential_0": potential_0,
        "potential": potential,
        "density": density,
        "observe": observe,
    }
    return {**functions, "lookahead": lookahead} if looks_ahead else functions


def _proposals(block: MarkovBlock) -> tuple[Any, Any]:
    observed = bool(block.observed)
    return (block.initial_proposal, block.proposal) if observed else (None, None)


def _total(laws: dict[str, Any], x: Any) -> Any:
    """Joint log density of a state's components."""
    values = x if isinstance(x, dict) else {"": x}
    return sum(log_density(laws, values).values(), start=jnp.zeros(()))


def _where(condition: Any, a: Any, b: Any) -> Any:
    return jax.tree_util.tree_map(partial(jnp.where, condition), a, b)


_CACHE: OrderedDict[Any, _Made] = OrderedDict()
_CACHE_SIZE = 64


def state_space(
    bound: BoundModel, name: str | None = None, *, guided: bool = True, auxiliary: bool = True
) -> StateSpace:
    """The Feynman-Kac model of a Markov block.

    Args:
        bound: a model with data.
        name: of the block, where there are several.
        guided: draw from the block's ``proposal``, if it has one, rather than from its transition.
        auxiliary: use the block's ``lookahead``, if it has one.

    Returns:
        A state-space model whose parameters are constrained values of the other latent sites.

    Raises:
        CapabilityError: if the model has no Markov block, or something else in it depends on the path.
        ModelError: if the name is ambiguous or unknown.
    """
    made = _made(bound, name, guided, auxiliary)
    target = compile_model(bound)
    chain = FeynmanKac(
        initial=made.initial,
        transition=made.transition,
        log_potential=made.log_potential,
        num_steps=made.length,
        inputs=made.series(target.data),
        prepare=jax.tree_util.Partial(made.prepare, target.data),
        log_transition=made.log_transition,
        log_lookahead=made.log_lookahead if made.looks_ahead else None,
        laned=True,
    )
    return StateSpace(
        chain,
        made.states,
        made.observe,
        made.observed,
        made.name,
        tuple(made.states_of.values()),
        made.params,
        made.has_proposal,
    )


def _made(bound: BoundModel, name: str | None, guided: bool, auxiliary: bool) -> _Made:
    target = compile_model(bound)
    key = (target.functions, name, guided, auxiliary, str(jax.config.jax_default_prng_impl))
    if key not in _CACHE:
        _CACHE[key] = _Made(target, _block_name(target, name), guided, auxiliary)
        if len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(key)
    return _CACHE[key]


def _block_name(target: Target, name: str | None) -> str:
    with collect_blocks() as blocks:
        jax.eval_shape(
            lambda data: (
                capture.record(
                    target.functions.run(data),
                    key=jax.random.key(0),
                    substitute_fn=capture.unconstrained_prototype,
                )
                and 0
            ),
            target.data,
        )
    names = [b.name for b in blocks]
    if not names:
        raise CapabilityError(
            f"{target.sites.model} has no Markov chain to filter",
            expected="a model with mcx.markov(name, initial=..., transition=..., emission=..., obs=...)",
            remedy="write the series with mcx.markov; models without one are for mcx.infer",
        )
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ModelError(
            f"{target.sites.model} has several Markov chains" if name is None else "no such Markov chain",
            expected="one of " + ", ".join(names),
            found=repr(name),
            remedy=f"say which: name={names[0]!r}",
        )
    return name


def check_params(bound: BoundModel, space: StateSpace, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters as arrays, checked.

    Args:
        bound: the model.
        space: its state-space model.
        params: constrained values of the other latent sites, of the sites' shapes.

    Raises:
        ModelError: if one is missing, unknown or of the wrong shape.
        SupportError: if one lies outside of its site's support.
    """
    sites = compile_model(bound).sites
    given = dict(params or {})
    for name in (*space.params, *given):
        if name not in given or name not in space.params:
            known = name in space.params
            raise ModelError(
                "params= has no value for this site" if known else "params= names what is no parameter here",
                site=name,
                expected="values of " + (", ".join(space.params) or "nothing"),
                found=", ".join(given) or "nothing",
                remedy="give constrained values, for example {'phi': 0.9}, of every latent site but the path",
            )
    values = {}
    for name, value in given.items():
        site = sites[name]
        values[name] = jnp.asarray(value, site.dtype)
        if values[name].shape != site.shape:
            raise ModelError(
                "params= has the wrong shape",
                site=name,
                expected=str(site.shape),
                found=str(values[name].shape),
            )
    made: _Made = space.feynman_kac.initial.__self__  # type: ignore[attr-defined]
    data = compile_model(bound).data
    for name, inside in jax.device_get(made.valid(data, values)).items():
        if not inside:
            raise SupportError(
                "params= lies outside of the site's support",
                site=name,
                expected=sites[name].support,
                found=str(values[name]),
            )
    return values
