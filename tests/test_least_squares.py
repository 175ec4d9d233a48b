"""Optimal weighted least squares: the laws of the designs, what is unbiased, and published error ratios."""

import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from least_squares_problems import MASSES, NODES, SLOW, exact_features, polynomial, small, where
from scipy import integrate as scipy_integrate
from scipy import linalg, stats

from mcx.errors import MethodError, NonFiniteError
from mcx.estimators.least_squares import (
    Design,
    christoffel,
    design,
    dpp_on_grid,
    fit,
    hermite,
    integrate,
    legendre,
    on_grid,
)
from mcx.testing import enumerate_outcomes

KEY = jax.random.key(0)


# --- six candidates, on which everything can be listed ---------------------------------------------


def target(x):
    """Not in the span of what is fitted."""
    return np.exp(2 * x) + np.abs(x)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_law_of_the_chain_rule(m):
    # every outcome of the sampler that is shipped, with its probability
    features = exact_features(m)
    found = enumerate_outcomes(lambda key: dpp_on_grid(key, jnp.asarray(features, float)), KEY)
    orders, p = found.law(found.outcomes)
    expected = np.array([np.linalg.det(features[list(o)]) ** 2 for o in orders]) / math.factorial(m)
    assert len(orders) == math.perm(6, m)
    np.testing.assert_allclose(p, expected, atol=2e-6)
    np.testing.assert_allclose(expected.sum(), 1, atol=1e-12)


@cache
def enumerated(m, n, scheme):
    basis = small(m)

    def run(key):
        drawn = design(basis, n, scheme=scheme, key=key)
        return drawn, fit(drawn, jnp.interp(drawn.points[:, 0], NODES, target(NODES)))

    # the only other draw is the order of the points
    return basis, enumerate_outcomes(run, KEY, allow_other_draws=True)


def truth(basis):
    """Coefficients, squared error of the best approximation, and the integral."""
    phi = np.asarray(basis(NODES[:, None]), np.float64)
    c = phi.T @ (MASSES * target(NODES))
    return c, MASSES @ (target(NODES) - phi @ c) ** 2, MASSES @ target(NODES)


@pytest.mark.parametrize(("m", "n"), [pytest.param(2, 2, marks=SLOW), (2, 3), pytest.param(3, 4, marks=SLOW)])
def test_volume_sampling_is_unbiased(m, n):
    basis, found = enumerated(m, n, "volume")
    drawn, fitted = found.outcomes
    c, best, integral = truth(basis)
    np.testing.assert_allclose(found.mean(fitted.coefficients), c, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mean(jax.vmap(lambda f: f.integral)(fitted)), integral, rtol=1e-4)
    # the law: det G times that of independent points, over the sum of that over all tuples
    features = exact_features(m)
    k = (features**2).sum(1)
    rows = features / np.sqrt(k)[:, None]  # w phi phi' = m rows rows'
    every = np.array(list(itertools.product(range(6), repeat=n)))
    law = np.linalg.det(np.einsum("tia,tib->tab", rows[every], rows[every])) * np.prod(k[every], 1)
    law /= law.sum()
    # as sets with repetitions, since the order is not enumerated
    seen, p = found.law(np.sort(where(drawn.points), 1))
    expected = {tuple(s): 0.0 for s in seen}
    for row, q in zip(np.sort(every, 1), law, strict=True):
        if q > 1e-9:
            expected[tuple(row)] += q
    np.testing.assert_allclose(p, [expected[tuple(s)] for s in seen], atol=5e-6)


@pytest.mark.parametrize("m", [2, pytest.param(3, marks=SLOW)])
def test_one_dpp_is_unbiased_and_its_error_known(m):
    basis, found = enumerated(m, m, "dpp")
    _, fitted = found.outcomes
    c, best, integral = truth(basis)
    np.testing.assert_allclose(found.mean(fitted.coefficients), c, rtol=1e-4, atol=1e-4)
    errors = np.asarray(fitted.coefficients, np.float64) - c
    # Ermakov & Zolotukhin: each coefficient has the squared distance to the span as its variance
    np.testing.assert_allclose(found.mean(errors**2), best, rtol=1e-3)
    integrals = np.asarray(jax.vmap(lambda f: f.integral)(fitted), np.float64)
    np.testing.assert_allclose(found.mean((integrals - integral) ** 2), best, rtol=1e-3)


@pytest.mark.parametrize(
    ("scheme", "n"), [pytest.param("iid", 3, marks=SLOW), ("dpp", 4), pytest.param("volume", 3, marks=SLOW)]
)
def test_weighted_means_are_unbiased(scheme, n):
    basis, found = enumerated(2, n, scheme)
    drawn, fitted = found.outcomes
    np.testing.assert_allclose(drawn.weights, 2 / christoffel(basis, drawn.points), rtol=1e-5)
    means = np.asarray(drawn.weights) * target(NODES)[where(drawn.points)]
    # the order of a volume sample is not enumerated: only the average over its points is exact
    np.testing.assert_allclose(found.mean(means).mean(), truth(basis)[2], rtol=1e-5)


