"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, override

from blackjax.mcmc import mala

from mcx.inference.mcmc.kernel import Transition
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.whitening import LogDensity, NewPoint, Point, whitened
from mcx.types import Covariance, Key, Scalar


@dataclass(frozen=True)
class _MALATransition:
    uses_gradient: ClassVar[bool] = True

    def __call__(
        self, key: Key, state: Point, log_density: LogDensity, step_size: Scalar, covariance: Covariance
    ) -> NewPoint:
        here = whitened(state, log_density, covariance)
        new, info = mala.build_kernel()(key, mala.MALAState(*here.start), here.log_density, step_size)
        stats = {"acceptance_rate": info.acceptance_rate, "accepted": info.is_accepted}
        return here.back(tuple(new)), stats


@dataclass(frozen=True, kw_only=True)
class MALA(MCMCMethod):
    """Metropolis-adjusted Langevin algorithm, preconditioned by the adapted covariance.

    It needs a gradient and takes no discrete latent sites and no subsampled plates. A draw costs one
    gradient; draws are far more correlated than those of NUTS.

    Source: Roberts and Tweedie (1996), Bernoulli 2(4); acceptance 0.574 from Roberts and Rosenthal (1998);
    kernel from BlackJAX.
    """

    num_samples: int = 2000
    target_accept: float = 0.574
    step_size: float = 0.1

    @override
    def transition(self) -> Transition:
        return _MALATransition()
