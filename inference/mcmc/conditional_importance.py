"""Conditional importance sampling: a Markov kernel that moves by importance sampling from a given law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.ops.random import choose
from mcx.target import Target

__all__ = ["ImportanceKernel", "ImportanceState"]


class ImportanceState(NamedTuple):
    """State of one chain: an unconstrained point (d,) and its log density."""

    position: Any
    log_density: Any


@dataclass(frozen=True)
class ImportanceKernel:
    """Propose from a distribution, weight the proposals together with the present point, draw one of them.

    It leaves the target invariant whatever the distribution is; it is conditional SMC with a single time.

    Attributes:
        num_samples: proposals a step.

    Source: Andrieu, Doucet and Holenstein (2010); Naesseth, Lindsten and Blei (2020).
    """

    num_samples: int

    def init(self, target: Target, key: Any, position: Any) -> ImportanceState:
        """Start at a point."""
        return ImportanceState(position, _log_density(target, position))

    def step(self, target: Target, key: Any, state: ImportanceState, proposal: Any) -> ImportanceState:
        """One transition with proposals from a NumPyro distribution of event shape (d,)."""
        key_propose, key_choose = jax.random.split(key)
        proposed = proposal.sample(key_propose, (self.num_samples,))
        positions = jnp.concatenate([state.position[None], proposed])
        log_p = jnp.concatenate(
            [state.log_density[None], jax.vmap(lambda z: _log_density(target, z))(proposed)]
        )
        log_w = log_p - proposal.log_prob(positions)
        # where nothing has a density, stay
        chosen = jnp.where(jnp.any(log_w > -jnp.inf), choose(key_choose, log_w), 0)
        return ImportanceState(positions[chosen], log_p[chosen])


def _log_density(target: Target, position: Any) -> Any:
    log_p = target.log_density(target.unravel(position))
    return jnp.where(jnp.isnan(log_p), -jnp.inf, log_p)
