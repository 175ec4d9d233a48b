"""Random-walk Metropolis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, override

import jax.numpy as jnp
from blackjax.mcmc import random_walk

from mcx.inference.mcmc.kernel import Transition
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.whitening import LogDensity, NewPoint, Point, Whitening
from mcx.types import Covariance, Key, Scalar


@dataclass(frozen=True)
class _RandomWalkTransition:
    uses_gradient: ClassVar[bool] = False

    def __call__(
        self, key: Key, state: Point, log_density: LogDensity, step_size: Scalar, covariance: Covariance
    ) -> NewPoint:
        position, value, gradient = state
        whitening = Whitening(covariance)
        propose = random_walk.normal(jnp.ones(position.shape))
        here = random_walk.RWState(position, value)
        new, info = random_walk.build_additive_step()(
            key, here, log_density, lambda key, x: whitening(step_size * propose(key, x))
        )
        stats = {"acceptance_rate": info.acceptance_rate, "accepted": info.is_accepted}
        return (new.position, new.logdensity, gradient), stats


@dataclass(frozen=True, kw_only=True)
class RandomWalk(MCMCMethod):
    """Random-walk Metropolis with Gaussian steps shaped by the adapted covariance.

    It needs no gradient and takes no discrete latent sites and no subsampled plates. A draw costs one
    density; the number of draws needed grows with the dimension, so it suits a handful of parameters.

    Source: Metropolis et al. (1953); acceptance 0.234 from Roberts, Gelman and Gilks (1997); kernel from
    BlackJAX.
    """

    num_samples: int = 5000
    target_accept: float = 0.234
    step_size: float = 1.0

    @override
    def transition(self) -> Transition:
        return _RandomWalkTransition()
