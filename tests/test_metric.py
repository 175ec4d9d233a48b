"""What warm-up learns: the metric from draws and gradients, its schedule, and steps that are far too long."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcx
from mcx.inference.mcmc import metric, warmup
from mcx.inference.mcmc.metric import _geometric_mean
from mcx.testing import check_mean

SCALE = np.array([1e-3, 0.1, 1.0, 30.0])


def covariance(correlation=0.9):
    return SCALE[:, None] * SCALE * (correlation + (1 - correlation) * np.eye(4))


def moments(x, g, dense):
    found = metric.init(x.shape[1], dense)
    for position, gradient in zip(x, g, strict=True):
        found = metric.update(found, jnp.asarray(position), jnp.asarray(gradient))
    return found


def draws(n, seed=0):
    """Positions from anywhere, and a Gaussian's gradients at them."""
    x = np.random.default_rng(seed).uniform(-1, 1, (n, 4)) ** 3 * SCALE * 5
    return x.astype(np.float32), (-x @ np.linalg.inv(covariance())).astype(np.float32)


@pytest.mark.parametrize("dense", [True, False])
def test_moments_of_metrics(dense):
    x, g = draws(30)
    found = moments(x + 100 * SCALE.astype(np.float32), g, dense)
    for i, data in enumerate((x, g)):
        truth = np.cov(data.T.astype(float))
        cov = np.asarray(found.scatter[i]) / 29
        assert found.count == 30
        np.testing.assert_allclose(cov, truth if dense else np.diag(truth), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("n", [6, 40])
def test_a_gaussian_is_learned_from_any_draws(n):
    """Exactly, from d + 1 draws on that are not even its own; here up to float32."""
    x, g = draws(n)
    found = _geometric_mean(*(jnp.asarray(np.cov(data.T.astype(float)), jnp.float32) for data in (x, g)), 0.0)
    np.testing.assert_allclose(found, covariance(), rtol=0.02)


def test_the_ridge_matters_little_with_many_draws():
    x, g = draws(400)
    found = metric.estimate(moments(x, g, True), jnp.eye(4), True)
    np.testing.assert_allclose(found, covariance(), rtol=0.1)
    assert np.linalg.eigvalsh(np.asarray(found / np.outer(SCALE, SCALE), float)).min() > 0


def test_the_diagonal_minimises_the_fisher_divergence():
    """sqrt(var x / var g); of independent coordinates, the variance."""
    variance = SCALE**2
    x, _ = draws(50)
    g = (-x / variance).astype(np.float32)
    found = metric.estimate(moments(x, g, False), jnp.ones(4), True)
    np.testing.assert_allclose(found, variance, rtol=1e-3)


@pytest.mark.parametrize("dense", [True, False])
def test_without_gradients_the_covariance_is_shrunk_as_in_stan(dense):
    x, g = draws(20)
    found = metric.estimate(moments(x, 0 * g, dense), jnp.eye(4) if dense else jnp.ones(4), False)
    truth = 20 / 25 * np.cov(x.T.astype(float)) + 1e-3 * 5 / 25 * np.eye(4)
    np.testing.assert_allclose(found, truth if dense else np.diag(truth), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("case", ["few", "stuck", "not finite"])
def test_where_nothing_is_to_be_learned_the_metric_stays(dense, case):
    x, g = draws(20)
    if case == "few":
        x, g = x[:2], g[:2]
    elif case == "stuck":
        x, g = x[:1].repeat(20, 0), g[:1].repeat(20, 0)
    else:
        g[3, 2] = np.inf
    old = 2.0 * jnp.eye(4) if dense else 2.0 * jnp.ones(4)
    np.testing.assert_array_equal(metric.estimate(moments(x, g, dense), old, True), old)


@pytest.mark.parametrize("num_warmup", [0, 1, 9, 10, 11, 20, 100, 150, 500, 1000, 3000])
def test_schedules(num_warmup):
    """Windows follow each other up to the last steps, which are the step size's; then nothing changes."""
    codes = warmup.schedule(num_warmup, 7)
    assert codes.shape == (num_warmup + 7,) and (codes[num_warmup:] == warmup.KEEP).all()
    if num_warmup == 0:
        return
    assert codes[num_warmup - 1] == warmup.FINISH
    inside = np.isin(codes, (warmup.METRIC, warmup.METRIC_END, warmup.WINDOW_END))
    ends = np.flatnonzero(np.isin(codes, (warmup.METRIC_END, warmup.WINDOW_END)))
    assert (ends.size > 0) == (num_warmup >= 11)
    if ends.size:
        assert inside[: ends[-1] + 1].all() and not inside[ends[-1] + 1 :].any()
        lengths = np.diff(ends, prepend=-1)
        assert lengths[0] >= 10 and (np.diff(lengths) > 0).all()
        assert 1 <= num_warmup - 1 - ends[-1] <= 50


STEEP = [
    pytest.param(mcx.NUTS(max_tree_depth=3), marks=pytest.mark.slow),
    mcx.HMC(max_leapfrog_steps=8),
    mcx.MALA(),
]


@pytest.mark.parametrize("method", STEEP, ids=lambda m: m.name)
def test_steps_far_too_long_are_rejected(method):
    """Kinetic energies overflow to +inf. As products of both signs they would to -inf, and be accepted."""
    factor = np.random.default_rng(0).normal(size=(4, 4))
    cov = jnp.asarray(factor @ factor.T + 0.1 * np.eye(4), jnp.float32)
    precision, root = jnp.linalg.inv(cov), jnp.linalg.cholesky(cov)
    transition = method.transition()

    def density(x):  # so steep far out that momenta overflow before densities do
        return -0.5 * x @ precision @ x - jnp.sum(jnp.cosh(x))

    def move(key, size):
        start = root @ jax.random.normal(key, (4,))
        state = (start, *jax.value_and_grad(density)(start))
        return transition(key, state, density, size, cov)[0][1] - state[1]

    keys = jax.random.split(jax.random.key(0), 400)
    for size in (3.0, 10.0, 100.0, 1e10):
        change = jax.jit(jax.vmap(move, (0, None)))(keys, size)
        assert np.isfinite(change).all() and change.min() > -100


def test_dense_metrics_are_taken_where_they_fit():
    @mcx.model
    def normal(d):
        mcx.sample("x", mcx.dist.Normal(0.0, 1.0).expand([d]).to_event(1))

    from mcx.model.compile import compile_model

    for method, d, dense in (
        (mcx.NUTS(), 50, True),
        (mcx.NUTS(), 51, False),
        (mcx.NUTS(dense_mass=True), 51, True),
        (mcx.NUTS(dense_mass=False), 2, False),
        (mcx.RandomWalk(), 2, False),
    ):
        assert method.kernel(compile_model(normal(d))).dense_mass is dense
    with pytest.raises(mcx.errors.MethodError, match="dense_mass"):
        mcx.NUTS(dense_mass="yes")


@pytest.mark.slow
def test_correlations_are_learned_within_a_short_warm_up(key):
    """Correlation 0.99, scales over four orders of magnitude: few leapfrog steps."""
    scale = jnp.logspace(-2, 2, 12)
    cov = scale[:, None] * scale * (0.99 + 0.01 * jnp.eye(12))

    @mcx.model
    def normal(cov):
        mcx.sample("x", mcx.dist.MultivariateNormal(jnp.zeros(12), cov))

    post = mcx.infer(
        normal(cov),
        mcx.NUTS(num_warmup=300, num_samples=500),
        key=key,
        num_chains=4,
        progress=False,
        warnings="ignore",
    )
    assert post.stats["n_steps"].mean() < 12
    check_mean(post["x"] / np.asarray(scale), 0.0, delta=0.5)
