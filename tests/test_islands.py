"""Replicates of SMC samplers as islands: what their evidences make of them together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_problems import normal

import mcx
from mcx.results.evidence import log_mean_evidence, replicate_log_weights
from mcx.testing import check_mean

Y = np.array([4.0, 6.0], np.float32)  # far out in the prior, N(0, 25)
MEAN = Y.sum() / (1 / 25 + 2)


def test_mean_evidence():
    log_z = np.array([-1003.0, -1001.0, -1002.0])
    z = np.exp(log_z + 1002)
    total, se = log_mean_evidence(log_z)
    assert total == pytest.approx(np.log(z.mean()) - 1002)
    left = np.log([(z[1] + z[2]) / 2, (z[0] + z[2]) / 2, (z[0] + z[1]) / 2])
    assert se == pytest.approx(np.sqrt(2 / 3 * np.sum((left - left.mean()) ** 2)))
    for found, exact in zip(jax.jit(log_mean_evidence)(jnp.asarray(log_z)), (total, se), strict=True):
        assert found == pytest.approx(exact, rel=1e-4)
    assert np.isnan(log_mean_evidence(log_z[:1])[1])
    # one replicate has all the evidence, or none has any
    assert np.isnan(log_mean_evidence(np.array([0.0, -np.inf]))[1])
    assert log_mean_evidence(np.array([-np.inf, -np.inf]))[0] == -np.inf


def test_weights():
    log_z = np.array([3.0, 4.0])
    assert replicate_log_weights(log_z[:1], 5) is None
    w = np.exp(replicate_log_weights(log_z, 5))
    assert w.shape == (2, 5) and w.sum() == pytest.approx(1)
    assert w[1, 0] / w[0, 0] == pytest.approx(np.e)


@pytest.fixture(scope="module")
def post():
    """Many islands of 8 particles that take one step from the prior to the posterior."""
    method = mcx.TemperedSMC(8, levels=(1.0,), move=mcx.RandomWalk(), max_moves=1)
    options = {"num_chains": 4000, "progress": False, "warnings": "ignore"}
    return mcx.infer(normal(Y), method, key=5, **options)


def test_many_small_islands_have_the_posterior(post):
    """However small they are; where all count the same the prior shows through.

    Finds a bias of 0.06, a twelfth of the posterior's sd; equal weights are off by more.
    """
    share = np.exp(post.weights).sum(1)
    mean = np.asarray(post["mu"], float).mean(1)
    # the ratio of two means, linearised
    check_mean(share * 4000 * (mean - MEAN), 0.0, delta=0.06, independent=True)
    assert abs(mean.mean() - MEAN) > 0.1


def test_summaries_have_the_weights(post):
    w, x = np.exp(post.weights), np.asarray(post["mu"], float)
    row = post.summary()["mu"]
    mean = np.sum(w * x)
    assert row["mean"] == pytest.approx(mean)
    assert row["sd"] == pytest.approx(np.sqrt(np.sum(w * (x - mean) ** 2)))
    assert np.sum(w[x <= row["50%"]]) == pytest.approx(0.5, abs=1e-3)
    assert abs(mean - MEAN) < 6 * row["mcse_mean"] < 0.1
    # the error of the mean is that which the islands tell
    share = w.sum(1) * 4000
    assert row["mcse_mean"] == pytest.approx(np.std(share * (x.mean(1) - mean)) / 4000**0.5, rel=0.01)


@pytest.mark.slow
def test_data_trees_have_the_weights():
    options = {"key": 0, "progress": False, "warnings": "ignore"}
    small, alone = (mcx.infer(normal(Y), mcx.TemperedSMC(16), num_chains=n, **options) for n in (2, 1))
    tree = small.to_datatree()
    np.testing.assert_allclose(tree["sample_stats"]["log_weight"], small.weights)
    assert alone.weights is None and np.isnan(alone.summary()["mu"]["mcse_mean"])
