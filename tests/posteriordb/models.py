"""The eight models, as a user of mcx writes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp

import mcx
import mcx.dist as dist
from mcx.dist import constraints


@mcx.model
def eight_schools(sigma: Any, y: Any) -> None:
    mu = mcx.sample("mu", dist.Normal(0, 5))
    tau = mcx.sample("tau", dist.HalfCauchy(5))
    with mcx.plate("school", len(sigma)):
        z = mcx.sample("z", dist.Normal(0, 1))
        theta = mcx.deterministic("theta", mu + tau * z)
        mcx.sample("y", dist.Normal(theta, sigma), obs=y)


@mcx.model
def linear_regression(x: Any, y: Any) -> None:
    num_observations, num_predictors = x.shape
    with mcx.plate("predictor", num_predictors):
        beta = mcx.sample("beta", dist.Normal(0, 10))
    sigma = mcx.sample("sigma", dist.HalfNormal(10))
    with mcx.plate("observation", num_observations):
        mcx.sample("y", dist.Normal(x @ beta, sigma), obs=y)


@mcx.model
def kid_score(mom_hs: Any, mom_iq: Any, score: Any) -> None:
    beta = mcx.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = mcx.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    with mcx.plate("child", len(score)):
        mcx.sample("score", dist.Normal(mean, sigma), obs=score)


@mcx.model
def autoregression(y: Any, order: int) -> None:
    alpha = mcx.sample("alpha", dist.Normal(0, 10))
    with mcx.plate("lag", order):
        beta = mcx.sample("beta", dist.Normal(0, 10))
    sigma = mcx.sample("sigma", dist.HalfCauchy(2.5))
    lagged = jnp.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=-1)
    with mcx.plate("time", len(y) - order):
        mcx.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y[order:])


@mcx.model
def hidden_markov(y: Any) -> None:
    with mcx.plate("state", 2):
        theta = mcx.sample("theta", dist.Dirichlet(jnp.ones(2)))
    # an ordered pair has no ready-made distribution: flat where it is ordered, times the density wanted
    mu = mcx.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    mcx.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1).log_prob(mu).sum(), kind="prior")

    log_theta = jnp.log(theta)
    log_emission = dist.Normal(mu, 1).log_prob(y[:, None])

    def forward(log_alpha: Any, log_emission_t: Any) -> tuple[Any, None]:
        return jsp.special.logsumexp(log_alpha[:, None] + log_theta, axis=0) + log_emission_t, None

    log_alpha, _ = jax.lax.scan(forward, log_emission[0], log_emission[1:])
    mcx.factor("y", jsp.special.logsumexp(log_alpha))


@mcx.model
def gaussian_process(x: Any, y: Any) -> None:
    rho = mcx.sample("rho", dist.Gamma(25, 4))
    alpha = mcx.sample("alpha", dist.HalfNormal(2))
    variance = mcx.sample("sigma", dist.HalfNormal(1))
    kernel = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    mcx.sample("y", dist.MultivariateNormal(0, kernel + variance * jnp.eye(len(x))), obs=y)


@mcx.model
def gaussian_mixture(y: Any) -> None:
    mu = mcx.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    mcx.factor("mu_prior", dist.Normal(0, 2).log_prob(mu).sum(), kind="prior")
    with mcx.plate("component", 2):
        sigma = mcx.sample("sigma", dist.HalfNormal(2))
    theta = mcx.sample("theta", dist.Beta(5, 5))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    with mcx.plate("observation", len(y)):
        mcx.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


@mcx.model
def garch(y: Any, sigma1: float) -> None:
    mu = mcx.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = mcx.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = mcx.sample("alpha1", dist.Uniform(0, 1))
    # Uniform(0, 1 - alpha1) would bring the density 1 / (1 - alpha1); this one is flat on the triangle
    beta1 = mcx.sample("beta1", dist.ImproperUniform(constraints.interval(0.0, 1 - alpha1), (), ()))

    def next_variance(variance: Any, y_t: Any) -> tuple[Any, Any]:
        return alpha0 + alpha1 * (y_t - mu) ** 2 + beta1 * variance, variance

    _, variance = jax.lax.scan(next_variance, sigma1**2, y)
    with mcx.plate("time", len(y)):
        mcx.sample("y", dist.Normal(mu, jnp.sqrt(variance)), obs=y)
