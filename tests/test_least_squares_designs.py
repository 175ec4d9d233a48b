"""Bases of least squares, and the samplers of designs by rejection and by a DPP."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from least_squares_problems import SLOW, exact_features, polynomial, small, where
from scipy import integrate as scipy_integrate
from scipy import special, stats

from mcx.estimators.least_squares import (
    christoffel,
    dpp_by_rejection,
    hermite,
    legendre,
    on_grid,
)
from mcx.estimators.least_squares.polynomials import _cdf
from mcx.testing import check_mean


def nodes(family, count, dim):
    x, w = {"legendre": special.roots_legendre, "hermite": special.roots_hermitenorm}[family](count)
    grid = np.stack(np.meshgrid(*[x] * dim), -1).reshape(-1, dim)
    return grid, np.prod(np.stack(np.meshgrid(*[w / w.sum()] * dim), -1).reshape(-1, dim), 1)


@pytest.mark.parametrize("index_set", ["total", "tensor"])
@pytest.mark.parametrize("make", [legendre, hermite])
def test_polynomials_are_orthonormal(make, index_set):
    basis = make(4, 2, index_set=index_set)
    assert basis.size == {"total": math.comb(6, 2), "tensor": 25}[index_set]
    assert basis.dim == 2
    x, w = nodes(basis.family, 6, 2)
    phi = np.asarray(basis(jnp.asarray(x, float)), np.float64)
    np.testing.assert_allclose((phi.T * w) @ phi, np.eye(basis.size), atol=2e-5)
    np.testing.assert_allclose(w @ phi, basis.means, atol=1e-5)
    np.testing.assert_allclose(w @ np.asarray(christoffel(basis, x)), basis.size, rtol=1e-5)
    assert basis(jnp.zeros((3, 5, 2))).shape == (3, 5, basis.size)


def density(family):
    return (lambda x: 0.5) if family == "legendre" else stats.norm.pdf


@pytest.mark.parametrize("family", ["legendre", "hermite"])
def test_distribution_functions(family):
    x = np.array([-0.9, -0.3, 0.1, 0.8]) * (1 if family == "legendre" else 4)
    degrees = np.array([0, 1, 4, 13])
    low = -1 if family == "legendre" else -12
    at = jnp.asarray(np.repeat(x[:, None], 4, 1), float)
    found = np.asarray(jax.jit(lambda t: _cdf(t, degrees, family, 13))(at))
    for j, n in enumerate(degrees):
        law = lambda t, n=n: polynomial(family, n)(t) ** 2 * density(family)(t)  # noqa: E731
        expected = [scipy_integrate.quad(law, low, end, limit=200)[0] for end in x]
        np.testing.assert_allclose(found[:, j], expected, atol=5e-6)


@pytest.mark.parametrize("make", [pytest.param(legendre, marks=SLOW), hermite])
def test_independent_draws(make, key):
    basis = make(7)
    x = np.asarray(jax.jit(basis.draw, static_argnums=1)(key, 20_000), np.float64)
    assert x.shape == (20_000, 1)
    at = jnp.asarray(np.repeat(x, 8, 1), float)
    ranks = np.mean(jax.jit(lambda t: _cdf(t, jnp.arange(8), basis.family, 7))(at), axis=1)
    assert stats.kstest(ranks, "uniform").pvalue > 1e-6
    # several variables: means of w g are integrals, here of orthonormal products
    basis = make(3, 2)
    x = jax.jit(basis.draw, static_argnums=1)(key, 20_000)
    phi = np.asarray(basis(x), np.float64)
    weighted = phi * (basis.size / (phi**2).sum(1))[:, None]
    check_mean(weighted, basis.means, delta=0.1, independent=True)


def test_functions_on_a_grid():
    points = jnp.linspace(0, 1, 200)[:, None]
    masses = 1 + points[:, 0]
    basis = on_grid(lambda x: jnp.stack([1 + 0 * x[0], jnp.sin(x[0]), jnp.exp(x[0])]), points, masses)
    phi = np.asarray(basis(points), np.float64)
    p = np.asarray(masses / masses.sum(), np.float64)
    np.testing.assert_allclose((phi.T * p) @ phi, np.eye(3), atol=2e-3)
    np.testing.assert_allclose(basis.means, p @ phi, atol=1e-5)
    # anywhere else: still the same span
    x = jnp.array([[2.0], [3.0]])
    raw = np.stack([np.ones(2), np.sin([2.0, 3.0]), np.exp([2.0, 3.0])], 1)
    np.testing.assert_allclose(basis(x) @ basis.factor, raw, rtol=1e-3)


# --- the sampler by rejection ---------------------------------------------------------------------


def test_rejection_has_the_law_of_the_chain_rule(key):
    basis = small(3)
    features = exact_features(3)
    count = 20_000
    run = jax.jit(
        jax.vmap(lambda k: dpp_by_rejection(k, basis.draw, basis.values, 3)),
    )
    sets = np.sort(where(run(jax.random.split(key, count))), 1)
    every = list(itertools.combinations(range(6), 3))
    p = np.array([np.linalg.det(features[list(s)]) ** 2 for s in every])
    seen = np.array([(sets == s).all(1).sum() for s in every])
    assert seen.sum() == count  # no candidate twice
    rare = p * count < 5
    observed, expected = np.r_[seen[~rare], seen[rare].sum()], count * np.r_[p[~rare], p[rare].sum()]
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-6


def test_rejection_ends_where_nothing_is_acceptable(key):
    basis = small(2)
    points = dpp_by_rejection(key, basis.draw, lambda x: jnp.full((len(x), 2), jnp.nan), 2)
    assert np.isnan(points).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [legendre, hermite])
def test_continuous_dpp(make, key):
    basis = make(5)
    count = 4000
    x = jax.jit(jax.vmap(basis.draw_dpp))(jax.random.split(key, count))
    assert x.shape == (count, 6, 1)

    # the sum of a function over the points: its mean, and its variance, less than that of independent points
    def g(t):
        return np.tanh(2 * t)

    nodes_x, w = nodes(basis.family, 60, 1)
    phi = np.stack([polynomial(basis.family, n)(nodes_x[:, 0]) for n in range(6)], 1)
    at = g(nodes_x[:, 0])
    kernel = (phi.T * (w * at)) @ phi
    mean = np.trace(kernel)
    variance = np.trace((phi.T * (w * at**2)) @ phi) - np.sum(kernel**2)
    sums = g(np.asarray(x[..., 0], np.float64)).sum(1)
    moments = np.stack([sums, (sums - mean) ** 2], 1)
    check_mean(moments, [mean, variance], delta=[0.15, 0.25 * variance], independent=True)
    independent = np.trace((phi.T * (w * at**2)) @ phi) - mean**2 / 6
    assert variance < 0.6 * independent  # so independent points would fail
