"""``mcx.GuidedGibbs``: diffusion priors in models with parameters, by particle Gibbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, override

import jax
import numpy as np

from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC
from mcx.inference.diffusion.guided.advice import level_advice
from mcx.inference.diffusion.guided.diffusion_posterior import DiffusionPosterior
from mcx.inference.diffusion.guided.gibbs_kernel import GuidedGibbsKernel, GuidedGibbsState
from mcx.inference.diffusion.guided.settings import GuidedSettings
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.advice import transition_advice
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.nuts import NUTS
from mcx.methods.chain_method import ChainMethod, ChainPlan
from mcx.methods.initial_points import InitialPoints, as_initial_points
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start_given_path
from mcx.ops.keys import Stream
from mcx.ops.validation import Rule, instance
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.run.driver import Run
from mcx.target import Target
from mcx.types import Key, PyTree


@dataclass(frozen=True, kw_only=True)
class GuidedGibbsPlan(ChainPlan):
    """A checked run of particle Gibbs; ``data`` are the kernel's once a pilot run has measured them."""

    posterior: DiffusionPosterior

    @property
    def rest(self) -> Target:
        """The posterior of the other sites given the one with the diffusion prior."""
        assert self.posterior.rest is not None
        return self.posterior.rest

    @override
    def at(self, bound: BoundModel) -> Self:
        posterior = self.posterior.at(bound)
        return replace(self, target=posterior.target, posterior=posterior)


@dataclass(frozen=True, kw_only=True)
class GuidedGibbs(GuidedSettings, ChainMethod[GuidedGibbsPlan]):
    """Posterior of a site with a diffusion prior, :class:`mcx.ScorePrior`, and of the model's other sites.

    The path of the diffusion from noise to data is drawn by conditional SMC given the other sites, and these
    given the site's value, in turn (particle Gibbs). Chains are Markov chains, exact for any number of
    particles but for the length of the reverse steps; there is no evidence. No density of the prior is
    needed.

    The other attributes are those of :class:`mcx.GuidedDiffusion` that have the same names.

    Attributes:
        num_particles: N of conditional SMC.
        guidance: how particles are guided: "twisted", "soft_value", or "auto", the first of these that the
            model admits.
        params: a Markov chain method for the other latent sites, whose numbers of steps are not used.
        num_warmup: sweeps during which that method adapts, dropped from the results.
        num_samples: draws that a chain keeps.

    A sweep costs a call of the diffusion model per particle and reverse step, with its gradient for
    "twisted", ``num_children`` calls for "soft_value"; and a transition of ``params``. Memory O(K N d) per
    chain, with K reverse steps.

    Sources: Andrieu, Doucet and Holenstein (2010), section 2.4.3; for the guidance see
    :mod:`mcx.inference.diffusion.guided.feynman_kac`.
    """

    num_particles: int = field(default=32, kw_only=False)
    params: MCMCMethod = field(default_factory=NUTS)
    num_warmup: int = 500
    num_samples: int = 1000

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {**super().rules(), "params": instance(MCMCMethod, "a Markov chain method such as mcx.NUTS()")}

    @override
    def check(self) -> None:
        if self.guidance == "linear_gaussian":
            self.refuse(
                "guidance",
                '"twisted", "soft_value" or "auto": "linear_gaussian" takes the observation apart once, and '
                "parameters change it",
            )

    @override
    def plan(self, bound: BoundModel) -> GuidedGibbsPlan:
        posterior = self.posterior(bound, with_params=True)
        assert posterior.rest is not None
        refuse_data(posterior.rest)
        paths = ConditionalSMC(
            self.num_particles,
            # what is picked among children has no density to sample backwards with
            backward="none" if posterior.guidance.kind == "soft_value" else "exact",
            threshold=self.threshold,
        )
        kernel = GuidedGibbsKernel(posterior.guidance, paths, self.params.kernel(posterior.rest))
        return GuidedGibbsPlan(target=posterior.target, kernel=kernel, data=None, posterior=posterior)

    @override
    def calibrated(self, plan: GuidedGibbsPlan, key: Key) -> GuidedGibbsPlan:
        return replace(plan, data=plan.posterior.pilot(key))

    @override
    def inputs(self) -> dict[str, np.ndarray]:
        return warmup.sweeps(self.num_warmup, self.num_samples)

    @property
    @override
    def _start_stream(self) -> Stream:
        return Stream.GUIDED_INITIAL_POINTS

    @override
    def initial_points(self, plan: GuidedGibbsPlan, init: PyTree, num_chains: int, key: Key) -> InitialPoints:
        return as_initial_points(plan.rest, init, num_chains, key)

    @override
    def refuse_start(self, plan: GuidedGibbsPlan, state: GuidedGibbsState, key: Key) -> None:
        def given(chain: int) -> Target:
            value = {plan.posterior.site: state.path[chain, -1]}
            return plan.rest.with_data((plan.target.data, value))

        refuse_start_given_path(state.started, state.params.position, given, key)

    @override
    def found(self, plan: GuidedGibbsPlan, result: Run, key: Key) -> Mapping[str, Any]:
        return {"guidance": plan.posterior.guidance.kind}

    @override
    def time_stats(self, plan: GuidedGibbsPlan, state: GuidedGibbsState) -> dict[str, jax.Array]:
        site = plan.posterior.site
        return {f"{site}.{statistic}": x for statistic, x in state.averages._asdict().items()}

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        found = transition_advice(posterior, self.params.target_accept)
        for name, rates in posterior.smc_stats.items():
            site, _, statistic = name.rpartition(".")
            if statistic == "update_rate":
                found += level_advice(site, np.asarray(rates), self.num_particles)
        return found
