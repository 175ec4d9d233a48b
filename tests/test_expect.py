"""Expectations under posteriors: by Stein control variates on draws, and by importance sampling."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from problems import level

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, MethodError, ModelError, PosteriorShapeError, WeightCollapse
from mcx.estimators.control_variates.stein import stein_controls
from mcx.inference.maximize.families import Family
from mcx.results.posterior import Posterior, RunInfo
from mcx.testing import check_mean, quadrature

Y = np.random.default_rng(0).normal(1.0, 1.5, size=20).astype(np.float32)


@mcx.model
def normal(y):
    mu = mcx.sample("mu", dist.Normal(0, 3))
    s = mcx.sample("s", dist.HalfNormal(2.0))
    mcx.sample("y", dist.Normal(mu, s), obs=y)


FUNCTIONS = {
    "mu": lambda v: v["mu"],
    "both": lambda v: {"s": v["s"], "large": v["mu"] > 1.0},
}


@pytest.fixture(scope="module")
def truth():
    return quadrature(normal(Y))


def agrees(found, truth):
    assert abs(found["mu"].value - truth.mean["mu"]) < 5 * found["mu"].se
    assert abs(found["both"].value["s"] - truth.mean["s"]) < 5 * found["both"].se["s"]
    assert 0.1 < found["both"].value["large"] < 0.3


def test_controls_of_a_gaussian_are_exact(key):
    """Moments up to the polynomials' degree have no error; the controls are orthonormal."""
    factor = np.array([[1.5, 0, 0], [0.4, 0.7, 0], [-0.3, 0.5, 1.1]])
    cov, loc = factor @ factor.T, np.array([1.0, -2.0, 3.0])
    law = dist.MultivariateNormal(jnp.asarray(loc, jnp.float32), scale_tril=jnp.asarray(factor, jnp.float32))
    x = law.sample(key, (500,))
    score = -jnp.linalg.solve(jnp.asarray(cov, jnp.float32), (x - loc).T).T
    controls = stein_controls(x, score, x.mean(0), jnp.linalg.cholesky(jnp.cov(x.T)), 2)
    assert controls.shape == (500, 9)
    from mcx.estimators.control_variates.regression import regress

    found = regress(jnp.stack([x[:, 0], x[:, 1] ** 2, x[:, 0] * x[:, 2]], 1), controls)
    expected = [loc[0], loc[1] ** 2 + cov[1, 1], loc[0] * loc[2] + cov[0, 2]]
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


@pytest.mark.slow
def test_draws(truth):
    """NUTS on a posterior that quadrature knows: right, and far more accurate than plain averages."""
    posterior = mcx.infer(normal(Y), mcx.NUTS(num_warmup=300, num_samples=500), key=1, progress=False)
    found, plain = (
        mcx.expect(posterior, FUNCTIONS),
        mcx.expect(posterior, FUNCTIONS, method=mcx.SteinControls(0)),
    )
    agrees(found, truth)
    agrees(plain, truth)
    assert found["mu"].se < 0.3 * plain["mu"].se and found["mu"].stats["r_squared"] > 0.9
    assert found["mu"].stats["num_controls"] == 5
    np.testing.assert_allclose(plain["mu"].value, posterior["mu"].mean(), rtol=1e-5)


@pytest.mark.slow
def test_importance_sampling(truth, key):
    found = mcx.expect(normal(Y), FUNCTIONS, method=mcx.AdaptiveImportance(budget=10_000), key=key)
    agrees(found, truth)
    stats = found["mu"].stats
    assert abs(stats["log_evidence"] - truth.log_evidence) < 5 * stats["log_evidence_se"] < 0.1
    assert stats["ess"] > 2000 and not found["mu"].warnings
    assert found["mu"].se < 0.3 * truth.sd["mu"] / stats["ess"] ** 0.5


