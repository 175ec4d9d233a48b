"""Fixed targets, variants of the sliced distance, the test of two samples, and posteriors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mcx
import mcx.dist as dist
from mcx.errors import DataError, MethodError, PosteriorShapeError
from mcx.estimators.sliced import (
    SlicedTarget,
    energy_sliced_wasserstein,
    max_sliced_wasserstein,
    sliced_wasserstein,
    two_sample_test,
)
from mcx.estimators.sliced.posterior_draws import whiten

N, M, D = 40, 56, 3


def samples(key):
    key_x, key_y, key_w = jax.random.split(key, 3)
    x = jax.random.normal(key_x, (N, D))
    y = jax.random.normal(key_y, (M, D)) * jnp.array([1.0, 2.0, 0.5]) + jnp.array([0.0, 0.5, 2.0])
    return x, y, jax.random.exponential(key_w, (M,))


class TestTarget:
    @pytest.mark.parametrize("controls", ["polynomial", pytest.param("gaussian", marks=pytest.mark.slow)])
    @pytest.mark.slow
    def test_agrees_with_the_distance(self, key, controls):
        x, y, b = samples(key)
        options = {"control_variates": controls, "num_projections": 64, "key": key}
        target = SlicedTarget.of(y, y_weights=b, **options)
        found = target.distance(x)
        both = sliced_wasserstein(x, y, y_weights=b, **options)
        assert abs(float(found.value - both.value)) < 6 * float(jnp.hypot(found.se, both.se))
        # the same directions, and the same estimate but for the mean of the Gaussian cost
        np.testing.assert_allclose(found.value, both.value, rtol=1e-5 if controls == "polynomial" else 1e-2)

    def test_descends(self, key):
        """Steps that minimise the cost of the present plans, about: no step ever goes up.

        With new plans the cost can only be less. Where descent ends no plan changes, which may be short of
        the target itself.
        """
        x, y, _ = samples(key)
        target = SlicedTarget.of(y[:N], num_projections=64, key=key)

        @jax.jit
        def descend(target, x):
            def step(x, _):
                square, slope = jax.value_and_grad(lambda v: target.distance(v).value ** 2)(x)
                return x - 0.5 * D * N * slope, (square, jnp.abs(slope).max())

            return jax.lax.scan(step, x, None, length=100)

        end, (squares, slopes) = descend(target, x)
        assert (np.diff(squares) <= 1e-5 * squares[0]).all()
        assert squares[-1] < 0.04 * squares[0] and slopes[-1] < 0.02 * slopes[0]
        fresh = sliced_wasserstein(end, y[:N], num_projections=64, key=key).value
        assert fresh < 0.2 * np.sqrt(squares[0])

    def test_refusals(self, key):
        x, y, _ = samples(key)
        with pytest.raises(MethodError, match="directions"):
            SlicedTarget.of(y[:, 0], key=key)
        with pytest.raises(DataError, match="another dimension"):
            SlicedTarget.of(y, num_projections=32, key=key).distance(x[:, :2])


class TestMax:
    def test_finds_the_direction_of_a_shift(self, key):
        x, _, _ = samples(key)
        shift = jnp.array([3.0, 0.0, -4.0])
        found = max_sliced_wasserstein(x, x + shift, key=key)
        assert found.value == pytest.approx(5, rel=1e-5)
        assert abs(float(found.direction @ shift)) == pytest.approx(5, rel=1e-4)

    def test_at_least_the_best_of_many_directions(self, key):
        x, y, _ = samples(key)
        found = max_sliced_wasserstein(x, y[:N], key=key)
        theta = np.random.default_rng(0).normal(size=(20_000, D))
        theta /= np.linalg.norm(theta, axis=1, keepdims=True)
        gaps = np.sort(theta @ np.asarray(x).T, -1) - np.sort(theta @ np.asarray(y[:N]).T, -1)
        best = np.sqrt((gaps**2).mean(-1).max())
        assert best * (1 - 1e-3) < found.value < best * 1.01
        assert np.linalg.norm(found.direction) == pytest.approx(1, rel=1e-5)

    @pytest.mark.slow
    def test_gradient(self, key):
        """The envelope theorem: at a maximum, moving the samples apart is all there is."""
        x, _, _ = samples(key)
        slope = jax.grad(lambda s: max_sliced_wasserstein(x, x + s * jnp.eye(D)[0], key=key).value)(2.0)
        assert slope == pytest.approx(1, rel=1e-4)


class TestEnergy:
    @pytest.mark.parametrize("energy", ["exp", pytest.param("identity", marks=pytest.mark.slow)])
    def test_against_quadrature(self, key, energy):
        x, y, _ = samples(key)
        theta = np.random.default_rng(0).normal(size=(200_000, D))
        theta /= np.linalg.norm(theta, axis=1, keepdims=True)
        gaps = np.sort(theta @ np.asarray(x).T, -1) - np.sort(theta @ np.asarray(y[:N]).T, -1)
        w = (gaps**2).mean(-1)
        f = np.exp(w - w.max()) if energy == "exp" else w
        truth = np.sqrt((f * w).sum() / f.sum())
        found = energy_sliced_wasserstein(x, y[:N], energy=energy, num_projections=2000, key=key)
        assert abs(float(found.value) - truth) < 6 * float(found.se) + 2e-3 * truth
        assert found.se < 0.01 * truth and 1 < found.stats["ess"] < 2000

    def test_refusals(self, key):
        x, y, _ = samples(key)
        with pytest.raises(MethodError, match="energy"):
            energy_sliced_wasserstein(x, y, energy="log", key=key)
        with pytest.raises(MethodError, match="dimension"):
            energy_sliced_wasserstein(x[:, 0], y[:, 0], key=key)


def p_values(key, shift, num):
    def one(k):
        key_x, key_y, key_test = jax.random.split(k, 3)
        x = jax.random.normal(key_x, (25, 2))
        y = jax.random.normal(key_y, (15, 2)) + shift
        return two_sample_test(x, y, num_permutations=19, num_projections=8, key=key_test).p_value

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, num)))


class TestTwoSamples:
    @pytest.mark.slow
    @pytest.mark.slow
    def test_level_and_power(self, key):
        """Under one law p-values are uniform on 1/20, ..., 1: exactly, up to ties."""
        found = np.rint(20 * p_values(key, 0.0, 1000)).astype(int)
        assert stats.chisquare(np.bincount(found, minlength=21)[1:]).pvalue > 1e-6
        far = p_values(key, 1.5, 100)
        assert (far <= 0.05).mean() > 0.9

    def test_equal_and_far_samples(self, key):
        x, y, _ = samples(key)
        x = jnp.concatenate([x, x[: M - N]])
        same = two_sample_test(x, x, num_permutations=39, key=key)
        assert same.value == 0 and same.p_value == 1 and same.floor > 0
        other = two_sample_test(x, y, num_permutations=39, key=key)
        assert other.p_value == pytest.approx(1 / 40) and other.value > other.floor
        assert "p = 0.025" in repr(other)

    def test_refusals(self, key):
        with pytest.raises(MethodError, match="num_permutations"):
            two_sample_test(np.ones(3), np.ones(3), num_permutations=0, key=key)


# --- posteriors --------------------------------------------------------------------------------------


@mcx.model
def normal(y=None):
    mu = mcx.sample("mu", dist.Normal(0, 10))
    sigma = mcx.sample("sigma", dist.HalfNormal(5))
    mcx.deterministic("twice", 2 * mu)
    mcx.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.fixture(scope="module")
def posteriors():
    bound = normal(y=1.0)

    def run(seed):
        method = mcx.RandomWalk(num_warmup=200, num_samples=200)
        return mcx.infer(bound, method, key=seed, num_chains=2, progress=False, warnings="ignore")

    return run(0), run(1)


class TestPosteriors:
    def test_whitened_columns_of_latent_sites(self, key, posteriors):
        a, b = posteriors
        columns = [np.stack([np.ravel(p["mu"]), np.ravel(p["sigma"])], 1) for p in (a, b)]
        expected = sliced_wasserstein(*whiten(*columns), num_projections=64, key=key)
        found = sliced_wasserstein(a, b, num_projections=64, key=key)
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
        # neither scale nor correlation of the sites matters
        skewed = [c @ np.array([[1.0, 50.0], [0.0, 1000.0]]) for c in columns]
        again = sliced_wasserstein(*whiten(*skewed), num_projections=64, key=key)
        assert abs(float(again.value - found.value)) < 6 * float(jnp.hypot(again.se, found.se))

    def test_whitening(self, key):
        x, y, b = samples(key)
        x, y = whiten(np.c_[x, x[:, 0]], np.c_[y, y[:, 0]], None, b)  # a column twice
        weights = np.r_[np.full(N, 0.5 / N), 0.5 * b / b.sum()]
        both = np.concatenate([x, y])
        cov = (both.T * weights) @ both
        np.testing.assert_allclose(weights @ both, 0, atol=1e-5)
        np.testing.assert_allclose(cov, np.diag([0, 1, 1, 1.0]), atol=1e-4)

    def test_weights_of_a_posterior_count(self, key, posteriors):
        a, b = posteriors
        ranks = np.argsort(np.argsort(np.ravel(a["mu"]))).reshape(2, 200)
        kept = np.where(ranks >= 400 - 256, 0.0, -np.inf)  # a power of 2: weights of any scale round alike
        weighted = dataclasses.replace(a, weights=kept)
        found = sliced_wasserstein(weighted, b, num_projections=64, key=key)
        by_hand = sliced_wasserstein(a, b, x_weights=np.exp(kept).ravel(), num_projections=64, key=key)
        assert found.value == by_hand.value != sliced_wasserstein(a, b, num_projections=64, key=key).value
        with pytest.raises(MethodError, match="exchanged"):
            two_sample_test(weighted, b, key=key)

    def test_two_runs_agree(self, key, posteriors):
        found = two_sample_test(*posteriors, num_permutations=99, key=key)
        assert found.p_value > 1e-2 and 4 < found.sizes[0] < 400  # thinned

    def test_other_sites_are_refused(self, key, posteriors):
        a, b = posteriors
        fewer = dataclasses.replace(b, draws={"mu": b["mu"]})
        with pytest.raises(PosteriorShapeError, match="different latent sites"):
            sliced_wasserstein(a, fewer, key=key)
        with pytest.raises(MethodError, match="another posterior"):
            sliced_wasserstein(a, np.ones((5, 2)), key=key)
