"""What users bring to importance sampling: control functions with known or estimated means, and proposals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import mcx
import mcx.dist as dist
from mcx.errors import DataError, MethodError, NonFiniteError
from mcx.estimators import EstimatedMeans, KnownMeans, expectations, train_proposal
from mcx.estimators.importance.integrals import integrals
from mcx.estimators.importance.proposals import as_mixture
from mcx.estimators.importance.weighted_average import estimate_from
from mcx.testing import check_mean

PLANE = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
WIDTH = 0.3


def controlled(function, controls, key, n=200, wide=1.3, fit="cross_fit"):
    """A plain importance sampling estimate with nothing but these control functions."""
    problem = integrals(function, PLANE)
    law = dist.Normal(0.0, wide).expand([2]).to_event(1)
    key_x, key_means = jax.random.split(key)
    x = law.sample(key_x, (n,))
    known = controls.prepare(problem, key_means).at(problem, x)
    return estimate_from(problem, x, problem.values(x), law.log_prob(x), controls=False, known=known, fit=fit)


def powers(x):
    return {"one": x[0], "two": jnp.stack([x[0] ** 2, x[0] * x[1]])}


class TestKnownMeans:
    def test_combinations_are_nearly_exact(self, key):
        """With equal weights, where the constant is no error; means that are wrong are believed."""
        means = {"one": 0.0, "two": np.array([1.0, 0.0])}
        function = lambda x: 2.5 + 2 * x[0] - 3 * (x[0] ** 2 - 1) + x[0] * x[1]  # noqa: E731
        found = controlled(function, KnownMeans(powers, means), key, wide=1.0)
        assert abs(found.value - 2.5) < 1e-4 and found.stats["num_controls"] == 3
        wrong = controlled(
            function, KnownMeans(powers, {"one": 0.0, "two": np.array([1.1, 0.0])}), key, wide=1.0
        )
        assert wrong.value - 2.5 == pytest.approx(-0.3, abs=1e-3)

    def test_refusals(self):
        problem = integrals(lambda x: x[0], PLANE)
        laws = integrals(lambda x: x[0], dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1))
        for means in ({"one": 0.0}, {"one": 0.0, "two": 1.0}, 0.0):
            with pytest.raises(DataError, match="do not fit the functions"):
                KnownMeans(powers, means).prepare(problem, jax.random.key(0))
        with pytest.raises(DataError, match="are not finite"):
            KnownMeans(lambda x: x[0], np.nan).prepare(problem, jax.random.key(0))
        with pytest.raises(DataError, match="a control function returns no number"):
            KnownMeans(lambda x: {}, {}).prepare(problem, jax.random.key(0))
        with pytest.raises(MethodError, match="for a single law"):
            KnownMeans(lambda x: x[0], 0.0).prepare(laws, jax.random.key(0))
        with pytest.raises(MethodError, match="at least 20000, the method's budget"):
            expectations(lambda x: x[0], PLANE, controls=EstimatedMeans(powers, 1000), key=0)
        with pytest.raises(MethodError, match=r"expectations\(controls=...\) is out of range"):
            expectations(lambda x: x[0], PLANE, controls="all", key=0)
        with pytest.raises(MethodError, match=r"EstimatedMeans\(num_draws=...\) is out of range"):
            EstimatedMeans(powers, 10)
        with pytest.raises(NonFiniteError, match="a control function is not finite"):
            EstimatedMeans(lambda x: jnp.log(x[0]), 100).prepare(problem, jax.random.key(0))


class TestEstimatedMeans:
    def test_means_and_their_covariance(self, key):
        """Of x^2 + 1000 and x y: variances 2 and 1, no covariance."""
        controls = EstimatedMeans(lambda x: jnp.stack([x[0] ** 2 + 1000, x[0] * x[1]]), 65_536)
        found = controls.prepare(integrals(lambda x: x[0], PLANE), key)
        covariance = np.asarray(found.error, float).T @ np.asarray(found.error, float) * 65_536
        np.testing.assert_allclose(covariance, [[2, 0], [0, 1]], atol=0.1)
        np.testing.assert_allclose(found.means, [1001, 0], atol=5 * (2 / 65_536) ** 0.5)

    @pytest.mark.slow
    def test_errors_know_of_the_means(self, key, n=400):
        """Of 400 draws beside 800 for the means nearly all error is the means': 95 % intervals hold."""
        function = lambda x: jnp.exp(0.3 * x[0]) + 0.1 * x[1]  # noqa: E731
        controls = EstimatedMeans(lambda x: jnp.stack([x[0], x[0] ** 2]), 2 * n)
        truth = np.exp(0.045)
        found = [controlled(function, controls, k, n=n, wide=1.0) for k in jax.random.split(key, 600)]
        value, se = np.array([(f.value, f.se) for f in found]).T
        check_mean(value, truth, delta=0.3 * value.std(), independent=True)
        covered = int((np.abs(value - truth) < 1.96 * se).sum())
        assert scipy.stats.binomtest(covered, 600, 0.93, "less").pvalue > 1e-5
        assert scipy.stats.binomtest(covered, 600, 0.995, "greater").pvalue > 1e-5
        plain = np.std(np.exp(0.3 * np.random.default_rng(0).normal(size=10_000))) / n**0.5
        assert se.mean() < 0.85 * plain  # by the formula 0.78 of it

    @pytest.mark.slow
    def test_beside_all_other_controls(self, key):
        """A function with a kink, which polynomials miss, and a cheap one with nearly the same."""
        function = lambda x: jnp.abs(x[0] - 0.3) + 0.01 * jnp.sin(5 * x[1])  # noqa: E731
        normal = scipy.stats.norm
        truth = 2 * normal.pdf(0.3) + 0.3 * (2 * normal.cdf(0.3) - 1)
        method = mcx.AdaptiveImportance(budget=4000, num_components=1, num_iterations=2)
        cheap = EstimatedMeans(lambda x: jnp.abs(x[0] - 0.3), 2_000_000)
        known = KnownMeans(cheap.functions, truth)
        se = {}
        for name, controls in (("none", None), ("cheap", cheap), ("known", known)):
            found = expectations(function, PLANE, method=method, controls=controls, key=key)
            assert abs(found.value - truth) < 5 * found.se
            se[name] = float(found.se)
        assert se["known"] < se["cheap"] < 0.3 * se["none"]


