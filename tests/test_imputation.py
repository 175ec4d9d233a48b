"""Observations that are missing in part: the posterior of the rest, and imputed values, in closed form."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import mcx
from mcx.testing import check_mean

SEEN = jnp.array([True, True, False, True])
Y = np.array([0.5, -1.0, np.nan, 0.3], np.float32)


@mcx.model
def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 2.0), obs=y, obs_mask=SEEN)


@mcx.model
def positive(y):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Exponential(rate), obs=jnp.abs(y), obs_mask=SEEN)


PRECISION = 1 + 3 / 4  # of mu, given three observations of variance 4
MEAN = np.nansum(Y) / 4 / PRECISION


@pytest.mark.parametrize("missing", [np.nan, 0.0, 1e6], ids=str)
def test_what_stands_for_missing_values_does_not_matter(key, missing):
    bound = normal(jnp.where(jnp.isnan(Y), missing, Y))
    posterior = mcx.infer(bound, mcx.NUTS(), key=key, progress=False, warnings="raise")
    check_mean(posterior.draws["mu"], MEAN, delta=0.1)
    imputed = np.asarray(posterior.draws["y"])
    np.testing.assert_allclose(imputed[..., SEEN], np.broadcast_to(Y[SEEN], (4, 1000, 3)))
    np.testing.assert_allclose(posterior.draws["y_unobserved"], imputed)
    check_mean(imputed[..., 2], MEAN, delta=0.3)
    check_mean((imputed[..., 2] - MEAN) ** 2, 4 + 1 / PRECISION, delta=1.2)
    assert posterior.stats["n_steps"].mean() < 20  # nothing wanders off


@pytest.mark.parametrize("method", [mcx.TemperedSMC(num_particles=500)], ids=["TemperedSMC"])
def test_evidence_is_that_of_what_was_observed(key, method):
    posterior = mcx.infer(normal(Y), method, key=key, progress=False)
    seen = Y[np.asarray(SEEN)]
    exact = scipy.stats.multivariate_normal.logpdf(seen, np.zeros(3), 4 * np.eye(3) + 1)
    assert abs(float(posterior.log_evidence) - exact) < 5 * float(posterior.log_evidence_se) < 0.3
    check_mean(posterior.draws["mu"], MEAN, delta=0.15)


def test_constrained_values(key):
    """Gamma(3 + 3, 2 + sum y) for the rate; a missing value has E y = E 1/rate = scale / (shape - 1)."""
    posterior = mcx.infer(positive(Y), mcx.NUTS(num_samples=2000), key=key, progress=False)
    scale = 2 + float(np.nansum(np.abs(Y)))
    check_mean(posterior.draws["rate"], 6 / scale, delta=0.15)
    check_mean(posterior.draws["y"][..., 2], scale / 5, delta=0.1)


def test_observed_angles_stand_still_without_a_warning(key):
    @mcx.model
    def angles(y):
        mu = numpyro.sample("mu", dist.VonMises(0.0, 2.0))
        with numpyro.plate("n", 4):
            numpyro.sample("y", dist.VonMises(mu, 2.0), obs=y, obs_mask=SEEN)

    posterior = mcx.infer(angles(Y), mcx.NUTS(), key=key, progress=False, warnings="raise")
    np.testing.assert_allclose(posterior.draws["y"][..., SEEN], np.broadcast_to(Y[SEEN], (4, 1000, 3)))
