"""Sliced Wasserstein distances against closed forms, quadrature, linear programs and SciPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless
from scipy import stats
from sliced_problems import M, N, line, samples, sphere

import mcx
from mcx.errors import DataError, MethodError
from mcx.estimators.sliced.directions import draw_directions
from mcx.estimators.sliced.sliced import sliced_powers, sliced_wasserstein
from mcx.testing import check_mean

FEW = {"num_projections": 64}


def by_quadrature(x, y, p=2.0, d=3):
    """SW_p^p by a rule of thousands of directions, in numpy's float64; equal sizes and weights."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if d == 2:
        angle = np.pi * (np.arange(4000) + 0.5) / 4000
        theta, weights = np.stack([np.cos(angle), np.sin(angle)], 1), np.full(4000, 1 / 4000)
    else:
        theta, weights = sphere()
    gaps = np.abs(np.sort(theta @ x.T, -1) - np.sort(theta @ y.T, -1)) ** p
    return float(weights @ gaps.mean(-1))


# --- the average over directions ---------------------------------------------------------------------


KINDS = {
    "plain": (3, {"directions": "iid", "control_variates": None}),
    "iid, bounds": (3, {"directions": "iid", "control_variates": "bounds"}),
    "iid, upper": (3, {"directions": "iid", "control_variates": "upper"}),
    "iid, Gaussian": (3, {"directions": "iid", "control_variates": "gaussian"}),
    "frames": (3, {"directions": "orthogonal", "control_variates": "polynomial"}),
    "Sobol": (3, {"directions": "sobol", "control_variates": "gaussian+polynomial"}),
    "space": (3, {}),
    "plane": (2, {}),
}


def estimates(key, x, y, num, **options):
    """Independent estimates: SW^2, its standard error."""

    def one(k):
        found = sliced_wasserstein(x, y, num_projections=64, key=k, **options)
        return found.stats["power"], found.stats["power_se"], found.value, found.se

    return [np.asarray(v, np.float64) for v in jax.jit(jax.vmap(one))(jax.random.split(key, num))]


