"""Particle Gibbs: parameters and paths of state-space models, drawn in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, refuse_backward
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.advice import transition_advice
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.nuts import NUTS
from mcx.inference.particle_gibbs.advice import path_advice
from mcx.inference.particle_gibbs.kernel import GibbsKernel, GibbsStart, GibbsState
from mcx.methods.chain_method import ChainMethod, ChainPlan
from mcx.methods.initial_points import MAX_TRIES, as_initial_points, value_by_chain
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start_given_path, static_problems
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target, placeholders
from mcx.model.series.reading import latent_shapes
from mcx.model.series.state_space import BlockData, block_names, path_sites, refuse_unobserved, state_space
from mcx.ops.validation import Rule, such_that
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.run.driver import Run
from mcx.target import Target
from mcx.types import Array, Float, Key, PyTree, SiteValues

type Update = Callable[[Key, SiteValues], SiteValues]
"""A draw of sites from their full conditional, given the values of all latent sites."""


@dataclass(frozen=True)
class GibbsPlan(ChainPlan):
    """A checked run of particle Gibbs.

    Attributes:
        rest: density of the sites that the Markov chain method moves, given all others.
        paths: sites of the paths.
    """

    kernel: GibbsKernel
    data: BlockData
    rest: Target
    paths: tuple[str, ...]

    @override
    def at(self, bound: BoundModel) -> Self:
        spaces = {name: state_space(bound, name, whole=True) for name in self.data.spaces}
        return replace(self, data=BlockData(compile_model(bound).data, spaces))

    def rest_at(self, values: SiteValues) -> Target:
        """Density of the sites that the Markov chain method moves, at values of the others."""
        return self.rest.with_data((self.data.model, dict(values)))

    def at_placeholders(self) -> Target:
        """Density of the same sites where the others have some values: for what does not depend on these."""
        return self.rest_at(placeholders(self.target.sites, (*self.paths, *self.kernel.drawn)))


@dataclass(frozen=True, kw_only=True)
class ParticleGibbs(ChainMethod[GibbsPlan]):
    """Particle Gibbs: paths by conditional SMC given the parameters, then the parameters given the paths.

    Exact for any number of particles. States may be discrete, and need no gradient; parameters need what the
    method for them needs. Parameters and path are drawn in turn, so they mix slowly where they determine each
    other.

    Attributes:
        states: how to draw the path of every Markov block; or a mapping from blocks to this. Paths of blocks
            that a mapping leaves out count as parameters.
        params: how to draw the parameters given the paths: a Markov chain method such as ``NUTS()``, whose
            numbers of steps are not used; a function ``(key, values) -> {site: new value}`` that draws sites
            from their full conditionals given constrained ``values`` of all latent sites, discrete sites too;
            or a tuple of such functions and at most one method for the sites that none of them gives.
        num_warmup: sweeps during which the method for the parameters adapts, dropped from the results.
        num_samples: draws a chain keeps.

    A sweep costs O(T N) for the paths, and a transition of the method for the parameters.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3; with backward sampling: Whiteley (2010),
    Lindsten and Schon (2013).
    """

    states: ConditionalSMC | Mapping[str, ConditionalSMC] = field(default_factory=ConditionalSMC)
    params: MCMCMethod | Update | tuple[MCMCMethod | Update, ...] = field(default_factory=NUTS)

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {"states": _STATES, "params": _PARAMS, **super().rules()}

    @override
    def identifiers(self) -> dict[str, Any]:
        return {"states": self.states, "params": self.params, **super().identifiers()}

    @property
    def updates(self) -> tuple[Update, ...]:
        """The functions among ``params``."""
        return tuple(part for part in _parts(self.params) if not isinstance(part, MCMCMethod))

    @property
    def method(self) -> MCMCMethod | None:
        """The Markov chain method among ``params``."""
        return next((part for part in _parts(self.params) if isinstance(part, MCMCMethod)), None)

    @override
    def inputs(self) -> dict[str, np.ndarray]:
        return warmup.sweeps(self.num_warmup, self.num_samples)

    @override
    def plan(self, bound: BoundModel) -> GibbsPlan:
        target = compile_model(bound)
        for problem in static_problems(target.sites):
            raise problem
        blocks = self._blocks(target, block_names(bound))
        spaces = {name: state_space(bound, name, whole=True) for name in blocks}
        for name, method in blocks.items():
            refuse_backward(method, spaces[name])
        paths = tuple(site for space in spaces.values() for site in path_sites(space))
        drawn = _drawn_sites(self.updates, target, paths)
        refuse_unobserved(target)
        _refuse_discrete(target, (*paths, *drawn))
        rest = condition_target(target, (*paths, *drawn))
        refuse_data(rest)
        if rest.shapes and self.method is None:
            raise CapabilityError(
                "nothing draws this site",
                site=rest.shapes[0][0],
                expected="functions that give every parameter, or a method for the others",
                found="values of " + (", ".join(drawn) or "nothing"),
                remedy="params=(function, mcx.NUTS())",
            )
        # where nothing is left to a method, the kernel still holds the density of the rest
        mcmc = (self.method or NUTS()).kernel(rest)
        kernel = GibbsKernel(tuple(blocks.items()), self.updates, drawn, mcmc, target.functions)
        return GibbsPlan(target, kernel, BlockData(target.data, spaces), rest, paths)

    def _blocks(self, target: Target, names: tuple[str, ...]) -> dict[str, ConditionalSMC]:
        """How to draw the path of every Markov block that is drawn by conditional SMC."""
        if not names:
            raise CapabilityError(
                f"{target.sites.model} has no Markov chain whose path particle Gibbs could draw",
                expected="a model with mcx.markov(name, initial=..., transition=..., emission=..., obs=...), "
                "or with numpyro.contrib.control_flow.scan over a body with latent and observed sites",
                remedy="write the series with mcx.markov; or use mcx.NUTS() for models without one",
            )
        if isinstance(self.states, ConditionalSMC):
            return dict.fromkeys(names, self.states)
        for name in self.states:
            if name not in names:
                raise MethodError(
                    f"ParticleGibbs(states=...) names {name!r}, which is no Markov chain of the model",
                    expected="among " + ", ".join(names),
                )
        return {name: self.states[name] for name in names if name in self.states}

    @override
    def initial_points(self, plan: GibbsPlan, init: PyTree, num_chains: int, key: Key) -> GibbsStart:
        params = as_initial_points(plan.rest, init, num_chains, key)
        # paths are drawn from a filter, which may do better the next time
        params = params._replace(tries=jnp.full_like(params.tries, MAX_TRIES))
        known = init if isinstance(init, Mapping) else {}
        sites = plan.target.sites
        values = {
            name: value_by_chain(sites[name], known[name], num_chains)
            for name in (*plan.paths, *plan.kernel.drawn)
            if name in known
        }
        return GibbsStart(params, values)

    @override
    def refuse_start(self, plan: GibbsPlan, state: GibbsState, key: Key) -> None:
        def given(chain: int) -> Target:
            return plan.rest_at(jax.tree.map(lambda x: x[chain], state.values))

        refuse_start_given_path(state.started, state.params.position, given, key)

    @override
    def found(self, plan: GibbsPlan, result: Run, key: Key) -> Mapping[str, Any]:
        return {} if self.method is None else {"target_accept": self.method.target_accept}

    @override
    def time_stats(self, plan: GibbsPlan, state: GibbsState) -> dict[str, Float[Array, "chain T"]]:
        return {
            f"{block}.{statistic}": value
            for block, averages in state.averages.items()
            for statistic, value in averages._asdict().items()
        }

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        moved = [] if self.method is None else transition_advice(posterior, self.method.target_accept)
        return [*moved, *path_advice(posterior, self.states)]


def _parts(params: Any) -> tuple[Any, ...]:
    return params if isinstance(params, tuple) else (params,)


def _are_states(value: Any) -> bool:
    by_block = value.values() if isinstance(value, Mapping) else (value,)
    return bool(by_block) and all(isinstance(method, ConditionalSMC) for method in by_block)


def _are_params(value: Any) -> bool:
    others = [part for part in _parts(value) if not isinstance(part, MCMCMethod)]
    # a class is a method without its brackets
    functions = all(callable(part) and not isinstance(part, type) for part in others)
    return functions and len(others) >= len(_parts(value)) - 1


_STATES = such_that(_are_states, "mcx.ConditionalSMC(...), or a mapping from Markov blocks to that")
_PARAMS = such_that(
    _are_params,
    "a method such as mcx.NUTS(), functions (key, values) -> {site: new value}, or a tuple of functions and "
    "at most one method",
)


def _refuse_discrete(target: Target, drawn: tuple[str, ...]) -> None:
    """Raise on discrete parameters that no function draws."""
    for site in target.sites.of_kind("discrete"):
        if site.discrete_support and site.name not in drawn:
            raise CapabilityError(
                f"a discrete parameter ({site.distribution}), which no gradient can move",
                site=site.name,
                expected="a function that draws it from its full conditional",
                remedy=f"params=(function, mcx.NUTS()), with function(key, values) -> {{{site.name!r}: "
                "new value}; or sum it out",
            )


def _drawn_sites(updates: tuple[Update, ...], target: Target, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the sites that functions give, found by tracing them; in program order."""
    shapes = latent_shapes(target)
    free = [name for name in shapes if name not in paths]
    found: set[str] = set()
    for update in updates:
        new = jax.eval_shape(update, jax.eval_shape(lambda: jax.random.key(0)), shapes)
        if not isinstance(new, Mapping):
            raise MethodError(
                "a function in ParticleGibbs(params=...) returned no mapping",
                expected="{site: new value}",
                found=type(new).__name__,
            )
        for name, value in new.items():
            if name not in free:
                raise MethodError(
                    f"a function in ParticleGibbs(params=...) gives {name!r}, which is no parameter",
                    expected="among " + (", ".join(free) or "nothing: the model has no parameters"),
                )
            if tuple(jnp.shape(value)) != target.sites[name].shape:
                raise MethodError(
                    f"a function in ParticleGibbs(params=...) gives {name!r} the wrong shape",
                    expected=str(target.sites[name].shape),
                    found=str(tuple(jnp.shape(value))),
                )
            found.add(name)
    return tuple(name for name in free if name in found)
