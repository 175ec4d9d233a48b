"""SMC^2: parameters and paths of state-space models, and their evidence, as observations come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, override

import jax
import numpy as np

from mcx.errors import CapabilityError, MethodError
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.pmmh.marginal import MarginalModel, marginal_model
from mcx.inference.pmmh.num_particles import log_evidence_sd, nearest_to_mean
from mcx.inference.pmmh.pmmh import PMMH, pmmh_kernel
from mcx.inference.smc.engine import SMCSettings, SMCState
from mcx.inference.smc.resampling import Resampling, as_resampling, multinomial, resampling_rule
from mcx.inference.smc2.advice import smc2_advice
from mcx.inference.smc2.draws import params_so_far, smc2_draws
from mcx.inference.smc2.growth import run_growing
from mcx.inference.smc2.kernel import SMC2Kernel, inputs
from mcx.inference.smc2.nested import NestedFilters, nested_filters
from mcx.inference.smc2.nested_moves import PMMHMoves
from mcx.methods.replicate_method import Cloud, ReplicateMethod, ReplicatePlan
from mcx.model.bound import BoundModel
from mcx.ops.keys import Stream, stream
from mcx.ops.validation import Rule, boolean, fraction, instance, integer, number, optional
from mcx.results.advice import Advice
from mcx.results.faults import FaultAdvice
from mcx.results.posterior import Posterior
from mcx.run.driver import Run
from mcx.types import Key, PyTree, Stats

_FIRST_PARTICLES = 64
_OF_MOVES = ("moved", "acceptance", "num_moves", "correlation", "correlation_density", "unique_ancestors")


@dataclass(frozen=True, kw_only=True)
class NestedPlan(ReplicatePlan):
    """A checked run of SMC^2: of the model without its Markov blocks, and what is nested.

    After a run ``nesting`` is what it was at its end.
    """

    model: MarginalModel
    nesting: NestedFilters


@dataclass(frozen=True, kw_only=True)
class SMC2(ReplicateMethod[NestedPlan]):
    """SMC^2: particles that are parameters, each with a particle filter of its own.

    As observations come in one after another, parameters are weighted by the evidence that their filters
    estimate; where few are left they are resampled, and moved by particle marginal Metropolis-Hastings on the
    observations so far. It needs no start near the posterior, suits posteriors with several modes, and
    estimates the evidence of every initial stretch of the series. A chain of the result is a replicate: a
    cloud that is run independently of the others, whose particles are its draws in random order. Several
    Markov blocks have to be independent given the parameters, and to have the same number of times.

    Attributes:
        num_params: number of parameters of a replicate.
        num_particles: N of a filter, or its first value if filters grow; 64 if None.
        grow: whether filters of all replicates get more particles where moves are accepted less often than
            ``least_acceptance`` and the log evidence has a standard deviation above 1.2, and before the last
            moves if that is above 1.8. By default they do so if ``num_particles`` is None.
        filter: any particle filter, with its resampling. Filters that grow resample by independent draws
            ("multinomial", the default). Potentials that are NaN count as zero.
        threshold: parameters are resampled and moved where their effective number falls below this fraction.
        max_correlation: parameters are moved until neither coordinates nor estimated log densities have a
            larger correlation than this with their former values.
        max_moves: largest number of moves at one time.
        least_acceptance: of the moves, see ``grow``.
        resampling: of parameters; a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        initial_law: a law on unconstrained space to draw parameters from in the prior's place, of event shape
            (d,), or the standard deviation of a Gaussian; needed if the prior is improper.
        batch_size: number of parameters whose filters run at once, where all of them would need too much
            memory.
        max_nonfinite: largest tolerated share of parameters whose estimated evidence is NaN or +inf.

    It costs O(num_params N) a time, and O(num_params N t) for each move at time t; moves are due at about log
    T times. Memory is O(num_params (N + T)) a replicate. To grow costs as much as a few moves, and another
    compilation; systems that grew hold a path. Replicates run one after another, or on several devices;
    ``infer(batch_size=)`` says how many run side by side, each of which then pays for the moves of all.

    The posterior has statistics by time in ``smc_stats``, those of the moves at the times when they took
    place, and the standard deviation of the log evidence at the posterior's mean in
    ``info.settings["log_evidence_sd"]``.

    Moves are adapted to the cloud that they move, which biases the evidence by order 1 / num_params; the
    number of inner particles causes no bias.

    Sources: Chopin, Jacob and Papaspiliopoulos (2013), SMC^2, JRSS B 75(3); Chopin, Ridgway, Gerber and
    Papaspiliopoulos (2015), Towards automatic calibration of the number of state particles within the SMC^2
    algorithm, for filters that grow by conditional SMC, which leaves weights as they are.
    """

    num_params: int = field(default=512, kw_only=False)
    num_particles: int | None = field(default=None, kw_only=False)
    grow: bool | None = None
    filter: ParticleFilter = field(default_factory=ParticleFilter)
    threshold: float = 0.5
    max_correlation: float = 0.2
    max_moves: int = 100
    least_acceptance: float = 0.2
    resampling: str | Resampling = "systematic"
    initial_law: Any = None
    batch_size: int | None = None
    max_nonfinite: float = 0.5

    former: ClassVar[Mapping[str, str]] = {"max_correlation": "forget", "initial_law": "start"}
    fault_advice: ClassVar[FaultAdvice] = FaultAdvice(
        "check that observation and the emission's support, take more parameters and particles, start "
        "from a law nearer to the posterior (initial_law=), or propose with the observation in view "
        "(proposal=)",
        "the emission",
    )
    start_advice: ClassVar[str] = "give a law to start from, initial_law=, to the method"
    side_by_side: ClassVar[int | None] = 1  # under vmap, moves would be paid for at every step

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "num_params": integer(2),
            "num_particles": optional(integer(1), "to have it grow from 64"),
            "grow": optional(boolean()),
            "filter": instance(ParticleFilter, "mcx.ParticleFilter(...)"),
            "threshold": number(above=0, most=1),
            "max_correlation": number(above=0, below=1),
            "max_moves": integer(1),
            "least_acceptance": number(0, below=1),
            "resampling": resampling_rule(),
            "batch_size": optional(integer(1)),
            "max_nonfinite": fraction(),
        }

    @override
    def check(self) -> None:
        if self._grows and as_resampling(self.filter.resampling) is not multinomial:
            raise MethodError(
                "filters grow conditional on one of their paths, which takes independent draws of ancestors",
                expected="ParticleFilter(resampling='multinomial')",
                found=repr(self.filter.resampling),
                remedy="or give SMC2 the number of particles: num_particles=",
            )

    @property
    def _grows(self) -> bool:
        return self.num_particles is None if self.grow is None else self.grow

    @property
    @override
    def particles(self) -> int:
        return self.num_params

    @override
    def plan(self, bound: BoundModel) -> NestedPlan:
        model = marginal_model(bound, self.filter)
        _refuse_lengths(model)
        nesting, data = nested_filters(
            model, self.num_particles or _FIRST_PARTICLES, self.filter, self.initial_law
        )
        moves = PMMHMoves(self.threshold, self.max_correlation, self.max_moves, self.batch_size)
        settings = SMCSettings(
            self.num_params, self.threshold, as_resampling(self.resampling), batch_size=self.batch_size
        )
        kernel = SMC2Kernel(nesting, moves, settings, self.least_acceptance if self._grows else 0.0)
        steps = data.num_times
        # only statistics are kept of a step, so the device can hold those of all steps
        return NestedPlan(
            model.target, kernel, data, steps, inputs(steps), steps, model=model, nesting=nesting
        )

    @override
    def at(self, plan: NestedPlan, bound: BoundModel) -> NestedPlan:
        return self.plan(bound)

    @override
    def calibrated(self, plan: NestedPlan, key: Key) -> NestedPlan:
        impl = str(jax.random.key_impl(key))
        if not impl.startswith("threefry"):  # with whose keys draws do not depend on what is drawn with them
            raise MethodError(
                "SMC2 runs filters again from their keys, and draws by keys of this kind would differ",
                expected="a key of JAX's default implementation",
                found=impl,
                remedy="key=jax.random.key(0, impl='threefry2x32')",
            )
        return plan

    @override
    def execute(
        self, plan: NestedPlan, *, batch_size: int | None = None, **options: Any
    ) -> tuple[NestedPlan, Run]:
        options["batch_size"] = self.side_by_side if batch_size is None else batch_size
        if not self._grows:
            return super().execute(plan, **options)
        assert isinstance(plan.kernel, SMC2Kernel)
        nesting, result = run_growing(plan.kernel, plan.data, title=self.name, **options)
        return replace(plan, nesting=nesting), result

    @override
    def first_stats(self, plan: NestedPlan, state: SMCState) -> Stats:
        return _first(plan.kernel, state)

    @override
    def cloud(self, plan: NestedPlan, key: Key, state: SMCState, *, complete: bool) -> Cloud:
        key_draws = stream(key, Stream.NESTED_DRAWS)
        if complete:
            conditional = plan.model.conditional
            x, log_p, sites, same = smc2_draws(plan.nesting, conditional, plan.data, key_draws, state)
            return Cloud(sites, x, {"lp": log_p}, same)
        x, log_p, sites = params_so_far(plan.model.marginal, key_draws, state)
        return Cloud(sites, x, {"lp": log_p})

    @override
    def finished(self, plan: NestedPlan, result: Run) -> bool:
        return result.num_steps == plan.num_steps

    @override
    def found(self, plan: NestedPlan, cloud: Cloud, key: Key) -> Mapping[str, Any]:
        number = plan.nesting.settings.num_particles
        if cloud.extra is None:
            return {"num_particles": number}
        central = nearest_to_mean(np.asarray(cloud.unconstrained))
        kernel = pmmh_kernel(PMMH(filter=self.filter), plan.model, number)
        key_sd = stream(key, Stream.EVIDENCE_ERROR)
        return {
            "num_particles": number,
            "log_evidence_sd": log_evidence_sd(kernel, plan.model.data, central, key_sd),
            "paths_that_differ": 1 - float(np.mean(cloud.extra)),
        }

    @override
    def stages(self, plan: NestedPlan, result: Run, cloud: Cloud, stats: Stats) -> Stats:
        """Statistics, chain x time, NaN for times not reached; moves belong to the time before them."""
        times = plan.num_steps
        found = {}
        for name, x in stats.items():
            x = x[:, 1:] if name in _OF_MOVES else x[:, :times]
            missing = times - x.shape[1]
            if missing > 0:
                x = np.pad(x.astype(float), ((0, 0), (0, missing)), constant_values=np.nan)
            found[name] = x
        return found

    @override
    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        if self.num_particles is None or self._grows:
            raise MethodError(
                "filters cannot grow within a pure function",
                expected="SMC2(num_params, num_particles)",
                remedy="mcx.infer finds how many are enough: posterior.info.settings['num_particles']",
            )
        return super().program(bound, num_chains)

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        return smc2_advice(posterior)


def _refuse_lengths(model: MarginalModel) -> None:
    lengths = {name: space.feynman_kac.num_times for name, space in model.data.spaces.items()}
    if len(set(lengths.values())) > 1:
        raise CapabilityError(
            "observations of all Markov blocks come in together, so they have to be of the same length",
            site=", ".join(lengths),
            found=", ".join(f"{name}: {count}" for name, count in lengths.items()),
            remedy="mcx.PMMH() takes blocks of any length",
        )


@partial(jax.jit, static_argnums=0)
def _first(kernel: SMC2Kernel, state: SMCState) -> PyTree:
    return jax.vmap(lambda s: kernel.collect(s, None)[1])(state)
