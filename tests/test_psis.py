"""Pareto smoothing and the Pareto k, against ArviZ's NumPy implementation and against known shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from mcx.errors import MethodError
from mcx.estimators.pareto import khat_of, pareto_khat, psis, tail_size
from mcx.ops.logspace import normalize

INF, NAN = np.inf, np.nan
SIZES = (30, 226, 4000)
# log weights in float32's digits, so that both precisions see the same numbers; no ties but by chance
SAMPLES = {
    "lognormal": lambda rng, s: rng.normal(size=s),
    "hopeless": lambda rng, s: 30 * rng.normal(size=s),
    "student": lambda rng, s: 2 * rng.standard_t(3, size=s),
    "pareto": lambda rng, s: 0.7 * rng.exponential(size=s),
    "bounded": lambda rng, s: np.log(rng.uniform(size=s)),
    "unnormalised": lambda rng, s: rng.normal(size=s) - 300,
}


@pytest.fixture(scope="module")
def compiled():
    return {
        "psis": jax.jit(psis),
        "khat": jax.jit(pareto_khat, static_argnames=("tail", "log")),
        "khat_of": jax.jit(khat_of),
        "all": jax.jit(everything),
    }


TAILS = ("right", "left", "both")


def everything(x):
    """Each function, in one program for each size."""
    return psis(x), pareto_khat(x, log=True), [pareto_khat(x, tail=tail) for tail in TAILS]


def sample(name, size, key):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return SAMPLES[name](rng, size).astype(np.float32)


def agrees_with_arviz(compiled, name, size, key, tol):
    log_w = sample(name, size, key)
    exact = log_w.astype(np.float64)
    expected, k = array_stats.psislw(-exact)  # it wants what the weights are the inverse of
    x = jnp.asarray(log_w, jnp.result_type(float))
    (smoothed, khat), of_logs, of_draws = compiled["all"](x)
    assert smoothed.dtype == khat.dtype == x.dtype
    np.testing.assert_array_equal(of_logs, khat)
    for tail, found in zip(TAILS, of_draws, strict=True):
        theirs = array_stats.pareto_khat(exact[None], r_eff=1.0, tail=tail)
        np.testing.assert_allclose(found, theirs, rtol=tol, atol=tol)
    if khat == INF:  # float32's weights are zero where float64's are not
        assert x.dtype == jnp.float32 and k > 2
        np.testing.assert_allclose(smoothed, normalize(x)[0], rtol=1e-5)
        return
    np.testing.assert_allclose(khat, k, rtol=tol, atol=tol)
    # equal log weights get neighbouring quantiles, in an order that is anybody's
    np.testing.assert_allclose(np.sort(smoothed), np.sort(expected), rtol=tol, atol=tol)
    apart = np.abs(np.diff(np.sort(exact))).min() > 0
    if apart:
        np.testing.assert_allclose(smoothed, expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_arviz(compiled, name, size, key):
    agrees_with_arviz(compiled, name, size, key, 1e-3)


@pytest.mark.x64
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_arviz_in_float64(compiled, name, size, key):
    agrees_with_arviz(compiled, name, size, key, 1e-8)


def test_tail_sizes():
    assert [tail_size(s) for s in (4, 29, 30, 225, 226, 10_000)] == [0, 5, 6, 45, 45, 300]
    assert [tail_size(s, "both") for s in (4, 10, 29, 226)] == [2, 5, 5, 45]


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_known_shape(compiled, k, key):
    # A tail of a Pareto law is generalised Pareto of the same shape, exactly. The best estimate from M of its
    # draws has an sd of (1 + k) / sqrt(M) (Smith 1987).
    replicates, size = 200, 40_000
    m = tail_size(size)
    log_w = k * jax.random.exponential(key, (replicates, size))
    khat = np.asarray(compiled["khat"](log_w, log=True), np.float64)
    mean = (m * k + 10 * 0.5) / (m + 10)
    sd = (1 + k) / np.sqrt(m)
    # an alpha of 1e-6, and 0.2 sd for the estimator's own bias, which is of the order of 1 / M
    assert abs(khat.mean() - mean) < 4.9 * sd / np.sqrt(replicates) + 0.2 * sd
    assert 0.7 * sd < khat.std(ddof=1) < 1.3 * sd  # chi-squared with 199 degrees: 6 sd either side


def test_smoothing_reduces_the_error(compiled, key):
    # weights of shape 0.6: infinite variance. The mean of a weight is 1 / (1 - k)
    replicates, size, k = 400, 1000, 0.6
    log_w = k * jax.random.exponential(key, (replicates, size))
    smoothed, _ = compiled["psis"](log_w)
    # both normalised; what a smoothed unnormalised weight would be follows from one that is not smoothed
    order = jnp.argmin(log_w, axis=1)[:, None]
    back = jnp.take_along_axis(log_w - smoothed, order, 1)
    raw = np.log(np.asarray(jnp.mean(jnp.exp(log_w), 1)) * (1 - k))
    smooth = np.log(np.asarray(jnp.mean(jnp.exp(smoothed + back), 1)) * (1 - k))
    assert np.mean(smooth**2) < 0.8 * np.mean(raw**2)


@pytest.mark.parametrize(
    ("log_w", "expected"),
    [
        (np.zeros(1000), -INF),  # constant
        (np.full(1000, -1e4), -INF),
        (np.r_[np.linspace(-3, -2, 500), np.zeros(500)], -INF),  # cut off from above
        (np.r_[np.full(900, -INF), np.zeros(100)], -INF),  # acceptances
        (np.full(1000, -INF), INF),  # nothing is left
        (np.full(1000, NAN), INF),
        (np.r_[np.full(999, -INF), 0.0], INF),  # one draw is everything
        (np.linspace(-1e6, 0, 1000), INF),
        (np.r_[np.zeros(999), 1.0], NAN),  # ties
        (np.linspace(-3, 0, 29), NAN),  # too few
        (np.linspace(-3, 0, 4), NAN),
        (np.zeros(1), NAN),
    ],
)
def test_what_khat_says_of_odd_weights(compiled, log_w, expected):
    x = jnp.asarray(log_w, float)
    smoothed, khat = compiled["psis"](x)
    np.testing.assert_array_equal(khat, expected)
    np.testing.assert_array_equal(compiled["khat"](x, log=True), expected)
    np.testing.assert_allclose(smoothed, normalize(x)[0], rtol=1e-5)


def test_some_weights_are_zero(compiled, key):
    x = jax.random.normal(key, (1000,))
    zeros = jnp.full(200, -jnp.inf)
    with_zeros, khat = compiled["psis"](jnp.concatenate([x, zeros]))
    assert np.isfinite(khat)
    assert (np.asarray(with_zeros[1000:]) == -INF).all()
    assert np.isfinite(with_zeros[:1000]).all()
    nan, _ = compiled["psis"](jnp.concatenate([x, jnp.full(200, NAN)]))
    np.testing.assert_array_equal(nan, with_zeros)


def test_weights_are_normalised_and_keep_their_order(compiled, key):
    x = 2 * jax.random.normal(key, (3, 1000))
    smoothed, khat = compiled["psis"](x)
    assert khat.shape == (3,)
    np.testing.assert_allclose(np.exp(smoothed).sum(1), 1, rtol=1e-5)
    for before, after in zip(x, smoothed, strict=True):
        assert (np.diff(np.asarray(after)[np.argsort(before)]) >= 0).all()
    # one at a time, by vmap and with a constant added: the same
    np.testing.assert_allclose(compiled["psis"](x[1] + 16)[0], smoothed[1], atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(psis))(x)[0], smoothed, atol=1e-5)


class TestIntegrand:
    def test_heaviest_tail_counts(self, compiled, key):
        # weight of shape 0.2, integrand of shape 0.6 in either tail of either sign
        u = jax.random.exponential(key, (20_000,))
        light, heavy = 0.2 * u, jnp.exp(0.4 * u)
        values = jnp.stack([jnp.ones(20_000), heavy, -heavy], 1)
        khat = compiled["khat_of"](values, light)
        of_weights = compiled["khat"](light, log=True)
        assert khat.shape == (3,)
        np.testing.assert_allclose(khat[0], of_weights, rtol=1e-3)
        np.testing.assert_allclose(khat[1], khat[2], rtol=1e-5)
        # sd 1.6 / sqrt(424) = 0.078
        assert abs(khat[1] - 0.6) < 5 * 0.078 + 0.01
        w = jnp.exp(light)
        centred = jnp.abs(heavy - jnp.sum(w * heavy) / jnp.sum(w))
        np.testing.assert_allclose(khat[1], compiled["khat"](centred * w, tail="right"), rtol=1e-3)

    def test_a_pile_of_weights_next_to_zero_is_no_heavy_tail(self, compiled, key):
        """A tenth of the draws far out, as of a defensive component."""
        key_x, key_w = jax.random.split(key)
        far = jnp.arange(4000) % 10 == 0
        log_w = jnp.where(far, -20 * jax.random.exponential(key_w, (4000,)), 0.0)
        assert compiled["khat_of"](0.7 + 0.3 * jax.random.normal(key_x, (4000,)), log_w) < 0.3

    def test_never_better_than_the_weights(self, compiled, key):
        log_w = 2 * jax.random.normal(key, (1000,))
        of_weights = compiled["khat"](log_w, log=True)
        rare = (jnp.arange(1000) < 10).astype(float)  # nothing to fit: ties at zero
        values = jnp.stack([jnp.exp(-log_w), rare, jnp.zeros(1000)], 1)
        khat = compiled["khat_of"](values, log_w)
        assert (np.asarray(khat) >= np.asarray(of_weights)).all()
        assert khat[2] == of_weights  # a constant is found without error
        assert compiled["khat_of"](values[:, 0], log_w).shape == ()

    def test_infinite_values(self, compiled, key):
        log_w = jax.random.normal(key, (1000,))
        values = jnp.ones(1000).at[0].set(jnp.inf)
        weightless = compiled["khat_of"](values, log_w.at[0].set(-jnp.inf))
        np.testing.assert_allclose(weightless, compiled["khat_of"](jnp.ones(1000), log_w.at[0].set(-jnp.inf)))


def test_draws_that_are_not_finite(compiled, key):
    x = jax.random.normal(key, (1000,))
    for bad in (NAN, INF, -INF):
        assert np.isnan(compiled["khat"](x.at[3].set(bad)))
    assert compiled["khat"](jnp.ones(1000)) == -INF


def test_refusals_of_psis():
    with pytest.raises(MethodError, match="one of"):
        pareto_khat(jnp.ones(100), tail="upper")
    with pytest.raises(MethodError, match="log=False"):
        pareto_khat(jnp.ones(100), tail="left", log=True)
    with pytest.raises(MethodError, match="no draws"):
        psis(jnp.ones(()))
    with pytest.raises(MethodError, match="same draws"):
        khat_of(jnp.ones((3, 100)), jnp.ones(100))
