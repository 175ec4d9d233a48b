"""Sliced Wasserstein distances against closed forms, quadrature, linear programs and SciPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from problems import slow_unless
from scipy import optimize, stats

import mcx
from mcx.errors import DataError, MethodError
from mcx.estimators.sliced.directions import draw_directions, random_rotation
from mcx.estimators.sliced.fit import fit_controls
from mcx.estimators.sliced.gaussian import Moments, gaussian_cost, gaussian_mean, moments
from mcx.estimators.sliced.harmonics import _exponents, even_polynomials, monomial_means, num_polynomials
from mcx.estimators.sliced.sliced import sliced_powers, sliced_wasserstein
from mcx.estimators.sliced.wasserstein_1d import wasserstein_1d
from mcx.testing import check_mean

N, M = 40, 56
FEW = {"num_projections": 64}
line = jax.jit(wasserstein_1d, static_argnames="p")


def samples(key, d=None, shift=0.5):
    """Two samples of different shape and size, and weights."""
    keys = jax.random.split(key, 4)
    shape = (N, M) if d is None else ((N, d), (M, d))
    if d is None:
        shape = ((N,), (M,))
    x = jax.random.normal(keys[0], shape[0])
    y = 1.5 * jax.random.normal(keys[1], shape[1]) + shift
    if d is not None:
        y = y * jnp.linspace(1.0, 2.0, d)
    x_weights = jax.random.exponential(keys[2], (N,)).at[:3].set(0.0)
    return x, y, x_weights, jax.random.exponential(keys[3], (M,))


def sphere(degree=64):
    """Nodes and weights of a product rule on the upper half of the sphere."""
    z, w = np.polynomial.legendre.leggauss(degree)
    z, w = z[z > 0], w[z > 0]
    angle = 2 * np.pi * np.arange(2 * degree) / (2 * degree)
    r = np.sqrt(1 - z**2)
    theta = np.stack(
        [np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle)), np.outer(z, np.ones_like(angle))], -1
    )
    return theta.reshape(-1, 3), np.repeat(w / w.sum() / (2 * degree), 2 * degree)


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


def by_linear_program(x, y, a, b, p):
    """The transport cost as a linear program over all plans."""
    n, m = len(x), len(y)
    cost = np.abs(np.subtract.outer(np.asarray(x, np.float64), np.asarray(y, np.float64))) ** p
    rows = np.zeros((n + m, n * m))
    for i in range(n):
        rows[i, i * m : (i + 1) * m] = 1
    for j in range(m):
        rows[n + j, j::m] = 1
    a, b = (np.asarray(w, np.float64) / np.asarray(w, np.float64).sum() for w in (a, b))
    return optimize.linprog(cost.ravel(), A_eq=rows, b_eq=np.concatenate([a, b])).fun


# --- on the line -------------------------------------------------------------------------------------


class TestLine:
    @pytest.mark.parametrize("weighted", ["none", "x", "y", "both"])
    def test_first_power_against_scipy(self, key, weighted):
        x, y, a, b = samples(key)
        a, b = a if weighted in ("x", "both") else None, b if weighted in ("y", "both") else None
        found = line(x, y, a, b, p=1.0)
        np.testing.assert_allclose(found, stats.wasserstein_distance(x, y, a, b), rtol=1e-5)

    @pytest.mark.parametrize("p", [2.0, pytest.param(3.5, marks=pytest.mark.slow)])
    def test_other_powers_against_a_linear_program(self, key, p):
        x, y, a, b = (v[:12] for v in samples(key))
        y, b = y[:9], b[:9]
        one = np.ones(12)
        np.testing.assert_allclose(line(x, y, a, b, p), by_linear_program(x, y, a, b, p), rtol=1e-5)
        np.testing.assert_allclose(line(x, y, None, b, p), by_linear_program(x, y, one, b, p), rtol=1e-5)
        np.testing.assert_allclose(line(x, y, p=p), by_linear_program(x, y, one, one[:9], p), rtol=1e-5)

    def test_the_paths_agree(self, key):
        """Equal sizes, the fixed grid of unequal ones, and the merge for weights."""
        x, y, a, _ = samples(key)
        ones_x, ones_y = jnp.ones(N), jnp.ones(M)
        np.testing.assert_allclose(line(x, y), line(x, y, ones_x, ones_y), rtol=1e-5)
        same = line(x, y[:N])
        np.testing.assert_allclose(same, line(x, y[:N], 7 * ones_x, ones_x), rtol=1e-5)
        # weights are multiplicities, and points of weight zero are not there
        whole = jnp.array([2.0, 1, 0, 3] * (N // 4))
        repeated = np.repeat(np.asarray(x), np.asarray(whole, int))
        np.testing.assert_allclose(line(x, y, whole), line(jnp.asarray(repeated), y), rtol=1e-5)
        np.testing.assert_allclose(line(x, y, a), line(x[3:], y, a[3:], None), rtol=1e-5)

    def test_far_from_zero_and_ties(self):
        x = jnp.array([1.0, 1.0, 1.0, 2.0])
        assert line(x, x, jnp.array([0.0, 1, 1, 1]), jnp.array([2.0, 0, 0, 1])) == 0
        assert line(x, x + 3, jnp.ones(4)) == pytest.approx(9, rel=1e-6)

    def test_one_dimension_is_exact(self, key):
        x, y, a, b = samples(key)
        found = sliced_wasserstein(x, y, x_weights=a, y_weights=b, p=1, key=key)
        np.testing.assert_allclose(found.value, stats.wasserstein_distance(x, y, a, b), rtol=1e-5)
        assert found.se == 0 and found.stats["num_directions"] == 1
        column = sliced_wasserstein(x[:, None], y[:, None], x_weights=a, y_weights=b, p=1, key=key)
        assert column.value == found.value

    @pytest.mark.x64
    @pytest.mark.parametrize("p", slow_unless([2.0], [1.0, 2.0, 3.0]))
    def test_gradients_against_finite_differences(self, key, p):
        x, y, a, b = samples(key)
        for args in ((x, y, a + 0.1, b), (x, y[:N], None, None), (x, y, None, None), (x, y, None, b)):
            for i, arg in enumerate(args):
                if arg is None:
                    continue
                move = jax.random.normal(jax.random.fold_in(key, i), arg.shape)

                def along(t, args=args, i=i, move=move):
                    moved = list(args)
                    moved[i] = moved[i] + t * move
                    return wasserstein_1d(*moved, p=p)

                step = 1e-6
                numeric = (along(step) - along(-step)) / (2 * step)
                np.testing.assert_allclose(jax.grad(along)(0.0), numeric, rtol=1e-4, atol=1e-7)
                np.testing.assert_allclose(jax.jvp(along, (0.0,), (1.0,))[1], numeric, rtol=1e-4, atol=1e-7)


# --- directions and polynomials ----------------------------------------------------------------------


class TestDirections:
    @pytest.mark.parametrize(
        ("kind", "d"),
        [
            ("iid", 4),
            ("orthogonal", 4),
            ("sobol", 4),
            ("fibonacci", 3),
            pytest.param("spiral", 3, marks=pytest.mark.slow),
            ("equispaced", 2),
        ],
    )
    def test_each_is_uniform(self, key, kind, d):
        """Every single direction of a set, over draws of the set: second and fourth moments."""

        def draw(k):
            theta = draw_directions(k, kind, 12, d).theta
            return jnp.stack(
                [theta[:, 0] ** 2, theta[:, -1] ** 2, theta[:, 0] ** 4, theta[:, 0] * theta[:, 1]], 1
            )

        found = jax.jit(jax.vmap(draw))(jax.random.split(key, 20_000))
        truth = np.array([1 / d, 1 / d, 3 / (d * (d + 2)), 0.0])
        check_mean(found, np.broadcast_to(truth, found.shape[1:]), delta=0.03, independent=True, name=kind)
        assert found.shape[1] == 12

    def test_frames_are_orthonormal_and_integrate_quadratic_forms(self, key):
        found = draw_directions(key, "orthogonal", 40, 5)
        frames = np.asarray(found.theta).reshape(8, 5, 5)
        np.testing.assert_allclose(
            frames @ frames.swapaxes(1, 2), np.broadcast_to(np.eye(5), (8, 5, 5)), atol=1e-5
        )
        assert found.num_groups == 8
        a = np.arange(25.0).reshape(5, 5)
        forms = np.einsum("gsi,ij,gsj->gs", frames, a, frames).mean(1)
        np.testing.assert_allclose(forms, np.trace(a) / 5, rtol=1e-5)
        few = draw_directions(key, "orthogonal", 9, 5)
        assert few.theta.shape == (9, 5) and few.num_groups is None and few.widen == math.sqrt(1.5)

    def test_rotations_turn_either_way(self, key):
        turns = jax.vmap(lambda k: random_rotation(k, 3))(jax.random.split(key, 400))
        signs = np.linalg.det(np.asarray(turns))
        assert stats.binomtest(int((signs > 0).sum()), 400, 0.5).pvalue > 1e-6
        np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-5)

    @pytest.mark.parametrize("degree", [2, 4, 6])
    def test_means_of_polynomials_in_space(self, degree):
        theta, weights = sphere(16)
        exponents = _exponents(3, degree)
        values = np.prod(theta[:, None, :] ** exponents, -1)
        np.testing.assert_allclose(weights @ values, monomial_means(exponents), atol=1e-14)
        centred = even_polynomials(jnp.asarray(theta, jnp.float32), degree)
        assert centred.shape[1] == num_polynomials(3, degree)
        np.testing.assert_allclose(weights @ centred, 0, atol=1e-6)
        assert np.linalg.matrix_rank(np.column_stack([np.ones(len(theta)), centred]), 1e-4) == len(exponents)

    @pytest.mark.slow
    def test_means_of_polynomials_in_five_dimensions(self, key):
        theta = draw_directions(key, "orthogonal", 200_000, 5).theta
        check_mean(even_polynomials(theta, 4), 0.0, delta=4e-3, independent=True)


# --- the average over directions ---------------------------------------------------------------------


class TestFit:
    def test_exact_on_combinations_of_controls(self, key):
        h = jax.random.normal(key, (30, 4)) + 0.3
        h = jnp.concatenate([h, h[:, :1] - h[:, 1:2], jnp.zeros((30, 1))], 1)  # redundant columns
        found = jax.jit(fit_controls)(3.0 + h @ jnp.arange(6.0), h)
        assert found.value == pytest.approx(3, rel=1e-5) and found.rank == 4
        assert found.r_squared == pytest.approx(1) and float(jnp.abs(found.se)) < 1e-4

    @pytest.mark.x64
    @pytest.mark.parametrize("groups", [None, 10, 3])
    def test_the_error_is_that_of_leaving_out(self, key, groups):
        h = jax.random.normal(key, (30, 6))
        y = jnp.exp(h[:, 0]) + jax.random.normal(jax.random.fold_in(key, 1), (30,))
        found = fit_controls(y, h, num_groups=groups)
        g = groups or 30
        assert found.value == pytest.approx(np.linalg.lstsq(np.c_[np.ones(30), h], y)[0][0])
        left = []
        for rows in np.split(np.arange(30), g):
            rest = np.delete(np.arange(30), rows)
            left.append(np.linalg.lstsq(np.c_[np.ones(len(rest)), h[rest]], y[rest])[0][0])
        jackknife = math.sqrt((g - 1) / g * np.sum((np.array(left) - found.value) ** 2))
        widened = jackknife * stats.t.ppf(0.975, g - 1) / stats.norm.ppf(0.975)
        np.testing.assert_allclose(found.se, widened, rtol=1e-5)

    @pytest.mark.x64
    def test_derivatives_in_values_and_controls(self, key):
        h = jax.random.normal(key, (30, 4))
        y = jnp.exp(h[:, 0]) + jax.random.normal(jax.random.fold_in(key, 1), (30,))
        check_grads(lambda y, h: fit_controls(y, h).value, (y, h), 1, rtol=1e-6)

    def test_gaussian_mean_in_closed_form(self, key):
        """Equal covariances: the cost is a quadratic form of the means; proportional ones: one of both."""
        d = 4
        cov = jnp.diag(jnp.arange(1.0, d + 1))
        gap = jnp.arange(1.0, d + 1)
        near, far = Moments(jnp.zeros(d), cov), Moments(gap, 4 * cov)
        mean, se = jax.jit(lambda k: gaussian_mean(k, near, far, 2.0, 4096))(key)
        truth = float(gap @ gap + jnp.trace(cov)) / d
        assert abs(float(mean) - truth) < 5 * float(se) and float(se) < 1e-2 * truth
        theta = draw_directions(key, "iid", 5, d).theta
        by_hand = (theta @ gap) ** 2 + jnp.einsum("li,ij,lj->l", theta, cov, theta)
        np.testing.assert_allclose(gaussian_cost(theta, near, far), by_hand, rtol=1e-5)

    def test_moments(self, key):
        x, _, a, _ = samples(key, 3)
        found = moments(x, a)
        np.testing.assert_allclose(found.mean, np.average(x, 0, a), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.cov, np.cov(x.T, aweights=a, bias=True), rtol=1e-5, atol=1e-6)


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
