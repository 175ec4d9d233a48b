"""Bounds of densities: the largest value, for the families whose mode has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from mcx.errors import CapabilityError

BOUND = "peak"  # the role among a block's functions, by the name that contexts in checkpoints have it under


def _location(fn: Any) -> Array:
    return fn.loc


def _gamma_mode(fn: Any) -> Array:
    c = fn.concentration
    return jnp.where(c < 1, jnp.nan, jnp.maximum((c - 1) / fn.rate, _tiny(c)))


def _beta_mode(fn: Any) -> Array:
    a, b = fn.concentration1, fn.concentration0
    inside = (a - 1) / jnp.where(a + b == 2, 1.0, a + b - 2)
    end = jnp.finfo(inside.dtype).eps
    pole = (a < 1) | (b < 1)
    return jnp.where(pole, jnp.nan, jnp.where(a + b == 2, 0.5, jnp.clip(inside, end, 1 - end)))


def _tiny(x: Array) -> Array:
    """The end of the support at 0, to which 0 itself does not belong."""
    return jnp.full(jnp.shape(x), jnp.finfo(jnp.result_type(x)).tiny)


def _truncated_mode(fn: Any) -> Array:
    low, high = getattr(fn, "low", -jnp.inf), getattr(fn, "high", jnp.inf)
    return jnp.clip(fn.base_dist.loc, low, high)


# by family; NaN stands for a pole
_MODES: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal), _location),
    **dict.fromkeys((dist.StudentT, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel), _location),
    **dict.fromkeys((dist.HalfNormal, dist.HalfCauchy), lambda fn: _tiny(fn.scale)),
    dist.Exponential: lambda fn: _tiny(fn.rate),
    dist.Uniform: lambda fn: 0.5 * (fn.low + fn.high),
    dist.LogNormal: lambda fn: jnp.exp(fn.loc - fn.scale**2),
    dist.Gamma: _gamma_mode,
    dist.Beta: _beta_mode,
    dist.InverseGamma: lambda fn: fn.rate / (fn.concentration + 1),
    dist.Poisson: lambda fn: jnp.floor(fn.rate),
    dist.BinomialProbs: lambda fn: jnp.clip(jnp.floor((fn.total_count + 1) * fn.probs), 0, fn.total_count),
    dist.BernoulliProbs: lambda fn: jnp.where(fn.probs > 0.5, 1, 0),
    dist.BernoulliLogits: lambda fn: jnp.where(fn.logits > 0, 1, 0),
    dist.CategoricalProbs: lambda fn: jnp.argmax(fn.probs, -1),
    dist.CategoricalLogits: lambda fn: jnp.argmax(fn.logits, -1),
    **dict.fromkeys(
        (dist.LeftTruncatedDistribution, dist.RightTruncatedDistribution, dist.TwoSidedTruncatedDistribution),
        _truncated_mode,
    ),
}


def has_density_bound(fn: Any) -> bool:
    """Whether :func:`log_density_bound` knows the family of a distribution."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return type(fn) in _MODES


def log_density_bound(fn: Any) -> Array:
    """The largest log density of a distribution, summed over independent entries; +inf where there is a pole.

    Raises CapabilityError for families whose mode is not known.
    """
    return jnp.sum(_entries(fn))


def _entries(fn: Any) -> Array:
    """The largest log density of every entry of the batch."""
    if isinstance(fn, dist.Independent):
        inner = _entries(fn.base_dist)
        return jnp.sum(inner.reshape(*fn.batch_shape, -1), -1)
    if isinstance(fn, dist.ExpandedDistribution):
        return jnp.broadcast_to(_entries(fn.base_dist), fn.batch_shape)
    mode = _MODES.get(type(fn))
    if mode is None:
        raise CapabilityError(
            f"the largest density of {type(fn).__name__} is not known",
            expected="one of " + ", ".join(sorted(family.__name__ for family in _MODES)),
            remedy="use backward='imh', which needs no bound",
        )
    at = jnp.broadcast_to(mode(fn), fn.shape())
    if not jnp.issubdtype(at.dtype, jnp.floating) or fn.event_shape:
        return fn.log_prob(at)
    pole = jnp.isnan(at)
    return jnp.where(pole, jnp.inf, fn.log_prob(jnp.where(pole, 0.5, at)))