@pytest.mark.slow
def test_coverage_of_importance_sampling(truth):
    """200 runs: 95 % intervals of a mean, a variance's root and the evidence hold."""
    method = mcx.AdaptiveImportance(budget=2000, num_iterations=4)
    inside = []
    for seed in range(200):
        found = mcx.expect(normal(Y), FUNCTIONS, method=method, key=seed)
        stats = found["mu"].stats
        inside.append(
            [
                abs(found["mu"].value - truth.mean["mu"]) < 1.96 * found["mu"].se,
                abs(found["both"].value["s"] - truth.mean["s"]) < 1.96 * found["both"].se["s"],
                abs(stats["log_evidence"] - truth.log_evidence) < 1.96 * stats["log_evidence_se"],
            ]
        )
    # 3.9 binomial sds below .93
    assert (np.mean(inside, 0) > 0.86).all(), np.mean(inside, 0)


def test_refusals_of_expect():
    with pytest.raises(ModelError, match="no bound model"):
        mcx.expect(normal, FUNCTIONS, key=0)
    with pytest.raises(MethodError, match="by name"):
        mcx.expect(normal(Y), FUNCTIONS["mu"], key=0)
    with pytest.raises(MethodError, match="needs a key"):
        mcx.expect(normal(Y), FUNCTIONS)
    with pytest.raises(MethodError, match="need draws"):
        mcx.expect(normal(Y), FUNCTIONS, method=mcx.SteinControls(), key=0)
    with pytest.raises(MethodError, match="out of range"):
        mcx.SteinControls(7)


@pytest.mark.slow
def test_paths_have_no_unconstrained_point():
    method = mcx.ParticleGibbs(states=mcx.ConditionalSMC(5), params=mcx.MALA(), num_warmup=5, num_samples=20)
    posterior = mcx.infer(level(Y[:5]), method, key=0, progress=False, warnings="ignore")
    with pytest.raises(CapabilityError, match="no unconstrained point"):
        mcx.expect(posterior, {"s": lambda v: v["s"]})
    assert np.isfinite(mcx.expect(posterior, {"s": lambda v: v["s"]}, method=mcx.SteinControls(0))["s"].value)


@mcx.model
def pair():
    mcx.sample("x", dist.Normal(0.5, 0.8))
    mcx.sample("y", dist.Normal(-0.3, 0.6))


# Nothing that Stein control variates of a Gaussian know: E exp(x) + x y^2, and P(x > 1).
CURVED = {
    "curved": lambda v: {"exp": jnp.exp(v["x"]) + v["x"] * v["y"] ** 2},
    "large": lambda v: v["x"] > 1.0,
}
CURVED_TRUTH = (np.exp(0.5 + 0.32) + 0.5 * (0.09 + 0.36), float(scipy.stats.norm.sf(0.5 / 0.8)))
LOC, SD = np.array([0.5, -0.3]), np.array([0.8, 0.6])


def weighted_draws(z, log_w, cloud=False):
    """A posterior of draws z (chain, draw, 2) with log weights."""
    log_w = log_w - scipy.special.logsumexp(log_w)
    z = z.astype(np.float32)
    draws = {"x": z[..., 0], "y": z[..., 1]}
    return Posterior(draws, z, {}, {}, pair(), RunInfo("by hand", {}, cloud=cloud), log_w)


def importance_draws(rng, chains=4, draws=250):
    """Independent ones of a wider law that lies elsewhere: a fifth of them count."""
    loc, sd = np.array([-0.5, 0.1]), np.array([1.1, 0.9])
    z = loc + sd * rng.normal(size=(chains, draws, 2))
    log_p, log_q = (scipy.stats.norm.logpdf(z, *law).sum(-1) for law in ((LOC, SD), (loc, sd)))
    return weighted_draws(z, log_p - log_q)


def island_draws(rng, chains=60, draws=20):
    """Clouds whose particles share an offset of a law that is too wide, and weights that make up for it."""
    share, wide = 0.5, 1.3  # of the posterior's variance that is the offset's
    offset = wide * share**0.5 * rng.normal(size=(chains, 1, 2))
    log_w = (0.5 * (1 / wide**2 - 1) * offset**2 / share).sum(-1) + 2 * np.log(wide)
    z = LOC + SD * (offset + (1 - share) ** 0.5 * rng.normal(size=(chains, draws, 2)))
    return weighted_draws(z, np.broadcast_to(log_w, (chains, draws)), cloud=True)


