"""Log densities by the probability flow against exact ones of Gaussian mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_problems import MODES, given

from mcx.diffusion import GaussianMixture, levels, log_likelihood, ve
from mcx.errors import KeyTypeError, MethodError
from mcx.testing import check_mean

RHO = levels(300.0, 0.05, 80)
X = jnp.array([[-1.6, 0.2], [0.0, 0.0], [3.0, -2.0], [6.0, 5.0]])


def exact(model, x, rho=0.05):
    return np.asarray(jax.vmap(lambda x: model.log_density(x, rho))(x))


def test_exact_traces():
    """In float32, at modes, between them and far off; the error bar covers."""
    found = jax.vmap(lambda x: log_likelihood(MODES, x, RHO))(X)
    np.testing.assert_allclose(found.value, exact(MODES, X), atol=5e-3)
    assert (np.abs(found.value - exact(MODES, X)) < 3 * found.se + 2e-3).all()
    assert (np.asarray(found.stats["se_probes"]) == 0).all()


@pytest.mark.x64
@pytest.mark.slow
def test_the_error_of_steps():
    """Of order 4, within the error bar, the same for rising levels; on a manifold it is that of the noise."""
    errors = []
    for num in (32, 64, 128):
        found = jax.vmap(lambda x, num=num: log_likelihood(MODES, x, levels(2000.0, 0.05, num)))(X)
        errors.append(np.abs(found.value - exact(MODES, X)))
        assert (errors[-1] < found.se + 1e-6).all()
    assert (errors[1] < errors[0] / 8 + 1e-6).all() and (errors[2] < errors[1] / 8 + 1e-6).all()
    rising = log_likelihood(MODES, X[0], RHO[::-1]).value
    assert rising == pytest.approx(float(log_likelihood(MODES, X[0], RHO).value), abs=1e-12)
    thin = GaussianMixture.of([[0.0, 0.0], [1.0, 2.0]], [[1.0, 1e-10], [1e-10, 1.0]])
    x = jnp.array([[0.3, 0.02], [1.05, 2.4]])
    found = jax.vmap(lambda x: log_likelihood(thin, x, levels(1000.0, 0.05, 120)))(x)
    np.testing.assert_allclose(found.value, exact(thin, x), atol=1e-4)


@pytest.mark.slow
def test_a_score_and_its_mixture():
    found = log_likelihood(given("noise", ve(), MODES), X[1], levels(40.0, 0.05, 40))
    assert found.value == pytest.approx(exact(MODES, X)[1], abs=2e-2)


def wide(dim):
    """A mixture of two in many dimensions, of unequal scales."""
    scales = np.linspace(0.5, 1.5, dim) ** 2
    return GaussianMixture.of(
        np.stack([np.full(dim, -0.3), np.full(dim, 0.2)]), np.stack([scales, scales[::-1]])
    )


@pytest.mark.slow
def test_probes(key):
    """80 dimensions: unbiased over keys, with an honest standard error. alpha 1e-6; finds 0.3."""
    model = wide(80)
    x = model.sample(jax.random.key(1), 1)[0]
    rho = levels(300.0, 0.2, 30)
    run = jax.jit(jax.vmap(lambda key: log_likelihood(model, x, rho, key=key, num_probes=4)))
    found = run(jax.random.split(key, 400))
    check_mean(found.value, float(model.log_density(x, 0.2)), delta=0.3, independent=True)
    spread = np.std(np.asarray(found.value, float), ddof=1)
    assert spread == pytest.approx(
        np.sqrt(np.mean(np.asarray(found.stats["se_probes"], float) ** 2)), rel=0.2
    )


def test_refusals_of_flow_likelihood():
    model = wide(80)
    with pytest.raises(KeyTypeError, match="random key"):
        log_likelihood(model, jnp.zeros(80), RHO)
    with pytest.raises(MethodError, match="no noise"):
        log_likelihood(MODES, X[0], [1.0, 0.0])
    with pytest.raises(MethodError, match="num_probes"):
        log_likelihood(MODES, X[0], RHO, num_probes=1)
