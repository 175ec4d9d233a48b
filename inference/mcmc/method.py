"""What the Markov chain methods on unconstrained space share: settings, plans, programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, override

import jax.numpy as jnp
import numpy as np

from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.advice import transition_advice
from mcx.inference.mcmc.initial_points import Start, starting_points
from mcx.inference.mcmc.kernel import ChainKernel, MCMCKernel, MCMCState, Transition
from mcx.methods.chain_method import ChainMethod, ChainPlan
from mcx.methods.method import checked_target
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_start, refuse_unsupported
from mcx.ops.validation import Rule, number, one_of
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.target import Target

if TYPE_CHECKING:
    from mcx.types import Key, PyTree

__all__ = ["AdaptiveMethod", "MCMCMethod", "UnconstrainedMethod"]

_DENSE_DIM = 50


@dataclass(frozen=True, kw_only=True)
class AdaptiveMethod[P: ChainPlan](ChainMethod[P]):
    """Settings of Markov chain methods that adapt a step size and a metric while they warm up.

    Attributes:
        num_warmup: steps of adaptation, dropped from the results.
        num_samples: draws a chain keeps.
        target_accept: mean acceptance probability that the step size is adapted to.
        dense_mass: adapt a full mass matrix instead of its diagonal, which pays for correlated targets of
            moderate dimension (memory d^2, work d^2 a step and d^3 a transition). "auto" does so where the
            method takes gradients and d is at most 50.
        step_size: first step size; kept as it is where ``num_warmup`` is 0.
    """

    target_accept: float = 0.8
    dense_mass: bool | Literal["auto"] = "auto"
    step_size: float = 1.0

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            **super().rules(),
            "target_accept": number(above=0, below=1)._replace(expected="a number between 0 and 1"),
            "dense_mass": one_of(True, False, "auto"),
            "step_size": number(above=0)._replace(expected="a positive number"),
        }

    def takes_dense(self, target: Target, uses_gradient: bool) -> bool:
        """Whether the metric is a full matrix."""
        if self.dense_mass == "auto":
            return uses_gradient and target.dim <= _DENSE_DIM
        return bool(self.dense_mass)

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        return transition_advice(posterior, self.target_accept)


@dataclass(frozen=True, kw_only=True)
class UnconstrainedMethod(AdaptiveMethod[ChainPlan]):
    """A method whose chains move on all of a posterior's unconstrained space."""

    def kernel(self, target: Target) -> ChainKernel:
        """The kernel for the driver. Equal methods on targets of one structure give equal kernels."""
        raise NotImplementedError

    @override
    def plan(self, bound: BoundModel) -> ChainPlan:
        target = checked_target(bound)
        return ChainPlan(target, self.kernel(target), target.data)

    @override
    def initial_points(self, plan: ChainPlan, init: PyTree, num_chains: int, key: Key) -> Start:
        return starting_points(plan.target, init, num_chains, key)

    @override
    def refuse_start(self, plan: ChainPlan, state: MCMCState, key: Key) -> None:
        if not bool(jnp.all(state.started)):
            refuse_start(plan.target, state.position, key)
        refuse_unsupported(plan.target, state.position)


@dataclass(frozen=True, kw_only=True)
class MCMCMethod(UnconstrainedMethod):
    """A transition of one chain, which adapts alone, over windows that grow."""

    def transition(self) -> Transition:
        """The Markov transition on vectors."""
        raise NotImplementedError

    @override
    def kernel(self, target: Target) -> MCMCKernel:
        transition = self.transition()
        return MCMCKernel(
            target.functions,
            target.shapes,
            target.sites,
            float(self.target_accept),
            float(self.step_size),
            self.takes_dense(target, transition.uses_gradient),
            transition,
        )

    @override
    def inputs(self) -> np.ndarray:
        return warmup.schedule(self.num_warmup, self.num_samples)