class Banana:
    """x_1 is normal, x_2 given it normal about a parabola: sampled and scored by hand."""

    def __init__(self, params):
        self.params = params

    def middle(self, x):
        p = self.params
        return p["b"][0] + p["b"][1] * x + p["b"][2] * x**2

    def sample(self, key, n):
        z = jax.random.normal(key, (n, 2))
        x = self.params["loc"] + jnp.exp(self.params["log_scale"][0]) * z[:, 0]
        return jnp.stack([x, self.middle(x) + jnp.exp(self.params["log_scale"][1]) * z[:, 1]], 1)

    def log_prob(self, x):
        sd = jnp.exp(self.params["log_scale"])
        along = dist.Normal(self.params["loc"], sd[0]).log_prob(x[:, 0])
        return along + dist.Normal(self.middle(x[:, 0]), sd[1]).log_prob(x[:, 1])


START = {"loc": jnp.zeros(()), "log_scale": jnp.zeros(2), "b": jnp.zeros(3)}


def ridge(x):
    """Large along the parabola x_2 = 2 x_1^2 - 2, of width 0.3."""
    return jnp.exp(-0.5 * ((x[1] - 2 * x[0] ** 2 + 2) / WIDTH) ** 2)


def ridge_mean():
    """Over x_2 in closed form, over x_1 by Gauss-Hermite quadrature."""
    z, w = np.polynomial.hermite_e.hermegauss(150)
    scale = 1 + WIDTH**2
    return (w / w.sum()) @ (WIDTH / scale**0.5 * np.exp(-((2 * z**2 - 2) ** 2) / (2 * scale)))


