"""Hamiltonian Monte Carlo with trajectories of a fixed mean length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, override

import jax
import jax.numpy as jnp
from blackjax.mcmc import hmc

from mcx.inference.mcmc.kernel import Transition
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.mcmc.whitening import LogDensity, NewPoint, Point, whitened
from mcx.ops.validation import Rule, integer, number
from mcx.types import Array, Covariance, Int, Key, PyTree, Scalar

TRAJECTORY_RULES: Mapping[str, Rule] = {
    "trajectory_length": number(above=0),
    "max_leapfrog_steps": integer(1),
}


@dataclass(frozen=True)
class _HMCTransition:
    trajectory_length: float
    max_leapfrog_steps: int
    uses_gradient: ClassVar[bool] = True

    def __call__(
        self, key: Key, state: Point, log_density: LogDensity, step_size: Scalar, covariance: Covariance
    ) -> NewPoint:
        key_length, key_move = jax.random.split(key)
        move = self.shared(key_length, step_size)
        return move(key_move, state, log_density, step_size, covariance)

    def shared(self, key: Key, step_size: Scalar) -> Callable[..., NewPoint]:
        """The transition with a length drawn for many chains at once, so that none waits for the longest."""
        # a random length, drawn independently of the state, avoids periodic orbits (Neal 2011, section 3.2)
        length = self.trajectory_length * jax.random.uniform(key, minval=0.5, maxval=1.5)
        num_steps = jnp.clip(jnp.ceil(length / step_size), 1, self.max_leapfrog_steps).astype(jnp.int32)

        def move(
            key: Key, state: Point, log_density: LogDensity, step_size: Scalar, covariance: Covariance
        ) -> NewPoint:
            new, stats, info = hmc_move(key, state, log_density, step_size, covariance, num_steps)
            return new, {**stats, "outside": info.proposal.logdensity == -jnp.inf}

        return move


def hmc_move(
    key: Key,
    state: Point,
    log_density: LogDensity,
    step_size: Scalar,
    covariance: Covariance,
    num_steps: Int[Array, ""],
) -> tuple[Point, dict[str, PyTree], hmc.HMCInfo]:
    """A trajectory of ``num_steps`` leapfrog steps, which is accepted or rejected.

    Gives the new point, statistics by ArviZ's names, and BlackJAX's information about the move, with the
    proposal in the original coordinates.
    """
    here = whitened(state, log_density, covariance)
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

    It needs a gradient and takes no discrete latent sites and no subsampled plates. A draw costs
    ``trajectory_length / step_size`` gradients on average.

    Attributes:
        trajectory_length: mean integration time, in units of the adapted metric (standard deviations); that
            of each trajectory is uniform between 0.5 and 1.5 times the mean.
        max_leapfrog_steps: largest number of leapfrog steps of a trajectory.

    Source: Neal (2011), MCMC using Hamiltonian dynamics; kernel and adaptation from BlackJAX.
    """

    trajectory_length: float = math.pi / 2
    max_leapfrog_steps: int = 1024

    former: ClassVar[Mapping[str, str]] = {"max_leapfrog_steps": "max_num_steps"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {**super().rules(), **TRAJECTORY_RULES}

    @override
    def transition(self) -> Transition:
        return _HMCTransition(float(self.trajectory_length), self.max_leapfrog_steps)
