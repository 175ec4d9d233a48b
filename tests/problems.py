"""Posteriors with known moments, one for each shape that samplers get wrong."""

import gc
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mcx
import mcx.dist as dist


def forget_programs():
    """Forget compiled programs where there are many; to be called within tests that compile hundreds.

    Every program takes some memory maps, of which a test makes 2000 or fewer. Linux gives a process 65530,
    after which XLA aborts it. Forgetting costs tracing and loading anew.
    """
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()
        gc.collect()


@dataclass(frozen=True)
class Problem:
    """A bound model and the exact mean and sd of one of its sites."""

    name: str
    bound: mcx.BoundModel
    site: str
    mean: np.ndarray
    sd: np.ndarray


@mcx.model
def level(y):
    """A Gaussian random walk from N(0, 1) with steps of scale s, seen with unit noise."""
    s = mcx.sample("s", dist.HalfNormal(1.0))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(x, s),
        emission=lambda x, u: dist.Normal(x, 1.0),
        obs=y,
    )


@mcx.model
def correlated(cov):
    mcx.sample("x", dist.MultivariateNormal(jnp.array([1.0, -2.0]), cov))


@mcx.model
def skewed():
    mcx.sample("x", dist.Gamma(1.7, 0.8))


@mcx.model
def heavy_tailed():
    mcx.sample("x", dist.StudentT(5.0, 2.0, 1.5))


@mcx.model
def truncated():
    # the mass piles up at a hard bound, far from the untruncated mode
    mcx.sample("x", dist.TruncatedNormal(-1.0, 1.0, low=0.5))


@mcx.model
def hard_constraint():
    x = mcx.sample("x", dist.Normal(0.0, 1.0))
    mcx.factor("positive", jnp.where(x > 0.3, 0.0, -jnp.inf))


@mcx.model
def dynamic_support():
    # x is uniform on the triangle 0 < x < u < 1 with density 1/u: E x = 1/4
    u = mcx.sample("u", dist.Uniform(0.0, 1.0))
    mcx.sample("x", dist.Uniform(0.0, u))


@mcx.model
def simplex():
    mcx.sample("x", dist.Dirichlet(jnp.array([0.9, 2.0, 4.0])))


def problems() -> list[Problem]:
    cov = np.array([[1.0, 0.9], [0.9, 2.0]])
    a = np.array([0.9, 2.0, 4.0])
    tail = scipy.stats.truncnorm(1.5, np.inf, loc=-1.0)
    half = scipy.stats.truncnorm(0.3, np.inf)
    return [
        Problem(
            "correlated", correlated(jnp.asarray(cov)), "x", np.array([1.0, -2.0]), np.sqrt(np.diag(cov))
        ),
        Problem("skewed", skewed(), "x", np.asarray(1.7 / 0.8), np.asarray(1.7**0.5 / 0.8)),
        Problem("heavy tails", heavy_tailed(), "x", np.asarray(2.0), np.asarray(1.5 * (5 / 3) ** 0.5)),
        Problem("truncated", truncated(), "x", np.asarray(tail.mean()), np.asarray(tail.std())),
        Problem("hard constraint", hard_constraint(), "x", np.asarray(half.mean()), np.asarray(half.std())),
        Problem(
            "dynamic support", dynamic_support(), "x", np.asarray(0.25), np.asarray((1 / 9 - 1 / 16) ** 0.5)
        ),
        Problem(
            "simplex", simplex(), "x", a / a.sum(), np.sqrt(a / a.sum() * (1 - a / a.sum()) / (a.sum() + 1))
        ),
    ]


@mcx.model
def eight_schools(sigma, y=None):
    mu = mcx.sample("mu", dist.Normal(0, 5))
    tau = mcx.sample("tau", dist.HalfCauchy(5))
    with mcx.plate("school", len(sigma)):
        z = mcx.sample("z", dist.Normal(0, 1))
        theta = mcx.deterministic("theta", mu + tau * z)
        mcx.sample("y", dist.Normal(theta, sigma), obs=y)


SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18], np.float32)
EFFECT = np.array([28.0, 8, -3, 7, -1, 1, 18, 12], np.float32)


@mcx.model
def regression(x, y=None):
    """A small linear model: mean, slope and a positive noise scale."""
    intercept = mcx.sample("intercept", dist.Normal(0, 2))
    slope = mcx.sample("slope", dist.Normal(0, 2))
    noise = mcx.sample("noise", dist.HalfNormal(1))
    with mcx.plate("row", len(x)):
        mcx.sample("y", dist.Normal(intercept + slope * x, noise), obs=y)


def regression_data(seed=0, n=20):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n).astype(np.float32)
    return x, (0.5 + 1.5 * x + 0.7 * rng.normal(size=n)).astype(np.float32)


@mcx.model
def coin(y=None):
    p = mcx.sample("p", dist.Beta(2.0, 3.0))
    mcx.sample("y", dist.Bernoulli(p), obs=y)
    return p


def slow_unless(keep, cases):
    """Test cases of which only those in ``keep`` run in `make test`: each compiles a program of its own."""
    return [case if case in keep else pytest.param(case, marks=pytest.mark.slow) for case in cases]
