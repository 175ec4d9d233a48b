"""Particle Gibbs: parameters and paths of state-space models, drawn in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, refuse_sampling
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.base import MCMCMethod
from mcx.inference.mcmc.initial_points import MAX_TRIES, starting_points, value_by_chain
from mcx.inference.mcmc.nuts import NUTS
from mcx.inference.mcmc.sample import posterior_of, run_purely
from mcx.inference.particle_gibbs.kernel import GibbsKernel, GibbsStart, GibbsState
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start, refuse_unsupported, static_problems
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target, placeholders
from mcx.model.series.block import latent_shapes
from mcx.model.series.state_space import ChainData, chain_names, path_sites, refuse_unobserved, state_space
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import run
from mcx.target import Target

__all__ = ["ParticleGibbs"]

Update = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ParticleGibbs:
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
    num_warmup: int = 1000
    num_samples: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("num_warmup", 0), ("num_samples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise MethodError(
                    f"ParticleGibbs({name}=...) is out of range",
                    expected=f"an int >= {least}",
                    found=repr(value),
                )
        by_block = self.states.values() if isinstance(self.states, Mapping) else (self.states,)
        if not by_block or not all(isinstance(method, ConditionalSMC) for method in by_block):
            raise MethodError(
                "ParticleGibbs(states=...) says how to draw paths",
                expected="mcx.ConditionalSMC(...), or a mapping from Markov blocks to that",
                found=repr(self.states),
            )
        methods = [part for part in self._parts if isinstance(part, MCMCMethod)]
        if len(methods) > 1 or not all(callable(part) for part in self._updates):
            raise MethodError(
                "ParticleGibbs(params=...) says how to draw the parameters",
                expected="a method such as mcx.NUTS(), functions (key, values) -> {site: new value}, or a "
                "tuple of functions and at most one method",
                found=repr(self.params),
            )

    @property
    def name(self) -> str:
        """Name of the method."""
        return type(self).__name__

    @property
    def _parts(self) -> tuple[Any, ...]:
        return self.params if isinstance(self.params, tuple) else (self.params,)

    @property
    def _updates(self) -> tuple[Update, ...]:
        return tuple(part for part in self._parts if not isinstance(part, MCMCMethod))

    @property
    def _method(self) -> MCMCMethod | None:
        return next((part for part in self._parts if isinstance(part, MCMCMethod)), None)

    def inputs(self) -> dict[str, np.ndarray]:
        """Of every sweep: its adaptation code, and whether it counts."""
        return {
            "code": warmup.schedule(self.num_warmup, self.num_samples),
            "keep": np.arange(self.num_warmup + self.num_samples) >= self.num_warmup,
        }

    def infer(
        self,
        bound: BoundModel,
        *,
        key: Any,
        num_chains: int,
        init: Any,
        coords: Mapping[str, Any],
        **options: Any,
    ) -> Posterior:
        """Run the chains. Use :func:`mcx.infer`, which checks the options and the result."""
        plan = self.plan(bound)

        def on_start(state: GibbsState) -> None:
            started = np.asarray(state.started)
            chain = int(np.argmin(started))
            given = jax.tree_util.tree_map(lambda x: x[chain], state.values)
            rest, positions = plan.rest(given), state.params.position[chain : chain + 1]
            if not started.all():
                refuse_start(rest, positions, key)
            refuse_unsupported(rest, positions)

        result = run(
            plan.kernel,
            plan.data,
            key=key,
            num_steps=self.num_warmup + self.num_samples,
            num_chains=num_chains,
            num_discard=self.num_warmup,
            start=plan.start(init, num_chains, jax.random.fold_in(key, 5)),
            inputs=self.inputs(),
            title=self.name,
            on_start=on_start,
            **options,
        )
        if result.draws is None:
            raise KeyboardInterrupt(f"{self.name} was interrupted during warm-up; there are no draws yet")
        method = self._method
        return posterior_of(
            bound,
            plan.target,
            self,
            result,
            key=key,
            coords=coords,
            settings={} if method is None else {"target_accept": method.target_accept},
            smc_stats=_smc_stats(jax.device_get(result.state)),
        )

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`. Use :func:`mcx.program`."""
        template = self.plan(bound)
        inputs = jax.tree_util.tree_map(jnp.asarray, self.inputs())

        def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
            spaces = {name: state_space(bound, name, whole=True) for name in template.data.spaces}
            data = ChainData(compile_model(bound).data, spaces)
            start = template.start(None, num_chains, key)
            last, (sites, unconstrained), stats = run_purely(
                template.kernel, data, key, start, inputs, self, num_chains
            )
            info = RunInfo(self.name, fields_of(self), num_warmup=self.num_warmup)
            return Posterior(sites, unconstrained, stats, {}, bound, info, smc_stats=_smc_stats(last))

        return run_program

    def plan(self, bound: BoundModel) -> Plan:
        """What is to run; raises what stands against it."""
        target = compile_model(bound)
        for problem in static_problems(target.sites):
            raise problem
        blocks = self._blocks(target, chain_names(bound))
        spaces = {name: state_space(bound, name, whole=True) for name in blocks}
        for name, method in blocks.items():
            refuse_sampling(method, spaces[name])
        paths = tuple(site for space in spaces.values() for site in path_sites(space))
        drawn = _drawn_sites(self._updates, target, paths)
        refuse_unobserved(target)
        _refuse_discrete(target, (*paths, *drawn))
        rest = condition_target(target, (*paths, *drawn))
        refuse_data(rest)
        if rest.shapes and self._method is None:
            raise CapabilityError(
                "nothing draws this site",
                site=rest.shapes[0][0],
                expected="functions that give every parameter, or a method for the others",
                found="values of " + (", ".join(drawn) or "nothing"),
                remedy="params=(function, mcx.NUTS())",
            )
        # where nothing is left to a method, the kernel still holds the density of the rest
        mcmc = (self._method or NUTS()).kernel(rest)
        kernel = GibbsKernel(tuple(blocks.items()), self._updates, drawn, mcmc, target.functions)
        return Plan(target, rest, kernel, ChainData(target.data, spaces), paths)

    def _blocks(self, target: Target, names: tuple[str, ...]) -> dict[str, ConditionalSMC]:
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


