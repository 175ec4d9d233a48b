"""Stochastic volatility of the S&P 500, and what Stan makes of it (source: data/README.md)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats

import mcx
import mcx.dist as dist

DAYS_100 = {  # mean, its standard error, standard deviation
    "persistence": (0.9316393, 0.00014481, 0.0429751),
    "mean": (-7.6611829, 0.0062038, 1.1869502),
    "scale": (0.5338257, 0.00039753, 0.1404033),
}
DAYS_2516 = {
    "persistence": (0.954188910515, 3.005e-05, 0.0091),
    "mean": (-9.818608855700, 2.941e-04, 0.157),
    "scale": (0.338800076905, 1.119e-04, 0.0294),
}
HERE = Path(__file__).parent


@mcx.model
def stochastic_volatility(returns):
    half = mcx.sample("half", dist.Beta(20.0, 1.5))
    mean = mcx.sample("mean", dist.Cauchy(0.0, 5.0))
    scale = mcx.sample("scale", dist.HalfCauchy(2.0))
    persistence = mcx.deterministic("persistence", 2 * half - 1)
    mcx.markov(
        "h",
        initial=lambda u: dist.Normal(mean, scale / jnp.sqrt(1 - persistence**2)),
        transition=lambda h, u: dist.Normal(mean + persistence * (h - mean), scale),
        emission=lambda h, u: dist.Normal(0.0, jnp.exp(h / 2)),
        obs=returns,
    )


def last_100():
    """Returns; means of the log volatilities, their standard errors and standard deviations."""
    table = np.loadtxt(HERE / "data" / "sp500_100.csv", delimiter=",", skiprows=1)
    return table[:, 0].astype(np.float32), table[:, 1:]


def all_2516():
    """Returns; means of the log volatilities, and standard deviations."""
    table = np.loadtxt(HERE.parent / "examples" / "data" / "sp500.csv", delimiter=",", skiprows=1)
    return table[:, 0].astype(np.float32), table[:, 1:]


def errors_off(draws, mean, se):
    """Distance from a reference in combined standard errors; (chain, draw)."""
    draws = np.asarray(draws, float)
    return abs(draws.mean() - mean) / np.hypot(array_stats.mcse(draws, method="mean"), se)


def check_100(post):
    """Within 4 combined standard errors of Stan's means, a tenth of a posterior sd or less; the path, too."""
    _, by_day = last_100()
    for name, (mean, se, sd) in DAYS_100.items():
        check_against(post[name], mean, se, sd)
    for t in range(0, 100, 9):
        check_against(post["h"][..., t], *by_day[t])


def check_against(draws, mean, se, sd):
    assert array_stats.mcse(np.asarray(draws, float), method="mean") < 0.1 * sd
    assert errors_off(draws, mean, se) < 4


def log_likelihood(returns, persistence, mean, scale, points=201):
    """With the standardised state on a grid, 4 points a standard deviation of its steps: exact to 1e-10."""
    z = np.linspace(-7.0, 7.0, points)
    variance = 1 - persistence**2
    volatility = mean + scale / np.sqrt(variance) * z
    steps = np.exp(-0.5 * (z[None] - persistence * z[:, None]) ** 2 / variance)
    steps *= (z[1] - z[0]) / np.sqrt(2 * np.pi * variance)
    p = np.exp(-0.5 * z**2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    seen = np.exp(-0.5 * np.asarray(returns, float)[:, None] ** 2 * np.exp(-volatility) - 0.5 * volatility)
    total = -0.5 * len(returns) * np.log(2 * np.pi)
    for weights in seen:
        p = p * weights
        total += np.log(p.sum())
        p = p / p.sum() @ steps
    return total
