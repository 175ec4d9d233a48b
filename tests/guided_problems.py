"""Posteriors under Gaussian mixtures with linear Gaussian observations, which are mixtures again."""

from dataclasses import dataclass
from statistics import NormalDist

import jax.numpy as jnp
import numpy as np
from scipy.stats import multivariate_normal

import mcx
import mcx.dist as dist
from mcx.diffusion import GaussianMixture, Score, levels, ve


@mcx.model
def linear(prior, matrix, scale, y):
    """An observation ``matrix @ x`` with Gaussian noise."""
    x = mcx.sample("x", prior)
    mcx.sample("y", dist.Normal(matrix @ x, scale).to_event(1), obs=y)


@dataclass(frozen=True)
class Mixture:
    """A mixture by its weights, means and covariances."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @classmethod
    def random(cls, rng, dim, num, spread=2.0):
        """Components with random axes."""
        factors = rng.normal(size=(num, dim, dim)) / dim**0.5
        covariances = 0.3 * factors @ factors.transpose(0, 2, 1) + 0.2 * np.eye(dim)
        return cls(rng.dirichlet(np.full(num, 5.0)), spread * rng.normal(size=(num, dim)), covariances)

    @property
    def model(self):
        covariances = self.covariances if self.means.shape[1] > 1 else self.covariances[:, :, 0]
        return GaussianMixture.of(self.means, covariances, self.weights)

    def given(self, matrix, scale, y):
        """The posterior, and the log evidence."""
        noise = np.diag(np.broadcast_to(np.square(scale), len(y)))
        weights, means, covariances = [], [], []
        for w, m, c in zip(self.weights, self.means, self.covariances, strict=True):
            seen = matrix @ c @ matrix.T + noise
            gain = np.linalg.solve(seen, matrix @ c).T
            weights.append(np.log(w) + multivariate_normal(matrix @ m, seen).logpdf(y))
            means.append(m + gain @ (y - matrix @ m))
            covariances.append(c - gain @ matrix @ c)
        log_w = np.asarray(weights)
        log_z = np.logaddexp.reduce(log_w)
        return Mixture(np.exp(log_w - log_z), np.asarray(means), np.asarray(covariances)), log_z

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        moved = self.means - self.mean
        return np.einsum("k,kij->ij", self.weights, self.covariances + moved[:, :, None] * moved[:, None])

    def draws(self, rng, num):
        """Draws, (num, d)."""
        which = rng.choice(len(self.weights), num, p=self.weights)
        factors = np.linalg.cholesky(self.covariances)
        noise = rng.normal(size=(num, self.means.shape[1]))
        return self.means[which] + np.einsum("nij,nj->ni", factors[which], noise)


def problem(dim, num_observed, num_components, seed=0, scale=0.3):
    """A mixture, a random observation of it, and what was seen of a draw."""
    rng = np.random.default_rng(seed)
    mixture = Mixture.random(rng, dim, num_components)
    matrix = rng.normal(size=(num_observed, dim)) / dim**0.5
    truth = mixture.draws(rng, 1)[0]
    return mixture, matrix, scale, matrix @ truth + scale * rng.normal(size=num_observed)


def score_alone(mixture, rho_max=30.0, rho_min=0.005):
    """The mixture's score as that of a network: no density."""
    schedule = ve(rho_min, rho_max)

    def fn(x, t):
        return (mixture.denoise(x, schedule.sigma(t)) - x) / schedule.sigma(t) ** 2

    return Score(fn, schedule)


def chain_law(mixture, steps, start):
    """Mean and covariance of the discretised reverse process of a Gaussian, in float64.

    Args:
        mixture: a :class:`Mixture` of one component.
        steps: levels before, after, and error before, of all times.
        start: mean and variance at the noisiest level.
    """
    (mean,), (cov,) = mixture.means, mixture.covariances
    eye = np.eye(len(mean))
    m, p = np.asarray(start.mean, float), float(start.variance) * eye
    for before, rho, error in list(zip(*(np.asarray(x, float) for x in steps), strict=True))[1:]:
        keep = (rho / before) ** 2
        slope = cov @ np.linalg.inv(cov + before**2 * eye)
        matrix = keep * eye + (1 - keep) * slope
        m = matrix @ m + (1 - keep) * (mean - slope @ mean)
        p = matrix @ p @ matrix.T + (rho**2 * (1 - keep) + (1 - keep) ** 2 * error) * eye
    return m, p


LEVELS = jnp.asarray(levels(30.0, 0.005, 60), jnp.float32)


def check_within(draws, truth, within, alpha=1e-6):
    """Check that the mean of independent draws is near a truth, for steps that are not quite exact.

    Fails where the mean is off by more than ``within``, which the error of the steps may use up; refuses
    where chance alone could make it so with probability ``alpha``, or hide a bias of twice that.
    """
    x = np.asarray(draws, np.float64)
    level = NormalDist().inv_cdf(1 - alpha / (2 * max(1, x[0].size)))
    error, within = x.std(0, ddof=1) / len(x) ** 0.5, np.asarray(within)
    assert np.isfinite(x).all()
    assert (level * error <= within).all(), f"too few draws: standard errors {error}, within {within}"
    off = np.abs(x.mean(0) - truth)
    assert (off <= within).all(), f"off by {off} +- {error}, not within {within}"


@mcx.model
def above(prior, y):
    """Whether x is above 0.5, told right nine times out of ten."""
    x = mcx.sample("x", prior)
    mcx.sample("y", dist.Bernoulli(jnp.where(x[0] > 0.5, 0.9, 0.1)), obs=y)
