"""What a guided run needs of a model: its diffusion prior, and what kind of likelihood it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.ops.provenance import eval_provenance

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.guided.calibration import GuidedData, Guiding, calibrate
from mcx.inference.diffusion.guided.observation import log_likelihood, looks_linear, slope_vanishes
from mcx.inference.diffusion.models.converted_process import closure_converted
from mcx.inference.diffusion.models.reverse_process import ReverseProcess
from mcx.model import capture
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_observations, static_problems
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.density import space_error
from mcx.ops.lru_cache import LRUCache
from mcx.sites import Site
from mcx.target import Target, TargetFunctions

__all__ = ["KINDS", "Plan", "make_plan", "prior_chain"]

KINDS = ("auto", "twisted", "linear_gaussian", "soft_value")
_PILOT = 2  # what is folded into the key; 0 and 1 are the run's
_DEPENDS: LRUCache[list[str]] = LRUCache()
_SMOOTH: LRUCache[bool] = LRUCache()


class Plan(NamedTuple):
    """A checked run.

    target: the posterior.
    chain: the prior's reverse process.
    how: the guidance.
    rest: the posterior of the other latent sites given the one with the diffusion prior; None without any.
    """

    target: Target
    chain: ReverseProcess
    how: Guiding
    rest: Target | None

    def data(self, key: Any) -> GuidedData:
        """The kernel's data, from a pilot run; other sites have some values there."""
        given = {} if self.rest is None else _some_values(self.rest)
        return calibrate(self.how, self.target.data, self.chain, jax.random.fold_in(key, _PILOT), given)

    def at(self, bound: BoundModel, num_steps: int | None) -> Plan:
        """The same of other data of the same structure, traced ones too."""
        target = compile_model(bound)
        chain = prior_chain(target.functions, self.how.name, target.data, num_steps)
        rest = self.rest
        if rest is not None:
            rest = rest.with_data((target.data, rest.data[1]))
        return Plan(target, chain, self.how, rest)


@dataclass(frozen=True)
class _Likelihood:
    """What the likelihood of a site's value is like."""

    linear: bool
    smooth: bool
    flat: bool


def make_plan(
    bound: BoundModel,
    guidance: str,
    guiding: Mapping[str, Any],
    num_steps: int | None,
    with_params: bool,
) -> Plan:
    """What is to run; raises what stands against it.

    Args:
        bound: the model.
        guidance: one of :data:`KINDS`.
        guiding: further fields of :class:`~.calibration.Guiding`.
        num_steps: levels, if not the prior's own.
        with_params: whether other latent sites are drawn, too.
    """
    target = compile_model(bound)
    for problem in static_problems(target.sites):
        raise problem
    unfit = space_error(target.sites)
    if unfit is not None:
        raise unfit
    site = _diffusion_site(target, with_params)
    chain = prior_chain(target.functions, site.name, target.data, num_steps)
    rest = condition_target(target, (site.name,), (site.name,)) if with_params else None
    if rest is not None:
        _refuse_dependent(target, site.name, rest)
    centre, spread = _scale(chain)
    if rest is None:
        refuse_observations(target, jnp.ravel(centre)[None])
    kind = guidance
    if kind == "linear_gaussian" and rest is not None:
        raise MethodError(
            'guidance="linear_gaussian" takes the observation apart once, and parameters change it',
            expected='"twisted", "soft_value" or "auto" with params=',
        )
    given = {} if rest is None else _some_values(rest)
    like = _likelihood(target, site.name, centre, spread, given)
    if kind == "auto" and like.linear and rest is None:
        kind = "linear_gaussian"
    elif kind == "auto":
        kind = "twisted" if like.smooth and not like.flat else "soft_value"
    elif kind == "linear_gaussian" and not like.linear:
        raise CapabilityError(
            'guidance="linear_gaussian" needs a linear Gaussian likelihood, and this is none',
            site=site.name,
            expected="observations by dist.Normal or dist.MultivariateNormal, without masks and factors, "
            "whose means are affine in the site's value and whose variances do not depend on it",
            remedy='guidance="twisted", or "auto"',
        )
    elif kind == "twisted" and (like.flat or not like.smooth):
        raise CapabilityError(
            'guidance="twisted" follows the gradient of the likelihood, and there is none'
            + (": it is zero wherever it was looked at" if like.smooth else ""),
            site=site.name,
            remedy='guidance="soft_value", or "auto"',
        )
    how = Guiding(target.functions, site.name, kind, curved=like.smooth, **guiding)
    if kind == "linear_gaussian":
        how = replace(how, fade=None)
    if kind != "linear_gaussian":
        how = replace(how, noised=False)
    if kind != "soft_value":
        how = replace(how, num_children=1)
    return Plan(target, chain, how, rest)


