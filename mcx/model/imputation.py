"""Observations that are missing in part, NumPyro's ``obs_mask=``: the sites that it makes of one statement.

``y`` becomes an observed site ``y_observed``, masked where values are missing, a latent one ``y_unobserved``,
masked where they are not, and their mixture ``y``. Entries of the latent site that are not missing have no
law of their own: they are the observed values here, and a standard normal variable stands for each
unconstrained coordinate, which changes neither posterior nor evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import Distribution

from mcx.model.bijections import bijection
from mcx.types import Key

_LATENT, _OBSERVED = "_unobserved", "_observed"


def observed_part(site: Mapping[str, Any], recorded: Mapping[str, Mapping[str, Any]]) -> Array | None:
    """The observed values beside a latent site that ``obs_mask=`` made, or None if it is another site."""
    name = site["name"]
    if site["type"] != "sample" or site["is_observed"] or not name.endswith(_LATENT):
        return None
    other = recorded.get(name.removesuffix(_LATENT) + _OBSERVED)
    masked = isinstance(site["fn"], dist.MaskedDistribution)
    if not masked or other is None or not other.get("is_observed") or other["type"] != "sample":
        return None
    value: Array = other["value"]
    return value


def missing(fn: Distribution) -> Array:
    """Which members of the latent site are missing, of its batch shape."""
    return jnp.broadcast_to(fn._mask, fn.batch_shape)


def impute(fn: Distribution, x: Array, observed: Array) -> tuple[Array, Array]:
    """Values of a latent site with the observed ones in place, and log densities that belong to its members.

    For members that are missing these are log Jacobians, and for the others those of a standard normal law.
    """
    to_value, where = bijection(fn.support), missing(fn)
    value = to_value(x)
    log_det = _by_member(to_value.log_abs_det_jacobian(x, value), fn)
    normal = _by_member(dist.Normal(0.0, 1.0).log_prob(x), fn)
    at = where.reshape(*where.shape, *(1,) * fn.event_dim)
    return jnp.where(at, value, observed), jnp.where(where, log_det, normal)


def draw_unused(fn: Distribution, x: Array, key: Key) -> Array:
    """Unconstrained coordinates with those of members that are not missing drawn from their law."""
    where = missing(fn)
    at = where.reshape(*where.shape, *(1,) * (jnp.ndim(x) - where.ndim))
    return jnp.where(at, x, jax.random.normal(key, jnp.shape(x), x.dtype))


def without_gaps(fn: Distribution, value: Array) -> Array:
    """Observed values with a supported number for NaN where a mask leaves it out of the density."""
    if not isinstance(fn, dist.MaskedDistribution) or jnp.result_type(value).kind != "f":
        return value
    seen = jnp.broadcast_to(fn._mask, fn.batch_shape)
    seen = seen.reshape(*seen.shape, *(1,) * fn.event_dim)
    to_value = bijection(fn.support)
    filler = to_value(jnp.zeros(to_value.inverse_shape(fn.shape())))
    return jnp.where(jnp.isnan(value) & ~seen, filler, value)


def _by_member(terms: Array, fn: Distribution) -> Array:
    extra = tuple(range(len(fn.batch_shape), jnp.ndim(terms)))
    return jnp.sum(terms, extra)
