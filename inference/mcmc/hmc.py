"""Hamiltonian Monte Carlo with trajectories of a given mean length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, override

import jax
import jax.numpy as jnp
from blackjax.mcmc import hmc

from mcx.inference.mcmc.base import MCMCMethod, Transition
from mcx.inference.mcmc.whitening import whitened

__all__ = ["HMC", "hmc_move"]


@dataclass(frozen=True)
class _HMCTransition:
    trajectory_length: float
    max_num_steps: int
    uses_gradient: ClassVar[bool] = True

    def __call__(
        self, key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any
    ) -> tuple[Any, dict[str, Any]]:
        key_length, key_move = jax.random.split(key)
        move = self.shared(key_length, step_size)
        return move(key_move, state, log_density, step_size, inverse_mass_matrix)

    def shared(self, key: Any, step_size: Any) -> Callable[..., tuple[Any, dict[str, Any]]]:
        """The transition with its length drawn: of many chains none then waits for the longest."""
        # a random length, drawn independently of the state, avoids periodic orbits (Neal 2011, section 3.2)
        length = self.trajectory_length * jax.random.uniform(key, minval=0.5, maxval=1.5)
        num_steps = jnp.clip(jnp.ceil(length / step_size), 1, self.max_num_steps).astype(jnp.int32)

        def move(
            key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any
        ) -> tuple[Any, dict[str, Any]]:
            new, stats, info = hmc_move(key, state, log_density, step_size, inverse_mass_matrix, num_steps)
            return new, {**stats, "outside": info.proposal.logdensity == -jnp.inf}

        return move


def hmc_move(
    key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any, num_steps: Any
) -> tuple[tuple[Any, Any, Any], dict[str, Any], hmc.HMCInfo]:
    """A trajectory of ``num_steps`` leapfrog steps, taken or not.

    Returns:
        New ``(position, log_density, gradient)``, ArviZ-named statistics, and BlackJAX's account of the move,
        its proposal brought back from whitened coordinates.
    """
    here = whitened(state, log_density, inverse_mass_matrix)
    new, info = hmc.build_kernel()(
        key, hmc.HMCState(*here.start), here.log_density, step_size, here.metric, num_steps
    )
    kinetic = 0.5 * jnp.sum(info.momentum**2)
    stats = {
        "acceptance_rate": info.acceptance_rate,
        "diverging": info.is_divergent,
        "energy": jnp.where(info.is_accepted, info.energy, kinetic - state[1]),
        "n_steps": num_steps,
    }
    end = info.proposal
    end = end._replace(
        position=state[0] + here.whitening(end.position), momentum=here.whitening.push_gradient(end.momentum)
    )
    return here.back(tuple(new)), stats, info._replace(proposal=end)


@dataclass(frozen=True, kw_only=True)
class HMC(MCMCMethod):
    """Hamiltonian Monte Carlo: a randomised number of leapfrog steps, then accept or reject.

    Needs a gradient; takes no discrete latent sites and no subsampled plates. Costs
    ``trajectory_length / step_size`` gradients a draw on average.

    Attributes:
        trajectory_length: mean integration time, in units of the adapted metric (standard deviations);
            each trajectory's is uniform within half of it either way.
        max_num_steps: leapfrog steps at most.

    Source: Neal (2011), MCMC using Hamiltonian dynamics; kernel and adaptation from BlackJAX.
    """

    trajectory_length: float = math.pi / 2
    max_num_steps: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_trajectories(self.trajectory_length, self.max_num_steps)

    @override
    def transition(self) -> Transition:
        return _HMCTransition(float(self.trajectory_length), self.max_num_steps)
