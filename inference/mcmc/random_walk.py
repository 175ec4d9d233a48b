"""Random-walk Metropolis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, override

import jax.numpy as jnp
from blackjax.mcmc import random_walk

from mcx.inference.mcmc.kernel import Transition
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.whitening import Point, Whitening
from mcx.types import Covariance, Key, PyTree, Scalar, Vector

__all__ = ["RandomWalk"]


@dataclass(frozen=True)
class _RandomWalkTransition:
    uses_gradient: ClassVar[bool] = False

    def __call__(
        self,
        key: Key,
        state: Point,
        log_density: Callable[[Vector], Scalar],
        step_size: Scalar,
        inverse_mass_matrix: Covariance,
    ) -> tuple[Point, dict[str, PyTree]]:
        position, value, gradient = state
        whitening = Whitening(inverse_mass_matrix)
        propose = random_walk.normal(jnp.ones(position.shape))
        kernel = random_walk.build_additive_step()
        new, info = kernel(
            key,
            random_walk.RWState(position, value),
            log_density,
            lambda key, x: whitening(step_size * propose(key, x)),
        )
        return (new.position, new.logdensity, gradient), {
            "acceptance_rate": info.acceptance_rate,
            "accepted": info.is_accepted,
        }


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
