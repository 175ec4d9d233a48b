"""Means with control variates: exact where they can be, unbiased where said, errors that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless

from mcx.errors import DataError, MethodError
from mcx.estimators.control_variates.regression import FITS, regress
from mcx.testing import check_mean

N, K = 200, 8


def problem(key, n=N):
    """Two kinked functions of three normals, one of them skewed, and controls of which two are the same."""
    x = jax.random.normal(key, (n, 3))
    controls = jnp.concatenate([x, x**2 - 1, x[:, :1] * x[:, 1:2], 3 * x[:, :1]], 1)
    values = jnp.stack([jnp.exp(0.5 * x[:, 0]) + jnp.abs(x[:, 1]), jnp.abs(x[:, 2])], 1)
    return x, values, controls


TRUTH = np.array([np.exp(0.125) + np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)])


@pytest.mark.parametrize("fit", slow_unless(["cross_fit"], FITS))
def test_combinations_of_the_controls_are_exact(key, fit):
    _, _, controls = problem(key)
    values = 2.5 + controls @ jnp.arange(1.0, K + 1)
    found = regress(values, controls, fit=fit)
    # ridge leaves a millionth of the largest direction's penalty
    assert abs(found.value - 2.5) < (1e-2 if fit == "ridge" else 1e-4)
    assert abs(found.value - 2.5) < 10 * found.se + 1e-5
    assert found.value.shape == found.se.shape == () and found.coefficients.shape == (K,)
    if fit != "cross_fit":
        assert int(found.rank) == K - 1


def test_least_squares_is_that_of_numpy(key):
    _, values, controls = problem(key)
    weights = jnp.linspace(0.1, 2.0, N)
    found = regress(values, controls, weights)
    root = np.sqrt(np.asarray(weights, np.float64))[:, None]
    design = np.concatenate([np.ones((N, 1)), np.asarray(controls[:, :-1], np.float64)], 1)
    beta = np.linalg.lstsq(root * design, root * np.asarray(values, np.float64), rcond=None)[0]
    np.testing.assert_allclose(found.value, beta[0], rtol=1e-4)
    # HC3 by leaving one out: x' (X'WX)^-1 x w is the leverage
    gram = np.linalg.inv((root * design).T @ (root * design))
    rest = np.asarray(values, np.float64) - design @ beta
    leverage = np.einsum("ni,ij,nj->n", design, gram, design) * root[:, 0] ** 2
    part = (design @ gram)[:, 0] * root[:, 0] ** 2
    se = np.sqrt(((part / (1 - leverage))[:, None] ** 2 * rest**2).sum(0))
    np.testing.assert_allclose(found.se, se, rtol=1e-3)
    assert float(found.leverage) == pytest.approx(leverage.max(), rel=1e-3)


def test_the_jackknife_is_that_of_leaving_one_out(key):
    _, values, controls = problem(key, 40)
    whole = regress(values, controls)
    left_out = np.stack(
        [regress(np.delete(values, i, 0), np.delete(controls, i, 0)).value for i in range(40)]
    )
    expected = whole.value + (whole.value - left_out).sum(0)
    np.testing.assert_allclose(regress(values, controls, fit="jackknife").value, expected, rtol=1e-3)


@pytest.mark.slow
def test_weights_are_those_of_repeated_samples(key):
    _, values, controls = problem(key, 50)
    times = np.arange(50) % 3
    found = regress(values, controls, jnp.asarray(times, jnp.float32))
    again = regress(np.repeat(values, times, 0), np.repeat(controls, times, 0))
    np.testing.assert_allclose(found.value, again.value, rtol=1e-4)


def test_ridge_forgets_controls_that_only_add_noise(key):
    """As many controls as half the samples, none of use: no worse than 1.1 times a plain mean's error."""

    def one(key):
        key_y, key_h = jax.random.split(key)
        y, h = jax.random.normal(key_y, (60,)), jax.random.normal(key_h, (60, 30))
        return [regress(y, h, fit=fit).value for fit in ("ridge", "least_squares")]

    ridge, ols = jax.jit(jax.vmap(one))(jax.random.split(key, 2000))
    plain = 60**-0.5
    assert np.std(ridge) < 1.1 * plain < np.std(ols)


@pytest.mark.parametrize("fit", slow_unless(["jackknife"], ["least_squares", "jackknife", "cross_fit"]))
def test_bias_and_coverage(key, fit):
    """3000 replicates of 200 samples; a bias of a quarter of an error would be found."""
    found = jax.jit(jax.vmap(lambda k: regress(*problem(k)[1:], fit=fit)[:2]))(jax.random.split(key, 3000))
    value, se = (np.asarray(x) for x in found)
    if fit != "least_squares":  # whose bias is a tenth of an error here
        check_mean(value, TRUTH, delta=0.25 * value.std(0), independent=True)
    covered = (np.abs(value - TRUTH) < 1.96 * se).mean(0)
    assert (covered > 0.93).all() and (covered < 0.995).all(), covered


@pytest.mark.parametrize("fit", slow_unless(["cross_fit"], list(FITS)))
def test_small_and_large_values_have_errors_in_proportion(key, fit):
    """Their squares are zero, or infinite, in float32."""
    _, values, controls = problem(key)
    one = regress(values, controls, fit=fit)
    for scale in (2.0**-90, 2.0**90):
        found = regress(scale * values, controls, fit=fit)
        np.testing.assert_allclose(found.se / scale, one.se, rtol=1e-5)
        np.testing.assert_allclose(found.value / scale, one.value, rtol=1e-4, atol=1e-6)


def test_without_controls_it_is_a_mean(key):
    _, values, _ = problem(key)
    found = regress(values, None)
    np.testing.assert_allclose(found.value, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.se, values.std(0, ddof=1) / N**0.5, rtol=1e-2)


def test_refusals_of_regression():
    with pytest.raises(MethodError, match=r"regress\(fit=...\) is out of range"):
        regress(jnp.ones(3), jnp.ones((3, 1)), fit="magic")
    with pytest.raises(DataError, match="do not fit each other"):
        regress(jnp.ones(3), jnp.ones((4, 1)))
