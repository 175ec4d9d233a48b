"""ChEES-HMC: many chains, run side by side, that tune one Hamiltonian Monte Carlo sampler together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, override

import jax
import jax.numpy as jnp

from mcx.inference.mcmc import pooled_warmup
from mcx.inference.mcmc.hmc import TRAJECTORY_RULES, hmc_move
from mcx.inference.mcmc.kernel import ChainKernel, MCMCState, vector_density
from mcx.inference.mcmc.method import UnconstrainedMethod
from mcx.inference.mcmc.trajectory_length import Proposal
from mcx.ops import collectives
from mcx.ops.validation import Rule
from mcx.target import Target
from mcx.types import Key, PyTree, Vector


@dataclass(frozen=True)
class ChEESKernel(ChainKernel):
    """One of many chains, which adapt together by averages over all (:mod:`mcx.ops.collectives`)."""

    trajectory_length: float
    max_leapfrog_steps: int

    @property
    @override
    def pooled(self) -> bool:
        return True

    @override
    def adaptation(self, gradient: Vector) -> pooled_warmup.PooledState:
        return pooled_warmup.init(gradient.shape[0], self.step_size, self.trajectory_length, self.dense_mass)

    @override
    def step(
        self, data: PyTree, key: Key, state: MCMCState, u: pooled_warmup.WarmupPlan
    ) -> tuple[MCMCState, dict[str, PyTree]]:
        """One transition, then adaptation as the plan ``u`` says."""
        target = self.target(data)
        # one value for all chains makes the number of leapfrog steps one number, too: a loop whose bound
        # differs between chains would have to select the state of every chain at every step
        adapted = state.warmup._replace(shared=collectives.agreed(state.warmup.shared))
        num_steps = pooled_warmup.num_leapfrogs(adapted.shared, u, self.max_leapfrog_steps)
        step_size = pooled_warmup.step_size_of(adapted, u)
        old = (state.position, state.log_density, state.gradient)
        metric, length = adapted.shared.inverse_mass_matrix, adapted.shared.length.length
        new, stats, info = hmc_move(key, old, vector_density(target), step_size, metric, num_steps)
        stats = {"lp": new[1], **stats, "step_size": step_size, "trajectory_length": length}
        end = info.proposal
        usable = ~info.is_divergent & jnp.isfinite(info.acceptance_rate)
        proposal = Proposal(
            state.position,
            end.position,
            -end.momentum,  # BlackJAX reverses it
            jnp.where(usable, info.acceptance_rate, 0.0),
            ~jnp.isfinite(end.logdensity),
        )
        adapted = pooled_warmup.step(
            adapted, u, new[0], new[2], proposal, num_steps, self.target_accept, self.max_leapfrog_steps
        )

        def relocate(chain: PyTree) -> PyTree:
            return pooled_warmup.relocate(jax.random.fold_in(key, 1), chain, chain[0][1], target.dim)

        (new, averaging), relocated = jax.lax.cond(
            u.event == pooled_warmup.GATHER,
            relocate,
            lambda chain: (chain, jnp.asarray(False)),
            (new, adapted.averaging),
        )
        stats["relocated"] = relocated
        adapted = adapted._replace(averaging=averaging)
        position, value, gradient = new
        return MCMCState(position, value, gradient, adapted, state.started), stats


@dataclass(frozen=True, kw_only=True)
class ChEES(UnconstrainedMethod):
    """Hamiltonian Monte Carlo with many short chains, which tune step size, metric and length together.

    It needs a gradient and takes no discrete latent sites and no subsampled plates. It is meant for about 64
    chains, run side by side. A draw costs ``trajectory_length / (2 step_size)`` gradients on average, as many
    in every chain.

    Warm-up moves chains that are far below the others (20 + 5 d nats) to where another one is; the statistic
    ``relocated`` says which. Chains in modes that compete with each other stay where they are, and the
    warning MCX-W005 reports them.

    Attributes:
        target_accept: harmonic mean of the chains' acceptance probabilities that the step size is adapted
            to; their mean is higher.
        trajectory_length: initial value of the longest integration time, in units of the adapted metric
            (standard deviations); not adapted if ``num_warmup`` is 0. Each trajectory takes this time times
            a number in (0, 1) from a low-discrepancy sequence.
        max_leapfrog_steps: largest number of leapfrog steps of a trajectory.

    Source: Hoffman, Radul and Sountsov (2021), "An adaptive-MCMC scheme for setting trajectory lengths in
    Hamiltonian Monte Carlo", AISTATS; proposal and dual averaging from BlackJAX. For the approach to the
    typical set, which is mcx's own, see :mod:`mcx.inference.mcmc.pooled_warmup`.
    """

    num_warmup: int = 200
    num_samples: int = 500
    target_accept: float = 0.651
    trajectory_length: float = 2.0
    max_leapfrog_steps: int = 1000
    default_chains: ClassVar[int] = 64
    former: ClassVar[Mapping[str, str]] = {"max_leapfrog_steps": "max_num_steps"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {**super().rules(), **TRAJECTORY_RULES}

    @override
    def kernel(self, target: Target) -> ChEESKernel:
        return self.kernel_of(
            ChEESKernel, target, True, float(self.trajectory_length), self.max_leapfrog_steps
        )

    @override
    def inputs(self) -> pooled_warmup.WarmupPlan:
        return pooled_warmup.schedule(self.num_warmup, self.num_samples)