@pytest.mark.slow
@pytest.mark.parametrize("laws", [1, 3])
def test_polynomials_where_proposals_are_not(key, laws):
    """Degree 8 under the law has errors twenty times those of a plain average here: it is not taken."""
    law = PLANE if laws == 1 else dist.Normal(0.1 * jnp.arange(3.0)[:, None] * jnp.ones(2), 1.0).to_event(1)
    se = {}
    for controls in ("all", "none"):
        method = mcx.AdaptiveImportance(budget=4000, num_iterations=2, controls=controls)
        found = expectations(ridge, law, method=method, key=key)
        assert (np.abs(np.ravel(found.value)[0] - ridge_mean()) < 5 * np.ravel(found.se)[0]).all()
        se[controls] = found.se
    assert (se["all"] < 1.05 * se["none"]).all()


class TestProposals:
    def test_objects_with_two_methods(self, key):
        """Draws have the density they are drawn from: a mean of ratios to another is 1."""
        banana = Banana({**START, "b": jnp.array([0.0, 0.0, 0.5])})
        law = as_mixture(banana, PLANE)
        x = law.sample(key, 20_000)
        check_mean(jnp.exp(PLANE.log_prob(x) - law.log_prob(x)), 1.0, delta=0.05, independent=True)
        check_mean(x[:, 1], 0.25, delta=0.06, independent=True)
        with pytest.raises(MethodError, match="an object with sample"):
            as_mixture(object())

        class Flat(Banana):
            def log_prob(self, x):
                return 0.0

        with pytest.raises(MethodError, match="wrong shape"):
            as_mixture(Flat(START)).log_prob(x)

    @pytest.mark.slow
    def test_training_finds_a_banana(self, key):
        """The optimal proposal's second coordinate given the first is known; so is its mean."""
        params, losses = train_proposal(Banana, START, ridge, PLANE, num_updates=600, key=key)
        shrink = 1 / (1 + WIDTH**2)
        np.testing.assert_allclose(params["b"], np.array([-2, 0, 2]) * shrink, atol=0.08)
        assert np.exp(params["log_scale"][1]) == pytest.approx(WIDTH * shrink**0.5, rel=0.1)
        assert losses[-100:].mean() < losses[:20].mean()
        again, squares = train_proposal(
            Banana, params, ridge, PLANE, loss="variance", num_updates=300, key=key
        )
        assert squares[-100:].mean() <= 1.02 * squares[:100].mean() < 3

        truth, se = ridge_mean(), {}
        for name, proposals in (("none", ()), ("trained", (Banana(again),))):
            method = mcx.AdaptiveImportance(
                budget=4000, num_iterations=2, controls="none", proposals=proposals
            )
            found = expectations(ridge, PLANE, method=method, key=key)
            assert abs(found.value - truth) < 5 * found.se
            se[name] = float(found.se)
        # second moments of the trained proposal's weights say what to expect; other shares may do better
        expected = truth * float(((squares[-100:].mean() - 1) / found.stats["num_samples"]) ** 0.5)
        assert se["trained"] < 1.1 * expected and se["trained"] < se["none"]

    @pytest.mark.slow
    def test_flows_of_numpyro(self, key):
        """An autoregressive network: a trained one, as a part of the mixture."""
        from numpyro.distributions.flows import InverseAutoregressiveTransform
        from numpyro.nn.auto_reg_nn import AutoregressiveNN

        init, apply = AutoregressiveNN(2, [8, 8])
        _, start = init(jax.random.key(0), (2,))

        def build(params):
            flow = InverseAutoregressiveTransform(functools.partial(apply, params))
            return dist.TransformedDistribution(PLANE, [flow])

        optimizer = optax.adam(3e-3)
        params, _ = train_proposal(build, start, ridge, PLANE, num_updates=400, optimizer=optimizer, key=key)
        method = mcx.AdaptiveImportance(budget=4000, num_iterations=2, proposals=(build(params),))
        found = expectations(ridge, PLANE, method=method, key=key)
        assert abs(found.value - ridge_mean()) < 5 * found.se < 0.1 * ridge_mean()

    def test_refusals(self):
        for settings in ({"loss": "huber"}, {"num_updates": 0}, {"defensive": 0.0}):
            with pytest.raises(MethodError):
                train_proposal(Banana, START, ridge, PLANE, key=0, **settings)
        with pytest.raises(MethodError, match="within a function that JAX traces"):
            jax.jit(lambda k: train_proposal(Banana, START, ridge, PLANE, key=k))(jax.random.key(0))
