"""A metric from all chains at once: before they have arrived, and after.

Far from the typical set, variances say where chains were put, not what the posterior looks like. But
gradients of a Gaussian density are positions times the precision wherever chains start, so that the ratio of
the spread of positions to that of gradients is the posterior's variance: the first estimate. Spreads are
geometric means over chains, because gradients of far chains differ by many orders of magnitude. Once chains
are there, the second estimate is the covariance of their draws.

Source: the sampler nutpie takes its diagonal metric from the same ratio, along one chain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from mcx.ops import collectives

__all__ = ["Moments", "Spread", "covariance", "metric_of", "variances"]

_LEAST_RATE = 0.1  # of the moving average of spreads
_LARGEST = 1e15
_TINY = 1e-30


class Spread(NamedTuple):
    """Moving averages of log spreads between chains; the same for all chains.

    position, gradient: (d,).
    count: steps that have gone into them.
    """

    position: Any
    gradient: Any
    count: Any

    @classmethod
    def blank(cls, dim: int) -> Spread:
        """Before the first step."""
        return cls(jnp.zeros(dim), jnp.zeros(dim), jnp.zeros(()))

    def add(self, position: Any, gradient: Any) -> Spread:
        """With this chain's position and gradient, pooled with those of the others."""
        here = (position, jnp.clip(jnp.nan_to_num(gradient), -_LARGEST, _LARGEST))
        means = collectives.mean(here)
        logs = collectives.mean(
            tuple(jnp.log(jnp.abs(x - m) + _TINY) for x, m in zip(here, means, strict=True))
        )
        count = self.count + 1
        rate = jnp.maximum(1 / count, _LEAST_RATE)
        position, gradient = (old + rate * (new - old) for old, new in zip(self[:2], logs, strict=True))
        return Spread(position, gradient, count)


def variances(spread: Spread) -> Any:
    """The posterior's variances as far as gradients tell, (d,)."""
    return jnp.exp(jnp.clip(spread.position - spread.gradient, -30.0, 30.0))


class Moments(NamedTuple):
    """Moments of the draws of all chains since a window began; the same for all chains.

    count: steps.
    mean: (d,).
    scatter: (d,) or (d, d), mean squared deviation times steps.
    """

    count: Any
    mean: Any
    scatter: Any

    @classmethod
    def blank(cls, dim: int, dense: bool) -> Moments:
        """Of no draws."""
        return cls(jnp.zeros(()), jnp.zeros(dim), jnp.zeros((dim, dim) if dense else dim))

    def add(self, position: Any) -> Moments:
        """With the draws of one step: Chan's update by a batch of one draw a chain."""
        mean = collectives.mean(position)
        away = position - mean
        count = self.count + 1
        shift = mean - self.mean
        new_mean = self.mean + shift / count
        dense = self.scatter.ndim == 2
        within = collectives.mean(_product(away, away, dense))
        return Moments(count, new_mean, self.scatter + within + _product(shift, mean - new_mean, dense))


def _product(x: Any, y: Any, dense: bool) -> Any:
    return jnp.outer(x, y) if dense else x * y


def covariance(moments: Moments, otherwise: Any) -> Any:
    """Covariance (d, d) or variances (d,) of the draws; those of ``otherwise`` where no chain moved.

    Correlations are shrunk as if ``d`` more draws had none, which makes any number of draws enough.
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


def metric_of(cov: Any, dense: bool) -> tuple[Any, Any]:
    """Inverse mass matrix and mass matrix: (d,) each, or (d, d) from variances or a covariance."""
    if not dense:
        return cov, 1 / cov
    if cov.ndim == 1:
        return jnp.diag(cov), jnp.diag(1 / cov)
    # the inverse of the correlations: those of variances that differ by 10^8 cannot be inverted in float32
    sd = jnp.sqrt(jnp.diag(cov))
    scales = jnp.outer(sd, sd)
    return cov, jnp.linalg.inv(cov / scales) / scales
