"""State-space models as NumPyro's `scan`."""

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import mcx
from mcx.testing import kalman

T = 10
Y = np.random.default_rng(3).normal(0.0, 0.7, T).astype(np.float32)
PARAMS = {"phi": 0.8, "s": 0.6}
QUIET = {"progress": False}


def linear(y):
    """A state that is drawn before the series begins."""
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    s = numpyro.sample("s", dist.HalfNormal(1.0))

    def body(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x_prev, s))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, x

    x0 = numpyro.sample("x0", dist.Normal(0.3, 1.0))
    scan(body, x0, y)


def linear_exactly(y=Y, phi=0.8, s=0.6):
    return kalman(
        y,
        initial_mean=phi * 0.3,
        initial_cov=phi**2 + s**2,
        transition_matrix=phi,
        transition_cov=s**2,
        observation_matrix=1.0,
        observation_cov=0.25,
    )


def bound(program, *args):
    return mcx.model(program)(*args)
