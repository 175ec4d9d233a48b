"""The sites of a program, read from one abstract run in which nothing is computed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import Distribution

from mcx.errors import DuplicateSiteError, ModelError, SiteNameError
from mcx.model import capture
from mcx.model.bijections import bijection
from mcx.model.capture import Message
from mcx.model.imputation import observed_part
from mcx.model.path_law import Emission, PathComponent
from mcx.model.program import BoundProgram
from mcx.sites import Site, SiteTable
from mcx.types import PyTree


def describe(bound: BoundProgram, concrete: bool = False) -> SiteTable:
    """Read the sites of a model without running its arithmetic; ``concrete`` closes over its data.

    Raises DuplicateSiteError, SiteNameError or ModelError if the program cannot be a model.
    """
    found: list[Site] = []
    asked = False

    def run(data: PyTree) -> None:
        nonlocal asked
        recorder = capture.record(
            (bound if concrete else data).run,
            key=jax.random.key(0),
            substitute_fn=capture.unconstrained_prototype,
        )
        asked = recorder.asks_for_key
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
        for name, msg in recorder.sites.items():
            site = _site(msg)
            if site is not None and site.kind == "latent":
                site = replace(site, imputed=observed_part(msg, recorder.sites) is not None)
            if site is not None:
                found.append(replace(site, scanned=name in recorder.scanned))

    jax.eval_shape(run, () if concrete else bound)
    return SiteTable(_with_time(found), bound.name, fixed_key=asked)


def _with_time(sites: list[Site]) -> tuple[Site, ...]:
    """Name the time axis of Markov blocks and scans "time"; a second length is named after its site."""
    lengths: dict[int, str] = {}
    named = []
    for site in sites:
        if (site.markov or site.scanned) and site.shape:
            name = "time" if not lengths else f"{site.name}_time"
            site = replace(site, dims=(lengths.setdefault(site.shape[0], name), *site.dims[1:]))
        named.append(site)
    return tuple(named)


def _site(msg: Message) -> Site | None:
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
        leaves = jax.tree_util.tree_leaves(msg["value"])
        return Site(name, "param", shape=jnp.shape(leaves[0]) if len(leaves) == 1 else ())
    if kind != "sample":
        return None
    return _sample_site(msg)


def _sample_site(msg: Message) -> Site:
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
    if capture.is_fixed(msg):
        dims = _dims(name, shape, len(shape) - len(event), plates)
        return Site(name, "deterministic", shape=shape, dtype=_dtype(value), plates=plates, dims=dims)
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
        "markov": isinstance(fn, PathComponent | Emission),
        "emitted": isinstance(fn, Emission),
        "no_density": getattr(capture.unwrapped(fn), "no_density", ""),
        "diffusion": getattr(capture.unwrapped(fn), "is_diffusion", False),
    }
    if msg["is_observed"]:
        terms = batch if common["no_density"] else _terms_shape(name, fn, value)
        return Site(
            name, "observed", **common, num_terms=math.prod(terms), likelihood=True, terms_shape=terms
        )
    support = fn.support
    if support is None or support.is_discrete:
        return Site(name, "discrete", **common)
    unconstrained = jnp.shape(bijection(support).inv(value))
    return Site(name, "latent", **common, unconstrained_shape=unconstrained, improper=capture.is_improper(fn))


def _terms_shape(name: str, fn: Distribution, value: Array) -> tuple[int, ...]:
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


def _weighted(msg: Message) -> bool:
    fn, scale = msg["fn"], msg["scale"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    constant_one = isinstance(scale, int | float) and scale == 1
    return isinstance(fn, dist.MaskedDistribution) or not (scale is None or constant_one)


def _plates(msg: Message) -> tuple[tuple[str, int, int], ...]:
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


def _dtype(value: Array) -> str:
    return jnp.result_type(value).name


def distribution_name(fn: Distribution) -> str:
    """Readable name of a distribution, wrappers peeled off."""
    if isinstance(fn, PathComponent):
        return f"Markov({distribution_name(fn.law.start[fn.component])})"
    return type(capture.unwrapped(fn.first if isinstance(fn, Emission) else fn)).__name__


def constraint_name(constraint: Any) -> str:
    """Readable name of a constraint; bounds are shown where they are plain numbers."""
    if constraint is None:
        return "none"
    if isinstance(constraint, dist.constraints.independent):
        return constraint_name(constraint.base_constraint)
    name = type(constraint).__name__.lstrip("_")
    text = "".join(("_" + c.lower()) if c.isupper() and i else c.lower() for i, c in enumerate(name))
    ends = ("lower_bound", "upper_bound")
    bounds = [_number(getattr(constraint, end)) for end in ends if hasattr(constraint, end)]
    return f"{text}({', '.join(bounds)})" if bounds else text


def _number(value: Array) -> str:
    if isinstance(value, jax.core.Tracer) or jnp.ndim(value):
        return "..."
    return f"{np.asarray(value).item():g}"
