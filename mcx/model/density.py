"""Densities and transforms of a program, as pure functions of ``(data, z)``."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mcx.errors import CapabilityError, ModelError
from mcx.model import capture
from mcx.model.bijections import bijection
from mcx.model.capture import Message
from mcx.model.imputation import draw_unused, without_gaps
from mcx.model.replay import replay
from mcx.model.support import log_prob_in_support
from mcx.sites import Site, SiteTable
from mcx.target import LogParts, TargetFunctions
from mcx.types import Key, PyTree, Scalar


def target_functions(
    run: Callable[[Any], Callable[[], Any]], sites: SiteTable, hidden: Collection[str] = ()
) -> TargetFunctions:
    """Densities and transforms of ``run(data)``, a program with these sites, of which it hides some."""
    latent = tuple(s.name for s in sites.of_kind("latent"))
    imputed = tuple(s.name for s in sites.of_kind("latent") if s.imputed)
    refuse, no_density = space_error(sites), density_error(sites)

    def replayed(data: PyTree, z: PyTree) -> capture.SiteTrace:
        if refuse is not None:
            raise refuse
        return complete(replay(run(data), z), sites, hidden)

    def with_densities(data: PyTree, z: PyTree) -> capture.SiteTrace:
        if refuse is None and no_density is not None:
            raise no_density
        return replayed(data, z)

    def in_prior(site: Message) -> bool:
        return (
            not site["is_observed"]
            or capture.is_jacobian(site)
            or (site["infer"].get("mcx_kind") == "prior" and capture.is_factor(site))
        )

    def log_parts(data: PyTree, z: PyTree) -> LogParts:
        prior: list[Any] = []
        likelihood: list[Any] = []
        for site in sample_sites(with_densities(data, z)):
            (prior if in_prior(site) else likelihood).append(jnp.sum(site_log_prob(site)))
        return LogParts(total(prior), total(likelihood))

    def constrain(data: PyTree, z: PyTree) -> dict[str, Array]:
        trace = replayed(data, z)
        kept = {*latent, *(s.name for s in sites.of_kind("deterministic"))}
        return {name: jnp.asarray(trace[name]["value"]) for name in trace if name in kept}

    def inverted(trace: capture.SiteTrace) -> dict[str, Array]:
        return {n: bijection(trace[n]["fn"].support).inv(trace[n]["value"]) for n in latent}

    def unconstrain(data: PyTree, values: PyTree) -> dict[str, Array]:
        return inverted(complete(capture.record(run(data), values=values).sites, sites, hidden))

    def pointwise(data: PyTree, z: PyTree) -> dict[str, Array]:
        return {s["name"]: site_log_prob(s) for s in sample_sites(replayed(data, z)) if not in_prior(s)}

    def prior_terms(data: PyTree, z: PyTree) -> dict[str, Array]:
        trace = with_densities(data, z)
        terms = (s for s in sample_sites(trace) if in_prior(s) and not capture.is_jacobian(s))
        return {s["name"]: site_log_prob(s) for s in terms}

    def sample_prior(data: PyTree, key: Key) -> dict[str, Array]:
        trace = complete(capture.record(run(data), key=key).sites, sites, hidden)
        z = inverted(trace)
        for name in imputed:
            z[name] = draw_unused(
                trace[name]["fn"], z[name], jax.random.fold_in(key, zlib.crc32(name.encode()))
            )
        return z

    proper = not any(
        s.improper
        or (s.kind == "latent" and s.weighted and not s.imputed)
        or (s.kind == "factor" and not s.likelihood)
        for s in sites
    )
    return TargetFunctions(
        run,
        log_parts,
        constrain,
        unconstrain,
        pointwise,
        prior_terms,
        replayed,
        sample_prior if proper else None,
    )


def complete(trace: capture.SiteTrace, sites: SiteTable, hidden: Collection[str] = ()) -> capture.SiteTrace:
    """The recorded sites; raises ModelError if one is not there that was there when the model was read."""
    for site in sites:
        if site.kind not in ("plate", "param") and site.name not in trace and site.name not in hidden:
            raise unseen(sites.model, site.name)
    return trace


def unseen(model: str, site: str | None = None) -> ModelError:
    """The error about a model whose statements are hidden by a compiled function, or differ between runs."""
    return ModelError(
        f"{model} is not the same program whenever it runs: a statement was there when the model was read, "
        "and is not any more"
        if site is not None
        else f"{model} has statements whose values stay within a compiled function",
        site=site,
        expected="sample statements outside of jax.jit, jax.lax.scan, jax.vmap and the like, in every run",
        remedy="take jax.jit off the function that holds them: mcx compiles the whole model; "
        "for loops use numpyro.contrib.control_flow.scan",
    )


@contextmanager
def leaks_explained(model: str) -> Iterator[None]:
    """Turn JAX's error about values that leave a compiled function into one about the model."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise unseen(model) from error


