"""Compile a bound model to a :class:`~mcx.target.Target`.

The model's structure is read once, abstractly (no arithmetic runs); the functions close over nothing
but the program, and take the data as an argument.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.errors import CapabilityError, DuplicateSiteError, ModelError, SiteNameError
from mcx.model import capture
from mcx.model.bound import BoundModel
from mcx.model.sites import Site, SiteTable, constraint_name, distribution_name
from mcx.target import LogParts, Target, TargetFunctions

__all__ = [
    "capability_error",
    "compile_model",
    "log_density",
    "observed_values",
    "predict_once",
    "refuse_improper",
    "simulate",
]

_CACHE_SIZE = 128
_CACHE: OrderedDict[Any, Any] = OrderedDict()  # structure -> _Compiled, or _CONCRETE
_CONCRETE = object()  # marks structures whose model asks for concrete data

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
    closed: BoundModel | None  # data closed over, for models that need concrete values
    simulate: Callable[..., dict[str, Any]]
    log_joint: Callable[..., Any]
    observed: Callable[[Any], dict[str, Any]]


def compile_model(bound: BoundModel) -> Target:
    """Compile a bound model.

    Args:
        bound: the model with its data.

    Returns:
        A target; models of one structure share its functions, so programs built on them are reused.

    Raises:
        DuplicateSiteError, SiteNameError, ModelError: if the program cannot be a model.
    """
    compiled = _compiled(bound)
    # JAX arrays, so that programs may index data by traced values outside of jit and in closures, too
    data = () if compiled.closed is not None else jax.tree_util.tree_map(jnp.asarray, bound)
    return Target(data, compiled.functions, compiled.shapes, compiled.sites)


def _compiled(bound: BoundModel) -> _Compiled:
    structure = bound.structure
    entry = _cached(structure)
    if entry is None:
        try:
            return _remember(structure, _build(_describe(bound), None))
        except _NEEDS_CONCRETE:
            if any(isinstance(x, jax.core.Tracer) for x in bound.data):
                raise
            _remember(structure, _CONCRETE)
    elif isinstance(entry, _Compiled):
        return entry
    key = (structure, _digest(bound))
    entry = _cached(key)
    if isinstance(entry, _Compiled):
        return entry
    closed = jax.tree_util.tree_map(np.asarray, bound)  # operations on numpy arrays are not traced
    try:
        return _remember(key, _build(_describe(closed, concrete=True), closed))
    except _NEEDS_CONCRETE as error:
        raise ModelError(
            f"{bound.name} branches or indexes in Python on a value that is known only when it runs",
            expected="Python control flow on data, sizes and settings only",
            found=str(error).splitlines()[0],
            remedy="use jnp.where or jax.lax.cond; numpy operations (not jnp) on data keep them concrete",
        ) from error


def _cached(key: Any) -> Any:
    if key in _CACHE:
        _CACHE.move_to_end(key)
    return _CACHE.get(key)


def _remember(key: Any, entry: Any) -> Any:
    _CACHE[key] = entry
    if len(_CACHE) > _CACHE_SIZE:
        _CACHE.popitem(last=False)
    return entry


def _build(sites: SiteTable, closed: BoundModel | None) -> _Compiled:
    run = partial(_program, closed)
    return _Compiled(
        functions=_functions(run, sites),
        shapes=tuple((s.name, s.unconstrained_shape) for s in sites.of_kind("latent")),
        sites=sites,
        closed=closed,
        simulate=jax.jit(partial(_simulate, run)),
        log_joint=jax.jit(partial(_log_joint, run)),
        observed=jax.jit(partial(_observed, run, frozenset(s.name for s in sites.of_kind("observed")))),
    )


def _digest(bound: BoundModel) -> str:
    digest = hashlib.sha256()
    for x in bound.data:
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()


def _program(closed: BoundModel | None, data: Any) -> Callable[[], Any]:
    return data.run if closed is None else closed.run


# --- structure -------------------------------------------------------------------------------------


def _describe(bound: BoundModel, concrete: bool = False) -> SiteTable:
    """Read the sites of a model without running its arithmetic."""
    found: list[Site] = []

    def run(data: Any) -> None:
        recorder = capture.record(
            (bound if concrete else data).run,
            key=jax.random.key(0),
            substitute_fn=capture.unconstrained_prototype,
        )
        if recorder.clashes:
            raise SiteNameError(
                "the name is also that of a plate, which is a dimension of the results",
                site=recorder.clashes[0],
                remedy="rename the site or the plate",
            )
        if recorder.duplicates:
            name = recorder.duplicates[0]
            raise DuplicateSiteError(
                "the name is used twice",
                site=name,
                expected="a name of its own for every site",
                remedy=f"rename one of them, or run the part that repeats as a submodel: "
                f"mcx.sample('a', part.bind(...)) makes it 'a.{name}'",
            )
        for msg in recorder.sites.values():
            site = _site(msg)
            if site is not None:
                found.append(site)

    jax.eval_shape(run, () if concrete else bound)
    return SiteTable(tuple(found), bound.name)


def _site(msg: dict[str, Any]) -> Site | None:
    kind, name = msg["type"], msg["name"]
    if kind == "plate":
        size, subsample = msg["args"][0], msg["args"][1]
        subsample = None if subsample in (None, size) else int(subsample)
        return Site(name, "plate", size=int(size), subsample_size=subsample)
    if kind == "deterministic":
        value = msg["value"]
        shape = jnp.shape(value)
        plates = _plates(msg)
        return Site(
            name,
            "deterministic",
            shape=shape,
            dtype=_dtype(value),
            plates=plates,
            dims=_dims(name, shape, len(shape), plates),
        )
    if kind == "param":
        return Site(name, "param", shape=jnp.shape(msg["value"]) if msg["value"] is not None else ())
    if kind != "sample":
        return None
    return _sample_site(msg)


def _sample_site(msg: dict[str, Any]) -> Site:
    name, fn, value = msg["name"], msg["fn"], msg["value"]
    batch, event, shape = tuple(fn.batch_shape), tuple(fn.event_shape), tuple(jnp.shape(value))
    plates, weighted = _plates(msg), _weighted(msg)
    if capture.is_factor(msg):
        prior = msg["infer"].get("mcx_kind") == "prior"
        terms = 0 if prior else math.prod(batch)
        return Site(
            name,
            "factor",
            "factor",
            batch,
            dtype=_dtype(fn.log_prob(value)),
            dims=_dims(name, batch, len(batch), plates),
            num_terms=terms,
            likelihood=not prior,
            weighted=weighted,
            plates=plates,
        )
    common: dict[str, Any] = {
        "distribution": distribution_name(fn),
        "batch_shape": batch,
        "event_shape": event,
        "shape": shape,
        "dtype": _dtype(value),
        "support": constraint_name(fn.support),
        "dims": _dims(name, shape, len(shape) - len(event), plates),
        "discrete_support": fn.support is not None and bool(fn.support.is_discrete),
        "plates": plates,
        "weighted": weighted,
    }
    if msg["is_observed"]:
        terms = _terms_shape(name, fn, value)
        return Site(
            name, "observed", **common, num_terms=math.prod(terms), likelihood=True, terms_shape=terms
        )
    support = fn.support
    if support is None or support.is_discrete:
        return Site(name, "discrete", **common)
    unconstrained = jnp.shape(dist.biject_to(support).inv(value))
    return Site(name, "latent", **common, unconstrained_shape=unconstrained, improper=capture.is_improper(fn))


def _terms_shape(name: str, fn: Any, value: Any) -> tuple[int, ...]:
    try:
        return tuple(jnp.shape(fn.log_prob(value)))
    except (TypeError, ValueError) as error:
        raise ModelError(
            "the observed value does not fit the distribution",
            site=name,
            expected=f"batch shape {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}",
            found=f"shape {tuple(jnp.shape(value))}",
            remedy="check the plate sizes and the shape of the data",
        ) from error


def _weighted(msg: Mapping[str, Any]) -> bool:
    fn, scale = msg["fn"], msg["scale"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    constant_one = isinstance(scale, int | float) and scale == 1
    return isinstance(fn, dist.MaskedDistribution) or not (scale is None or constant_one)


def _plates(msg: Mapping[str, Any]) -> tuple[tuple[str, int, int], ...]:
    frames = msg.get("cond_indep_stack") or ()
    return tuple((f.name, f.dim, f.size) for f in frames)


def _dims(
    name: str, shape: tuple[int, ...], batch_ndim: int, plates: tuple[tuple[str, int, int], ...]
) -> tuple[str, ...]:
    by_axis = {batch_ndim + dim: (plate, size) for plate, dim, size in plates}
    dims = []
    for axis, length in enumerate(shape):
        plate, size = by_axis.get(axis, ("", -1))
        dims.append(plate if size == length else f"{name}_dim_{axis}")
    return tuple(dims)


def _dtype(value: Any) -> str:
    return jnp.result_type(value).name


# --- functions of (data, z) ------------------------------------------------------------------------


def _functions(run: Callable[[Any], Callable[[], Any]], sites: SiteTable) -> TargetFunctions:
    latent = tuple(s.name for s in sites.of_kind("latent"))
    refuse = capability_error(sites)

    def replayed(data: Any, z: Any) -> capture.SiteTrace:
        if refuse is not None:
            raise refuse
        return capture.replay(run(data), z)

    def in_prior(site: Mapping[str, Any]) -> bool:
        return (
            not site["is_observed"]
            or capture.is_jacobian(site)
            or (site["infer"].get("mcx_kind") == "prior" and capture.is_factor(site))
        )

    def log_parts(data: Any, z: Any) -> LogParts:
        prior: list[Any] = []
        likelihood: list[Any] = []
        for site in _samples(replayed(data, z)):
            (prior if in_prior(site) else likelihood).append(jnp.sum(_log_prob(site)))
        return LogParts(_total(prior), _total(likelihood))

    def constrain(data: Any, z: Any) -> dict[str, Any]:
        trace = replayed(data, z)
        kept = {*latent, *(s.name for s in sites.of_kind("deterministic"))}
        return {name: jnp.asarray(trace[name]["value"]) for name in trace if name in kept}

    def unconstrain(data: Any, values: Any) -> dict[str, Any]:
        recorder = capture.record(run(data), values=values)
        return {
            name: dist.biject_to(recorder.sites[name]["fn"].support).inv(recorder.sites[name]["value"])
            for name in latent
        }

    def pointwise(data: Any, z: Any) -> dict[str, Any]:
        return {s["name"]: _log_prob(s) for s in _samples(replayed(data, z)) if not in_prior(s)}

    def prior_terms(data: Any, z: Any) -> dict[str, Any]:
        terms = (s for s in _samples(replayed(data, z)) if in_prior(s) and not capture.is_jacobian(s))
        return {s["name"]: _log_prob(s) for s in terms}

    def sample_prior(data: Any, key: Any) -> dict[str, Any]:
        recorder = capture.record(run(data), key=key)
        return {
            name: dist.biject_to(recorder.sites[name]["fn"].support).inv(recorder.sites[name]["value"])
            for name in latent
        }

    proper = not any(
        s.improper or (s.kind == "latent" and s.weighted) or (s.kind == "factor" and not s.likelihood)
        for s in sites
    )
    return TargetFunctions(
        log_parts, constrain, unconstrain, pointwise, prior_terms, replayed, sample_prior if proper else None
    )


def _samples(trace: capture.SiteTrace) -> list[dict[str, Any]]:
    return [site for site in trace.values() if site["type"] == "sample"]


def _log_prob(site: Mapping[str, Any]) -> Any:
    fn, value, scale = site["fn"], site["value"], site["scale"]
    intermediates = site["intermediates"]
    log_prob = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    return log_prob if scale is None else scale * log_prob


def _total(terms: list[Any]) -> Any:
    return sum(terms, start=jnp.zeros(()))


def capability_error(sites: SiteTable) -> CapabilityError | None:
    """What stops a density on continuous space, if anything does."""
    for site in sites:
        if site.kind == "discrete" and not site.discrete_support:
            return CapabilityError(
                f"{site.distribution} declares no support, so nothing maps its values to unconstrained space",
                site=site.name,
                remedy="set the distribution's `support`, for example constraints.real",
            )
        if site.kind == "discrete":
            return CapabilityError(
                f"a discrete latent variable ({site.distribution}) has no density on unconstrained space",
                site=site.name,
                remedy="sum it out (for mixtures: dist.MixtureSameFamily); simulate, predict and "
                "log_density take discrete sites as they are, gradient-based methods do not",
            )
        if site.subsample_size is not None:
            return _subsampled(site)
    return None


def _subsampled(site: Site) -> CapabilityError:
    return CapabilityError(
        f"the plate takes {site.subsample_size} of {site.size} items at random, so the density is random",
        site=site.name,
        expected="the full plate: MCMC and SMC methods score every observation",
        remedy="drop subsample_size=; for minibatches use numpyro.infer.HMCECS or SVI",
    )


# --- whole-model verbs -----------------------------------------------------------------------------


def _data(bound: BoundModel, compiled: _Compiled) -> Any:
    return () if compiled.closed is not None else bound


def _simulate(run: Callable[[Any], Any], data: Any, key: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    recorder = capture.record(run(data), key=key, values=values, resample_observed=True)
    return {
        name: jnp.asarray(s["value"])
        for name, s in recorder.sites.items()
        if s["type"] == "deterministic" or (s["type"] == "sample" and not capture.is_factor(s))
    }


def predict_once(bound: BoundModel) -> Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]:
    """``(data, key, values) -> sites``: run forwards from given latent values; pure and jittable."""
    return _compiled(bound).simulate


def simulate(bound: BoundModel, key: jax.Array) -> dict[str, jax.Array]:
    """Draw every site of a model from its prior. See :meth:`BoundModel.simulate`."""
    compiled = _compiled(bound)
    refuse_improper(compiled.sites, "simulate")
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


def _log_joint(run: Callable[[Any], Any], data: Any, values: Mapping[str, Any]) -> Any:
    recorder = capture.record(run(data), values=values)
    return _total([jnp.sum(_log_prob(s)) for s in _samples(recorder.sites)])


def log_density(bound: BoundModel, values: Mapping[str, Any]) -> jax.Array:
    """Log joint density at constrained values. See :meth:`BoundModel.log_density`."""
    compiled = _compiled(bound)
    for site in compiled.sites.of_kind("plate"):
        if site.subsample_size is not None:
            raise _subsampled(site)
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
    return compiled.log_joint(_data(bound, compiled), dict(values))


def observed_values(bound: BoundModel) -> dict[str, Any]:
    """Values of the observed sites, as the model sees them."""
    compiled = _compiled(bound)
    found = compiled.observed(_data(bound, compiled))
    return {s.name: found[s.name] for s in compiled.sites if s.name in found}


def _observed(run: Callable[[Any], Any], names: frozenset[str], data: Any) -> dict[str, Any]:
    recorder = capture.record(run(data), key=jax.random.key(0), substitute_fn=capture.unconstrained_prototype)
    return {name: jnp.asarray(recorder.sites[name]["value"]) for name in names}
