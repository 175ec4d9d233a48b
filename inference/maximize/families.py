"""Families of distributions on unconstrained space that are fitted to posteriors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

from mcx.types import Array, PyTree


class Family(NamedTuple):
    """A family of distributions on R^d.

    init: ``d -> params``, where a fit starts; a pytree of unconstrained floats.
    distribution: ``params -> NumPyro distribution`` of event shape (d,), with densities that can be
        differentiated in ``params``.
    """

    init: Callable[[int], PyTree]
    distribution: Callable[[PyTree], dist.Distribution]


def _mean_field_init(dim: int) -> dict[str, Array]:
    return {"loc": jnp.zeros(dim), "log_scale": jnp.zeros(dim)}


def _mean_field(params: PyTree) -> dist.Distribution:
    return dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)


def _full_rank_init(dim: int) -> dict[str, Array]:
    return {**_mean_field_init(dim), "lower": jnp.zeros((dim, dim))}


def _full_rank(params: PyTree) -> dist.Distribution:
    # rows in units of their own scale, so that a step of the optimizer means the same for all of them
    lower = jnp.tril(params["lower"], -1) + jnp.eye(params["loc"].shape[0])
    tril = jnp.exp(params["log_scale"])[:, None] * lower
    return dist.MultivariateNormal(params["loc"], scale_tril=tril)


MEAN_FIELD = Family(_mean_field_init, _mean_field)
"""Independent Gaussians."""

FULL_RANK = Family(_full_rank_init, _full_rank)
"""Gaussians with any covariance; memory d^2."""
