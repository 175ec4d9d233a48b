"""From a guided particle system to draws, and to what they descend from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.diffusion.guided.gibbs_kernel import GuidedGibbsState
from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.replicates import equal_draws

__all__ = ["last_draws", "lineages", "path_stats"]

_LAST = 3  # folded into the key


@jax.jit
def last_draws(key: Any, state: SMCState) -> tuple[Any, Any, Any]:
    """Particles of equal weight, (chain, draw, d), their log likelihoods and indices, in no order."""
    chains, num = state.log_w.shape
    index = equal_draws(jax.random.fold_in(key, _LAST), state.log_w)
    x = state.particles.position.reshape(chains, num, -1)
    return (
        jnp.take_along_axis(x, index[:, :, None], 1),
        jnp.take_along_axis(state.particles.log_guess, index, 1),
        index,
    )


def lineages(ancestors: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Number of different particles at each level that the draws descend from, chain x level."""
    chains, steps, _ = ancestors.shape
    found = np.zeros((chains, steps + 1), np.int32)
    for chain in range(chains):
        line = np.unique(index[chain])
        found[chain, steps] = len(line)
        for t in range(steps - 1, -1, -1):
            line = np.unique(ancestors[chain, t][line])
            found[chain, t] = len(line)
    return found


def path_stats(name: str, state: GuidedGibbsState) -> dict[str, Any]:
    """Averages of conditional SMC by statistic, chain x level."""
    return {f"{name}.{statistic}": value for statistic, value in state.averages._asdict().items()}