class Plan(NamedTuple):
    """A checked run.

    target: the whole posterior; rest: given paths and what updates draw.
    kernel, data: for the driver.
    paths: sites of the paths.
    """

    target: Target
    given: Target
    kernel: GibbsKernel
    data: ChainData
    paths: tuple[str, ...]

    def rest(self, values: Mapping[str, Any]) -> Target:
        """Density of the sites that the Markov chain method moves, given values of the others."""
        return self.given.with_data((self.data.model, dict(values)))

    def at_placeholders(self) -> Target:
        """Density of the same sites where the others have some values: for what does not depend on these."""
        return self.rest(placeholders(self.target.sites, (*self.paths, *self.kernel.drawn)))

    def start(self, init: Any, num_chains: int, key: Any) -> GibbsStart:
        """Starting points of all chains; see :func:`~mcx.inference.mcmc.initial_points.starting_points`."""
        params = starting_points(self.given, init, num_chains, key)
        # paths are drawn from a filter, which may do better the next time
        params = params._replace(tries=jnp.full_like(params.tries, MAX_TRIES))
        known = init if isinstance(init, Mapping) else {}
        sites = self.target.sites
        values = {
            name: value_by_chain(sites[name], known[name], num_chains)
            for name in (*self.paths, *self.kernel.drawn)
            if name in known
        }
        return GibbsStart(params, values)


def _refuse_discrete(target: Target, given: tuple[str, ...]) -> None:
    """Raise on discrete parameters that no function draws."""
    for site in target.sites.of_kind("discrete"):
        if site.discrete_support and site.name not in given:
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


def _smc_stats(state: GibbsState) -> dict[str, Any]:
    return {
        f"{block}.{statistic}": value
        for block, averages in state.averages.items()
        for statistic, value in averages._asdict().items()
    }
