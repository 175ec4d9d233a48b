"""State-space models with unknown parameters, for tests of particle MCMC, and their exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.contrib.control_flow import scan

import mcx
import mcx.dist as dist
from mcx.ops.random import choose
from mcx.testing import check_mean, kalman

T = 12
Y = np.random.default_rng(5).normal(0.0, 0.9, (2, T)).astype(np.float32)


@mcx.model
def two_chains(y):
    """Two series with one persistence."""
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    for name, series in (("a", y[0]), ("b", y[1])):
        mcx.markov(
            name,
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(phi * x, 0.7),
            emission=lambda x, u: dist.Normal(x, 0.5),
            obs=series,
        )
    mcx.deterministic("squared", phi**2)


def forecasting_scan(y):
    """The carry is the mean of the next state, so that it depends on the parameter; x0 begins it."""
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def body(mean, y_t):
        x = numpyro.sample("x", dist.Normal(mean, 0.7))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return phi * x, None

    x0 = numpyro.sample("x0", dist.Normal(0.5, 1.0))
    scan(body, phi * x0, y)


def innovations_scan(y):
    """The same law by its innovations: no transition density."""
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def body(x, y_t):
        x = phi * x + 0.7 * numpyro.sample("e", dist.Normal(0.0, 1.0))
        x = numpyro.deterministic("x", x)
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(body, numpyro.sample("x0", dist.Normal(0.5, 1.0)), y)


@mcx.model
def walk(y):
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    s = mcx.sample("s", dist.Uniform(0.3, 1.2))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(phi * x, s),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
    )


def chain_model(initial=None, extra=None, obs=Y[0] + 2, **changes):
    settings = {
        "transition": lambda x, u: dist.Normal(x, 1.0),
        "emission": lambda x, u: dist.Normal(x, 1.0),
        **changes,
    }

    @mcx.model
    def made(obs):
        if extra is not None:
            extra()
        mcx.markov("x", initial=initial or (lambda u: dist.Normal(0.0, 1.0)), obs=obs, **settings)

    return made(obs)


# --- quadrature over Kalman likelihoods ------------------------------------------------------------

GRID = (np.arange(100) + 0.5) / 50 - 1


def averaged(log_likelihood, values):
    """Posterior mean of values on a grid of equal prior weights."""
    p = np.exp(log_likelihood - np.max(log_likelihood))
    return np.tensordot(p / p.sum(), np.asarray(values), 1)


def autoregression(y, phi, initial_mean=0.0, initial_cov=1.0, scale=0.7):
    return kalman(
        y, initial_mean=initial_mean, initial_cov=initial_cov, transition_matrix=phi,
        transition_cov=scale**2, observation_matrix=1.0, observation_cov=0.25,
    )  # fmt: skip


def check_two_chains(post):
    """alpha 1e-6 a check; finds a third of a posterior sd."""
    runs = [[autoregression(y, phi) for phi in GRID] for y in Y]
    log_p = np.sum([[r.log_evidence for r in each] for each in runs], 0)
    phi = averaged(log_p, GRID)
    sd = np.sqrt(averaged(log_p, (GRID - phi) ** 2))
    check_mean(post["phi"], phi, delta=sd / 3)
    check_mean(post["squared"], averaged(log_p, GRID**2), delta=sd / 3)
    for name, each in zip("ab", runs, strict=True):
        check_mean(post[name], averaged(log_p, [r.smoothed_means[:, 0] for r in each]), delta=0.15)


def check_scan(draws):
    """Against the Kalman smoother of (x_t, x_{t-1}), which knows x0, too."""
    runs = [
        kalman(
            Y[0], initial_mean=[0.5 * phi, 0.5], initial_cov=[[phi**2 + 0.49, phi], [phi, 1.0]],
            transition_matrix=[[phi, 0.0], [1.0, 0.0]], transition_cov=[[0.49, 0.0], [0.0, 0.0]],
            observation_matrix=[[1.0, 0.0]], observation_cov=0.25,
        )
        for phi in GRID
    ]  # fmt: skip
    log_p = np.array([r.log_evidence for r in runs])
    phi = averaged(log_p, GRID)
    sd = np.sqrt(averaged(log_p, (GRID - phi) ** 2))
    check_mean(draws["phi"], phi, delta=sd / 3)
    check_mean(draws["x"], averaged(log_p, [r.smoothed_means[:, 0] for r in runs]), delta=0.2)
    check_mean(draws["x0"], averaged(log_p, [r.smoothed_means[0, 1] for r in runs]), delta=0.3)
    second = [r.smoothed_means[0, 1] ** 2 + r.smoothed_covs[0, 1, 1] for r in runs]
    check_mean(np.square(draws["x0"]), averaged(log_p, second), delta=0.3)


# --- for enumeration -------------------------------------------------------------------------------


class Choice(dist.CategoricalProbs):
    """Categorical, drawn through ``ops.choose``: so its draws can be enumerated."""

    def sample(self, key, sample_shape=()):
        log_p = jnp.log(self.probs)
        if not self.batch_shape:
            return choose(key, log_p, sample_shape)
        (size,) = self.batch_shape
        return jax.vmap(choose)(jax.random.split(key, size), log_p)
