"""``mcx.GuidedDiffusion``: posteriors under diffusion priors, by particles led down the reverse process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC
from mcx.inference.diffusion.guided.calibration import GuidedData
from mcx.inference.diffusion.guided.feynman_kac import code
from mcx.inference.diffusion.guided.gibbs_kernel import GuidedGibbsKernel, GuidedGibbsState
from mcx.inference.diffusion.guided.kernel import GuidedKernel, first_stats
from mcx.inference.diffusion.guided.likelihood_kind import KINDS, Plan, make_plan
from mcx.inference.diffusion.guided.results import last_draws, lineages, path_stats
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.base import MCMCMethod
from mcx.inference.mcmc.initial_points import starting_points
from mcx.inference.mcmc.sample import posterior_of, run_purely
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.replicates import island_log_weights, log_mean_evidence, raise_faults
from mcx.inference.smc.resampling import as_resampling
from mcx.inference.tempering.samplers import constrained_draws
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start, refuse_unsupported
from mcx.ops.checks import check_fields, is_count
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import Run, run
from mcx.run.programs import chain_keys, run_steps, start_chains

__all__ = ["GuidedDiffusion"]

_START = 4  # folded into the key; 0 and 1 are the run's, 2 the pilot's, 3 that of the last draws
_ALONE, _WITH_PARAMS = 512, 32  # particles


@dataclass(frozen=True, kw_only=True)
class GuidedDiffusion:
    """Posterior of a site with a diffusion prior, :class:`mcx.ScorePrior`, and the evidence.

    Particles go down the prior's reverse process, led to the observations, and are weighted so that for many
    of them, and for many steps, they are draws from the posterior; the estimate of the evidence has no bias
    of the number of particles. No density of the prior is needed. A chain of the result is a replicate: a
    cloud of particles of its own, run independently, whose members are its draws, in no order.

    With ``params`` the model may have other latent sites: the diffusion's path from noise to data is drawn by
    conditional SMC given these, and these given the site's value, in turn (particle Gibbs). Chains are then
    Markov chains, exact for any N but for the length of the steps, and there is no evidence.

    Attributes:
        num_particles: N of a replicate; by default 512, and 32 with ``params``.
        num_steps: of the reverse process; by default at the prior's own levels.
        guidance: how particles are led. "linear_gaussian": for Gaussian observations whose means are affine
            in the site's value; "twisted": by the gradient of the likelihood through the denoiser;
            "soft_value": by choosing among ``num_children`` steps, for likelihoods without gradients, of
            whatever kind. "auto" takes the first of these that the model admits.
        num_children: steps that are tried a particle, for "soft_value".
        lookahead: of "linear_gaussian": whether the observation is compared with the "denoised" point, its
            error counted, or with the "noised" point as it is.
        fade: ``rho -> exponent`` of the likelihood that is looked at with that much noise left, for "twisted"
            and "soft_value". By default a pilot run finds how much the denoiser's error matters.
        threshold: resample below this effective sample size, as a fraction of N; 1 is at every step.
        resampling: a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        num_pilot: draws from the prior that tell the denoiser's error at every level.
        batch_size: particles that are moved at once, where all of them would need too much memory.
        max_nonfinite: largest tolerated share of likelihoods that are NaN or +inf.
        params: a Markov chain method such as ``mcx.NUTS()`` for the other latent sites, whose numbers of
            steps are not used; None where there are none.
        num_warmup, num_samples: sweeps with ``params``, those of adaptation and those that are kept.

    Costs a call of the model a particle and step, with its gradient for "twisted", ``num_children`` of them
    for "soft_value"; and three calls a step for each draw of the pilot. Memory O(N d) a replicate, and N
    integers a step.

    Under a composition (``prior ** 2``, ``one * other``) the evidence counts the composition's own integral.

    Sources: see :mod:`mcx.inference.diffusion.guided.feynman_kac`.
    """

    num_particles: int | None = field(default=None, kw_only=False)
    num_steps: int | None = None
    guidance: str = "auto"
    num_children: int = 4
    lookahead: str = "denoised"
    fade: Callable[[Any], Any] | None = None
    threshold: float = 0.5
    resampling: str | Callable[..., Any] = "systematic"
    num_pilot: int = 256
    batch_size: int | None = None
    max_nonfinite: float = 0.5
    params: MCMCMethod | None = None
    num_warmup: int = 500
    num_samples: int = 1000

    def __post_init__(self) -> None:
        check_fields(
            self,
            (
                "num_particles",
                self.num_particles is None or is_count(self.num_particles, 2),
                "an int >= 2, or None",
            ),
            ("num_steps", self.num_steps is None or is_count(self.num_steps), "an int >= 1, or None"),
            ("guidance", self.guidance in KINDS, "one of " + ", ".join(map(repr, KINDS))),
            ("num_children", is_count(self.num_children), "an int >= 1"),
            ("lookahead", self.lookahead in ("denoised", "noised"), '"denoised" or "noised"'),
            ("fade", self.fade is None or callable(self.fade), "a function of the noise level, or None"),
            ("num_pilot", is_count(self.num_pilot, 16), "an int >= 16"),
            ("params", self.params is None or isinstance(self.params, MCMCMethod), "such as mcx.NUTS()"),
            ("num_warmup", is_count(self.num_warmup, 0), "an int >= 0"),
            ("num_samples", is_count(self.num_samples), "an int >= 1"),
            ("max_nonfinite", 0 <= self.max_nonfinite <= 1, "a fraction between 0 and 1"),
        )
        self._settings()

    @property
    def name(self) -> str:
        """Name of the method."""
        return type(self).__name__

    @property
    def _number(self) -> int:
        if self.num_particles is not None:
            return self.num_particles
        return _ALONE if self.params is None else _WITH_PARAMS

    def _settings(self) -> SMCSettings:
        return SMCSettings(
            self._number, self.threshold, as_resampling(self.resampling), batch_size=self.batch_size
        )

    def plan(self, bound: BoundModel) -> Plan:
        """What is to run; raises what stands against it."""
        guiding = {
            "num_children": self.num_children,
            "noised": self.lookahead == "noised",
            "fade": self.fade,
            "num_pilot": self.num_pilot,
        }
        return make_plan(bound, self.guidance, guiding, self.num_steps, self.params is not None)

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
        """Run the replicates. Use :func:`mcx.infer`, which checks the options and the result."""
        if self.params is not None:
            return self._infer_params(
                bound, key=key, num_chains=num_chains, init=init, coords=coords, **options
            )
        if init is not None:
            raise MethodError(f"{self.name} starts from noise, not from points", found="init=")
        plan = self.plan(bound)
        data = plan.data(key)
        steps = plan.chain.num_steps
        first: list[Mapping[str, Any]] = []
        result = run(
            GuidedKernel(code(plan.how), self._settings()),
            data,
            key=key,
            num_steps=steps,
            num_chains=num_chains,
            inputs=np.arange(1, steps + 1, dtype=np.int32),
            title=self.name,
            on_start=lambda state: first.append(jax.device_get(first_stats(state, data.chain.rho[0]))),
            **options,
        )
        return self._posterior(bound, plan, data, result, first[0], key, coords)

    def _posterior(
        self,
        bound: BoundModel,
        plan: Plan,
        data: GuidedData,
        result: Run,
        first: Mapping[str, Any],
        key: Any,
        coords: Mapping[str, Any],
    ) -> Posterior:
        stats = {k: np.asarray(x)[:, None] for k, x in first.items()}
        if result.stats:
            stats = {k: np.concatenate([x, result.stats[k]], 1) for k, x in stats.items()}
        raise_faults(stats, self._number, self.max_nonfinite, "guided")
        if not result.complete:
            raise KeyboardInterrupt(
                f"{self.name} was interrupted at noise level {stats['rho'][0, -1]:.3g}; particles are no "
                "draws yet. checkpoint= goes on from there"
            )
        x, log_p, index = jax.device_get(last_draws(key, result.state))
        draws = jax.device_get(constrained_draws(plan.target, x))
        stats["lineages"] = lineages(np.asarray(result.draws), index)
        log_z = stats["log_evidence"][:, -1]
        total, se = log_mean_evidence(log_z)
        settings = {"guidance": plan.how.kind, "half": int(data.half)}
        info = RunInfo.of(self, result, key=key, coords=coords, dtype=x.dtype, settings=settings)
        return Posterior(
            draws={s.name: draws[s.name] for s in plan.target.sites if s.name in draws},
            unconstrained=x,
            stats={"log_likelihood": log_p},
            warmup_stats={},
            bound=bound,
            info=replace(info, cloud=True, num_nonfinite=int(np.sum(~np.isfinite(x).all(-1)))),
            weights=island_log_weights(log_z, x.shape[1]),
            log_evidence=total,
            log_evidence_se=se,
            smc_stats=stats,
        )

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`. Use :func:`mcx.program`."""
        template = self.plan(bound)
        if self.params is not None:
            of = self._params_program(template, num_chains)
            return lambda key, bound=bound: of(key, bound)
        how, steps = template.how, template.chain.num_steps
        kernel = GuidedKernel(code(how), self._settings())

        def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
            plan = template.at(bound, self.num_steps)
            data = plan.data(key)
            start_keys, keys = chain_keys(key, num_chains)
            state = start_chains(kernel, data, start_keys, None)
            numbers = jnp.arange(1, steps + 1, dtype=jnp.int32)
            state, _, _ = run_steps(kernel, data, keys, 0, steps, state, numbers, steps)
            x, log_p, _ = last_draws(key, state)
            log_z = jax.vmap(lambda s: s.log_evidence)(state)
            lost = jax.vmap(lambda s: s.collapsed)(state)
            x = jnp.where(lost[:, None, None], jnp.nan, x)
            info = RunInfo(self.name, fields_of(self), cloud=True)
            draws = constrained_draws(plan.target, x)
            stats = {"log_likelihood": log_p}
            weights = island_log_weights(log_z, x.shape[1])
            return Posterior(draws, x, stats, {}, bound, info, weights, *log_mean_evidence(log_z))

        return run_program

    # --- with other parameters ---------------------------------------------------------------------

    def inputs(self) -> dict[str, np.ndarray]:
        """Of every sweep with ``params``: its adaptation code, and whether it counts."""
        return {
            "code": warmup.schedule(self.num_warmup, self.num_samples),
            "keep": np.arange(self.num_warmup + self.num_samples) >= self.num_warmup,
        }

    def _gibbs(self, plan: Plan) -> GuidedGibbsKernel:
        assert self.params is not None and plan.rest is not None
        refuse_data(plan.rest)
        sampling = "none" if plan.how.kind == "soft_value" else "backward"
        paths = ConditionalSMC(self._number, sampling=sampling, threshold=self.threshold)
        return GuidedGibbsKernel(plan.how, paths, self.params.kernel(plan.rest))

    def _infer_params(
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
        kernel = self._gibbs(plan)
        assert self.params is not None and plan.rest is not None
        rest, name = plan.rest, plan.how.name

        def on_start(state: GuidedGibbsState) -> None:
            started = np.asarray(state.started)
            chain = int(np.argmin(started))
            given = rest.with_data((plan.target.data, {name: state.path[chain, -1]}))
            positions = state.params.position[chain : chain + 1]
            if not started.all():
                refuse_start(given, positions, key)
            refuse_unsupported(given, positions)

        result = run(
            kernel,
            plan.data(key),
            key=key,
            num_steps=self.num_warmup + self.num_samples,
            num_chains=num_chains,
            num_discard=self.num_warmup,
            start=starting_points(rest, init, num_chains, jax.random.fold_in(key, _START)),
            inputs=self.inputs(),
            title=self.name,
            on_start=on_start,
            **options,
        )
        if result.draws is None:
            raise KeyboardInterrupt(f"{self.name} was interrupted during warm-up; there are no draws yet")
        settings = {
            "target_accept": self.params.target_accept,
            "guidance": plan.how.kind,
            "states": {name: kernel.paths},
        }
        return posterior_of(
            bound,
            plan.target,
            self,
            result,
            key=key,
            coords=coords,
            settings=settings,
            smc_stats=path_stats(name, jax.device_get(result.state)),
        )

    def _params_program(self, template: Plan, num_chains: int) -> Callable[..., Posterior]:
        kernel = self._gibbs(template)
        rest = template.rest
        assert rest is not None
        inputs = jax.tree_util.tree_map(jnp.asarray, self.inputs())

        def run_program(key: Any, bound: BoundModel) -> Posterior:
            data = template.at(bound, self.num_steps).data(key)
            start = starting_points(rest, None, num_chains, key)
            last, (sites, x), stats = run_purely(kernel, data, key, start, inputs, self, num_chains)
            info = RunInfo(self.name, fields_of(self), num_warmup=self.num_warmup)
            return Posterior(sites, x, stats, {}, bound, info, smc_stats=path_stats(template.how.name, last))

        return run_program
