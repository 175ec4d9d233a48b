"""Particle marginal Metropolis-Hastings: parameters and paths of state-space models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.method import AdaptiveMethod
from mcx.inference.pmmh.advice import noise_advice
from mcx.inference.pmmh.kernel import PMMHKernel, PMMHState
from mcx.inference.pmmh.marginal import MarginalModel, marginal_data, marginal_model, refuse_filters
from mcx.inference.pmmh.num_particles import (
    PILOT_PARTICLES,
    enough_particles,
    log_evidence_sd,
    nearest_to_mean,
)
from mcx.methods.chain_method import ChainPlan, Refuse
from mcx.methods.initial_points import MAX_TRIES, InitialPoints, as_initial_points
from mcx.methods.method import interrupted
from mcx.model.bound import BoundModel
from mcx.ops.keys import Stream, stream
from mcx.ops.validation import Rule, instance, integer, optional
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.run.driver import Run, run
from mcx.target import Target
from mcx.types import Key, PyTree

_DENSE_DIM = 50
_FIRST_WINDOW = 50  # as few proposals are accepted, it takes more steps to learn a covariance
_PILOT_STEPS = 300


@dataclass(frozen=True)
class MarginalPlan(ChainPlan):
    """A checked run of PMMH: of the model without its Markov blocks, and the filter of these."""

    model: MarginalModel
    filter: ParticleFilter

    @override
    def at(self, bound: BoundModel) -> Self:
        return replace(self, data=marginal_data(bound, self.filter, tuple(self.data.spaces)))


@dataclass(frozen=True, kw_only=True)
class PMMH(AdaptiveMethod[MarginalPlan]):
    """Particle marginal Metropolis-Hastings: a random walk on the parameters of a state-space model.

    Every proposal gets a particle filter of its own, whose unbiased estimate of the evidence takes the place
    of the likelihood; with the proposal a path of the filter is accepted. The law of parameters and paths is
    the posterior for any number of particles, but with too few of them a chain stays for long where the
    evidence was overestimated. Parameters and path move together, so unlike particle Gibbs it works just as
    well where these depend strongly on each other; each move costs a whole filter. It needs no density of the
    transition and no gradient, and states may be discrete. Several Markov blocks have to be independent given
    the parameters.

    Attributes:
        num_particles: N. None takes at least 50, and as many as give the log evidence a standard deviation of
            about 1.2, measured by replicates of the filter at the best point of a pilot run.
        filter: any particle filter with its resampling: bootstrap, guided or auxiliary. Potentials that are
            NaN count as zero, and the statistic ``nonfinite`` counts them, whatever its ``max_nonfinite``.
        num_warmup: number of steps of adaptation, which are dropped from the results.
        num_samples: number of draws that each chain keeps.
        target_accept: mean acceptance probability that the scale of the random walk is adapted to, between
            1.2 and 2.5 times d^-1/2 standard deviations of the posterior. The best acceptance in many
            dimensions is 0.132 where the log evidence has a standard deviation of 1.2; it is 0.234 for an
            exact likelihood and 0.07 for a standard deviation of 1.8. The best scale hardly depends on the
            noise (2.4 to 2.6), hence the bounds: noise lowers the acceptance however short the steps are, and
            with few parameters or little noise, steps of low acceptance are too long.
        dense_mass: whether to adapt the full covariance of the parameters instead of its diagonal; "auto"
            does so up to 50 dimensions.
        step_size: first step size; not adapted if ``num_warmup`` is 0.

    A step costs O(T N), and O(T N) memory for each chain that moves.

    The posterior's ``info.settings`` has ``num_particles``, and ``log_evidence_sd``, the standard deviation
    of the log evidence at the posterior's mean.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.2. Number of particles: Doucet, Pitt,
    Deligiannidis and Kohn (2015); acceptance: Sherlock, Thiery, Roberts and Rosenthal (2015).
    """

    num_particles: int | None = field(default=None, kw_only=False)
    filter: ParticleFilter = field(default_factory=ParticleFilter)
    num_samples: int = 5000
    target_accept: float = 0.13

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            **super().rules(),
            "num_particles": optional(integer(1), "to have it chosen"),
            "filter": instance(ParticleFilter, "mcx.ParticleFilter(...)"),
        }

    @override
    def takes_dense(self, target: Target, uses_gradient: bool) -> bool:
        return target.dim <= _DENSE_DIM if self.dense_mass == "auto" else bool(self.dense_mass)

    @override
    def inputs(self) -> dict[str, np.ndarray]:
        return _inputs(self.num_warmup, self.num_samples)

    @override
    def plan(self, bound: BoundModel) -> MarginalPlan:
        model = marginal_model(bound, self.filter)
        kernel = pmmh_kernel(self, model, self.num_particles or PILOT_PARTICLES)
        return MarginalPlan(model.target, kernel, model.data, model, self.filter)

    @override
    def initial_points(self, plan: MarginalPlan, init: PyTree, num_chains: int, key: Key) -> InitialPoints:
        start = as_initial_points(plan.model.marginal, init, num_chains, key)
        # a filter may do better the next time at the same point
        return start._replace(tries=jnp.full_like(start.tries, MAX_TRIES))

    @override
    def refuse_start(self, plan: MarginalPlan, state: PMMHState, key: Key) -> None:
        refuse_filters(plan.model, state, key)

    @override
    def tuned(
        self, plan: MarginalPlan, start: InitialPoints, refuse_start: Refuse, key: Key, **options: Any
    ) -> MarginalPlan:
        """The plan with as many particles as give the log evidence the intended standard deviation."""
        if self.num_particles is not None:
            return plan
        key_pilot, key_sd = jax.random.split(stream(key, Stream.PILOT))
        result = run(
            plan.kernel,
            plan.data,
            key=key_pilot,
            num_steps=_PILOT_STEPS,
            num_chains=start.radius.shape[0],
            num_discard=_PILOT_STEPS,
            init=start,
            inputs=_inputs(_PILOT_STEPS, 0),
            title=f"{self.name} pilot",
            on_start=refuse_start,
            **{k: v for k, v in options.items() if k in ("progress", "devices", "batch_size")},
        )
        if not result.complete:
            interrupted(self.name, "pilot run", result)
        ends = jax.device_get(result.state.point)
        best = ends.position[np.argmax(ends.log_target)]

        kernel = partial(pmmh_kernel, self, plan.model)
        return replace(plan, kernel=kernel(enough_particles(kernel, plan.data, best, key_sd)))

    @override
    def found(self, plan: MarginalPlan, result: Run, key: Key) -> Mapping[str, Any]:
        central = nearest_to_mean(result.draws[1])
        assert isinstance(plan.kernel, PMMHKernel)
        sd = log_evidence_sd(plan.kernel, plan.data, central, stream(key, Stream.EVIDENCE_ERROR))
        return {"num_particles": plan.kernel.settings.num_particles, "log_evidence_sd": sd}

    @override
    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        if self.num_particles is None:
            raise MethodError(
                "mcx.program has no pilot run that could choose the number of particles",
                expected="PMMH(num_particles=...)",
                remedy="mcx.infer chooses one: posterior.info.settings['num_particles']",
            )
        return super().program(bound, num_chains)

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        settings = posterior.info.settings
        return noise_advice(float(settings["log_evidence_sd"]), int(settings["num_particles"]))


def pmmh_kernel(method: PMMH, model: MarginalModel, num_particles: int) -> PMMHKernel:
    """The kernel for the driver, with filters of ``num_particles`` particles."""
    # no lag, because the error of the evidence within a run is not needed
    settings = replace(method.filter.settings(num_particles), lag=None)
    return method.kernel_of(PMMHKernel, model.marginal, False, model.conditional.functions, settings)


def _inputs(num_warmup: int, num_samples: int) -> dict[str, np.ndarray]:
    """Adaptation codes of all steps, and whether a covariance has been learned before each."""
    code = warmup.schedule(num_warmup, num_samples, _FIRST_WINDOW)
    learned = np.cumsum((code == warmup.METRIC_END) | (code == warmup.WINDOW_END)) > 0
    return {"code": code, "learned": np.concatenate([[False], learned[:-1]])}
