"""Pieces of the sliced Wasserstein distance: the distance on the line, directions, the fit of controls."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from problems import slow_unless
from scipy import optimize, stats
from sliced_problems import M, N, line, samples, sphere

from mcx.estimators.polynomials.orthonormal import exponents_of_degree
from mcx.estimators.sliced.directions import draw_directions, random_rotation
from mcx.estimators.sliced.fit import fit_controls
from mcx.estimators.sliced.gaussian import Moments, gaussian_cost, gaussian_mean, moments
from mcx.estimators.sliced.harmonics import even_polynomials, monomial_means, num_polynomials
from mcx.estimators.sliced.sliced import sliced_wasserstein
from mcx.estimators.sliced.wasserstein_1d import wasserstein_1d
from mcx.testing import check_mean


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
        exponents = exponents_of_degree(3, degree)
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
