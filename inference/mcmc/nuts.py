"""The no-U-turn sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, override

from blackjax.mcmc import nuts
from blackjax.mcmc.hmc import HMCState

from mcx.inference.mcmc.kernel import Transition
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.whitening import LogDensity, NewPoint, Point, whitened
from mcx.ops.validation import Rule, integer
from mcx.types import Covariance, Key, Scalar


@dataclass(frozen=True)
class _NUTSTransition:
    max_tree_depth: int
    uses_gradient: ClassVar[bool] = True

    def __call__(
        self, key: Key, state: Point, log_density: LogDensity, step_size: Scalar, covariance: Covariance
    ) -> NewPoint:
        here = whitened(state, log_density, covariance)
        new, info = nuts.build_kernel()(
            key, HMCState(*here.start), here.log_density, step_size, here.metric, self.max_tree_depth
        )
        stopped = info.is_divergent | info.is_turning
        return here.back(tuple(new)), {
            "acceptance_rate": info.acceptance_rate,
            "diverging": info.is_divergent,
            "energy": info.energy,
            "n_steps": info.num_integration_steps,
            "tree_depth": info.num_trajectory_expansions,
            "reached_max_treedepth": (info.num_trajectory_expansions >= self.max_tree_depth) & ~stopped,
        }


@dataclass(frozen=True, kw_only=True)
class NUTS(MCMCMethod):
    """No-U-turn sampler with multinomial trajectories and window adaptation.

    It needs a gradient and takes no discrete latent sites and no subsampled plates. A draw costs up to
    ``2**max_tree_depth`` gradients.

    Attributes:
        max_tree_depth: the trajectory doubles at most this many times.

    Source: Hoffman and Gelman (2014), JMLR 15; Betancourt (2017), arXiv 1701.02434, appendix A; kernel and
    adaptation from BlackJAX.
    """

    max_tree_depth: int = 10

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {**super().rules(), "max_tree_depth": integer(1, 20)}

    @override
    def transition(self) -> Transition:
        return _NUTSTransition(self.max_tree_depth)
