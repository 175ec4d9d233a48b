"""SMC^2: parameters and paths of state-space models, and their evidence, as observations come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.pmmh.num_particles import log_evidence_sd, nearest_to_mean
from mcx.inference.pmmh.pmmh import PMMH, Plan
from mcx.inference.smc.engine import SMCSettings, SMCState
from mcx.inference.smc.replicates import island_log_weights, log_mean_evidence, raise_faults
from mcx.inference.smc.resampling import as_resampling, multinomial
from mcx.inference.smc2.draws import params_so_far, smc2_draws
from mcx.inference.smc2.growth import run_growing
from mcx.inference.smc2.kernel import SMC2Kernel, inputs
from mcx.inference.smc2.nested import NestedData, Nesting
from mcx.inference.smc2.nested_moves import PMMHMoves
from mcx.inference.tempering.paths import tempered
from mcx.model.bound import BoundModel
from mcx.ops.checks import check_fields, is_count
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import Run, run
from mcx.run.programs import chain_keys, run_steps, start_chains

__all__ = ["SMC2"]

_FIRST_PARTICLES = 64
_OF_MOVES = ("moved", "acceptance", "num_moves", "correlation", "correlation_density", "unique_ancestors")


@dataclass(frozen=True, kw_only=True)
class SMC2:
    """SMC^2: particles that are parameters, each with a particle filter of its own.

    As observations come in one after another, parameters are weighted by what their filters make of them;
    where few are left they are resampled and moved by particle marginal Metropolis-Hastings on the
    observations so far. It needs no start near the posterior, takes posteriors of several modes, and gives
    the evidence of every stretch of the series. A chain of the result is a replicate: a cloud of its own, run
    independently, whose members are its draws, in no order. Several Markov blocks have to be independent
    given the parameters, and of the same length.

    Attributes:
        num_params: parameters of a replicate.
        num_particles: N of a filter, in the beginning if it grows; 64 if None.
        grow: whether filters get more particles, of all replicates at the same time, where moves are accepted
            less often than ``least_acceptance`` and the log evidence has a standard deviation above 1.2; and
            before the last moves where that is above 1.8. By default where ``num_particles`` is None.
        filter: any particle filter, with its resampling. Filters that grow resample by independent draws
            ("multinomial", the default). Potentials that are NaN count as zero.
        threshold: parameters are resampled and moved where their effective number falls below this fraction.
        forget: they are moved until neither coordinates nor estimated log densities have a larger
            correlation than this with what they were.
        max_moves: at one time, at most.
        least_acceptance: of the moves, see ``grow``.
        resampling: of parameters; a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        start: a law on unconstrained space to draw parameters from in the prior's place, of event shape (d,),
            or the standard deviation of a Gaussian: needed where the prior is improper.
        batch_size: parameters whose filters run at once, where all of them would need too much memory.
        max_nonfinite: largest tolerated share of parameters whose estimated evidence is NaN or +inf.

    Costs O(num_params N) a time, and O(num_params N t) for a move at time t, all of which number about log T;
    memory O(num_params (N + T)) a replicate. Growing costs as much as a few moves, and compiling anew;
    systems that grew remember a path. Replicates run one after another (``infer(batch_size=)`` says
    how many side by side, each then pays for the moves of all), or on several devices.

    The posterior has statistics by time in ``smc_stats``, those of the moves where they took place, and the
    standard deviation of the log evidence at its mean in ``info.settings["log_evidence_sd"]``.

    Moves learn from the cloud that they move, which biases the evidence by order 1 / num_params; the number
    of inner particles makes no bias.

    Sources: Chopin, Jacob and Papaspiliopoulos (2013), SMC^2, JRSS B 75(3); Chopin, Ridgway, Gerber and
    Papaspiliopoulos (2015), Towards automatic calibration of the number of state particles within the SMC^2
    algorithm, for filters that grow by conditional SMC, which leaves weights as they are.
    """

    num_params: int = field(default=512, kw_only=False)
    num_particles: int | None = field(default=None, kw_only=False)
    grow: bool | None = None
    filter: ParticleFilter = field(default_factory=ParticleFilter)
    threshold: float = 0.5
    forget: float = 0.2
    max_moves: int = 100
    least_acceptance: float = 0.2
    resampling: str | Callable[..., Any] = "systematic"
    start: Any = None
    batch_size: int | None = None
    max_nonfinite: float = 0.5

    def __post_init__(self) -> None:
        as_resampling(self.resampling)
        check_fields(
            self,
            ("num_params", is_count(self.num_params, 2), "an int >= 2"),
            (
                "num_particles",
                self.num_particles is None or is_count(self.num_particles),
                "an int >= 1, or None to have it grow from 64",
            ),
            ("filter", isinstance(self.filter, ParticleFilter), "mcx.ParticleFilter(...)"),
            ("least_acceptance", 0 <= self.least_acceptance < 1, "a probability below 1"),
            (
                "batch_size",
                self.batch_size is None or is_count(self.batch_size),
                "an int >= 1, or None",
            ),
            ("max_nonfinite", 0 <= self.max_nonfinite <= 1, "a fraction between 0 and 1"),
        )
        self._moves()
        if self._grows and as_resampling(self.filter.resampling) is not multinomial:
            raise MethodError(
                "filters grow given one of their paths, which takes independent draws of ancestors",
                expected="ParticleFilter(resampling='multinomial')",
                found=repr(self.filter.resampling),
                remedy="or give SMC2 the number of particles: num_particles=",
            )

    @property
    def name(self) -> str:
        """Name of the method."""
        return type(self).__name__

    @property
    def _grows(self) -> bool:
        return self.num_particles is None if self.grow is None else self.grow

    def _moves(self) -> PMMHMoves:
        return PMMHMoves(self.threshold, self.forget, self.max_moves, self.batch_size)

    def nested(self, plan: Plan, num_particles: int) -> tuple[Nesting, NestedData]:
        """The nested model, for :func:`~mcx.inference.smc2.nested.nest`."""
        path, data = tempered(plan.marginal, self.start)
        settings = replace(self.filter.settings(num_particles), lag=None)
        return Nesting(path, settings), NestedData(data, plan.data.spaces)

    def plan(self, bound: BoundModel) -> Plan:
        """The checked model; raises what stands against it."""
        plan = PMMH(filter=self.filter).plan(bound)
        lengths = {name: space.feynman_kac.num_times for name, space in plan.data.spaces.items()}
        if len(set(lengths.values())) > 1:
            raise CapabilityError(
                "observations of all Markov blocks come in together, so they have to be of the same length",
                site=", ".join(lengths),
                found=", ".join(f"{name}: {count}" for name, count in lengths.items()),
                remedy="mcx.PMMH() takes blocks of any length",
            )
        return plan

    def kernel(self, nesting: Nesting) -> SMC2Kernel:
        """The kernel for the driver."""
        settings = SMCSettings(
            self.num_params, self.threshold, as_resampling(self.resampling), batch_size=self.batch_size
        )
        least = self.least_acceptance if self._grows else 0.0
        return SMC2Kernel(nesting, self._moves(), settings, least)

    def infer(
        self,
        bound: BoundModel,
        *,
        key: Any,
        num_chains: int,
        init: Any,
        coords: Mapping[str, Any],
        batch_size: int | None = None,
        **options: Any,
    ) -> Posterior:
        """Run the replicates. Use :func:`mcx.infer`, which checks the options and the result."""
        if init is not None:
            raise MethodError(
                f"{self.name} starts from the prior, not from points",
                found="init=",
                remedy="give a law to start from, start=, to the method",
            )
        _check_key(key)
        plan = self.plan(bound)
        nesting, data = self.nested(plan, self.num_particles or _FIRST_PARTICLES)
        kernel = self.kernel(nesting)
        first: list[Mapping[str, Any]] = []
        options |= {
            "key": key,
            "num_chains": num_chains,
            "title": self.name,
            "on_start": lambda state: first.append(jax.device_get(_first(kernel, state))),
            # under vmap, moves would be paid for at every step
            "batch_size": 1 if batch_size is None else batch_size,
        }
        if self._grows:
            nesting, result = run_growing(kernel, data, **options)
        else:
            steps = data.num_steps  # nothing but statistics is kept of a step
            result = run(kernel, data, num_steps=steps, inputs=inputs(steps), capacity=steps, **options)
        return self._posterior(bound, plan, nesting, data, result, first[0], key, coords)

    def _posterior(
        self,
        bound: BoundModel,
        plan: Plan,
        nesting: Nesting,
        data: NestedData,
        result: Run,
        first: Mapping[str, Any],
        key: Any,
        coords: Mapping[str, Any],
    ) -> Posterior:
        later = result.stats or {k: np.zeros((len(x), 0), x.dtype) for k, x in first.items()}
        whole = {k: np.concatenate([x[:, None], later[k]], 1) for k, x in first.items()}
        raise_faults(whole, self.num_params, self.max_nonfinite, "smc2")
        key_draws, complete = jax.random.fold_in(key, 4), result.num_steps == data.num_steps
        stats = _by_time(first, later, data.num_steps)
        if complete:
            x, log_p, sites, same = smc2_draws(nesting, plan.given, data, key_draws, result.state)
        else:
            x, log_p, sites = params_so_far(plan.marginal, key_draws, result.state)
        log_z = stats["log_evidence"][:, min(result.num_steps, data.num_steps - 1)]
        total, se = log_mean_evidence(log_z)
        number = nesting.settings.num_particles
        settings: dict[str, Any] = {"num_particles": number}
        if complete:
            central = nearest_to_mean(np.asarray(x))
            kernel = plan.kernel(number)
            key_sd = jax.random.fold_in(key, 3)
            settings["log_evidence_sd"] = log_evidence_sd(kernel, plan.data, central, key_sd)
            settings["paths_that_differ"] = 1 - float(np.mean(same))
        info = RunInfo.of(self, result, key=key, coords=coords, dtype=x.dtype, settings=settings)
        draws = jax.device_get(sites)
        return Posterior(
            draws={s.name: draws[s.name] for s in plan.target.sites if s.name in draws},
            unconstrained=np.asarray(x),
            stats={"lp": np.asarray(log_p)},
            warmup_stats={},
            bound=bound,
            info=replace(info, complete=complete, cloud=True),
            weights=island_log_weights(log_z, x.shape[1]),
            log_evidence=total,
            log_evidence_se=se,
            smc_stats=stats,
        )

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`. Use :func:`mcx.program`."""
        number = self.num_particles
        if number is None or self._grows:
            raise MethodError(
                "filters cannot grow within a pure function",
                expected="SMC2(num_params, num_particles)",
                remedy="mcx.infer finds how many are enough: posterior.info.settings['num_particles']",
            )
        nesting, template = self.nested(self.plan(bound), number)
        kernel = self.kernel(nesting)
        steps = template.num_steps

        def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
            _check_key(key)
            plan = self.plan(bound)
            _, data = self.nested(plan, number)
            start_keys, keys = chain_keys(key, num_chains)
            state = start_chains(kernel, data, start_keys, None, 1)
            us = jax.tree_util.tree_map(jnp.asarray, inputs(steps))
            state, _, _ = run_steps(kernel, data, keys, 0, steps, state, us, steps, batch_size=1)
            x, log_p, sites, _ = smc2_draws(nesting, plan.given, data, jax.random.fold_in(key, 4), state)
            lost = jax.vmap(lambda s: s.collapsed)(state)

            def known(x: Any) -> Any:
                there = ~lost.reshape(-1, *(1,) * (x.ndim - 1))
                return jnp.where(there, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

            x, log_p, sites = jax.tree_util.tree_map(known, (x, log_p, sites))
            log_z = jax.vmap(lambda s: s.log_evidence)(state)
            info = RunInfo(self.name, fields_of(self), cloud=True)
            weights = island_log_weights(log_z, x.shape[1])
            return Posterior(sites, x, {"lp": log_p}, {}, bound, info, weights, *log_mean_evidence(log_z))

        return run_program


def _check_key(key: Any) -> None:
    """Raise for keys whose draws depend on what else is drawn along with them."""
    impl = str(jax.random.key_impl(key))
    if not impl.startswith("threefry"):
        raise MethodError(
            "SMC2 runs filters once more from their keys, and draws by keys of this kind differ then",
            expected="a key of JAX's default implementation",
            found=impl,
            remedy="key=jax.random.key(0, impl='threefry2x32')",
        )


def _by_time(
    first: Mapping[str, np.ndarray], later: Mapping[str, np.ndarray], num_steps: int
) -> dict[str, np.ndarray]:
    """Statistics, chain x time, NaN where a run did not come to.

    A step's moves belong to the time before. Where the last step is there it is nothing else.
    """
    stats = {}
    for name, x in first.items():
        whole = np.concatenate([x[:, None], later[name]], 1)
        whole = whole[:, 1:] if name in _OF_MOVES else whole[:, :num_steps]
        missing = num_steps - whole.shape[1]
        stats[name] = (
            np.pad(whole.astype(float), ((0, 0), (0, missing)), constant_values=np.nan) if missing else whole
        )
    return stats


@partial(jax.jit, static_argnums=0)
def _first(kernel: SMC2Kernel, state: SMCState) -> Any:
    return jax.vmap(lambda s: kernel.collect(s, None)[1])(state)
