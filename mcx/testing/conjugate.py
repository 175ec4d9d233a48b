"""Conjugate pairs: models whose posterior and evidence are known in closed form.

Formulas: Gelman et al., Bayesian Data Analysis (3rd ed.), chapters 2 and 3; Murphy (2007), Conjugate
Bayesian analysis of the Gaussian distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import lgamma

import numpy as np

from mcx import dist
from mcx.model.bound import BoundModel, model
from mcx.model.primitives import plate, sample
from mcx.testing.oracles import Moments


@dataclass(frozen=True)
class ConjugatePair:
    """A model with data, made by ``bind``, and its exact posterior moments and log evidence, in float64."""

    name: str
    bind: Callable[[], BoundModel]
    moments: Moments


@model
def _normal_mean(y: np.ndarray) -> None:
    mu = sample("mu", dist.Normal(1.0, 2.0))
    with plate("n", len(y)):
        sample("y", dist.Normal(mu, 1.5), obs=y)


def _normal_mean_pair() -> ConjugatePair:
    y = np.array([2.1, 0.3, 3.7, 1.9, 2.8])
    prior_mean, prior_sd, sd, n = 1.0, 2.0, 1.5, len(y)
    precision = 1 / prior_sd**2 + n / sd**2
    mean = (prior_mean / prior_sd**2 + y.sum() / sd**2) / precision
    covariance = sd**2 * np.eye(n) + prior_sd**2
    residual = y - prior_mean
    log_z = -0.5 * (
        residual @ np.linalg.solve(covariance, residual)
        + np.linalg.slogdet(covariance)[1]
        + n * math.log(2 * math.pi)
    )
    moments = Moments({"mu": np.asarray(mean)}, {"mu": np.asarray(precision**-0.5)}, float(log_z))
    return ConjugatePair("normal mean", lambda: _normal_mean.bind(y.astype(np.float32)), moments)


@model
def _beta_binomial(n: int, k: np.ndarray) -> None:
    p = sample("p", dist.Beta(2.0, 0.8))
    sample("k", dist.Binomial(n, p), obs=k)


def _beta_binomial_pair() -> ConjugatePair:
    n, k, a, b = 12, 11, 2.0, 0.8
    a1, b1 = a + k, b + n - k

    def log_beta(x: float, y: float) -> float:
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    log_z = math.log(math.comb(n, k)) + log_beta(a1, b1) - log_beta(a, b)
    mean = a1 / (a1 + b1)
    sd = math.sqrt(a1 * b1 / ((a1 + b1) ** 2 * (a1 + b1 + 1)))
    moments = Moments({"p": np.asarray(mean)}, {"p": np.asarray(sd)}, log_z)
    return ConjugatePair("beta-binomial", lambda: _beta_binomial.bind(n, np.asarray(k)), moments)


@model
def _gamma_poisson(y: np.ndarray) -> None:
    rate = sample("rate", dist.Gamma(0.7, 0.5))
    with plate("n", len(y)):
        sample("y", dist.Poisson(rate), obs=y)


def _gamma_poisson_pair() -> ConjugatePair:
    y = np.array([0, 3, 1, 0, 2, 0])
    a, b = 0.7, 0.5
    a1, b1 = a + y.sum(), b + len(y)
    log_z = a * math.log(b) - lgamma(a) + lgamma(a1) - a1 * math.log(b1) - sum(lgamma(k + 1) for k in y)
    moments = Moments({"rate": np.asarray(a1 / b1)}, {"rate": np.asarray(math.sqrt(a1) / b1)}, float(log_z))
    return ConjugatePair("gamma-Poisson", lambda: _gamma_poisson.bind(y), moments)


@model
def _dirichlet_multinomial(counts: np.ndarray) -> None:
    p = sample("p", dist.Dirichlet(np.array([0.8, 1.5, 3.0], np.float32)))
    sample("counts", dist.Multinomial(total_count=9, probs=p), obs=counts)


def _dirichlet_multinomial_pair() -> ConjugatePair:
    prior, counts = np.array([0.8, 1.5, 3.0]), np.array([5, 0, 4])
    post = prior + counts
    total = post.sum()
    mean = post / total
    sd = np.sqrt(mean * (1 - mean) / (total + 1))
    log_z = lgamma(counts.sum() + 1) + lgamma(prior.sum()) - lgamma(total)
    log_z += sum(lgamma(a) - lgamma(p) - lgamma(c + 1) for a, p, c in zip(post, prior, counts, strict=True))
    moments = Moments({"p": mean}, {"p": sd}, float(log_z))
    return ConjugatePair("Dirichlet-multinomial", lambda: _dirichlet_multinomial.bind(counts), moments)


@model
def _normal_precision(y: np.ndarray) -> None:
    precision = sample("precision", dist.Gamma(2.0, 1.0))
    mu = sample("mu", dist.Normal(0.5, 1 / (0.4 * precision) ** 0.5))
    with plate("n", len(y)):
        sample("y", dist.Normal(mu, precision**-0.5), obs=y)


def _normal_gamma_pair() -> ConjugatePair:
    y = np.array([1.2, -0.4, 2.2, 0.9])
    m0, k0, a0, b0, n = 0.5, 0.4, 2.0, 1.0, 4
    k1, a1 = k0 + n, a0 + n / 2
    m1 = (k0 * m0 + y.sum()) / k1
    b1 = b0 + 0.5 * ((y - y.mean()) ** 2).sum() + k0 * n * (y.mean() - m0) ** 2 / (2 * k1)
    log_z = (
        lgamma(a1)
        - lgamma(a0)
        + a0 * math.log(b0)
        - a1 * math.log(b1)
        + 0.5 * math.log(k0 / k1)
        - 0.5 * n * math.log(2 * math.pi)
    )
    mean = {"precision": np.asarray(a1 / b1), "mu": np.asarray(m1)}
    # mu is Student t with 2 a1 degrees of freedom and scale^2 b1 / (a1 k1)
    sd = {
        "precision": np.asarray(math.sqrt(a1) / b1),
        "mu": np.asarray(math.sqrt(b1 / (a1 * k1) * (2 * a1) / (2 * a1 - 2))),
    }
    return ConjugatePair(
        "normal-gamma", lambda: _normal_precision.bind(y.astype(np.float32)), Moments(mean, sd, float(log_z))
    )


CONJUGATE_PAIRS: tuple[ConjugatePair, ...] = (
    _normal_mean_pair(),
    _beta_binomial_pair(),
    _gamma_poisson_pair(),
    _dirichlet_multinomial_pair(),
    _normal_gamma_pair(),
)
