"""The particle system against the Kalman filter and quadrature, its history and its precision."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless
from scipy import stats

from mcx import dist
from mcx.errors import MethodError
from mcx.inference.smc.engine import Extras
from mcx.inference.smc.genealogy import fixed_lag_means, trace_paths, unique_ancestors
from mcx.inference.smc.smc import smc
from mcx.ops.batched_draws import draw
from mcx.target import FeynmanKac
from mcx.testing import check_mean, kalman


def many(key, count, run):
    """Independent replicates."""
    return jax.jit(jax.vmap(run))(jax.random.split(key, count))


def log(p):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(p), jnp.result_type(float))


# --- a linear Gaussian model, against Kalman ---------------------------------------------------------

LG = {"m0": 0.5, "s0": 1.5, "phi": 0.8, "a": 0.3, "q": 0.7, "r": 0.9}


def lg_initial(particle_key, ctx, u):
    return draw(particle_key, dist.Normal(ctx["m0"], ctx["s0"]))


def lg_transition(particle_key, ctx, x, u):
    return draw(particle_key, dist.Normal(ctx["phi"] * x + ctx["a"], ctx["q"]))


def lg_potential(ctx, x_prev, x, u):
    return dist.Normal(x, ctx["r"]).log_prob(u)


def lg_data(num_steps):
    t = np.arange(num_steps)
    return 1.0 + np.sin(1.3 * t) + 1.2 * (t % 3 == 0) + np.where(t % 7 == 5, -1.5, 0.0)


def lg(num_steps, **changes):
    y = jnp.asarray(lg_data(num_steps), jnp.result_type(float))
    return FeynmanKac(
        lg_initial, lg_transition, lg_potential, num_steps, inputs=y, batched_draws=True, **changes
    )


def lg_exact(num_steps, **changes):
    p = {**LG, **changes}
    return kalman(
        lg_data(num_steps),
        initial_mean=p["m0"],
        initial_cov=p["s0"] ** 2,
        transition_matrix=p["phi"],
        transition_offset=p["a"],
        transition_cov=p["q"] ** 2,
        observation_matrix=1.0,
        observation_cov=p["r"] ** 2,
    )


def lg_params(**changes):
    return {k: jnp.asarray(v, jnp.result_type(float)) for k, v in {**LG, **changes}.items()}


PROBABILITIES = (0.05, 0.5, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_filtering_agrees_with_kalman(key, scheme):
    """Evidence, means and second moments at all times: weighted by Z^ they are unbiased at every N.

    Smallest defect to be found: 5 % of the evidence, and as much of a moment.
    """
    num_steps = 20
    exact = lg_exact(num_steps)

    def run(key):
        result = smc(
            key, lg(num_steps), lg_params(), num_particles=1000, resampling=scheme, history="moments"
        )
        kept = result.history
        z = jnp.exp(kept.log_evidence - np.cumsum(exact.log_increments))
        return jnp.stack([z, z * kept.mean, z * (kept.mean**2 + kept.sd**2)])

    mean, var = exact.filtered_means[:, 0], exact.filtered_covs[:, 0, 0]
    truth = np.stack([np.ones(num_steps), mean, mean**2 + var])
    delta = 0.05 * np.stack([np.ones(num_steps), 1 + np.abs(mean), 1 + mean**2 + var])
    check_mean(many(key, 1500, run), truth, delta=delta, independent=True)


@pytest.mark.slow
def test_quantiles_agree_with_kalman(key):
    """Quantiles are biased by about 1 / N sds, here 3e-4: a thirtieth of what 80 replicates can see."""
    exact = lg_exact(20)
    num = 4000
    run = lambda k: (  # noqa: E731
        smc(k, lg(20), lg_params(), num_particles=num, history="moments", quantiles=PROBABILITIES).history
    )
    kept = many(key, 80, run)
    sd = np.sqrt(exact.filtered_covs[:, 0, 0])
    truth = stats.norm.ppf(np.asarray(PROBABILITIES)[None], exact.filtered_means, sd[:, None])
    scaled = (np.asarray(kept.quantiles) - truth) / sd[:, None]
    check_mean(scaled, np.zeros_like(truth), delta=0.1, independent=True)
    assert kept.quantiles.shape == (80, 20, 3)


@pytest.mark.slow
def test_heavy_tails_and_truncation_against_quadrature(key):
    """x_0 ~ t_3 known to be positive, x_1 ~ t_3 around x_0 / 2, y_1 = 2.5 seen with Laplace noise."""
    fk = FeynmanKac(
        lambda particle_key, ctx, u: draw(particle_key, dist.StudentT(3.0, 0.0, 1.0)),
        lambda particle_key, ctx, x, u: draw(particle_key, dist.StudentT(3.0, 0.5 * x, 1.0)),
        lambda ctx, xp, x, u: jnp.where(
            u < 0, jnp.where(x > 0, 0.0, -jnp.inf), dist.Laplace(x, 0.5).log_prob(u)
        ),
        2,
        inputs=jnp.asarray([-1.0, 2.5]),
        batched_draws=True,
    )
    x0 = stats.t(3).ppf((np.arange(1000) + 0.5) / 1000 / 2 + 0.5)  # equal shares of the positive half
    grid = np.linspace(-7.5, 12.5, 4001)
    predicted = np.mean([stats.t(3).pdf(grid - 0.5 * x) for x in x0], 0) / 2
    joint = predicted * stats.laplace(2.5, 0.5).pdf(grid)
    z = joint.sum() * (grid[1] - grid[0])
    mean = (grid * joint).sum() / joint.sum()

    def run(key):
        result = smc(key, fk, num_particles=100, history="moments")
        w = jnp.exp(result.log_evidence) / z
        return jnp.stack([w, w * result.history.mean[-1]])

    check_mean(many(key, 16_000, run), [1.0, mean], delta=[0.02, 0.04], independent=True)


@pytest.mark.slow
def test_the_gradient_through_draws_is_unbiased(key):
    """E[grad Z^] = grad Z with parameters in the law of the draws, at N = 5; truth by central differences."""
    num_steps, h = 4, 1e-5

    def evidence(p, key):
        result = smc(key, lg(num_steps), lg_params(**p), num_particles=5, threshold=0.7)
        return jnp.exp(result.log_evidence)

    names = ("phi", "q", "r", "m0")
    z = math.exp(lg_exact(num_steps).log_evidence)

    def run(key):
        found = jax.grad(evidence)({n: jnp.asarray(LG[n]) for n in names}, key)
        return jnp.stack([found[n] for n in names]) / z

    def evidence_at(name, change):
        return math.exp(lg_exact(num_steps, **{name: LG[name] + change}).log_evidence)

    truth = [(evidence_at(n, h) - evidence_at(n, -h)) / (2 * h * z) for n in names]
    check_mean(many(key, 200_000, run), truth, delta=0.1, independent=True)


@pytest.mark.slow
def test_gradients_are_finite_where_weights_vanish(key):
    """Particles of weight zero, and even a collapse, leave no NaN behind."""

    def potential(limit):
        return lambda ctx, xp, x, u: jnp.where(x > limit, -0.5 * (u - x) ** 2, -jnp.inf)

    for limit in (0.5, jnp.inf):
        for ahead in (None, lambda ctx, x, u: jnp.where(x > 0, 0.0, -jnp.inf)):
            fk = dataclasses.replace(lg(4), log_potential=potential(limit), log_lookahead=ahead)
            run = lambda p, fk=fk: smc(key, fk, p, num_particles=16).log_evidence  # noqa: E731
            value, slope = jax.value_and_grad(run)(lg_params())
            assert np.isfinite(value) == (limit < 1)
            assert all(np.isfinite(s) for s in slope.values())


# --- history and genealogy ---------------------------------------------------------------------------


def doubling(key, ctx, x, u):
    return 2.0 * x + u


PATH = Extras(
    lambda ctx, x, u: jnp.zeros(6).at[0].set(x),
    lambda ctx, path, x_prev, x, u: path.at[u.astype(int)].set(x),
)


@pytest.mark.parametrize("threshold", slow_unless([0.6], [0.0, 0.6, 1.0]))
@pytest.mark.parametrize("auxiliary", slow_unless([True], [False, True]))
def test_ancestors_and_extras_tell_the_same_story(key, threshold, auxiliary):
    """The parent that ``transition`` saw is the one that is stored, and extras come along with it."""
    fk = FeynmanKac(
        lambda key, ctx, u: jax.random.normal(key),
        doubling,
        lambda ctx, xp, x, u: -0.5 * jnp.square(x - 2.0 * u),
        6,
        inputs=jnp.arange(6.0),
        log_lookahead=(lambda ctx, x, u: -0.1 * jnp.abs(x)) if auxiliary else None,
    )
    result = smc(key, fk, num_particles=32, threshold=threshold, history="full", extras=PATH)
    kept = result.history
    particles, ancestors = np.asarray(kept.particles), np.asarray(kept.ancestors)
    np.testing.assert_array_equal(ancestors[0], np.arange(32))
    for t in range(1, 6):
        np.testing.assert_array_equal(particles[t], 2 * particles[t - 1][ancestors[t]] + t)
    paths = trace_paths(kept.ancestors, kept.particles, jnp.arange(32))
    np.testing.assert_array_equal(paths, result.state.extras.T)
    resampled = np.asarray(kept.info.resampled)
    assert resampled[1:].any() == (threshold > 0) and not resampled[0]
    expected = [len(set(row)) for row in ancestors]
    np.testing.assert_array_equal(unique_ancestors(kept.ancestors), expected)
    assert (np.asarray(expected)[~resampled] == 32).all()
    some = smc(key, fk, num_particles=32, threshold=threshold, history="ancestors").history
    np.testing.assert_array_equal(some.ancestors, ancestors)
    np.testing.assert_array_equal(some.log_w, kept.log_w)
    assert some.particles is None


@pytest.mark.slow
def test_fixed_lag_means(key):
    """Lag 0 is the filter; a lag of T - 1, weighted by Z^, is unbiased for the smoothed means."""
    num_steps = 8
    exact = lg_exact(num_steps)

    def run(key):
        result = smc(key, lg(num_steps), lg_params(), num_particles=200, history="full")
        kept = result.history
        lagged = [fixed_lag_means(kept.ancestors, kept.log_w, kept.particles, k) for k in (0, 7, 20)]
        return jnp.exp(result.log_evidence - exact.log_evidence), kept.mean, lagged

    z, mean, (none, whole, beyond) = many(key, 4000, run)
    np.testing.assert_allclose(none, mean, rtol=2e-5, atol=2e-6)  # another order of summation
    np.testing.assert_array_equal(whole, beyond)
    check_mean(
        np.asarray(z)[:, None] * np.asarray(whole), exact.smoothed_means[:, 0], delta=0.06, independent=True
    )


def test_a_negative_lag_is_refused():
    with pytest.raises(MethodError, match="lag"):
        fixed_lag_means(jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3)), jnp.zeros((2, 3)), -1)


# --- precision ---------------------------------------------------------------------------------------


def drifting(dtype):
    """Draws in float32 whatever the dtype, and potentials of about -50 that hardly depend on them."""
    return FeynmanKac(
        lambda key, ctx, u: jax.random.normal(key, dtype=jnp.float32).astype(dtype),
        lambda key, ctx, x, u: ctx * x + jax.random.normal(key, dtype=jnp.float32).astype(dtype),
        lambda ctx, xp, x, u: -50.0 - u + 0.01 * x,
        2000,
        inputs=jnp.asarray(np.linspace(0, 1, 2000, dtype=np.float32) ** 2, dtype),
    )


@pytest.mark.x64
def test_long_runs_do_not_drift_in_single_precision(key):
    """T = 2000, log Z = -1e5, whose float32 neighbours are 0.008 apart: one rounding, not two thousand."""
    single, double = (
        smc(key, drifting(dtype), jnp.asarray(0.5, dtype), num_particles=8, threshold=0.0, history="moments")
        for dtype in (jnp.float32, jnp.float64)
    )
    for result, dtype in ((single, jnp.float32), (double, jnp.float64)):
        floats = [x.dtype for x in jax.tree_util.tree_leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert set(floats) == {jnp.dtype(dtype)}
        assert result.state.ancestors.dtype == jnp.int32
    assert float(double.log_evidence) < -1e5
    assert abs(float(single.log_evidence) - float(double.log_evidence)) < 0.012
    plain = np.cumsum(np.asarray(single.history.info.log_increment, np.float32), dtype=np.float32)[-1]
    assert abs(plain - float(double.log_evidence)) > 0.012
