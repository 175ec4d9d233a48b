"""Methods whose draws come from Markov chains: one way to run them and to assemble their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, override

import jax
import jax.numpy as jnp

from mcx.methods.initial_points import as_initial_points
from mcx.methods.method import Coords, Method, interrupted
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_start, refuse_unsupported
from mcx.model.compile import compile_model
from mcx.ops.keys import Stream, stream
from mcx.ops.validation import Rule, integer
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import Run, run
from mcx.run.kernel import Kernel
from mcx.run.programs import chain_keys, run_steps, start_chains
from mcx.target import Target
from mcx.types import Array, Float, Key, PyTree

type Refuse = Callable[[PyTree], None]
"""Raises if a chain found no initial point, given the states with a leading chain axis."""


@dataclass(frozen=True)
class ChainPlan:
    """A checked run of Markov chains.

    Attributes:
        target: the posterior, whose sites the draws consist of.
        kernel: for the driver. Its states have a field ``started``, which says whether the chain found an
            initial point, and it emits draws as ``(values by site, unconstrained point)``.
        data: for the kernel: the target itself, its data, or whatever the kernel needs.
    """

    target: Target
    kernel: Kernel
    data: PyTree

    def at(self, bound: BoundModel) -> Self:
        """The same plan for other data of the same shapes. It checks nothing and may be traced."""
        target = compile_model(bound)
        return replace(self, data=target if isinstance(self.data, Target) else target.data)


@dataclass(frozen=True, kw_only=True)
class ChainMethod[P: ChainPlan](Method):
    """A method that runs Markov chains: a warm-up, which is dropped, and then draws.

    A subclass defines :meth:`plan`, and :meth:`initial_points` if its kernel needs any.

    Attributes:
        num_warmup: number of steps of adaptation, which are dropped from the results.
        num_samples: number of draws that each chain keeps.
    """

    num_warmup: int = 1000
    num_samples: int = 1000

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {"num_warmup": integer(0), "num_samples": integer(1)}

    # what a method defines -------------------------------------------------------------------------------

    def plan(self, bound: BoundModel) -> P:
        """The checked run; raises if the method does not suit the model."""
        raise NotImplementedError

    def inputs(self) -> PyTree:
        """The inputs of all steps, a pytree with a leading axis of steps; None if there are none."""
        return None

    def initial_points(self, plan: P, init: PyTree, num_chains: int, key: Key) -> PyTree:
        """Initial points, with a leading chain axis: by default of all unconstrained coordinates."""
        return as_initial_points(plan.target, init, num_chains, key)

    def calibrated(self, plan: P, key: Key) -> P:
        """The plan with whatever has to be measured before the run in its data; may be traced."""
        return plan

    def tuned(self, plan: P, start: PyTree, refuse_start: Refuse, key: Key, **options: Any) -> P:
        """The plan after pilot runs, which pure programs do not make."""
        return plan

    def refuse_start(self, plan: P, state: PyTree, key: Key) -> None:
        """Raise if a chain, an entry of ``state``, found no initial point; by default of all coordinates."""
        if not bool(jnp.all(state.started)):
            refuse_start(plan.target, state.position, key)
        refuse_unsupported(plan.target, state.position)

    def found(self, plan: P, result: Run, key: Key) -> Mapping[str, object]:
        """Settings that the run itself chose or measured, for ``posterior.info.settings``."""
        return {}

    def time_stats(self, plan: P, state: PyTree) -> Mapping[str, Any]:
        """Statistics by time from the last states of the chains, for ``Posterior.smc_stats``."""
        return {}

    # what all methods have in common ------------------------------------------------------------------------

    @override
    def infer(
        self, bound: BoundModel, *, key: Key, num_chains: int, init: PyTree, coords: Coords, **options: Any
    ) -> Posterior:
        plan = self.calibrated(self.plan(bound), key)
        start = self.initial_points(plan, init, num_chains, stream(key, self._start_stream))

        def on_start(state: PyTree) -> None:
            self.refuse_start(plan, state, key)

        plan = self.tuned(plan, start, on_start, key, **options)
        result = run(
            plan.kernel,
            plan.data,
            key=key,
            num_steps=self.num_warmup + self.num_samples,
            num_chains=num_chains,
            num_discard=self.num_warmup,
            init=start,
            inputs=self.inputs(),
            title=self.name,
            on_start=on_start,
            **options,
        )
        if result.draws is None:
            interrupted(self.name, "warm-up", result)
        draws, x = result.draws
        split, settings = result.num_discard, self.found(plan, result, key)
        return Posterior(
            # compiled programs return the sites sorted by name; users expect the order of their program
            draws={s.name: draws[s.name] for s in plan.target.sites if s.name in draws},
            unconstrained=x,
            stats={k: v[:, split:] for k, v in result.stats.items()},
            warmup_stats={k: v[:, :split] for k, v in result.stats.items()},
            bound=bound,
            info=RunInfo.of(self, result, key=key, coords=coords, dtype=x.dtype, settings=settings),
            smc_stats=dict(self.time_stats(plan, jax.device_get(result.state))),
        )

    @property
    def _start_stream(self) -> Stream:
        return Stream.INITIAL_POINTS

    @override
    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        template = self.plan(bound)
        inputs = jax.tree.map(jnp.asarray, self.inputs())

        def run_program(key: Key, bound: BoundModel = bound) -> Posterior:
            plan = self.calibrated(template.at(bound), key)
            kernel, data = plan.kernel, plan.data
            start = self.initial_points(template, None, num_chains, key)
            start_keys, keys = chain_keys(key, num_chains)
            state = start_chains(kernel, data, start_keys, start)
            warmup, kept = self.num_warmup, self.num_samples
            last, draws, stats = run_steps(
                kernel, data, keys, 0, warmup + kept, state, inputs, kept, discard=warmup
            )
            emitted = jax.vmap(jax.vmap(kernel.emit, (None, 0)), (None, 0))(data, draws)

            def by_chain(x: Float[Array, "draw chain ..."]) -> Float[Array, "chain draw ..."]:
                """Chain x draw; NaN in chains that found no initial point."""
                x = jnp.swapaxes(x, 0, 1)
                if not jnp.issubdtype(x.dtype, jnp.floating):
                    return x
                return jnp.where(state.started.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)

            (sites, unconstrained), stats = jax.tree.map(by_chain, (emitted, stats))
            info = RunInfo(self.name, fields_of(self), num_warmup=warmup)
            by_time = dict(self.time_stats(plan, last))
            return Posterior(sites, unconstrained, stats, {}, bound, info, smc_stats=by_time)

        return run_program