# --- the site and its prior ------------------------------------------------------------------------


def _diffusion_site(target: Target, with_params: bool) -> Site:
    """The site to draw; raises unless there is one, and one only."""
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
            remedy="GuidedDiffusion(params=mcx.NUTS()) draws them, too; or give them values: "
            "model.condition({...})",
        )
    if with_params and not others:
        raise MethodError(
            "GuidedDiffusion(params=...) draws other sites than the one with the diffusion prior",
            expected="a model with such sites",
            found="none",
            remedy="leave params out",
        )
    if found[0].weighted or found[0].scanned:
        raise CapabilityError(
            "a diffusion prior that is masked, scaled, or within a scan", site=found[0].name
        )
    return found[0]


def _chain(functions: TargetFunctions, name: str, data: Any, given: Mapping[str, Any]) -> ReverseProcess:
    def value(site: dict[str, Any]) -> Any:
        if site["type"] == "sample" and site["name"] in given:
            return given[site["name"]]
        return capture.unconstrained_prototype(site)

    found = capture.record(functions.run(data), key=jax.random.key(0), substitute_fn=value).sites[name]
    prior = capture.unwrapped(found["fn"])
    shape = jnp.shape(found["value"])
    chain: ReverseProcess = prior.reverse_process(shape[: len(shape) - len(prior.event_shape)])
    return closure_converted(chain)


@partial(jax.jit, static_argnames=("functions", "name", "num_steps"))
def prior_chain(functions: TargetFunctions, name: str, data: Any, num_steps: int | None) -> ReverseProcess:
    """The reverse process of a site's prior, with code and values apart."""
    chain = _chain(functions, name, data, {})
    if num_steps is None:
        return chain
    return replace(chain, rho=jnp.geomspace(chain.rho[0], chain.rho[-1], num_steps + 1))


def _refuse_dependent(target: Target, name: str, rest: Target) -> None:
    """Raise if the prior depends on sites that are drawn apart from it."""

    def by_number(**values: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves(_chain(target.functions, name, target.data, values))
        return {str(i): x for i, x in enumerate(leaves)}

    def found() -> list[str]:
        values = {n: jnp.zeros(target.sites[n].shape, target.sites[n].dtype) for n, _ in rest.shapes}
        return sorted(set().union(*eval_provenance(by_number, **values).values()))

    others = _DEPENDS.get(target.functions, found)
    if others:
        raise CapabilityError(
            f"the diffusion prior depends on {', '.join(others)}, whose law given the site needs its density",
            site=name,
            expected="a prior without parameters that are to be inferred",
            remedy="scale or move the site's value in the model, rather than in its prior",
        )


@jax.jit
def _some_values(rest: Target) -> dict[str, Any]:
    """Constrained values of the other sites, at the origin of unconstrained space."""
    found = rest.constrain({name: jnp.zeros(shape) for name, shape in rest.shapes})
    return {name: found[name] for name, _ in rest.shapes}


@jax.jit
def _scale(chain: ReverseProcess) -> tuple[Any, Any]:
    """About where the data are, and how far they spread."""
    start = chain.initial_law()
    return start.mean, jnp.sqrt(jnp.maximum(start.variance - chain.rho[0] ** 2, 1e-6 * start.variance))


# --- the likelihood --------------------------------------------------------------------------------


def _likelihood(target: Target, name: str, centre: Any, spread: Any, given: Mapping[str, Any]) -> _Likelihood:
    where = (target.functions, name, target.data, centre, spread)
    smooth = _differentiable(target, name, centre, given)
    flat = smooth and bool(slope_vanishes(*where, given))
    return _Likelihood(not given and bool(looks_linear(*where)), smooth, flat)


def _differentiable(target: Target, name: str, like: Any, given: Mapping[str, Any]) -> bool:
    """Whether JAX can take two derivatives of the likelihood."""

    def bend(x: Any) -> Any:
        slope = jax.grad(partial(log_likelihood, target.functions, name, target.data, given=given))
        return jax.jvp(slope, (x,), (x,))

    def found() -> bool:
        try:
            jax.eval_shape(bend, like)
        except (TypeError, ValueError, NotImplementedError):
            return False
        return True

    return _SMOOTH.get(target.functions, found)
