"""The eight log densities once more, in numpy and scipy, straight from the formulas of the data's README.

Each takes the data and constrained values of the model's sites, and shares no code with the models:
normalised densities of scipy, plain loops, probabilities where the models use logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

Values = Mapping[str, Any]


def eight_schools(data: Values, v: Values) -> float:
    return (
        stats.norm.logpdf(v["mu"], 0, 5)
        + stats.halfcauchy.logpdf(v["tau"], scale=5)
        + stats.norm.logpdf(v["z"]).sum()
        + stats.norm.logpdf(data["y"], v["mu"] + v["tau"] * v["z"], data["sigma"]).sum()
    )


def linear_regression(data: Values, v: Values) -> float:
    return (
        stats.norm.logpdf(v["beta"], 0, 10).sum()
        + stats.halfnorm.logpdf(v["sigma"], scale=10)
        + stats.norm.logpdf(data["y"], data["X"] @ v["beta"], v["sigma"]).sum()
    )


def kid_score(data: Values, v: Values) -> float:
    hs, iq = data["mom_hs"], data["mom_iq"]
    mean = np.stack([np.ones_like(iq), hs, iq, hs * iq]).T @ v["beta"]
    prior = stats.halfcauchy.logpdf(v["sigma"], scale=2.5)
    return prior + stats.norm.logpdf(data["kid_score"], mean, v["sigma"]).sum()


def autoregression(data: Values, v: Values) -> float:
    y, order = data["y"], data["K"]
    total = (
        stats.norm.logpdf(v["alpha"], 0, 10)
        + stats.norm.logpdf(v["beta"], 0, 10).sum()
        + stats.halfcauchy.logpdf(v["sigma"], scale=2.5)
    )
    for t in range(order, len(y)):
        mean = v["alpha"] + sum(v["beta"][k - 1] * y[t - k] for k in range(1, order + 1))
        total += stats.norm.logpdf(y[t], mean, v["sigma"])
    return total


def hidden_markov(data: Values, v: Values) -> float:
    total = stats.norm.logpdf(v["mu"], [3, 10], 1).sum()  # rows of theta: density 1
    forward = np.ones(2)
    for t, y in enumerate(data["y"]):
        predicted = forward if t == 0 else forward @ v["theta"]
        joint = predicted * stats.norm.pdf(y, v["mu"], 1)
        total += np.log(joint.sum())
        forward = joint / joint.sum()
    return total


def gaussian_process(data: Values, v: Values) -> float:
    x, n = data["x"], len(data["x"])
    covariance = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            covariance[i, j] = v["alpha"] ** 2 * np.exp(-((x[i] - x[j]) ** 2) / (2 * v["rho"] ** 2))
        covariance[i, i] += v["sigma"]
    return (
        stats.gamma.logpdf(v["rho"], 25, scale=1 / 4)
        + stats.halfnorm.logpdf(v["alpha"], scale=2)
        + stats.halfnorm.logpdf(v["sigma"], scale=1)
        + stats.multivariate_normal.logpdf(data["y"], np.zeros(n), covariance)
    )


def gaussian_mixture(data: Values, v: Values) -> float:
    first, second = (stats.norm.pdf(data["y"], v["mu"][k], v["sigma"][k]) for k in range(2))
    return (
        stats.norm.logpdf(v["mu"], 0, 2).sum()
        + stats.halfnorm.logpdf(v["sigma"], scale=2).sum()
        + stats.beta.logpdf(v["theta"], 5, 5)
        + np.log(v["theta"] * first + (1 - v["theta"]) * second).sum()
    )


def garch(data: Values, v: Values) -> float:
    y, variance, total = data["y"], data["sigma1"] ** 2, 0.0
    for t in range(len(y)):
        if t > 0:
            variance = v["alpha0"] + v["alpha1"] * (y[t - 1] - v["mu"]) ** 2 + v["beta1"] * variance
        total += stats.norm.logpdf(y[t], v["mu"], np.sqrt(variance))
    return total


def _point(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """A point of the posterior's neighbourhood and a little beyond, as sites of the model."""
    scale = rng.uniform(0.7, 1.4)
    match name:
        case "eight_schools-eight_schools_noncentered":
            return {"mu": rng.normal(4, 4), "tau": 3 * scale, "z": rng.normal(size=8)}
        case "sblrc-blr":
            return {"beta": rng.normal(1, 0.002, 5), "sigma": scale}
        case "kidiq-kidscore_interaction":
            return {"beta": [-11, 51, 0.97, -0.48] * rng.uniform(0.95, 1.05, 4), "sigma": 18 * scale}
        case "arK-arK":
            beta = [0.69, 0.44, 0.1, 0.0, -0.3] + rng.normal(0, 0.1, 5)
            return {"alpha": rng.normal(0, 0.02), "beta": beta, "sigma": 0.15 * scale}
        case "hmm_example-hmm_example":
            return {"theta": rng.dirichlet([2, 2], 2), "mu": np.array([3.0, 9.0]) * scale}
        case "gp_pois_regr-gp_regr":
            return {"rho": 7 * scale, "alpha": rng.uniform(1, 4), "sigma": rng.uniform(0.5, 3)}
        case "low_dim_gauss_mix-low_dim_gauss_mix":
            mu, sigma = rng.normal([-2.7, 2.9], 0.2), rng.uniform(0.7, 1.4, 2)
            return {"mu": mu, "sigma": sigma, "theta": rng.uniform(0.5, 0.8)}
        case "garch-garch11":
            alpha1 = rng.uniform(0.2, 0.8)
            beta1 = rng.uniform(0, 1 - alpha1)
            return {"mu": rng.normal(5, 0.2), "alpha0": 1.5 * scale, "alpha1": alpha1, "beta1": beta1}
    raise KeyError(name)


def points(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Points to compare densities at; single precision holds them exactly."""
    rng = np.random.default_rng(seed)
    return [
        {k: np.asarray(v, np.float32).astype(np.float64) for k, v in _point(name, rng).items()}
        for _ in range(count)
    ]


LOG_DENSITIES: dict[str, Callable[[Values, Values], float]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "sblrc-blr": linear_regression,
    "kidiq-kidscore_interaction": kid_score,
    "arK-arK": autoregression,
    "hmm_example-hmm_example": hidden_markov,
    "gp_pois_regr-gp_regr": gaussian_process,
    "low_dim_gauss_mix-low_dim_gauss_mix": gaussian_mixture,
    "garch-garch11": garch,
}
