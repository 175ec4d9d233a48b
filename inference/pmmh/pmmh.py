"""Particle marginal Metropolis-Hastings: parameters and paths of state-space models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, InitializationError, MethodError
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.base import ChainMethod
from mcx.inference.mcmc.initial_points import MAX_TRIES, Start, starting_points
from mcx.inference.mcmc.sample import posterior_of, run_purely
from mcx.inference.pmmh.kernel import PMMHKernel, PMMHState
from mcx.inference.pmmh.num_particles import (
    PILOT_PARTICLES,
    enough_particles,
    log_evidence_sd,
    nearest_to_mean,
)
from mcx.inference.smc.engine import SMCSettings
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start, refuse_unsupported, static_problems
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.series.state_space import ChainData, chain_names, chain_sites, path_sites, refuse_unobserved
from mcx.ops.checks import is_count
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import run
from mcx.target import StateSpace, Target

__all__ = ["PMMH"]

_DENSE_DIM = 50
_FIRST_WINDOW = 50  # few proposals are accepted, so it takes more steps to learn a covariance from
_PILOT_STEPS = 300


@dataclass(frozen=True, kw_only=True)
class PMMH(ChainMethod):
    """Particle marginal Metropolis-Hastings: a random walk on the parameters of a state-space model.

    Every proposal gets a particle filter of its own, whose unbiased estimate of the evidence stands for the
    likelihood; the filter's path comes along when the proposal is accepted. The law of parameters and paths
    is the posterior for any number of particles, but with too few of them a chain stays for long where the
    evidence was overestimated. Parameters and path move together, so it does not mind how strongly they
    depend on each other, as particle Gibbs does; each move costs a whole filter. Needs no density of the
    transition and no gradient; states may be discrete. Several Markov blocks have to be independent given the
    parameters.

    Attributes:
        num_particles: N. None takes so many that the log evidence has a standard deviation of about 1.2 (at
            least 50), as found by a pilot run and by replicates of the filter at the best point of it.
        filter: any particle filter, with its resampling; bootstrap, guided or auxiliary. Potentials that are
            NaN count as zero and are counted in the statistic ``nonfinite``, whatever its ``max_nonfinite``.
        num_warmup: steps of adaptation, dropped from the results.
        num_samples: draws a chain keeps.
        target_accept: mean acceptance probability that the scale of the random walk is adapted to, between
            1.2 and 2.5 times d^-1/2 standard deviations of the posterior. The best one in many dimensions is
            0.132 where the log evidence has a standard deviation of 1.2; it is 0.234 for an exact likelihood
            and 0.07 for a standard deviation of 1.8. The best scale hardly depends on the noise (2.4 to 2.6),
            hence the bounds: noise lowers the acceptance however short the steps are, and where there are few
            parameters or little noise, steps of low acceptance are too long.
        dense_mass: adapt the full covariance of the parameters instead of its diagonal; "auto" does so up to
            50 dimensions.
        step_size: first step size; kept as it is where ``num_warmup`` is 0.

    A step costs O(T N), and O(T N) memory for each chain that moves.

    The posterior has the standard deviation of the log evidence at its mean in
    ``info.settings["log_evidence_sd"]``, and ``num_particles`` beside it.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.2. Number of particles: Doucet, Pitt,
    Deligiannidis and Kohn (2015); acceptance: Sherlock, Thiery, Roberts and Rosenthal (2015).
    """

    num_particles: int | None = field(default=None, kw_only=False)
    filter: ParticleFilter = field(default_factory=ParticleFilter)
    num_samples: int = 5000
    target_accept: float = 0.13

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles is not None and not is_count(self.num_particles):
            self._refuse("num_particles", "an int >= 1, or None to have it chosen")
        if not isinstance(self.filter, ParticleFilter):
            self._refuse("filter", "mcx.ParticleFilter(...)")

    @override
    def takes_dense(self, target: Target, uses_gradient: bool) -> bool:
        return target.dim <= _DENSE_DIM if self.dense_mass == "auto" else bool(self.dense_mass)

    @override
    def inputs(self) -> dict[str, np.ndarray]:
        return _inputs(self.num_warmup, self.num_samples)

    @override
    def infer(self, bound: BoundModel, **options: Any) -> Posterior:
        """Run the chains. Use :func:`mcx.infer`, which checks the options and the result."""
        return self._sample(bound, **options)

    def _sample(
        self,
        bound: BoundModel,
        *,
        key: Any,
        num_chains: int,
        init: Any,
        coords: Mapping[str, Any],
        **options: Any,
    ) -> Posterior:
        plan = self.plan(bound)
        start = plan.start(init, num_chains, jax.random.fold_in(key, 5))

        def on_start(state: PMMHState) -> None:
            plan.refuse_start(state, key)

        number = self.num_particles
        if number is None:
            pilot = {k: v for k, v in options.items() if k in ("progress", "devices", "batch_size")}
            number = self._enough_particles(plan, start, on_start, jax.random.fold_in(key, 2), pilot)
        kernel = plan.kernel(number)
        result = run(
            kernel,
            plan.data,
            key=key,
            num_steps=self.num_warmup + self.num_samples,
            num_chains=num_chains,
            num_discard=self.num_warmup,
            start=start,
            inputs=self.inputs(),
            title=self.name,
            on_start=on_start,
            **options,
        )
        if result.draws is None:
            raise KeyboardInterrupt(f"{self.name} was interrupted during warm-up; there are no draws yet")
        central = nearest_to_mean(result.draws[1])
        sd = log_evidence_sd(kernel, plan.data, central, jax.random.fold_in(key, 3))
        settings = {"num_particles": number, "log_evidence_sd": sd}
        return posterior_of(bound, plan.target, self, result, key=key, coords=coords, settings=settings)

    @override
    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`. Use :func:`mcx.program`."""
        if self.num_particles is None:
            raise MethodError(
                "mcx.program has no pilot run that could choose the number of particles",
                expected="PMMH(num_particles=...)",
                remedy="mcx.infer chooses one: posterior.info.settings['num_particles']",
            )
        template = self.plan(bound)
        kernel = template.kernel(self.num_particles)
        inputs = jax.tree_util.tree_map(jnp.asarray, self.inputs())

        def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
            spaces = {name: self._space(bound, name) for name in template.data.spaces}
            data = ChainData(compile_model(bound).data, spaces)
            start = template.start(None, num_chains, key)
            _, (sites, unconstrained), stats = run_purely(kernel, data, key, start, inputs, self, num_chains)
            info = RunInfo(self.name, fields_of(self), num_warmup=self.num_warmup)
            return Posterior(sites, unconstrained, stats, {}, bound, info)

        return run_program

    def plan(self, bound: BoundModel) -> Plan:
        """What is to run; raises what stands against it."""
        target = compile_model(bound)
        for problem in static_problems(target.sites):
            raise problem
        names = chain_names(bound)
        if not names:
            raise CapabilityError(
                f"{target.sites.model} has no Markov chain whose evidence a particle filter could estimate",
                expected="a model with mcx.markov(name, initial=..., transition=..., emission=..., obs=...), "
                "or with numpyro.contrib.control_flow.scan over a body with latent and observed sites",
                remedy="write the series with mcx.markov; or use mcx.NUTS() for models without one",
            )
        refuse_unobserved(target)
        # refuses chains that depend on each other, whose evidences would not multiply
        spaces = {name: self._space(bound, name) for name in names}
        paths = tuple(site for space in spaces.values() for site in path_sites(space))
        given = condition_target(target, paths)
        refuse_data(given)
        if not given.shapes:
            raise CapabilityError(
                f"{target.sites.model} has no parameters: all its latent sites belong to Markov chains",
                remedy="mcx.filter and mcx.smooth for the path given the parameters; or mcx.ParticleGibbs",
            )
        own = tuple(site for space in spaces.values() for site in chain_sites(space))
        return Plan(self, target, given, condition_target(target, paths, own), ChainData(target.data, spaces))

    def _space(self, bound: BoundModel, name: str) -> StateSpace:
        return self.filter.state_space(bound, name, whole=True)

    def _enough_particles(
        self, plan: Plan, start: Start, on_start: Any, key: Any, options: Mapping[str, Any]
    ) -> int:
        """Particles that give the log evidence the standard deviation aimed at, about where the mass is."""
        key_pilot, key_sd = jax.random.split(key)
        result = run(
            plan.kernel(PILOT_PARTICLES),
            plan.data,
            key=key_pilot,
            num_steps=_PILOT_STEPS,
            num_chains=start.radius.shape[0],
            num_discard=_PILOT_STEPS,
            start=start,
            inputs=_inputs(_PILOT_STEPS, 0),
            title=f"{self.name} pilot",
            on_start=on_start,
            **options,
        )
        if not result.complete:
            raise KeyboardInterrupt(f"{self.name} was interrupted during its pilot run; there are no draws")
        ends = jax.device_get(result.state.point)
        best = ends.position[np.argmax(ends.log_target)]
        return enough_particles(plan.kernel, plan.data, best, key_sd)


