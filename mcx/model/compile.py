"""Compile a bound model to a :class:`~mcx.target.Target`: its structure is read once, abstractly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.errors import CapabilityError, ModelError
from mcx.model import capture
from mcx.model.capture import Message
from mcx.model.density import (
    complete,
    density_error,
    leaks_explained,
    sample_sites,
    site_log_prob,
    subsampling_error,
    target_functions,
    total,
)
from mcx.model.describe import describe
from mcx.model.discrete_marginal import marginal_functions
from mcx.model.discrete_plan import DiscretePlan, discrete_plan
from mcx.model.program import BoundProgram
from mcx.ops.arrays import numbers_of
from mcx.ops.fingerprint import of_code
from mcx.ops.fork import refuse_fork
from mcx.ops.lru_cache import LRUCache
from mcx.sites import SiteTable
from mcx.target import Target, TargetFunctions
from mcx.types import Key, PyTree, Scalar, SiteValues

_NEEDS_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@dataclass(frozen=True, eq=False)
class _Compiled:
    functions: TargetFunctions
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    sites: SiteTable
    closed: BoundProgram | None  # data closed over, for models that need concrete values
    simulate: Callable[..., dict[str, Any]]
    log_joint: Callable[..., Any]
    observed: Callable[[Any], dict[str, Any]]


_BY_STRUCTURE: LRUCache[_Compiled | None] = LRUCache(64)  # None where the model asks for concrete data
_BY_DATA: LRUCache[_Compiled] = LRUCache(64)


def compile_model(bound: BoundProgram) -> Target:
    """Compile a bound model, raising as :func:`describe`; models of one structure share their functions."""
    compiled = _compiled(bound)
    # JAX arrays, so that programs may index data by traced values, outside of jit and in closures too
    data = () if compiled.closed is not None else jax.tree_util.tree_map(jnp.asarray, bound)
    return Target(data, compiled.functions, compiled.shapes, compiled.sites)


def model_sites(bound: BoundProgram) -> SiteTable:
    """The sites of a bound model: :func:`compile_model` without moving its data to the device."""
    return _compiled(bound).sites


def _compiled(bound: BoundProgram) -> _Compiled:
    refuse_fork()
    with leaks_explained(bound.name):
        return _found(bound)


def _found(bound: BoundProgram) -> _Compiled:
    structure = bound.structure
    shared = _BY_STRUCTURE.get(structure, lambda: _build_abstract(bound))
    if shared is not None:
        return shared
    digest = hashlib.sha256()
    for x in bound.data:
        digest.update(np.asarray(x).tobytes())
    return _BY_DATA.get((structure, digest.hexdigest()), lambda: _build_concrete(bound))


def _build_abstract(bound: BoundProgram) -> _Compiled | None:
    """A model that takes its data as arguments; None if it asks for their values while it is traced."""
    try:
        return _build(describe(bound), None, bound)
    except _NEEDS_CONCRETE:
        if any(isinstance(x, jax.core.Tracer) for x in bound.data):
            raise
        return None


def _build_concrete(bound: BoundProgram) -> _Compiled:
    closed = jax.tree_util.tree_map(np.asarray, bound)  # operations on numpy arrays are not traced
    try:
        return _build(describe(closed, concrete=True), closed, ())
    except _NEEDS_CONCRETE as error:
        raise ModelError(
            f"{bound.name} branches or indexes in Python on a value that is known only when it runs",
            expected="Python control flow on data, sizes and settings only",
            found=str(error).splitlines()[0],
            remedy="use jnp.where or jax.lax.cond; numpy operations (not jnp) on data keep them concrete",
        ) from error


def _build(sites: SiteTable, closed: BoundProgram | None, data: PyTree) -> _Compiled:
    run = partial(_program, closed)
    concrete = not any(isinstance(x, jax.core.Tracer) for x in jax.tree_util.tree_leaves(data))
    plan = discrete_plan(run, data, sites, concrete)
    if isinstance(plan, DiscretePlan):
        sites = sites.updated({n: {"num_values": v.num_values} for n, v in plan.variables.items()})
    elif plan is not None:
        sites = sites.updated({}, refusal=plan)
    functions = target_functions(run, sites)
    if isinstance(plan, DiscretePlan):
        functions = marginal_functions(functions, run, sites, plan)
    return _Compiled(
        functions=functions,
        shapes=tuple((s.name, s.unconstrained_shape) for s in sites.of_kind("latent")),
        sites=sites,
        closed=closed,
        simulate=jax.jit(partial(_simulate, run, sites)),
        log_joint=jax.jit(partial(_log_joint, run, sites)),
        observed=jax.jit(partial(_observed, run, sites)),
    )


def _program(closed: BoundProgram | None, data: PyTree) -> Callable[[], Any]:
    return data.run if closed is None else closed.run


def _data(bound: BoundProgram, compiled: _Compiled) -> PyTree:
    return () if compiled.closed is not None else bound


def _simulate(
    run: Callable[[Any], Any], sites: SiteTable, data: PyTree, key: Key, values: SiteValues
) -> dict[str, Array]:
    recorder = capture.record(run(data), key=key, values=values, resample_observed=True)
    return {
        name: jnp.asarray(s["value"])
        for name, s in complete(recorder.sites, sites).items()
        if s["type"] == "deterministic" or (s["type"] == "sample" and not capture.is_factor(s))
    }


def predict_once(bound: BoundProgram) -> Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]:
    """``(data, key, values) -> sites``: run forwards from values of latent sites; pure and jittable."""
    return _compiled(bound).simulate


def simulate(bound: BoundProgram, key: jax.Array) -> dict[str, jax.Array]:
    """Draw every site of a model from its prior. See :meth:`BoundModel.simulate`."""
    compiled = _compiled(bound)
    refuse_improper(compiled.sites, "simulate")
    with leaks_explained(bound.name):
        return compiled.simulate(_data(bound, compiled), key, {})


def refuse_improper(sites: SiteTable, verb: str) -> None:
    """Raise if a site has no proper prior to draw from."""
    for site in sites:
        if site.improper:
            raise CapabilityError(
                f"{verb} draws from the prior, and this site's is improper",
                site=site.name,
                remedy="give the site a proper prior, or a value: model.condition({...})",
            )


def _log_joint(run: Callable[[Any], Any], sites: SiteTable, data: PyTree, values: SiteValues) -> Scalar:
    recorder = capture.record(run(data), values=values)
    return total([jnp.sum(_term(s)) for s in sample_sites(complete(recorder.sites, sites))])


def _term(site: Message) -> Array:
    """Log density of a site; where it has none, the number that stands in for it."""
    fn = capture.unwrapped(site["fn"])
    return fn.stand_in(site["value"]) if getattr(fn, "no_density", "") else site_log_prob(site)


def log_density(bound: BoundProgram, values: SiteValues) -> jax.Array:
    """Log joint density at constrained values. See :meth:`BoundModel.log_density`."""
    compiled = _compiled(bound)
    for site in compiled.sites.of_kind("plate"):
        if site.subsample_size is not None:
            raise subsampling_error(site)
    if unfit := density_error(compiled.sites):
        raise unfit
    numbers = numbers_by_site("log_density(values)", values)
    latent = [s.name for s in compiled.sites.of_kind("latent", "discrete")]
    missing = [name for name in latent if name not in values]
    unknown = [name for name in values if name not in latent]
    if missing or unknown:
        raise ModelError(
            "log_density needs a value for every latent site and for no other",
            site=(missing + unknown)[0],
            expected="values of " + ", ".join(latent),
            found="values of " + (", ".join(values) or "nothing"),
        )
    for name, value in numbers.items():
        wanted = compiled.sites[name].shape
        if jnp.shape(value) != wanted:
            raise ModelError(
                "the value does not have the shape of the site",
                site=name,
                expected=f"shape {wanted}",
                found=f"shape {jnp.shape(value)}",
            )
    with leaks_explained(bound.name):
        return compiled.log_joint(_data(bound, compiled), numbers)


def numbers_by_site(argument: str, values: object) -> dict[str, Any]:
    """Arrays by site from what a user gave; raises ModelError or DataError by the names of both."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ModelError(
            f"{argument} takes values by the names of sites",
            expected="a dictionary, {'mu': 0.5}",
            found=f"a {type(values).__name__}",
        )
    what = f"{argument} has no numbers for this site"
    return {name: numbers_of(x, what, site=name) for name, x in values.items()}


def fingerprint_model(bound: BoundProgram) -> str:
    """SHA-256 of a model's log density as a function of its sites: operations and constants, not data."""
    compiled = _compiled(bound)
    values = {
        s.name: jax.ShapeDtypeStruct(s.shape, s.dtype) for s in compiled.sites.of_kind("latent", "discrete")
    }
    return of_code(jax.make_jaxpr(compiled.log_joint)(_data(bound, compiled), values))


def observed_values(bound: BoundProgram) -> dict[str, Array]:
    """Values of the observed sites by name, with the shapes that the model gives them."""
    compiled = _compiled(bound)
    with leaks_explained(bound.name):
        found = compiled.observed(_data(bound, compiled))
    return {s.name: found[s.name] for s in compiled.sites if s.name in found}


def _observed(run: Callable[[Any], Any], sites: SiteTable, data: PyTree) -> dict[str, Array]:
    recorder = capture.record(run(data), key=jax.random.key(0), substitute_fn=capture.unconstrained_prototype)
    trace = complete(recorder.sites, sites)
    return {s.name: jnp.asarray(trace[s.name]["value"]) for s in sites.of_kind("observed")}
