"""The posterior of a site with a diffusion prior: which site it is, and its reverse process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from numpyro.ops.provenance import eval_provenance

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.guided.calibration import Guidance, GuidedData, calibrate
from mcx.inference.diffusion.guided.likelihood_kind import LikelihoodKind, likelihood_kind
from mcx.inference.diffusion.models.converted_process import closure_converted
from mcx.inference.diffusion.models.reverse_process import ReverseProcess
from mcx.model import capture
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_observations, static_problems
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.density import space_error
from mcx.ops.keys import Stream, stream
from mcx.ops.lru_cache import LRUCache
from mcx.sites import Site
from mcx.target import Target, TargetFunctions
from mcx.types import Array, Float, Key, PyTree, Scalar, SiteValues

_DEPENDENCIES: LRUCache[list[str]] = LRUCache()


@dataclass(frozen=True)
class DiffusionPosterior:
    """The posterior of a model with a diffusion prior.

    Attributes:
        process: the prior's reverse process.
        num_reverse_steps: of the process, if not at the prior's own levels.
        rest: the posterior of the other latent sites given the one with the diffusion prior; None if there
            are no others.
    """

    target: Target
    process: ReverseProcess
    guidance: Guidance
    num_reverse_steps: int | None
    rest: Target | None

    @property
    def site(self) -> str:
        """Name of the site with the diffusion prior."""
        return self.guidance.name

    def at(self, bound: BoundModel) -> Self:
        """The same for other data of the same structure. Checks nothing; may be traced."""
        target = compile_model(bound)
        process = _prior_process(target.functions, self.site, target.data, self.num_reverse_steps)
        rest = None if self.rest is None else self.rest.with_data((target.data, self.rest.data[1]))
        return replace(self, target=target, process=process, rest=rest)

    def pilot(self, key: Key) -> GuidedData:
        """The data of guided particles, from a pilot run at some values of other sites; may be traced."""
        pilot_key = stream(key, Stream.PILOT)
        return calibrate(self.guidance, self.target.data, self.process, pilot_key, _some_values(self.rest))


def diffusion_posterior(
    bound: BoundModel,
    guidance: Callable[[Target, str, LikelihoodKind], Guidance],
    num_reverse_steps: int | None,
    *,
    with_params: bool,
) -> DiffusionPosterior:
    """The posterior that is to be drawn from, ``with_params`` with other latent sites.

    ``guidance(target, site, likelihood_kind)`` raises if the likelihood does not admit it. Raises
    CapabilityError if there is not exactly one site with a diffusion prior, if that depends on other sites,
    or if there are other sites that the method does not draw; MethodError if there are none for a method that
    draws them; DataError or SupportError if observations cannot be used as they are.
    """
    target = compile_model(bound)
    for problem in static_problems(target.sites):
        raise problem
    if unfit := space_error(target.sites):
        raise unfit
    site = _diffusion_site(target, with_params)
    process = _prior_process(target.functions, site.name, target.data, num_reverse_steps)
    rest = condition_target(target, (site.name,), (site.name,)) if with_params else None
    if rest is not None:
        _refuse_dependent(target, site.name, rest)
    centre, spread = _scale(process)
    if rest is None:
        refuse_observations(target, jnp.ravel(centre)[None])
    kind = likelihood_kind(target, site.name, centre, spread, _some_values(rest))
    return DiffusionPosterior(target, process, guidance(target, site.name, kind), num_reverse_steps, rest)


def _diffusion_site(target: Target, with_params: bool) -> Site:
    """The site with the diffusion prior; raises unless there is exactly one."""
    sites = target.sites
    latent = sites.of_kind("latent", "discrete")
    found = [s for s in latent if s.diffusion]
    if not found:
        raise CapabilityError(
            f"{sites.model} has no diffusion prior that particles could go down along",
            expected="a latent site mcx.sample(name, mcx.ScorePrior(...))",
            remedy="mcx.NUTS() or mcx.TemperedSMC() for models without one",
        )
    if len(found) > 1:
        raise CapabilityError(
            "several sites have diffusion priors of their own: " + ", ".join(s.name for s in found),
            site=found[1].name,
            expected="one, or one in a plate",
            remedy="a product of models for one site is one prior: ScorePrior(a) * ScorePrior(b)",
        )
    others = [s.name for s in latent if not s.diffusion]
    if others and not with_params:
        raise CapabilityError(
            "the model has other latent sites than the one with the diffusion prior",
            site=others[0],
            found=", ".join(others),
            remedy="mcx.GuidedGibbs(params=mcx.NUTS()) draws them as well; or give them values: "
            "model.condition({...})",
        )
    if with_params and not others:
        raise MethodError(
            "mcx.GuidedGibbs draws other sites besides the one with the diffusion prior",
            expected="a model with such sites",
            found="none",
            remedy="mcx.GuidedDiffusion()",
        )
    if found[0].weighted or found[0].scanned:
        raise CapabilityError(
            "a diffusion prior that is masked, scaled, or within a scan", site=found[0].name
        )
    return found[0]


def _process(functions: TargetFunctions, name: str, data: PyTree, values: SiteValues) -> ReverseProcess:
    def value(site: dict[str, Any]) -> Array | None:
        if site["type"] == "sample" and site["name"] in values:
            return values[site["name"]]
        return capture.unconstrained_prototype(site)

    found = capture.record(functions.run(data), key=jax.random.key(0), substitute_fn=value).sites[name]
    prior = capture.unwrapped(found["fn"])
    shape = jnp.shape(found["value"])
    process: ReverseProcess = prior.reverse_process(shape[: len(shape) - len(prior.event_shape)])
    return closure_converted(process)


@partial(jax.jit, static_argnames=("functions", "name", "num_steps"))
def _prior_process(
    functions: TargetFunctions, name: str, data: PyTree, num_steps: int | None
) -> ReverseProcess:
    """The reverse process of a site's prior, with its functions' code and values apart."""
    process = _process(functions, name, data, {})
    if num_steps is None:
        return process
    return replace(process, rho=jnp.geomspace(process.rho[0], process.rho[-1], num_steps + 1))


def _refuse_dependent(target: Target, name: str, rest: Target) -> None:
    """Raise if the prior depends on sites that are drawn apart from it."""

    def by_number(**values: Array) -> dict[str, Array]:
        leaves = jax.tree_util.tree_leaves(_process(target.functions, name, target.data, values))
        return {str(i): x for i, x in enumerate(leaves)}

    def found() -> list[str]:
        values = {n: jnp.zeros(target.sites[n].shape, target.sites[n].dtype) for n, _ in rest.shapes}
        return sorted(set().union(*eval_provenance(by_number, **values).values()))

    others = _DEPENDENCIES.get(target.functions, found)
    if others:
        raise CapabilityError(
            f"the diffusion prior depends on {', '.join(others)}, whose law given the site needs its density",
            site=name,
            expected="a prior without parameters that are to be inferred",
            remedy="scale or move the site's value in the model, rather than in its prior",
        )


def _some_values(rest: Target | None) -> SiteValues:
    """Constrained values of the other sites, at the origin of unconstrained space."""
    return {} if rest is None else _values_at_origin(rest)


@jax.jit
def _values_at_origin(rest: Target) -> dict[str, Array]:
    found = rest.constrain({name: jnp.zeros(shape) for name, shape in rest.shapes})
    return {name: found[name] for name, _ in rest.shapes}


@jax.jit
def _scale(process: ReverseProcess) -> tuple[Float[Array, "..."], Scalar]:
    """About where the data are, and how far they spread."""
    start = process.initial_law()
    return start.mean, jnp.sqrt(jnp.maximum(start.variance - process.rho[0] ** 2, 1e-6 * start.variance))
