"""``mcx.GuidedDiffusion``: posteriors under diffusion priors, by particles guided down in noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, override

import numpy as np

from mcx.inference.diffusion.guided.advice import lineage_advice, survivors_advice
from mcx.inference.diffusion.guided.diffusion_posterior import DiffusionPosterior
from mcx.inference.diffusion.guided.draws import last_draws, lineages
from mcx.inference.diffusion.guided.kernel import GuidedKernel, first_stats
from mcx.inference.diffusion.guided.settings import GuidedSettings
from mcx.inference.smc.engine import SMCSettings, SMCState
from mcx.inference.smc.resampling import Resampling, as_resampling, resampling_rule
from mcx.inference.tempering.samplers import constrained_draws
from mcx.methods.method import interrupted
from mcx.methods.replicate_method import Cloud, ReplicateMethod, ReplicatePlan
from mcx.model.bound import BoundModel
from mcx.ops.validation import Rule, fraction, integer, one_of, optional
from mcx.results.advice import Advice
from mcx.results.faults import FaultAdvice
from mcx.results.posterior import Posterior
from mcx.run.driver import Run
from mcx.types import Key, Stats


@dataclass(frozen=True, kw_only=True)
class GuidedPlan(ReplicatePlan):
    """A checked run of guided particles; ``data`` are the kernel's once a pilot run has measured them."""

    posterior: DiffusionPosterior


@dataclass(frozen=True, kw_only=True)
class GuidedDiffusion(GuidedSettings, ReplicateMethod[GuidedPlan]):
    """Posterior of a site with a diffusion prior, :class:`mcx.ScorePrior`, and the evidence.

    Particles go down the prior's reverse process, guided to the observations, and are weighted so that with
    many of them, and with many steps, they are draws from the posterior; the estimate of the evidence has no
    bias for any number of particles. No density of the prior is needed. A chain of the result is a replicate:
    a cloud of particles of its own, run independently, whose members are its draws, in no order. The model
    has no other latent sites; :class:`mcx.GuidedGibbs` draws those as well.

    Attributes:
        num_particles: N of a replicate.
        num_reverse_steps: of the reverse process; by default at the prior's own levels.
        guidance: how particles are guided. "linear_gaussian": for Gaussian observations whose means are
            affine in the site's value; "twisted": by the gradient of the likelihood through the denoiser;
            "soft_value": by choosing among ``num_children`` steps, for any likelihood, without gradients.
            "auto" takes the first of these that the model admits.
        num_children: steps that are tried per particle, for "soft_value".
        lookahead: of "linear_gaussian": whether the observation is compared with the "denoised" point, whose
            error counts as noise, or with the "noised" point as it is.
        fade: ``rho -> exponent`` of the likelihood that is looked at with that much noise left, for "twisted"
            and "soft_value". By default a pilot run finds how much the denoiser's error matters.
        threshold: resample below this effective sample size, as a fraction of N; 1 is at every step.
        resampling: a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        num_pilot: draws from the prior that measure the denoiser's error at every level.
        batch_size: particles that are moved at once, where all of them would need too much memory.
        max_nonfinite: largest tolerated share of likelihoods that are NaN or +inf.

    Costs a call of the diffusion model per particle and step, with its gradient for "twisted",
    ``num_children`` calls for "soft_value"; and three calls per step for each draw of the pilot run. Memory
    O(N d) per replicate, and N integers per step.

    Under a composition (``prior ** 2``, ``one * other``) the evidence includes the integral of that.

    Sources: see :mod:`mcx.inference.diffusion.guided.feynman_kac`.
    """

    lookahead: Literal["denoised", "noised"] = "denoised"
    resampling: str | Resampling = "systematic"
    batch_size: int | None = None
    max_nonfinite: float = 0.5

    fault_advice: ClassVar[FaultAdvice] = FaultAdvice(
        "check the observations and their distributions' supports, or take more particles", "the likelihood"
    )
    start_advice: ClassVar[str] = "leave init= out: particles start from noise"

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            **super().rules(),
            "lookahead": one_of("denoised", "noised"),
            "resampling": resampling_rule(),
            "batch_size": optional(integer(1)),
            "max_nonfinite": fraction(),
        }

    @property
    @override
    def particles(self) -> int:
        return self.num_particles

    @override
    def plan(self, bound: BoundModel) -> GuidedPlan:
        posterior = self.posterior(bound, noised=self.lookahead == "noised")
        settings = SMCSettings(
            self.num_particles, self.threshold, as_resampling(self.resampling), batch_size=self.batch_size
        )
        steps = posterior.process.num_steps
        return GuidedPlan(
            target=posterior.target,
            kernel=GuidedKernel(posterior.guidance, settings),
            data=None,
            num_steps=steps,
            inputs=np.arange(1, steps + 1, dtype=np.int32),
            posterior=posterior,
        )

    @override
    def at(self, plan: GuidedPlan, bound: BoundModel) -> GuidedPlan:
        posterior = plan.posterior.at(bound)
        return replace(plan, target=posterior.target, posterior=posterior)

    @override
    def calibrated(self, plan: GuidedPlan, key: Key) -> GuidedPlan:
        return replace(plan, data=plan.posterior.pilot(key))

    @override
    def first_stats(self, plan: GuidedPlan, state: SMCState) -> Any:
        return first_stats(state, plan.data.chain.rho[0])

    @override
    def finished(self, plan: GuidedPlan, result: Run) -> bool:
        if not result.complete:  # particles are no draws before the last level
            rho = result.stats["rho"][0, -1] if result.stats else plan.data.chain.rho[0]
            during = f"reverse process, at noise level {float(rho):.3g}"
            interrupted(self.name, during, result, "checkpoint= goes on from there")
        return True

    @override
    def cloud(self, plan: GuidedPlan, key: Key, state: SMCState, *, complete: bool) -> Cloud:
        x, log_p, index = last_draws(key, state)
        return Cloud(constrained_draws(plan.target, x), x, {"log_likelihood": log_p}, index)

    @override
    def found(self, plan: GuidedPlan, cloud: Cloud, key: Key) -> Mapping[str, Any]:
        return {"guidance": plan.posterior.guidance.kind, "half": int(plan.data.half)}

    @override
    def stages(self, plan: GuidedPlan, result: Run, cloud: Cloud, stats: Stats) -> Stats:
        return {**stats, "lineages": lineages(np.asarray(result.draws), np.asarray(cloud.extra))}

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        stats, num_draws = posterior.smc_stats, posterior.num_draws
        half = int(posterior.info.settings["half"])
        return [*survivors_advice(stats, num_draws), *lineage_advice(stats, num_draws, half)]
