"""Small models of every kind.

Checkpoints that were recorded know these functions by their fingerprints: change none, add new ones.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import mcx
from mcx import dist

_RNG = np.random.default_rng(5)
Y = _RNG.normal(0.5, 1.0, size=8).astype(np.float32)


@mcx.model
def normal(y):
    mu = mcx.sample("mu", dist.Normal(0.0, 2.0))
    s = mcx.sample("s", dist.HalfNormal(1.0))
    with mcx.plate("n", len(y)):
        mcx.sample("y", dist.Normal(mu, s), obs=y)


@mcx.model
def schools(y):
    mu = mcx.sample("mu", dist.Normal(0.0, 5.0))
    tau = mcx.sample("tau", dist.HalfCauchy(5.0))
    with mcx.plate("school", len(y)):
        z = mcx.sample("z", dist.Normal(0.0, 1.0))
        theta = mcx.deterministic("theta", mu + tau * z)
        mcx.sample("y", dist.Normal(theta, 1.0), obs=y)


@mcx.model
def ar(y):
    rho = mcx.sample("rho", dist.Uniform(-1.0, 1.0))
    s = mcx.sample("s", dist.HalfNormal(1.0))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(rho * x, s),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
    )


@mcx.model
def led(y):
    """A chain with a proposal and a look-ahead."""
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 2.0),
        transition=lambda x, u: dist.Normal(0.9 * x, 1.0),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
        proposal=lambda x, u, y: dist.Normal((0.9 * x + 4 * y) / 5, 5**-0.5),
        initial_proposal=lambda u, y: dist.Normal(4 * y / 4.25, 4.25**-0.5),
        lookahead=lambda x, u, y: dist.Normal(0.9 * x, 1.25**0.5).log_prob(y),
    )


@mcx.model
def trend(y, inputs):
    """States by name, inputs, missing observations."""
    drift = mcx.sample("drift", dist.Normal(0.0, 1.0))
    mcx.markov(
        "h",
        initial=lambda u: {"level": dist.Normal(0.0, 1.0), "slope": dist.Normal(drift, 0.1)},
        transition=lambda x, u: {
            "level": dist.Normal(x["level"] + u * x["slope"], 0.5),
            "slope": dist.Normal(x["slope"], 0.1),
        },
        emission=lambda x, u: dist.Normal(x["level"], 0.5),
        obs=y,
        inputs=inputs,
    )


@mcx.model
def hidden(y):
    """Discrete states."""
    stay = mcx.sample("stay", dist.Beta(4.0, 2.0))
    mcx.markov(
        "k",
        initial=lambda u: dist.Categorical(probs=jnp.array([0.5, 0.5])),
        transition=lambda k, u: dist.Categorical(
            probs=jnp.where(k == 1, jnp.stack([1 - stay, stay]), jnp.stack([stay, 1 - stay]))
        ),
        emission=lambda k, u: dist.Normal(2.0 * k - 1.0, 0.7),
        obs=y,
    )


def numpyro_walk(y):
    """Written for NumPyro, with its own scan."""
    import numpyro
    from numpyro.contrib.control_flow import scan

    step_size = numpyro.sample("step_size", dist.HalfNormal(1.0))
    start = numpyro.sample("start", dist.Normal(0.0, 2.0))

    def body(x, y_t):
        x = numpyro.sample("x", dist.Normal(x, step_size))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, x

    scan(body, start, y)


walk = mcx.model(numpyro_walk)
AR_PARAMS = {"rho": 0.7, "s": 0.8}


def a_normal():
    return normal(Y)


def a_schools():
    return schools(Y[:4])


def an_ar():
    return ar(Y)


def a_led():
    return led(Y)


def a_trend():
    return trend(
        np.where(np.arange(8) == 3, np.nan, Y).astype(np.float32), np.linspace(0.5, 1.5, 8, dtype="f4")
    )


def a_hidden():
    return hidden(2 * Y - 1)


def a_walk():
    return walk(jnp.asarray(Y))