@pytest.mark.parametrize(("scheme", "n"), [("iid", 3), ("dpp", 4)])
def test_other_fits_are_biased(scheme, n):
    # as the documentation says; and so the tests above can tell
    basis, found = enumerated(2, n, scheme)
    bias = found.mean(found.outcomes[1].coefficients) - truth(basis)[0]
    assert np.abs(bias).max() > 1e-3


# --- fits ---------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "n", "unbiased"), [("iid", 60, False), ("volume", 25, True)])
def test_functions_of_the_span_are_recovered(scheme, n, unbiased, key):
    basis = legendre(3, 2)
    drawn = design(basis, n, scheme=scheme, key=key)
    assert drawn.unbiased == unbiased
    assert drawn.points.shape == (n, 2) and drawn.weights.shape == (n,)
    truth = np.stack([np.arange(10.0), -np.ones(10)], 1)
    phi = np.asarray(basis(drawn.points), np.float64)
    fitted = fit(drawn, jnp.asarray(phi @ truth, float))
    a = phi * np.sqrt(np.asarray(drawn.weights) / n)[:, None]
    gram = a.T @ a
    np.testing.assert_allclose(fitted.gram_error, np.linalg.norm(gram - np.eye(10), 2), rtol=1e-3)
    np.testing.assert_allclose(fitted.condition, np.linalg.cond(gram), rtol=1e-2)
    tol = 1e-5 * math.sqrt(float(fitted.condition))
    np.testing.assert_allclose(fitted.coefficients, truth, atol=10 * tol)
    np.testing.assert_allclose(fitted.integral, truth[0], atol=10 * tol)
    np.testing.assert_allclose(fitted(drawn.points), phi @ truth, atol=100 * tol)
    assert fitted.residual.shape == (2,)


def test_weights_are_of_least_squares(key):
    # against a float64 solution of the normal equations, for a function outside of the span
    basis = hermite(4)
    drawn = design(basis, 40, scheme="iid", key=key)
    values = np.sin(3 * np.asarray(drawn.points[:, 0]))
    fitted = fit(drawn, values)
    phi = np.asarray(basis(drawn.points), np.float64)
    w, y = np.asarray(drawn.weights, np.float64) / 40, np.asarray(values, np.float64)
    c = np.linalg.solve((phi.T * w) @ phi, phi.T @ (w * y))
    np.testing.assert_allclose(fitted.coefficients, c, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fitted.residual, np.sqrt(w @ (y - phi @ c) ** 2), rtol=1e-3)


@pytest.mark.slow
def test_integrals(key):
    basis = legendre(4, 2)
    truth = scipy_integrate.dblquad(lambda x, y: math.cos(2 * x * y) / 4, -1, 1, -1, 1)[0]

    def f(x):
        return jnp.stack([jnp.cos(2 * x[0] * x[1]), jnp.ones(())])

    found = integrate(f, basis, 30, replicates=16, key=key)
    assert found.value.shape == found.se.shape == (2,)
    # Student's t with 15 degrees of freedom, alpha 1e-6
    assert abs(found.value[0] - truth) < 7.7 * found.se[0]
    assert found.se[0] < 0.01
    np.testing.assert_allclose(found.value[1], 1, rtol=1e-4)
    assert found.stats["num_samples"] == 480 and found.warnings == ()
    assert len(integrate(lambda x: x[0], small(2), 4, scheme="iid", replicates=2, key=key).warnings) == 1


def test_refusals_of_least_squares(key):
    basis = small(4)
    with pytest.raises(MethodError, match="at least 4"):
        design(basis, 3, key=key)
    with pytest.raises(MethodError, match="multiple of 4"):
        design(basis, 6, scheme="dpp", key=key)
    with pytest.raises(MethodError, match=r"design\(scheme=...\) is out of range"):
        design(basis, 6, scheme="sobol", key=key)
    with pytest.raises(MethodError, match="one value"):
        fit(Design(basis, jnp.zeros((6, 1)), jnp.ones(6), "iid"), jnp.ones(5))
    with pytest.raises(MethodError, match=r"integrate\(replicates=...\) is out of range"):
        integrate(lambda x: x[0], basis, 6, replicates=1, key=key)
    with pytest.raises(NonFiniteError, match="not finite"):
        integrate(lambda x: jnp.where(x[0] > -0.8, jnp.nan, 1.0), small(2), 4, key=key)
    with pytest.raises(MethodError, match="dimension"):
        basis(jnp.ones((5, 2)))
    with pytest.raises(MethodError, match=r"legendre\(degree=...\) is out of range"):
        legendre(-1)
    grid = jnp.linspace(0, 1, 9)[:, None]
    with pytest.raises(MethodError, match="dependent"):
        on_grid(lambda x: jnp.stack([x[0], 2 * x[0]]), grid)
    with pytest.raises(MethodError, match="no measure"):
        on_grid(lambda x: x, grid, -jnp.ones(9))
    with pytest.raises(MethodError, match="list of points"):
        on_grid(lambda x: x, grid[:, 0])
    with pytest.raises(MethodError, match="do not fit the grid"):
        on_grid(lambda x: jnp.arange(10.0), grid)


