"""Families of distributions that generated models draw from.

A family makes a distribution from the real value ``u`` of the statement's parent, an array of the shape of
the plates around it, in (-1, 1). Every parameter depends on u smoothly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution, constraints, transforms

from mcx import dist

Family = Callable[[Any], Any]


def _flat(constraint: Any, event_shape: tuple[int, ...] = ()) -> Family:
    return lambda u: dist.ImproperUniform(constraint, jnp.shape(u), event_shape)


def _ordered(u: Array) -> Distribution:
    base = dist.Normal(u[..., None] + jnp.zeros(3), 1.0).to_event(1)
    return dist.TransformedDistribution(base, transforms.OrderedTransform())


def _affine(u: Array) -> Distribution:
    return dist.TransformedDistribution(
        dist.StudentT(5.0, 0.0, 1.0), transforms.AffineTransform(u, jnp.exp(u))
    )


def _mixture(u: Array) -> Distribution:
    weights = jnp.stack([jnp.exp(u), jnp.exp(-u)], -1)
    locations = jnp.stack([u - 1.0, u + 1.0], -1)
    return dist.MixtureSameFamily(
        dist.Categorical(probs=weights / weights.sum(-1, keepdims=True)), dist.Normal(locations, 0.7)
    )


def _covariance() -> Array:
    return jnp.array([[1.0, 0.6], [0.6, 2.0]])


LATENT_FAMILIES: Mapping[str, Family] = {
    "normal": lambda u: dist.Normal(u, jnp.exp(0.5 * u)),
    "student_t": lambda u: dist.StudentT(4.0, u, 1.3),
    "cauchy": lambda u: dist.Cauchy(u, 0.8),
    "half_normal": lambda u: dist.HalfNormal(jnp.exp(u)),
    "half_cauchy": lambda u: dist.HalfCauchy(jnp.exp(u)),
    "gamma": lambda u: dist.Gamma(2.0 + u, 1.5),
    "log_normal": lambda u: dist.LogNormal(u, 0.7),
    "beta": lambda u: dist.Beta(2.0 + u, 1.5),
    "uniform": lambda u: dist.Uniform(u - 1.0, u + jnp.exp(u)),  # both bounds move with the parent
    "truncated_normal": lambda u: dist.TruncatedNormal(u, 1.2, low=u - 0.5),
    "doubly_truncated": lambda u: dist.TruncatedNormal(u, 1.0, low=u - 1.0, high=u + 2.0),
    "pareto": lambda u: dist.Pareto(jnp.exp(u), 2.5),
    "affine": _affine,
    "normal_vector": lambda u: dist.Normal(u[..., None], jnp.array([0.5, 1.0, 2.0])).to_event(1),
    "gamma_vector": lambda u: dist.Gamma(jnp.array([1.5, 3.0]), jnp.exp(u)[..., None]).to_event(1),
    "multivariate_normal": lambda u: dist.MultivariateNormal(u[..., None] + jnp.zeros(2), _covariance()),
    "dirichlet": lambda u: dist.Dirichlet(jnp.exp(u)[..., None] * jnp.array([0.9, 2.0, 4.0])),
    "ordered": _ordered,
    "lkj_cholesky": lambda u: dist.LKJCholesky(3, 1.5 + u),
    "flat": _flat(constraints.real),
    "flat_positive": _flat(constraints.positive),
    "flat_vector": _flat(constraints.real_vector, (2,)),
}
"""Families of latent sites: functions of the parent's value."""

OBSERVED_FAMILIES: Mapping[str, Family] = {
    "normal": lambda u: dist.Normal(u, 0.8),
    "student_t": lambda u: dist.StudentT(3.0, u, 1.0),
    "laplace": lambda u: dist.Laplace(u, 1.5),
    "mixture": _mixture,
    "log_normal": lambda u: dist.LogNormal(u, 0.9),
    "exponential": lambda u: dist.Exponential(jnp.exp(u)),
    "gamma": lambda u: dist.Gamma(2.0, jnp.exp(u)),
    "beta": lambda u: dist.Beta(jnp.exp(u) + 0.5, 2.0),
    "bernoulli": lambda u: dist.Bernoulli(logits=u),
    "poisson": lambda u: dist.Poisson(jnp.exp(u)),
    "binomial": lambda u: dist.Binomial(9, logits=u),
    "negative_binomial": lambda u: dist.NegativeBinomial2(jnp.exp(u), 2.0),
    "categorical": lambda u: dist.Categorical(logits=jnp.stack([u, 0.3 - u, 0.0 * u], -1)),
    "ordered_logistic": lambda u: dist.OrderedLogistic(u, jnp.array([-1.0, 0.5])),
    "normal_vector": lambda u: dist.Normal(u[..., None], jnp.array([0.5, 1.0, 2.0])).to_event(1),
    "multivariate_normal": lambda u: dist.MultivariateNormal(u[..., None] + jnp.zeros(2), _covariance()),
    "dirichlet": lambda u: dist.Dirichlet(jnp.exp(u)[..., None] * jnp.array([0.9, 2.0, 4.0])),
    "multinomial": lambda u: dist.Multinomial(4, logits=jnp.stack([u, -u, 0.0 * u], -1), total_count_max=4),
}
"""Families of observed sites."""


def _counts(raw: np.ndarray) -> np.ndarray:
    first = np.abs(raw[..., :2]).astype(int)  # 0, 1 or 2
    return np.concatenate([first, 4 - first.sum(-1, keepdims=True)], -1)


# Data in the support, from quarters of an integer: exact in every dtype, and they shrink to zeros.
DATA: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    **dict.fromkeys(("log_normal", "exponential", "gamma"), np.exp),
    **dict.fromkeys(
        ("poisson", "binomial", "negative_binomial", "categorical", "ordered_logistic"),
        lambda raw: np.abs(raw).astype(int),
    ),
    "beta": lambda raw: 1 / (1 + np.exp(-raw)),
    "bernoulli": lambda raw: (raw > 0).astype(int),
    "dirichlet": lambda raw: np.exp(raw) / np.exp(raw).sum(-1, keepdims=True),
    "multinomial": _counts,
}
