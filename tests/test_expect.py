"""Expectations under posteriors: by Stein control variates on draws, and by importance sampling."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import level

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, MethodError, ModelError
from mcx.estimators.stein import stein_controls
from mcx.testing import quadrature

Y = np.random.default_rng(0).normal(1.0, 1.5, size=20).astype(np.float32)


@mcx.model
def normal(y):
    mu = mcx.sample("mu", dist.Normal(0, 3))
    s = mcx.sample("s", dist.HalfNormal(2.0))
    mcx.sample("y", dist.Normal(mu, s), obs=y)


FUNCTIONS = {
    "mu": lambda v: v["mu"],
    "both": lambda v: {"s": v["s"], "large": v["mu"] > 1.0},
}


@pytest.fixture(scope="module")
def truth():
    return quadrature(normal(Y))


def agrees(found, truth):
    assert abs(found["mu"].value - truth.mean["mu"]) < 5 * found["mu"].se
    assert abs(found["both"].value["s"] - truth.mean["s"]) < 5 * found["both"].se["s"]
    assert 0.1 < found["both"].value["large"] < 0.3


def test_controls_of_a_gaussian_are_exact(key):
    """Moments up to the polynomials' degree have no error; the controls are orthonormal."""
    factor = np.array([[1.5, 0, 0], [0.4, 0.7, 0], [-0.3, 0.5, 1.1]])
    cov, loc = factor @ factor.T, np.array([1.0, -2.0, 3.0])
    law = dist.MultivariateNormal(jnp.asarray(loc, jnp.float32), scale_tril=jnp.asarray(factor, jnp.float32))
    x = law.sample(key, (500,))
    score = -jnp.linalg.solve(jnp.asarray(cov, jnp.float32), (x - loc).T).T
    controls = stein_controls(x, score, x.mean(0), jnp.linalg.cholesky(jnp.cov(x.T)), 2)
    assert controls.shape == (500, 9)
    from mcx.estimators.regression import regress

    found = regress(jnp.stack([x[:, 0], x[:, 1] ** 2, x[:, 0] * x[:, 2]], 1), controls)
    expected = [loc[0], loc[1] ** 2 + cov[1, 1], loc[0] * loc[2] + cov[0, 2]]
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


@pytest.mark.slow
def test_draws(truth):
    """NUTS on a posterior that quadrature knows: right, and far more accurate than plain averages."""
    posterior = mcx.infer(normal(Y), mcx.NUTS(num_warmup=300, num_samples=500), key=1, progress=False)
    found, plain = (
        mcx.expect(posterior, FUNCTIONS),
        mcx.expect(posterior, FUNCTIONS, method=mcx.SteinControls(0)),
    )
    agrees(found, truth)
    agrees(plain, truth)
    assert found["mu"].se < 0.3 * plain["mu"].se and found["mu"].stats["r_squared"] > 0.9
    assert found["mu"].stats["num_controls"] == 5
    np.testing.assert_allclose(plain["mu"].value, posterior["mu"].mean(), rtol=1e-5)


@pytest.mark.slow
def test_importance_sampling(truth, key):
    found = mcx.expect(normal(Y), FUNCTIONS, method=mcx.AdaptiveImportance(budget=10_000), key=key)
    agrees(found, truth)
    stats = found["mu"].stats
    assert abs(stats["log_evidence"] - truth.log_evidence) < 5 * stats["log_evidence_se"] < 0.1
    assert stats["ess"] > 2000 and not found["mu"].warnings
    assert found["mu"].se < 0.3 * truth.sd["mu"] / stats["ess"] ** 0.5


@pytest.mark.slow
def test_coverage_of_importance_sampling(truth):
    """200 runs: 95 % intervals of a mean, a variance's root and the evidence hold."""
    method = mcx.AdaptiveImportance(budget=2000, num_stages=4)
    inside = []
    for seed in range(200):
        found = mcx.expect(normal(Y), FUNCTIONS, method=method, key=seed)
        stats = found["mu"].stats
        inside.append(
            [
                abs(found["mu"].value - truth.mean["mu"]) < 1.96 * found["mu"].se,
                abs(found["both"].value["s"] - truth.mean["s"]) < 1.96 * found["both"].se["s"],
                abs(stats["log_evidence"] - truth.log_evidence) < 1.96 * stats["log_evidence_se"],
            ]
        )
    # 3.9 binomial sds below .93
    assert (np.mean(inside, 0) > 0.86).all(), np.mean(inside, 0)


def test_refusals():
    with pytest.raises(ModelError, match="no bound model"):
        mcx.expect(normal, FUNCTIONS, key=0)
    with pytest.raises(MethodError, match="by name"):
        mcx.expect(normal(Y), FUNCTIONS["mu"], key=0)
    with pytest.raises(MethodError, match="needs a key"):
        mcx.expect(normal(Y), FUNCTIONS)
    with pytest.raises(MethodError, match="need draws"):
        mcx.expect(normal(Y), FUNCTIONS, method=mcx.SteinControls(), key=0)
    with pytest.raises(MethodError, match="out of range"):
        mcx.SteinControls(7)


@pytest.mark.slow
def test_paths_have_no_unconstrained_point():
    method = mcx.ParticleGibbs(states=mcx.ConditionalSMC(5), params=mcx.MALA(), num_warmup=5, num_samples=20)
    posterior = mcx.infer(level(Y[:5]), method, key=0, progress=False, warnings="ignore")
    with pytest.raises(CapabilityError, match="no unconstrained point"):
        mcx.expect(posterior, {"s": lambda v: v["s"]})
    assert np.isfinite(mcx.expect(posterior, {"s": lambda v: v["s"]}, method=mcx.SteinControls(0))["s"].value)
