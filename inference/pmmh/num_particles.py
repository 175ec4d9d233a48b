"""The number of particles, from replicates of the log evidence where the posterior's mass is.

The variance of a chain's averages falls with the number of particles, as their cost grows. The product is
least where the log evidence has a standard deviation of 1.0 to 1.7, and 1.2 does well for any chain (Doucet
et al. 2015); for random walks in many dimensions 1.8 is best (Sherlock et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mcx.inference.pmmh.kernel import PMMHKernel
from mcx.inference.smc.engine import SMCSettings
from mcx.model.series.state_space import BlockData
from mcx.ops.batches import vmap_in_batches
from mcx.types import Array, Float, Key, Scalar, Vector

PILOT_PARTICLES = 100
BEST_SD, MOST_SD = 1.2, 1.8

_LEAST, _MOST = 50, 2**17  # fewer particles make a step of a filter no cheaper
_ROUNDS, _MAX_FACTOR = 4, 16.0
_REPLICATES = 64  # which give the standard deviation within 9 %
_MOST_AT_ONCE = 2**19


def enough_particles(kernel: Callable[[int], PMMHKernel], data: BlockData, position: Vector, key: Key) -> int:
    """Particles, at least 50, that give the log evidence a standard deviation of about 1.2 at a position.

    It costs a compilation and 64 filters for each number that is tried, of which there are at most four.
    """
    number = PILOT_PARTICLES
    for i in range(_ROUNDS):
        sd = log_evidence_sd(kernel(number), data, position, jax.random.fold_in(key, i))
        # the variance falls as 1 / N once it is moderate
        factor = min((sd / BEST_SD) ** 2, _MAX_FACTOR)
        number = int(np.clip(math.ceil(number * factor), _LEAST, _MOST))
        if sd < 1.5 * BEST_SD:
            break
    return number


def log_evidence_sd(kernel: PMMHKernel, data: BlockData, position: ArrayLike, key: Key) -> float:
    """Standard deviation of the log evidence over 64 replicates of the filters; inf where one collapses."""
    return sd_of(_replicates(kernel, data, jnp.asarray(position), key))


@partial(jax.jit, static_argnums=0)
def _replicates(
    kernel: PMMHKernel, data: BlockData, position: Vector, key: Key
) -> Float[Array, " replicate"]:
    return replicates(lambda key: kernel.log_evidence(data, key, position), key, kernel.settings)


def replicates(
    log_evidence: Callable[[Key], Scalar], key: Key, settings: SMCSettings
) -> Float[Array, " replicate"]:
    """64 draws of an estimate by filters with these settings, as many at once as memory allows."""
    batch_size = max(1, min(_REPLICATES, _MOST_AT_ONCE // settings.num_particles))
    return vmap_in_batches(log_evidence, (0,), batch_size)(jax.random.split(key, _REPLICATES))


def sd_of(log_evidences: ArrayLike) -> float:
    """Standard deviation of replicates; inf where one is not finite."""
    found = np.asarray(log_evidences, np.float64)
    return float(found.std(ddof=1)) if np.isfinite(found).all() else math.inf


def nearest_to_mean(draws: Float[np.ndarray, "chain draw d"]) -> Float[np.ndarray, " d"]:
    """The draw nearest to the mean, in units of standard deviations; the mean itself may have no density."""
    flat = np.asarray(draws, np.float64).reshape(-1, draws.shape[-1])
    scale = np.where(np.ptp(flat, axis=0) > 0, flat.std(0), 1.0)
    distance = np.sum(((flat - flat.mean(0)) / scale) ** 2, 1)
    return np.asarray(draws).reshape(flat.shape)[np.argmin(distance)]
