"""What Markov chain methods on unconstrained space have in common: settings, plans, initial points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, override

import numpy as np

from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.advice import transition_advice
from mcx.inference.mcmc.kernel import ChainKernel, MCMCKernel, Transition
from mcx.methods.chain_method import ChainMethod, ChainPlan
from mcx.methods.method import checked_target
from mcx.model.bound import BoundModel
from mcx.ops.validation import Rule, number, one_of
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.target import Target

_DENSE_DIM = 50


@dataclass(frozen=True, kw_only=True)
class AdaptiveMethod[P: ChainPlan](ChainMethod[P]):
    """Settings of Markov chain methods that adapt a step size and a metric during warm-up.

    Attributes:
        num_warmup: number of steps of adaptation, which are dropped from the results.
        num_samples: number of draws that each chain keeps.
        target_accept: mean acceptance probability that the step size is adapted to.
        dense_mass: whether to adapt a full mass matrix instead of its diagonal, which pays for correlated
            targets of moderate dimension (memory d^2, work d^2 a step and d^3 a transition). "auto" does so
            if the method takes gradients and d is at most 50.
        step_size: first step size; not adapted if ``num_warmup`` is 0.
    """

    target_accept: float = 0.8
    dense_mass: bool | Literal["auto"] = "auto"
    step_size: float = 1.0

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            **super().rules(),
            "target_accept": number(above=0, below=1),
            "dense_mass": one_of(True, False, "auto"),
            "step_size": number(above=0),
        }

    def takes_dense(self, target: Target, uses_gradient: bool) -> bool:
        """Whether the metric is a full matrix."""
        if self.dense_mass == "auto":
            return uses_gradient and target.dim <= _DENSE_DIM
        return bool(self.dense_mass)

    def kernel_of[K: ChainKernel](
        self, kind: Callable[..., K], target: Target, uses_gradient: bool, *own: object
    ) -> K:
        """A kernel on a target with these settings, and with fields of its ``own``."""
        dense = self.takes_dense(target, uses_gradient)
        accept, step_size = float(self.target_accept), float(self.step_size)
        return kind(target.functions, target.shapes, target.sites, accept, step_size, dense, *own)

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        return transition_advice(posterior, self.target_accept)


@dataclass(frozen=True, kw_only=True)
class UnconstrainedMethod(AdaptiveMethod[ChainPlan]):
    """A method whose chains move on all of a posterior's unconstrained space."""

    def kernel(self, target: Target) -> ChainKernel:
        """The kernel for the driver; equal for equal methods on targets of the same structure."""
        raise NotImplementedError

    @override
    def plan(self, bound: BoundModel) -> ChainPlan:
        target = checked_target(bound)
        return ChainPlan(target, self.kernel(target), target.data)


@dataclass(frozen=True, kw_only=True)
class MCMCMethod(UnconstrainedMethod):
    """A method whose chains adapt independently, over windows of growing length."""

    def transition(self) -> Transition:
        """The Markov transition on vectors."""
        raise NotImplementedError

    @override
    def kernel(self, target: Target) -> MCMCKernel:
        transition = self.transition()
        return self.kernel_of(MCMCKernel, target, transition.uses_gradient, transition)

    @override
    def inputs(self) -> np.ndarray:
        return warmup.schedule(self.num_warmup, self.num_samples)