class TestAverage:
    @pytest.mark.parametrize("name", ["plain", "space", pytest.param("plane", marks=pytest.mark.slow)])
    def test_mean_and_error(self, key, name):
        """400 estimates: bias below 6 standard errors of a mean, and errors neither too small nor absurd."""
        d, options = KINDS[name]
        x, y, _, _ = samples(key, d)
        y = y[:N]
        truth = by_quadrature(x, y, d=d)
        power, power_se, value, se = estimates(key, x, y, 400, **options)
        spread = power.std()
        # least squares has a bias of order K / L; it is far below one standard deviation
        check_mean(power, truth, delta=0.4 * spread, independent=True, alpha=1e-6)
        covered = (np.abs(value - math.sqrt(truth)) < 1.96 * se).sum()
        # true coverage of 93 % fails once in a thousand, 90 % nine times in ten
        assert covered >= stats.binom.ppf(1e-3, 400, 0.93)
        assert np.sqrt((power_se**2).mean()) < 4 * spread

    @pytest.mark.slow
    @pytest.mark.parametrize("name", KINDS)
    def test_coverage(self, key, name):
        d, options = KINDS[name]
        x, y, _, _ = samples(key, d)
        y = y[:N]
        truth = by_quadrature(x, y, d=d)
        power, power_se, value, se = estimates(key, x, y, 4000, **options)
        check_mean(power, truth, delta=0.15 * power.std(), independent=True)
        for estimate, error, exact in ((power, power_se, truth), (value, se, math.sqrt(truth))):
            covered = int((np.abs(estimate - exact) < 1.96 * error).sum())
            assert stats.binomtest(covered, 4000, 0.93, "less").pvalue > 1e-6, covered / 4000
            assert stats.binomtest(covered, 4000, 0.995, "greater").pvalue > 1e-6, covered / 4000

    @pytest.mark.slow
    @pytest.mark.parametrize("d", [5, 10])
    def test_coverage_of_frames(self, key, d):
        """Independent frames, 13 of them, and 6, too few to compare: errors are then widened.

        The truth is the mean over 2 million independent directions, whose error is a hundredth of these.
        """
        x, y, _, _ = samples(key, d)
        y = y[:N]
        directions = draw_directions(jax.random.fold_in(key, 1), "iid", 1 << 21, d).theta
        truth = float(np.mean(np.asarray(jax.jit(sliced_powers)(directions, x, y), np.float64)))
        options = {"directions": "orthogonal", "control_variates": None}
        power, power_se, _, _ = estimates(key, x, y, 2000, **options)
        check_mean(power, truth, delta=0.2 * power.std(), independent=True)
        covered = int((np.abs(power - truth) < 1.96 * power_se).sum())
        assert stats.binomtest(covered, 2000, 0.93, "less").pvalue > 1e-6, covered / 2000
        assert stats.binomtest(covered, 2000, 0.995, "greater").pvalue > 1e-6, covered / 2000

    def test_gaussians_in_closed_form(self, key):
        """Samples that differ by a shift: W^2 is (theta . shift)^2, a polynomial of degree 2."""
        x, _, _, _ = samples(key, 3)
        shift = jnp.array([1.0, -2.0, 0.5])
        found = sliced_wasserstein(x, x + shift, directions="iid", control_variates="lower", key=key, **FEW)
        truth = math.sqrt(float(shift @ shift) / 3)
        assert found.value == pytest.approx(truth, rel=1e-5) and found.se < 1e-4
        assert found.stats["r_squared"] == pytest.approx(1, abs=1e-5)
        frames = sliced_wasserstein(
            x, x + shift, directions="orthogonal", control_variates=None, num_projections=60, key=key
        )
        assert frames.value == pytest.approx(truth, rel=1e-5) and frames.se < 1e-4

    @pytest.mark.slow
    def test_equal_samples(self, key):
        x, _, a, _ = samples(key, 3)
        for weights in (None, a):
            found = sliced_wasserstein(x, x, x_weights=weights, y_weights=weights, key=key)
            assert 0 <= found.value <= 1e-3 and np.isfinite(found.se) and found.se < 1e-2

    @pytest.mark.parametrize("p", [1, pytest.param(3, marks=pytest.mark.slow)])
    def test_other_powers(self, key, p):
        x, y, _, _ = samples(key, 3)
        truth = by_quadrature(x, y[:N], p) ** (1 / p)
        found = sliced_wasserstein(x, y[:N], p=p, key=key, **FEW)
        assert abs(float(found.value) - truth) < 6 * float(found.se) and found.se < 0.02 * truth

    @pytest.mark.slow
    @pytest.mark.slow
    def test_batches_do_not_matter(self, key):
        x, y, a, b = samples(key, 3)
        theta = draw_directions(key, "iid", 10, 3).theta
        for weights in ((None, None), (a, b)):
            powers = jax.jit(sliced_powers, static_argnames=("p", "batch_size"))
            whole = powers(theta, x, y, *weights)
            exact = line(theta @ x.T, theta @ y.T, *weights)
            np.testing.assert_allclose(whole, exact, rtol=1e-4)
            np.testing.assert_allclose(powers(theta, x, y, *weights, batch_size=3), whole, rtol=1e-5)
            alone = [stats.wasserstein_distance(x @ t, y @ t, *weights) for t in theta]
            first = powers(theta, x, y, *weights, p=1)
            np.testing.assert_allclose(first, alone, rtol=1e-4)

    @pytest.mark.slow
    def test_far_from_the_origin(self, key):
        """Projections keep their digits however far away both samples are."""
        x, y, _, _ = samples(key, 3)
        here = sliced_wasserstein(x, y, key=key)
        away = sliced_wasserstein(jnp.round(x * 1024) / 1024 + 512, jnp.round(y * 1024) / 1024 + 512, key=key)
        np.testing.assert_allclose(away.value, here.value, rtol=2e-3)

    @pytest.mark.slow
    def test_settings_reach_the_estimate(self, key):
        x, y, _, _ = samples(key, 4)
        found = sliced_wasserstein(x, y, key=key, num_projections=64)
        assert found.stats["num_controls"] == 10 and found.stats["num_directions"] == 64  # Gaussian, degree 2
        assert not found.stats["clipped"] and "value" in repr(found)
        again = sliced_wasserstein(x, y, key=key, num_projections=64)
        assert again.value == found.value