def sample_sites(trace: capture.SiteTrace) -> list[Message]:
    """The sample sites of a recorded run, factors included."""
    return [site for site in trace.values() if site["type"] == "sample"]


def site_log_prob(site: Message) -> Array:
    """Log density of a recorded site, one entry an independent draw; its scale is applied."""
    fn, value, scale = site["fn"], site["value"], site["scale"]
    if site["is_observed"]:
        value = without_gaps(fn, value)
    intermediates = site["intermediates"]
    log_prob = log_prob_in_support(fn, value, *([intermediates] if intermediates else []))
    return log_prob if scale is None else scale * log_prob


def total(terms: list[Any]) -> Scalar:
    """Sum of scalars; zero where there are none."""
    return sum(terms, start=jnp.zeros(()))


def capability_error(sites: SiteTable) -> CapabilityError | None:
    """The reason why there is no density on continuous space, or None."""
    return space_error(sites) or density_error(sites)


def density_error(sites: SiteTable) -> CapabilityError | None:
    """The reason why there is no joint density, that is a site without one, or None."""
    for site in sites:
        if site.no_density and site.observed:
            return CapabilityError(
                f"an observed {site.distribution} has to have a density, and {site.no_density}",
                site=site.name,
                remedy="observe what depends on the site, with noise: mcx.sample('y', dist.Normal(x, 0.01), "
                "obs=...)",
            )
        if site.no_density:
            return CapabilityError(
                f"a {site.distribution} without a density: {site.no_density}",
                site=site.name,
                expected="a method that needs none",
                remedy="mcx.infer(..., mcx.GuidedDiffusion(), ...); gradient methods need a diffusion model "
                "with a density, such as mcx.diffusion.GaussianMixture or Score(..., kind='energy')",
            )
    return None


def space_error(sites: SiteTable) -> CapabilityError | None:
    """The reason why continuous space does not map to the sites' values, or None."""
    for site in sites:
        if site.num_values:
            continue
        if site.kind == "discrete" and not site.discrete_support:
            return CapabilityError(
                f"{site.distribution} declares no support, so nothing maps its values to unconstrained space",
                site=site.name,
                remedy="set the distribution's `support`, for example constraints.real",
            )
        if site.kind == "discrete" and isinstance(sites.refusal, CapabilityError):
            return sites.refusal
        if site.kind == "discrete":
            return CapabilityError(
                f"a discrete latent variable ({site.distribution}) has no density on unconstrained space",
                site=site.name,
                remedy="sum it out (for mixtures: dist.MixtureSameFamily); simulate, predict and "
                "log_density take discrete sites as they are, gradient-based methods do not",
            )
        if site.subsample_size is not None:
            return subsampling_error(site)
    return None


def subsampling_error(site: Site) -> CapabilityError:
    """The error about a plate that takes a random part of its items."""
    return CapabilityError(
        f"the plate takes {site.subsample_size} of {site.size} items at random, so the density is random",
        site=site.name,
        expected="the full plate: MCMC and SMC methods score every observation",
        remedy="drop subsample_size=; for minibatches use numpyro.infer.HMCECS or SVI",
    )
