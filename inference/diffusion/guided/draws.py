"""From a guided particle system to draws, and to the particles that they descend from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.replicates import equal_draws
from mcx.ops.keys import Stream, stream
from mcx.types import Array, Float, Int, Key


@jax.jit
def last_draws(
    key: Key, state: SMCState
) -> tuple[Float[Array, "chain draw d"], Float[Array, "chain draw"], Int[Array, "chain draw"]]:
    """Particles of equal weight, their log likelihoods and their indices, in no order."""
    chains, num = state.log_w.shape
    index = equal_draws(stream(key, Stream.GUIDED_DRAWS), state.log_w)
    x = state.particles.position.reshape(chains, num, -1)
    return (
        jnp.take_along_axis(x, index[:, :, None], 1),
        jnp.take_along_axis(state.particles.log_guess, index, 1),
        index,
    )


def lineages(
    ancestors: Int[np.ndarray, "chain step N"], index: Int[np.ndarray, "chain draw"]
) -> Int[np.ndarray, "chain level"]:
    """Number of different particles at each level that the draws descend from."""
    chains, steps, _ = ancestors.shape
    found = np.zeros((chains, steps + 1), np.int32)
    for chain in range(chains):
        line = np.unique(index[chain])
        found[chain, steps] = len(line)
        for t in range(steps - 1, -1, -1):
            line = np.unique(ancestors[chain, t][line])
            found[chain, t] = len(line)
    return found
