"""The error of the evidence, told from one run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcx.inference.smc.smc import smc
from mcx.inference.smc.variance import default_lag, log_evidence_variance
from mcx.target import FeynmanKac
from mcx.testing import check_mean


def walk(num_steps, potential):
    t = np.arange(num_steps)
    return FeynmanKac(
        lambda key, ctx, u: 0.5 + 1.5 * jax.random.normal(key),
        lambda key, ctx, x, u: 0.8 * x + 0.3 + 0.7 * jax.random.normal(key),
        potential,
        num_steps,
        inputs=jnp.asarray(1.0 + np.sin(1.3 * t) + 1.2 * (t % 3 == 0), jnp.float32),
    )


def seen(ctx, x_prev, x, u):
    return -0.5 * jnp.square((u - x) / 0.9)


def flat(ctx, x_prev, x, u):
    return jnp.zeros(())


def many(key, count, *args, **options):
    run = jax.jit(jax.vmap(lambda key: smc(key, walk(*args), **options)))
    return run(jax.random.split(key, count))


@pytest.mark.parametrize(
    ("num_particles", "num_steps", "count", "threshold"),
    [
        pytest.param(500, 10, 800, 0.5, marks=pytest.mark.slow),
        pytest.param(500, 60, 800, 0.5, marks=pytest.mark.slow),
        pytest.param(500, 60, 800, 1.0, marks=pytest.mark.slow),
        pytest.param(2000, 40, 800, 0.5, marks=pytest.mark.slow),
    ],
)
def test_the_standard_error_is_the_spread_of_replicates(key, num_particles, num_steps, count, threshold):
    """Below the lag, and with several origins beyond it.

    Squared deviations from the replicates' mean, less the variances that the runs report, have mean zero.
    Theory is first order in the variance, here a few percent; a factor of two either way is found.
    """
    assert (num_steps < default_lag(num_particles)) == (num_steps == 10)
    result = many(key, count, num_steps, seen, num_particles=num_particles, threshold=threshold)
    log_z = np.asarray(result.log_evidence, np.float64)
    within = np.asarray(result.log_evidence_se, np.float64) ** 2
    assert within.mean() < 0.1
    square = (log_z - log_z.mean()) ** 2 * count / (count - 1)
    check_mean((square - within) / within.mean(), 0.0, delta=0.5, independent=True)


@pytest.mark.parametrize("num_steps", [pytest.param(5, marks=pytest.mark.slow), 60])
def test_flat_potentials_have_no_error(key, num_steps):
    result = many(key, 3, num_steps, flat, num_particles=50)
    np.testing.assert_allclose(result.log_evidence, 0.0, atol=1e-5)
    np.testing.assert_allclose(result.log_evidence_se, 0.0, atol=1e-2)  # root of rounding, 60 times over
    assert not result.history.info.resampled.any()


@pytest.mark.slow
def test_flat_potentials_with_resampling_have_none_on_average(key):
    """The estimate of the squared evidence is unbiased for 1 below the lag, whatever lines coalesce."""
    result = many(key, 4000, 4, flat, num_particles=50, threshold=1.0)
    variance = result.state.origins.variance
    np.testing.assert_array_equal(variance, 0.0)  # no origin has moved
    found = jax.vmap(log_evidence_variance)(result.state.origins, result.state.log_w)
    check_mean(np.exp(-np.asarray(found)), 1.0, delta=0.01, independent=True)


@pytest.mark.slow
def test_what_cannot_be_told_is_not_a_number(key):
    for options in (
        {"num_particles": 20, "resampling": "systematic"},
        {"num_particles": 1},
    ):
        assert np.isnan(many(key, 2, 12, seen, **options).log_evidence_se).all()

    def collapsing(ctx, x_prev, x, u):
        return jnp.full((), -jnp.inf)

    for threshold in (0.0, 1.0):
        result = many(key, 2, 12, collapsing, num_particles=20, threshold=threshold)
        assert np.isnan(result.log_evidence_se).all()


@pytest.mark.slow
def test_lines_that_have_all_coalesced_have_infinite_error(key):
    """Two particles over twelve steps: some runs lose one line within a block, and say so."""
    result = many(key, 64, 12, seen, num_particles=2, threshold=1.0)
    se = np.asarray(result.log_evidence_se)
    assert np.isinf(se).any() and not np.isnan(se).any()


@pytest.mark.slow
def test_the_error_takes_no_part_in_gradients(key):
    def run(shift):
        potential = lambda ctx, xp, x, u: -0.5 * jnp.square(u - x - ctx)  # noqa: E731
        result = smc(key, walk(12, potential), shift, num_particles=20)
        return result.log_evidence + result.log_evidence_se, result.log_evidence

    both = jax.grad(lambda s: run(s)[0])(0.1)
    np.testing.assert_allclose(both, jax.grad(lambda s: run(s)[1])(0.1), rtol=1e-6)
