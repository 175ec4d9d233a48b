"""Methods whose draws are clouds of particles, run as independent replicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.methods.method import Coords, Method, interrupted
from mcx.model.bound import BoundModel
from mcx.results.evidence import log_mean_evidence, replicate_log_weights
from mcx.results.faults import FaultAdvice, raise_faults
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import Run, run
from mcx.run.kernel import Kernel
from mcx.run.programs import chain_keys, run_steps, start_chains
from mcx.target import Target
from mcx.types import Array, Bool, Float, Key, PyTree, Stats


@dataclass(frozen=True)
class ReplicatePlan:
    """A checked run of replicates.

    Attributes:
        target: the posterior, whose sites the draws consist of.
        kernel: for the driver, of one replicate's particle system.
        data: for the kernel.
        num_steps: number of steps of a replicate; the largest number if the kernel is open-ended.
        inputs: of every step, or None.
        capacity: number of steps whose records the device holds; None leaves it to the driver.
    """

    target: Target
    kernel: Kernel
    data: PyTree
    num_steps: int
    inputs: PyTree = None
    capacity: int | None = None


class Cloud(NamedTuple):
    """Equally weighted draws of every replicate, in random order.

    Attributes:
        sites: values by site, chain x draw x event.
        unconstrained: the points that the values came from, chain x draw x d.
        stats: by name, chain x draw.
        extra: anything else that :meth:`ReplicateMethod.found` needs.
    """

    sites: Mapping[str, Float[Array, "chain draw ..."]]
    unconstrained: Float[Array, "chain draw d"]
    stats: Mapping[str, Float[Array, "chain draw"]]
    extra: PyTree = None


class ReplicateMethod[P: ReplicatePlan](Method):
    """A method that runs particle systems, which are weighted by their estimated evidences.

    A subclass defines :meth:`plan`; :meth:`at`; :meth:`cloud`, which takes draws from the last states; and
    :attr:`particles`.

    Attributes:
        fault_advice: for the errors raised where all weights are zero or potentials are NaN.
        start_advice: remedy for users who give initial points, ``init=``.
        side_by_side: number of replicates of a pure program that move at once; None is all.
        synchronous: whether replicates that were stopped early have reached the same law, so that their
            evidences can be compared.
        max_nonfinite: largest tolerated share of potentials that are NaN or +inf; may be a field.
    """

    fault_advice: ClassVar[FaultAdvice]
    start_advice: ClassVar[str] = ""
    side_by_side: ClassVar[int | None] = None
    synchronous: ClassVar[bool] = True
    max_nonfinite: float = 0.5

    # what a method defines -------------------------------------------------------------------------------

    @property
    def particles(self) -> int:
        """Number of weighted particles of a replicate."""
        raise NotImplementedError

    @property
    def tolerance(self) -> float:
        """Largest tolerated share of a step's potentials that are NaN or +inf."""
        return self.max_nonfinite

    def plan(self, bound: BoundModel) -> P:
        """The checked run; raises if the method does not suit the model."""
        raise NotImplementedError

    def at(self, plan: P, bound: BoundModel) -> P:
        """The same plan for other data of the same shapes; may be traced."""
        raise NotImplementedError

    def calibrated(self, plan: P, key: Key) -> P:
        """The plan with whatever has to be measured before the run in its data; may be traced."""
        return plan

    def execute(self, plan: P, **options: Any) -> tuple[P, Run]:
        """Run the driver; returns the plan as it is at the end of the run, and the run."""
        result = run(
            plan.kernel,
            plan.data,
            num_steps=plan.num_steps,
            inputs=plan.inputs,
            capacity=plan.capacity,
            title=self.name,
            **options,
        )
        return plan, result

    def first_stats(self, plan: P, state: PyTree) -> Stats | None:
        """Statistics of the states before the first step, by name, (chain,); None if there are none."""
        return None

    def cloud(self, plan: P, key: Key, state: PyTree, *, complete: bool) -> Cloud:
        """Draws from the last states of all replicates; may be traced."""
        raise NotImplementedError

    def found(self, plan: P, cloud: Cloud, key: Key) -> Mapping[str, object]:
        """Settings that the run itself chose or measured, for ``posterior.info.settings``."""
        return {}

    def stages(self, plan: P, result: Run, cloud: Cloud, stats: Stats) -> Mapping[str, Any]:
        """``Posterior.smc_stats``, from the statistics of all steps, chain x step."""
        return stats

    def log_evidence(self, state: PyTree) -> Float[Array, " chain"]:
        """Log evidence of each replicate, from its last state."""
        return jax.vmap(lambda s: s.log_evidence)(state)

    def lost(self, state: PyTree) -> Bool[Array, " chain"]:
        """Whether each replicate has no draws, by its last state."""
        return jax.vmap(lambda s: s.collapsed)(state)

    def finished(self, plan: P, result: Run) -> bool:
        """Whether all replicates came to their proper end."""
        return result.complete

    # what all methods have in common ------------------------------------------------------------------------

    @override
    def infer(
        self, bound: BoundModel, *, key: Key, num_chains: int, init: PyTree, coords: Coords, **options: Any
    ) -> Posterior:
        if init is not None:
            raise MethodError(
                f"{self.name} starts from a law, not from points", found="init=", remedy=self.start_advice
            )
        plan = self.calibrated(self.plan(bound), key)
        first: list[Stats | None] = []

        def on_start(state: PyTree) -> None:
            first.append(jax.device_get(self.first_stats(plan, state)))

        plan, result = self.execute(plan, key=key, num_chains=num_chains, on_start=on_start, **options)
        stats = _with_first(first[0], result.stats)
        if not stats:
            interrupted(self.name, "first stage", result)
        raise_faults(stats, self.particles, self.tolerance, self.fault_advice, result=result)
        complete = self.finished(plan, result)
        cloud = self.cloud(plan, key, result.state, complete=complete)
        draws, x = jax.device_get((dict(cloud.sites), cloud.unconstrained))
        log_z = np.asarray(jax.device_get(self.log_evidence(result.state)))
        total, se = log_mean_evidence(log_z)
        info = RunInfo.of(
            self, result, key=key, coords=coords, dtype=x.dtype, settings=self.found(plan, cloud, key)
        )
        bad = int(np.sum(~np.isfinite(x).all(-1)))
        comparable = complete or self.synchronous
        return Posterior(
            draws={s.name: draws[s.name] for s in plan.target.sites if s.name in draws},
            unconstrained=np.asarray(x),
            stats={name: np.asarray(values) for name, values in cloud.stats.items()},
            warmup_stats={},
            bound=bound,
            info=replace(info, complete=complete, cloud=True, num_nonfinite=bad),
            weights=replicate_log_weights(log_z, x.shape[1]) if comparable else None,
            log_evidence=total,
            log_evidence_se=se,
            smc_stats=dict(self.stages(plan, result, cloud, stats)),
        )

    @override
    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        template = self.plan(bound)

        def run_program(key: Key, bound: BoundModel = bound) -> Posterior:
            plan = self.calibrated(self.at(template, bound), key)
            state = _last_states(plan, key, num_chains, self.side_by_side)
            cloud = self.cloud(plan, key, state, complete=True)
            lost = self.lost(state)

            def known(x: Float[Array, "chain draw ..."]) -> Float[Array, "chain draw ..."]:
                there = ~lost.reshape(-1, *(1,) * (x.ndim - 1))
                return jnp.where(there, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

            sites, x, stats = jax.tree.map(known, cloud[:3])
            log_z = self.log_evidence(state)
            info = RunInfo(self.name, fields_of(self), cloud=True)
            weights = replicate_log_weights(log_z, x.shape[1])
            return Posterior(sites, x, stats, {}, bound, info, weights, *log_mean_evidence(log_z))

        return run_program


def _with_first(first: Stats | None, later: Stats) -> dict[str, np.ndarray]:
    """Statistics of all steps, chain x step: of the start, and of the steps that the driver took."""
    if first is None:
        return dict(later)
    begin = {name: np.asarray(x)[:, None] for name, x in first.items()}
    return {name: np.concatenate([x, later[name]], 1) if later else x for name, x in begin.items()}


def _last_states(plan: ReplicatePlan, key: Key, num_chains: int, batch_size: int | None) -> PyTree:
    """The states of all replicates after their last steps, as a pure function."""
    kernel, data = plan.kernel, plan.data
    start_keys, keys = chain_keys(key, num_chains)
    state = start_chains(kernel, data, start_keys, None, batch_size)
    if not kernel.open_ended:
        inputs = jax.tree.map(jnp.asarray, plan.inputs)
        steps = plan.num_steps
        return run_steps(
            kernel, data, keys, 0, steps, state, inputs, plan.capacity or steps, batch_size=batch_size
        )[0]

    def unfinished(carry: tuple[Array, PyTree]) -> Array:
        t, state = carry
        return (t < plan.num_steps) & ~jnp.all(jax.vmap(kernel.finished)(state))

    def stage(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        t, state = carry
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        return t + 1, jax.vmap(lambda k, s: kernel.step(data, k, s, None)[0])(now, state)

    return jax.lax.while_loop(unfinished, stage, (jnp.uint32(0), state))[1]
