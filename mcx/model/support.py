"""Densities that are zero outside of a distribution's support; NumPyro's are so only if it validates."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import Distribution


def log_prob_in_support(fn: Distribution, value: Array, *intermediates: Any) -> Array:
    """Log density of a value; -inf outside of the support.

    NumPyro gives ``Uniform(0, 1).log_prob(5)`` the value 0 unless validation is on, which it is by default
    from version 0.22 on. A distribution whose attribute ``checks_support`` is true is taken as it is.
    """
    log_prob = fn.log_prob(value, *intermediates)
    if getattr(fn, "checks_support", False) or _validates(fn):
        return log_prob
    try:
        inside = fn.support(value)
    except (AttributeError, TypeError, NotImplementedError, ValueError):
        return log_prob  # no support is declared, or it cannot be evaluated
    if jnp.shape(inside) != jnp.shape(log_prob):
        return log_prob
    return jnp.where(inside, log_prob, -jnp.inf)


def _validates(fn: Distribution) -> bool:
    """Whether NumPyro checks the support; wrappers leave that to the distribution that they wrap."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return bool(getattr(fn, "_validate_args", False))
