"""The no-U-turn sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, override

from blackjax.mcmc import nuts
from blackjax.mcmc.hmc import HMCState

from mcx.inference.mcmc.base import MCMCMethod, Transition
from mcx.inference.mcmc.whitening import whitened

__all__ = ["NUTS"]


@dataclass(frozen=True)
class _NUTSTransition:
    max_tree_depth: int
    uses_gradient: ClassVar[bool] = True

    def __call__(
        self, key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any
    ) -> tuple[Any, dict[str, Any]]:
        here = whitened(state, log_density, inverse_mass_matrix)
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

    Needs a gradient; takes no discrete latent sites and no subsampled plates. Costs up to
    ``2**max_tree_depth`` gradients a draw.

    Attributes:
        max_tree_depth: the trajectory doubles at most this many times.

    Source: Hoffman and Gelman (2014), JMLR 15; Betancourt (2017), arXiv 1701.02434, appendix A; kernel and
    adaptation from BlackJAX.
    """

    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_tree_depth <= 20:
            self._refuse("max_tree_depth", "an int between 1 and 20")

    @override
    def transition(self) -> Transition:
        return _NUTSTransition(self.max_tree_depth)