class TestTransformations:
    @pytest.mark.slow
    def test_jit_and_vmap(self, key):
        x, y, _, _ = samples(key, 3)
        plain = sliced_wasserstein(x, y, key=key, **FEW)
        assert isinstance(plain, mcx.Estimate) and "value" in repr(plain)
        lanes = jax.jit(jax.vmap(lambda k: sliced_wasserstein(x, y, key=k, **FEW)))(jnp.stack([key, key]))
        np.testing.assert_allclose(lanes.value, [plain.value] * 2, rtol=1e-5)
        np.testing.assert_allclose(lanes.se, [plain.se] * 2, rtol=1e-2)

    @pytest.mark.slow
    def test_weights_have_no_scale(self, key):
        x, y, _, _ = samples(key, 3)
        plain = sliced_wasserstein(x, y, key=key, **FEW)
        ones = sliced_wasserstein(x, y, x_weights=jnp.full(N, 3.0), y_weights=jnp.ones(M), key=key, **FEW)
        np.testing.assert_allclose(ones.value, plain.value, rtol=1e-5)

    @pytest.mark.x64
    @pytest.mark.parametrize(
        "controls", slow_unless(["bounds"], ["polynomial", "gaussian+polynomial", "bounds"])
    )
    def test_gradient_against_finite_differences(self, key, controls):
        x, y, a, b = samples(key, 3)

        def distance(args):
            x, y, a, b = args
            return sliced_wasserstein(
                x,
                y,
                x_weights=a,
                y_weights=b,
                control_variates=controls,
                num_projections=40,
                batch_size=7,
                key=key,
            ).value

        args = (x, y, a + 0.1, b)
        slopes = jax.jit(jax.grad(distance))(args)
        move = jax.tree.map(lambda v: jax.random.normal(key, v.shape), args)
        step = 1e-6
        up, down = (jax.tree.map(lambda v, m, s=s: v + s * step * m, args, move) for s in (1, -1))
        numeric = (distance(up) - distance(down)) / (2 * step)
        exact = sum(jnp.vdot(g, m) for g, m in zip(slopes, move, strict=True))
        np.testing.assert_allclose(exact, numeric, rtol=1e-5)

    def test_gradient_at_equal_samples_is_finite(self, key):
        x, _, _, _ = samples(key, 3)
        slope = jax.grad(lambda v: sliced_wasserstein(v, x, key=key, **FEW).value)(x)
        assert np.isfinite(slope).all()

    @pytest.mark.x64
    def test_float32_agrees_with_float64(self, key):
        x, y, a, b = samples(key, 4)
        wide = sliced_wasserstein(x, y, x_weights=a, y_weights=b, key=key)
        narrow = sliced_wasserstein(
            *(v.astype(jnp.float32) for v in (x, y)), x_weights=a, y_weights=b, key=key
        )
        assert wide.value.dtype == jnp.float64 and narrow.value.dtype == jnp.float32
        # directions differ, being drawn in another precision
        assert abs(float(wide.value) - float(narrow.value)) < 6 * float(jnp.hypot(wide.se, narrow.se))


# --- refusals ----------------------------------------------------------------------------------------


X = np.ones((5, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.full((5, 3), np.nan)}, "not finite"),
        ({"x": np.zeros((0, 3))}, "no sample"),
        ({"x": np.zeros((2, 5, 3))}, "no sample"),
        ({"x": np.zeros((5, 2))}, "different dimension"),
        ({"x": X * 1j}, "complex"),
        ({"x_weights": np.array([1, 1, 1, 1, -1.0])}, "no weights"),
        ({"x_weights": np.zeros(5)}, "no weights"),
        ({"x_weights": np.full(5, np.nan)}, "no weights"),
        ({"x_weights": np.ones(4)}, "does not fit"),
    ],
)
def test_data_that_is_refused(change, says):
    with pytest.raises(DataError, match=says):
        sliced_wasserstein(**({"x": X, "y": X, "key": 0} | change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"p": 0.5}, r"p=...\) is out of range"),
        ({"directions": "random"}, r"directions=...\) is out of range"),
        ({"directions": "equispaced"}, "dimension 2 only"),
        ({"control_variates": "magic"}, r"control_variates=...\) is out of range"),
        ({"num_projections": 0}, "num_projections"),
        ({"batch_size": 0}, "batch_size"),
        ({"control_variates": "polynomial", "degree": 3}, "degree"),
        ({"control_variates": "polynomial", "degree": 60}, "degree"),
    ],
)
def test_settings_that_are_refused(change, says):
    with pytest.raises(MethodError, match=says):
        sliced_wasserstein(X, X, key=0, **change)
