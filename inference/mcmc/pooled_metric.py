"""A metric from all chains at once, before and after they reach the typical set.

Far from it, variances say where chains were put. But gradients of a Gaussian density are positions times the
precision, so the ratio of the spread of positions to that of gradients is the posterior's variance. Spreads
are geometric means over chains, as gradients differ by orders of magnitude. Once chains have arrived, the
metric is the covariance of their draws. Source: the sampler nutpie takes its diagonal metric from the same
ratio.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from mcx.ops import collectives
from mcx.types import Covariance, Vector

_LEAST_RATE = 0.1  # of the moving average of spreads
_LARGEST = 1e15
_TINY = 1e-30


class Spread(NamedTuple):
    """Moving averages over steps of log spreads between chains; the same for all chains."""

    position: Vector
    gradient: Vector
    count: Any

    @classmethod
    def blank(cls, dim: int) -> Spread:
        """The averages before the first step."""
        return cls(jnp.zeros(dim), jnp.zeros(dim), jnp.zeros(()))

    def add(self, position: Vector, gradient: Vector) -> Spread:
        """The averages with this chain's position and gradient, pooled with those of the others."""
        here = (position, jnp.clip(jnp.nan_to_num(gradient), -_LARGEST, _LARGEST))
        means = collectives.mean(here)
        logs = collectives.mean(
            tuple(jnp.log(jnp.abs(x - m) + _TINY) for x, m in zip(here, means, strict=True))
        )
        count = self.count + 1
        rate = jnp.maximum(1 / count, _LEAST_RATE)
        position, gradient = (old + rate * (new - old) for old, new in zip(self[:2], logs, strict=True))
        return Spread(position, gradient, count)


def variances(spread: Spread) -> Vector:
    """The posterior's variances, estimated from gradients, (d,)."""
    return jnp.exp(jnp.clip(spread.position - spread.gradient, -30.0, 30.0))


class Moments(NamedTuple):
    """Moments of the draws of all chains since a window began; the same for all chains.

    ``scatter`` is the mean squared deviation, (d,) or (d, d), times the number of steps, ``count``.
    """

    count: Any
    mean: Vector
    scatter: Covariance

    @classmethod
    def blank(cls, dim: int, dense: bool) -> Moments:
        """The moments of no draws."""
        return cls(jnp.zeros(()), jnp.zeros(dim), jnp.zeros((dim, dim) if dense else dim))

    def add(self, position: Vector) -> Moments:
        """The moments with the draws of one step: Chan's update by a batch of one draw a chain."""
        mean = collectives.mean(position)
        away = position - mean
        count = self.count + 1
        shift = mean - self.mean
        new_mean = self.mean + shift / count
        dense = self.scatter.ndim == 2
        within = collectives.mean(_product(away, away, dense))
        return Moments(count, new_mean, self.scatter + within + _product(shift, mean - new_mean, dense))


def _product(x: Vector, y: Vector, dense: bool) -> Covariance:
    return jnp.outer(x, y) if dense else x * y


def covariance(moments: Moments, otherwise: Covariance) -> Covariance:
    """Covariance (d, d) or variances (d,) of the draws; those of ``otherwise`` where no chain moved.

    Correlations are shrunk as if there were ``d`` more draws without any, so any number of draws will do.
    """
    cov = moments.scatter / jnp.maximum(moments.count, 1.0)
    if cov.ndim == 1:
        return jnp.where(cov > 0, cov, otherwise)
    old, new = jnp.diag(otherwise), jnp.diag(cov)
    dim, draws = cov.shape[0], moments.count * collectives.size()
    shrunk = cov * (draws / (draws + dim))
    moved = new > 0
    shrunk = jnp.where(moved[:, None] & moved[None, :], shrunk, 0.0)
    return jnp.where(jnp.eye(dim, dtype=bool), jnp.where(moved, new, old), shrunk)


def metric_of(cov: Covariance, dense: bool) -> tuple[Covariance, Covariance]:
    """Inverse mass matrix and mass matrix: (d,) each, or (d, d) from variances or a covariance."""
    if not dense:
        return cov, 1 / cov
    if cov.ndim == 1:
        return jnp.diag(cov), jnp.diag(1 / cov)
    # correlations are inverted, as covariances with variances that differ by 10^8 cannot be in float32
    sd = jnp.sqrt(jnp.diag(cov))
    scales = jnp.outer(sd, sd)
    return cov, jnp.linalg.inv(cov / scales) / scales