def errors_of(found):
    value = np.array([found["curved"].value["exp"], found["large"].value])
    return value - CURVED_TRUTH, np.array([found["curved"].se["exp"], found["large"].se])


def seeded(key, i):
    return np.random.default_rng(np.append(np.asarray(jax.random.key_data(key)), i))


def test_weights_of_draws_count(key):
    """Weights that vary within chains; means without them are off by twenty standard errors."""
    posterior = importance_draws(seeded(key, 0), draws=2000)
    found, plain = (mcx.expect(posterior, CURVED, method=mcx.SteinControls(k)) for k in (2, 0))
    for each in (found, plain):
        error, se = errors_of(each)
        assert (np.abs(error) < 5 * se).all() and (se < 0.05).all()
    w = np.exp(posterior.weights)
    np.testing.assert_allclose(plain["large"].value, w[np.asarray(posterior["x"]) > 1].sum(), rtol=1e-6)
    ignored, se = errors_of(mcx.expect(replace(posterior, weights=None), CURVED))
    assert np.abs(ignored[0]) > 20 * se[0]
    assert found["curved"].se["exp"] < 0.5 * plain["curved"].se["exp"]
    stats = found["curved"].stats
    assert stats["ess"] == pytest.approx(1 / np.sum(w**2)) and stats["khat"] < 0.7
    assert stats["khat_integrand"] < 0.7 and not found["curved"].warnings
    # a draw of no weight may be anything
    z = np.array(posterior.unconstrained)
    z[0, :3] = np.nan
    log_w = np.array(posterior.weights)
    log_w[0, :3] = -np.inf
    assert np.isfinite(errors_of(mcx.expect(weighted_draws(z, log_w), CURVED))).all()


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [importance_draws, island_draws])
@pytest.mark.parametrize("degree", [0, 2])
def test_coverage_with_weights(drawn, degree, key):
    """No bias above half a standard error, and 95 % intervals that hold, over 300 samples, or 600 of islands.

    Errors of 60 clouds come from the clouds alone, whose effective number is 60 (2 * 1.3^2 - 1) / 1.3^4 = 50:
    Student's interval has 49 degrees of freedom. Coverage is below 0.91 with probability 0.001 were it 0.95
    (1e-5 of islands).
    """
    islands = drawn is island_draws
    runs = [
        errors_of(mcx.expect(drawn(seeded(key, i)), CURVED, method=mcx.SteinControls(degree)))
        for i in range(600 if islands else 300)
    ]
    error, se = (np.array(part) for part in zip(*runs, strict=True))
    check_mean(error / np.sqrt((se**2).mean(0)), np.zeros(2), delta=0.5, independent=True)
    level = scipy.stats.t(49).ppf(0.975) if islands else 1.96
    inside = (np.abs(error) < level * se).mean(0)
    assert (inside > 0.91).all() and (inside < 0.99).all(), inside


@pytest.mark.slow
def test_clouds_of_particles(key):
    """Errors of one cloud are not known; particles that depend on each other do not count as independent."""
    posterior = island_draws(seeded(key, 0))
    found = mcx.expect(posterior, CURVED)
    error, se = errors_of(found)
    assert (np.abs(error) < 5 * se).all()
    as_independent = errors_of(mcx.expect(replace(posterior, info=RunInfo("by hand", {})), CURVED))[1]
    assert np.isfinite(as_independent).all()
    alone = weighted_draws(posterior.unconstrained[:1], np.zeros((1, 20)), cloud=True)
    one = mcx.expect(alone, CURVED, method=mcx.SteinControls(0))["large"]
    assert np.isnan(one.se) and "one cloud" in one.warnings[0]
    heavy = np.array(posterior.weights)[:4] + np.array([[9.0], [0.0], [0.0], [0.0]])
    rough = weighted_draws(posterior.unconstrained[:4], heavy, cloud=True)
    assert "of the weight: errors are rough" in mcx.expect(rough, CURVED)["large"].warnings[0]


