"""Conditional importance sampling: a Markov kernel that moves by importance sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.ops.random import choose
from mcx.target import Target
from mcx.types import Key, Scalar, Vector


class ImportanceState(NamedTuple):
    """State of one chain: an unconstrained point (d,) and its log density."""

    position: Vector
    log_density: Scalar


@dataclass(frozen=True)
class ImportanceKernel:
    """Draw proposals, weight them together with the present point, and move to one of them at random.

    This leaves the target invariant for any proposal distribution; it is conditional SMC with a single time.
    A step takes ``num_samples`` proposals, and costs as many densities.

    Source: Andrieu, Doucet and Holenstein (2010); Naesseth, Lindsten and Blei (2020).
    """

    num_samples: int

    def init(self, target: Target, key: Key, position: Vector) -> ImportanceState:
        """Start at a point."""
        return ImportanceState(position, _log_density(target, position))

    def step(self, target: Target, key: Key, state: ImportanceState, proposal: Any) -> ImportanceState:
        """One transition with proposals from a NumPyro distribution of event shape (d,)."""
        key_propose, key_choose = jax.random.split(key)
        proposed = proposal.sample(key_propose, (self.num_samples,))
        positions = jnp.concatenate([state.position[None], proposed])
        log_p = jnp.concatenate(
            [state.log_density[None], jax.vmap(lambda z: _log_density(target, z))(proposed)]
        )
        log_w = log_p - proposal.log_prob(positions)
        # stay where no point has a positive density
        chosen = jnp.where(jnp.any(log_w > -jnp.inf), choose(key_choose, log_w), 0)
        return ImportanceState(positions[chosen], log_p[chosen])


def _log_density(target: Target, position: Vector) -> Scalar:
    log_p = target.log_density(target.unravel(position))
    return jnp.where(jnp.isnan(log_p), -jnp.inf, log_p)
