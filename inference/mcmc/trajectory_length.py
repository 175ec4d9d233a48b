"""The length of trajectories, by gradient ascent of all chains together on the ChEES criterion.

The criterion is ``E[(|x' - E x'|^2 - |x - E x|^2)^2] / 4`` for a proposal x' from x, with distances in units
of the metric. Its derivative by the log length is estimated from the proposals of one step, weighted by their
acceptance probabilities, and followed by Adam without momentum. Source: Hoffman, Radul and Sountsov (2021),
"An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo", AISTATS, algorithm 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.ops import collectives
from mcx.types import Covariance, Flags, Scalar, Vector

_LEARNING_RATE = 0.05
_DECAY = 0.95
_LARGEST_UPDATE = 0.35
_TINY = 1e-20


class Proposal(NamedTuple):
    """A trajectory of one chain.

    start, end: where it began and ended, (d,).
    momentum: at its end, (d,).
    acceptance_rate: probability that it is accepted; 0 where it diverged or is NaN.
    outside: whether it ended where the density is zero.
    """

    start: Vector
    end: Vector
    momentum: Vector
    acceptance_rate: Scalar
    outside: Flags


class LengthState(NamedTuple):
    """State of the ascent, the same for all chains.

    length: of the next trajectory, before jitter.
    curvature: moving average of squared slopes.
    log_mean: weighted mean of the logarithms of lengths.
    """

    length: Scalar
    curvature: Scalar
    log_mean: Scalar
    count: Any


def init(length: ArrayLike) -> LengthState:
    """The state before the first update."""
    first, zero = jnp.asarray(length, float), jnp.zeros(())
    return LengthState(first, zero, jnp.log(first), zero)


def slope(proposal: Proposal, mass_matrix: Covariance, travelled: Scalar) -> Scalar:
    """Estimated derivative of the criterion by the log length, from trajectories of this integration time."""
    start, end, momentum, weight, _ = proposal
    # a trajectory that diverged has weight 0, but 0 times infinity is NaN
    end = jnp.where(jnp.isfinite(end), end, start)
    momentum = jnp.where(jnp.isfinite(momentum), momentum, 0.0)
    start_mean, end_mean, weight_mean = collectives.mean((start, weight * end, weight))
    centred = end - end_mean / (weight_mean + _TINY)
    change = _squared(centred, mass_matrix) - _squared(start - start_mean, mass_matrix)
    # velocity and mass matrix cancel, so <x', M^-1 p'> in units of the metric is the plain inner product
    each = jnp.where(weight > 0, weight * travelled * change * (centred @ momentum), 0.0)
    return collectives.mean(each) / (weight_mean + _TINY)


def _squared(x: Vector, mass_matrix: Covariance) -> Scalar:
    return x @ (mass_matrix * x if mass_matrix.ndim == 1 else mass_matrix @ x)


def update(state: LengthState, slope: Scalar, least: Scalar, most: Scalar) -> LengthState:
    """One update of Adam on the log length, which is kept between ``least`` and ``most``."""
    slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
    # squares of slopes overflow single precision long before slopes do
    slope = jnp.clip(slope, -1e15, 1e15)
    count = state.count + 1
    curvature = _DECAY * state.curvature + (1 - _DECAY) * slope**2
    size = jnp.sqrt(curvature / (1 - _DECAY**count)) + _TINY
    change = jnp.clip(_LEARNING_RATE * slope / size, -_LARGEST_UPDATE, _LARGEST_UPDATE)
    log_length = jnp.clip(jnp.log(state.length) + change, jnp.log(least), jnp.log(most))
    log_mean = state.log_mean + (log_length - state.log_mean) / jnp.sqrt(count)
    return LengthState(jnp.exp(log_length), curvature, log_mean, count)


def final(state: LengthState) -> LengthState:
    """The state with the averaged length, for sampling."""
    return state._replace(length=jnp.exp(state.log_mean))
