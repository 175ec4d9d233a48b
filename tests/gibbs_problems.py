"""State-space models with unknown parameters, for tests of particle Gibbs."""

import numpy as np
import numpyro
from numpyro.contrib.control_flow import scan

import mcx
import mcx.dist as dist

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