# --- over many replicates ---------------------------------------------------------------------


def manova(rng, m, count):
    """The Jacobi unitary ensemble on [-1, 1], which is the DPP of Legendre polynomials; from matrices."""
    normal = rng.normal(size=(4, count, m, m))
    w = [g @ g.conj().transpose(0, 2, 1) for g in (normal[0] + 1j * normal[1], normal[2] + 1j * normal[3])]
    return np.stack([2 * linalg.eigvalsh(a, a + b) - 1 for a, b in zip(*w, strict=True)])


@pytest.mark.slow
def test_dpp_against_random_matrices(key):
    # an independent, exact sampler of the same law
    m, count = 20, 2000
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    expected = np.sort(manova(rng, m, count), 1)
    drawn = jax.jit(jax.vmap(legendre(m - 1).draw_dpp))(jax.random.split(key, count))
    found = np.sort(np.asarray(drawn[..., 0], np.float64), 1)
    statistics = {
        "largest": lambda x: x[:, -1],
        "gap in the middle": lambda x: x[:, m // 2] - x[:, m // 2 - 1],
        "smallest gap": lambda x: np.diff(x, axis=1).min(1),
        "sum of squares": lambda x: (x**2).sum(1),
    }
    for name, of in statistics.items():
        assert stats.ks_2samp(of(found), of(expected)).pvalue > 1e-6, name


# (scheme, n / m): mean, median, P(||G - I|| <= 1/2) of 300 replicates, for m = 10 and m = 20; from a
# prototype in NumPy that shares no code with this one. Means only where there is a variance to speak of.
RATIOS = {
    ("iid", 5): ((None, 1.28, 0.03), (None, 1.22, 0.0)),
    ("iid", 10): ((1.14, 1.11, 0.38), (1.12, 1.09, 0.11)),
    ("dpp", 1): ((None, 5.8, None), (None, 4.5, None)),
    ("dpp", 2): ((None, 1.49, 0.04), (None, 1.48, 0.01)),
    ("volume", 2): ((None, 1.92, None), (None, 1.84, None)),
    ("dpp", 5): ((1.14, 1.11, 0.75), (1.17, 1.11, 0.55)),
    ("volume", 5): ((1.28, 1.21, 0.07), (1.26, 1.20, 0.0)),
}
FUNCTIONS = {10: (lambda x: 1 / (1 + 5 * x**2), 0.0), 20: (lambda x: abs(x - 0.3), 0.3)}


@pytest.mark.slow
@pytest.mark.parametrize("m", [10, 20])
@pytest.mark.parametrize(("scheme", "copies"), RATIOS)
def test_error_ratios(scheme, copies, m, key):
    f, kink = FUNCTIONS[m]
    replicates = 300
    mean, median, stable = RATIOS[scheme, copies][m == 20]
    x, w = np.polynomial.legendre.leggauss(200)
    x, w = (np.r_[a, b] for a, b in zip(*[_scaled(x, w, *i) for i in ((-1, kink), (kink, 1))], strict=True))
    phi = np.stack([polynomial("legendre", n)(x) for n in range(m)], 1)
    c = phi.T @ (w * f(x))
    best = w @ (f(x) - phi @ c) ** 2

    def coefficients(k):
        drawn = design(legendre(m - 1), copies * m, scheme=scheme, key=k)
        fitted = fit(drawn, f(drawn.points[:, 0]))
        return fitted.coefficients, fitted.gram_error

    found, gram_error = jax.jit(jax.vmap(coefficients))(jax.random.split(key, replicates))
    ratio = 1 + np.sum((np.asarray(found, np.float64) - c) ** 2, 1) / best
    # Both tables have an error. Medians: the share of replicates below the other's has an sd of
    # sqrt(2 / 300) / 2 = 0.041; 4.9 of them, for 1e-6, and the last digit given.
    below, above = np.mean(ratio < median - 0.05), np.mean(ratio < median + 0.05)
    assert below < 0.5 + 4.9 * 0.041 and above > 0.5 - 4.9 * 0.041
    if stable is not None:
        share = np.mean(np.asarray(gram_error) <= 0.5)
        assert abs(share - stable) < 4.9 * np.sqrt(2 * max(stable * (1 - stable), 0.01) / replicates) + 0.005
    if mean is not None:
        assert abs(ratio.mean() - mean) < 4.9 * np.sqrt(2 / replicates) * ratio.std(ddof=1) + 0.005


def _scaled(x, w, low, high):
    return low + (high - low) * (x + 1) / 2, w * (high - low) / 4