@pytest.mark.slow
def test_refused_weights(key):
    posterior = importance_draws(seeded(key, 0), draws=5)
    with pytest.raises(PosteriorShapeError, match="do not fit"):
        mcx.expect(replace(posterior, weights=posterior.weights[0]), CURVED)
    with pytest.raises(WeightCollapse, match="no draw"):
        mcx.expect(replace(posterior, weights=np.full((4, 5), -np.inf)), CURVED)


@mcx.model
def banana(y):
    a = mcx.sample("a", dist.Normal(0.0, 1.5))
    b = mcx.sample("b", dist.Normal(a**2, 0.3))
    mcx.sample("y", dist.Normal(b, 1.0), obs=y)


class Bent(dist.transforms.Transform):
    """(u, v) to (1.5 u, strength (1.5 u)^2 + 0.3 v): the prior where the strength is 1."""

    domain = codomain = dist.constraints.real_vector

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        a = 1.5 * x[..., 0]
        return jnp.stack([a, self.strength * a**2 + 0.3 * x[..., 1]], -1)

    def _inverse(self, y):
        return jnp.stack([y[..., 0] / 1.5, (y[..., 1] - self.strength * y[..., 0] ** 2) / 0.3], -1)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.full(x.shape[:-1], np.log(1.5 * 0.3))

    def tree_flatten(self):
        return (self.strength,), (("strength",), {})


def bent(scale, strength=1.0):
    base = dist.Normal(jnp.zeros(2), jnp.asarray(scale)).to_event(1)
    return dist.TransformedDistribution(base, Bent(jnp.asarray(strength)))


@pytest.mark.slow
def test_flows_as_proposals(key):
    """A banana that quadrature knows: a flow of its shape beats Student t's; a poor one loses its share."""
    model = banana(jnp.float32(1.0))
    truth = quadrature(model, num_points=513)
    functions = {"a2": lambda v: v["a"] ** 2, "b": lambda v: v["b"]}
    efficiency = {}
    poor = bent([0.3, 9.0], -1.0)
    for i, (name, flows) in enumerate({"none": (), "flow": (bent([1.0, 1.0]),), "poor": (poor,)}.items()):
        method = mcx.AdaptiveImportance(budget=10_000, proposals=flows)
        found = mcx.expect(model, functions, method=method, key=jax.random.fold_in(key, i))
        stats = found["b"].stats
        assert abs(found["b"].value - truth.mean["b"]) < 5 * found["b"].se < 0.2, name
        assert abs(found["a2"].value - truth.sd["a"] ** 2 - truth.mean["a"] ** 2) < 5 * found["a2"].se, name
        assert abs(stats["log_evidence"] - truth.log_evidence) < 5 * stats["log_evidence_se"], name
        efficiency[name] = stats["ess"] / stats["num_samples"]
        if name == "flow":
            assert stats["khat"] < 0.5
    assert efficiency["flow"] > 1.1 * efficiency["none"] and efficiency["poor"] > 0.6 * efficiency["none"]


def test_proposals_of_another_dimension():
    method = mcx.AdaptiveImportance(proposals=(dist.Normal(jnp.zeros(3), 1.0).to_event(1),))
    with pytest.raises(MethodError, match="unconstrained space"):
        mcx.expect(pair(), CURVED, method=method, key=0)


@pytest.mark.slow
def test_a_flow_trained_on_the_posterior(key):
    """Score climbing finds how the banana bends; its law is a proposal for importance sampling."""
    model = banana(jnp.float32(1.0))
    family = Family(
        lambda dim: {"log_scale": jnp.zeros(dim), "strength": jnp.zeros(())},
        lambda p: bent(jnp.exp(p["log_scale"]), p["strength"]),
    )
    fitted = mcx.maximize(model, method=mcx.ScoreClimbing(family=family), key=key, progress=False)
    assert abs(fitted.params["strength"] - 1.0) < 0.1
    method = mcx.AdaptiveImportance(budget=5000, proposals=(fitted.distribution,))
    found = mcx.expect(model, {"b": lambda v: v["b"]}, method=method, key=jax.random.fold_in(key, 1))["b"]
    truth = quadrature(model, num_points=513)
    assert abs(found.value - truth.mean["b"]) < 5 * found.se and found.stats["khat"] < 0.7