class Plan(NamedTuple):
    """A checked run.

    method: of the run.
    target: the whole posterior.
    given: its density as a function of the parameters, given the paths.
    marginal: the same without the densities of the Markov blocks.
    data: for the kernel.
    """

    method: PMMH
    target: Target
    given: Target
    marginal: Target
    data: ChainData

    def kernel(self, num_particles: int) -> PMMHKernel:
        """The kernel for the driver."""
        marginal, method = self.marginal, self.method
        # the error of the evidence within a run is not asked for
        settings: SMCSettings = dataclasses.replace(method.filter.settings(num_particles), lag=None)
        return PMMHKernel(
            marginal.functions,
            marginal.shapes,
            marginal.sites,
            float(method.target_accept),
            float(method.step_size),
            method.takes_dense(marginal, False),
            self.given.functions,
            settings,
        )

    def start(self, init: Any, num_chains: int, key: Any) -> Start:
        """Starting points of all chains; see :func:`~mcx.inference.mcmc.initial_points.starting_points`."""
        start = starting_points(self.marginal, init, num_chains, key)
        # a filter may do better the next time
        return start._replace(tries=jnp.full_like(start.tries, MAX_TRIES))

    def refuse_start(self, state: PMMHState, key: Any) -> None:
        """Raise if a chain found no starting point."""
        started = np.asarray(state.started)
        chain = int(np.argmin(started))
        point = jax.tree_util.tree_map(lambda x: jnp.asarray(x)[chain], state.point)
        position = point.position[None]
        refuse_unsupported(self.given.with_data((self.data.model, point.paths)), position)
        if started.all():
            return
        if not jnp.isfinite(point.log_density):
            refuse_start(self.marginal, position, key)
        names = ", ".join(self.data.spaces)
        raise InitializationError(
            f"no particle of the filters explains the observations at any of the {MAX_TRIES} points tried",
            site=names,
            expected="a point where the estimated evidence is not zero",
            remedy="start from values you trust: infer(..., init={'site': value}); take more particles; or "
            "propose with the observation in view (proposal=)",
        )


def _inputs(num_warmup: int, num_samples: int) -> dict[str, np.ndarray]:
    """Of every step: its adaptation code, and whether a covariance has been learned by then."""
    code = warmup.schedule(num_warmup, num_samples, _FIRST_WINDOW)
    learned = np.cumsum((code == warmup.METRIC_END) | (code == warmup.WINDOW_END)) > 0
    return {"code": code, "learned": np.concatenate([[False], learned[:-1]])}
