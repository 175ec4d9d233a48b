"""State-space models with unknown parameters, for tests of particle MCMC, and their exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.contrib.control_flow import scan

import mcx
import mcx.dist as dist
from mcx.ops.random import choose
from mcx.testing import check_mean, forward_backward, kalman

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


@mcx.model
def persistence(y):
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(phi * x, 0.7),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
    )
    mcx.deterministic("squared", phi**2)


def persistence_truths(draws, y):
    """Parameter, path, and both together: ``name, values (chain x draw x ...), exact mean, scale``."""
    runs = [autoregression(y, phi) for phi in GRID]
    log_p = np.array([r.log_evidence for r in runs])
    phi = averaged(log_p, GRID)
    sd = np.sqrt(averaged(log_p, (GRID - phi) ** 2))
    means = np.array([r.smoothed_means[:, 0] for r in runs])
    second = np.array([r.smoothed_means[:, 0] ** 2 + r.smoothed_covs[:, 0, 0] for r in runs])
    lagged = np.array([means_t[1:] * means_t[:-1] for means_t in means])
    lagged += np.array([r.cross_covs[:, 0, 0] for r in runs])
    mean, spread = averaged(log_p, means), np.sqrt(averaged(log_p, second) - averaged(log_p, means) ** 2)
    x, drawn = np.asarray(draws["x"], float), np.asarray(draws["phi"], float)
    yield "phi", drawn, phi, sd
    yield "phi^2", np.asarray(draws["squared"]), averaged(log_p, GRID**2), sd
    yield "x", x, mean, spread
    yield "x^2", x**2, averaged(log_p, second), 3 * spread
    # the law of both: what a path of other parameters would get wrong
    scaled = (drawn - phi)[..., None] / sd
    truth = averaged(log_p, ((GRID - phi) / sd)[:, None] * (means - mean))
    yield "covariance of phi and x", scaled * (x - mean), truth, 1.5 * spread
    truth = averaged(log_p, ((GRID - phi) / sd)[:, None] * lagged)
    yield "phi and x_t x_{t+1}", scaled * x[..., 1:] * x[..., :-1], truth, 3.0


def check_persistence(draws, y, finds):
    """alpha 1e-6 a check, finds ``finds`` standard deviations."""
    for name, values, truth, scale in persistence_truths(draws, y):
        check_mean(values, truth, delta=finds * scale, name=name)


@mcx.model
def regimes(y, seen=None):
    """Discrete states; how long the first lasts, and the level of the second, are unknown.

    The level has a normal prior; or an improper one, and is ``seen`` outside of the chain.
    """
    stay = mcx.sample("stay", dist.Beta(4.0, 2.0))
    if seen is None:
        level = mcx.sample("level", dist.Normal(0.0, 1.0))
    else:
        level = mcx.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
        mcx.sample("seen", dist.Normal(level, 1.0), obs=seen)
    rows = jnp.stack([jnp.stack([stay, 1 - stay]), jnp.array([0.3, 0.7])])
    mcx.markov(
        "z",
        initial=lambda u: dist.Categorical(jnp.array([0.5, 0.5])),
        transition=lambda z, u: dist.Categorical(rows[z]),
        emission=lambda z, u: dist.Normal(jnp.where(z == 1, level, 0.0), 0.6),
        obs=y,
    )


def check_regimes(post, seen=None):
    """Against forward-backward on a grid of parameters; alpha 1e-6 a check."""
    assert np.issubdtype(post["z"].dtype, np.integer) and list(post.draws) == ["stay", "level", "z"]
    stays, levels = (np.arange(30) + 0.5) / 30, np.linspace(-4.0, 4.5, 52)
    smoothed, log_p, grid = [], [], []
    for stay in stays:
        for level in levels:
            log_g = -0.5 * ((Y[0][:, None] - np.array([0.0, level])) / 0.6) ** 2
            found = forward_backward([0.5, 0.5], [[stay, 1 - stay], [0.3, 0.7]], log_g)
            prior = 3 * np.log(stay) + np.log1p(-stay) - 0.5 * (level - (seen or 0.0)) ** 2
            smoothed.append(found.smoothed[:, 1])
            log_p.append(found.log_evidence + prior)
            grid.append((stay, level))
    stay, level = averaged(log_p, grid)
    check_mean(post["stay"], stay, delta=0.05)
    check_mean(post["level"], level, delta=0.2)
    check_mean(post["z"], averaged(log_p, smoothed), delta=0.1)
    together = averaged(log_p, np.array(grid)[:, 1:] * np.array(smoothed))
    check_mean(post["level"][..., None] * post["z"], together, delta=0.2, name="level and states")


# --- for enumeration -------------------------------------------------------------------------------


class Choice(dist.CategoricalProbs):
    """Categorical, drawn through ``ops.choose``: so its draws can be enumerated."""

    def sample(self, key, sample_shape=()):
        log_p = jnp.log(self.probs)
        if not self.batch_shape:
            return choose(key, log_p, sample_shape)
        (size,) = self.batch_shape
        return jax.vmap(choose)(jax.random.split(key, size), log_p)
