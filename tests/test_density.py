"""The densities that a compiled model gives, against automatic differentiation, SciPy and exact answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mcx
import mcx.dist as dist
from mcx.model.compile import compile_model
from mcx.testing import CONJUGATE_PAIRS, check_mean, enumerate_discrete, quadrature
from mcx.testing.strategies import (
    LATENT_FAMILIES,
    Program,
    Statement,
    bind,
)

EPS = float(jnp.finfo(jnp.result_type(float)).eps)

# --- Jacobians against automatic differentiation ---------------------------------------------------


def free_coordinates(family, x):
    """As many coordinates of a value as the support has dimensions, in an order that keeps the volume."""
    if family == "dirichlet":
        return x[..., :-1]
    if family == "lkj_cholesky":
        return x[jnp.tril_indices(3, -1)]
    return x


@pytest.mark.parametrize(
    "family",
    ["log_normal", "uniform", "truncated_normal", "doubly_truncated", "pareto", "gamma_vector", "dirichlet",
     "ordered", "lkj_cholesky", "flat_vector"],
)  # fmt: skip
def test_jacobians(family, key):
    """A second opinion on what NumPyro and mcx would get wrong together."""
    target = compile_model(bind(Program((Statement("latent", "x", family=family),))))
    vector = jax.random.uniform(key, (target.dim,), minval=-1.5, maxval=1.5)

    @jax.jit
    def volume(target, vector):
        def coordinates(v):
            return free_coordinates(family, target.constrain(target.unravel(v))["x"]).reshape(-1)

        z = target.unravel(vector)
        jacobian = target.log_prior(z) - target.prior_terms(z)["x"]
        return jacobian, jnp.linalg.slogdet(jax.jacobian(coordinates)(vector))[1]

    found, truth = volume(target, vector)
    np.testing.assert_allclose(found, truth, rtol=0, atol=100 * EPS)


def test_jacobians_of_all_families_are_listed():
    unbounded = {"normal", "student_t", "cauchy", "affine", "normal_vector", "multivariate_normal", "flat"}
    positive = {"half_normal", "half_cauchy", "gamma", "flat_positive"}  # as log_normal
    unit = {"beta"}  # as uniform
    (listed,) = (mark.args[1] for mark in test_jacobians.pytestmark)
    assert unbounded | positive | unit | set(listed) == set(LATENT_FAMILIES)


# --- scale, mask, submodels ------------------------------------------------------------------------


def program(*statements):
    return compile_model(bind(Program(statements)))


LATENT = Statement("latent", "x", family="half_normal", plates=("p",))
Z = {"x": np.array([0.25, -0.5], np.float32)}


def test_a_scale_multiplies_the_log_likelihood():
    y = Statement("observed", "y", family="normal", parent="x", plates=("p",), data=(1, 3))
    doubled = Statement("observed", "y", family="normal", parent="x", plates=("p",), data=(1, 3), scale=2.0)
    one, two = program(LATENT, y), program(LATENT, doubled)
    np.testing.assert_allclose(two.log_likelihood(Z), 2 * one.log_likelihood(Z), rtol=4 * EPS)
    np.testing.assert_array_equal(two.log_prior(Z), one.log_prior(Z))
    assert two.sites["y"].weighted and not one.sites["y"].weighted


def test_a_mask_drops_terms():
    y = Statement("observed", "y", family="normal", parent="x", plates=("p",), data=(1, 3))
    half = Statement(
        "observed", "y", family="normal", parent="x", plates=("p",), data=(1, 3), mask=(False, True)
    )
    one, masked = program(LATENT, y), program(LATENT, half)
    np.testing.assert_allclose(
        masked.pointwise(Z)["y"], one.pointwise(Z)["y"] * np.array([0, 1]), rtol=4 * EPS
    )
    assert masked.sites["y"].weighted


def test_a_submodel_is_the_same_density_under_other_names():
    y = Statement("observed", "y", family="gamma", parent="x", plates=("p",), data=(1, 3))
    inlined = program(LATENT, y)
    nested = program(Statement("submodel", "a", program=Program((LATENT, y))))
    np.testing.assert_array_equal(nested.log_parts({"a.x": Z["x"]}), inlined.log_parts(Z))
    assert set(nested.pointwise({"a.x": Z["x"]})) == {"a.y"}
    assert set(nested.prior_terms({"a.x": Z["x"]})) == {"a.x"}


def test_factors_go_where_their_kind_says():
    @mcx.model
    def model():
        x = mcx.sample("x", dist.HalfNormal(1.0))
        mcx.factor("likelihood", -x)
        mcx.factor("prior", -jnp.array([x, 2 * x]), kind="prior")

    target = compile_model(model())
    x = math.exp(0.5)
    half_normal = scipy.stats.halfnorm.logpdf(x) + 0.5  # and the log Jacobian of exp
    prior, likelihood = target.log_parts({"x": 0.5})
    np.testing.assert_allclose(prior, half_normal - 3 * x, rtol=20 * EPS)
    np.testing.assert_allclose(likelihood, -x, rtol=20 * EPS)
    assert target.sample_prior is None  # the prior factor is no distribution to draw from
    assert set(target.pointwise({"x": 0.5})) == {"likelihood"}
    assert set(target.prior_terms({"x": 0.5})) == {"x", "prior"}


def test_reparameterised_sites_become_deterministic():
    target = program(
        Statement("latent", "a", family="normal", reparam="decentered"),
        Statement("latent", "b", family="log_normal", parent="a", reparam="transform"),
    )
    assert [name for name, _ in target.shapes] == ["a_decentered", "b_base"]
    found = target.constrain({"a_decentered": 0.5, "b_base": 0.0})
    np.testing.assert_allclose(found["a"], 0.5)  # location 0, scale 1
    assert target.sites["b"].kind == "deterministic" and found["b"] > 0


def test_a_model_without_latent_sites_has_a_likelihood():
    target = program(Statement("observed", "y", family="poisson", data=(8,)))
    assert target.dim == 0 and target.ravel({}).shape == (0,) and target.unravel(jnp.zeros(0)) == {}
    np.testing.assert_allclose(target.log_likelihood({}), scipy.stats.poisson.logpmf(2, 1.0), rtol=20 * EPS)


# --- against SciPy ---------------------------------------------------------------------------------


@mcx.model
def varied(y, counts, flags):
    m = mcx.sample("m", dist.Normal(1.0, 2.0))
    s = mcx.sample("s", dist.Gamma(2.0, 3.0))
    p = mcx.sample("p", dist.Beta(2.0, 5.0))
    r = mcx.sample("r", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    with mcx.plate("n", len(y)):
        mcx.sample("y", dist.Normal(m, s), obs=y)
    mcx.sample("counts", dist.Poisson(s), obs=counts)
    mcx.sample("flags", dist.Bernoulli(p), obs=flags)
    mcx.sample("k", dist.Categorical(r))


def test_log_density_is_scipys():
    y, counts, flags = np.array([0.5, -1.0, 3.25]), np.array([0, 2]), np.array([1, 0, 0, 1])
    values = {"m": 0.25, "s": 1.5, "p": 0.375, "r": np.array([0.5, 0.125, 0.375]), "k": 2}
    truth = (
        scipy.stats.norm(1, 2).logpdf(0.25)
        + scipy.stats.gamma(2, scale=1 / 3).logpdf(1.5)
        + scipy.stats.beta(2, 5).logpdf(0.375)
        + scipy.stats.dirichlet([1, 2, 3]).logpdf(values["r"])
        + scipy.stats.norm(0.25, 1.5).logpdf(y).sum()
        + scipy.stats.poisson(1.5).logpmf(counts).sum()
        + scipy.stats.bernoulli(0.375).logpmf(flags).sum()
        + np.log(0.375)
    )
    found = varied(y, counts, flags).log_density(values)
    np.testing.assert_allclose(found, truth, rtol=30 * EPS)


# --- prior draws -----------------------------------------------------------------------------------


@mcx.model
def triangle(y=None):
    u = mcx.sample("u", dist.Gamma(2.0, 1.0))
    x = mcx.sample("x", dist.Uniform(0.0, u))
    mcx.sample("y", dist.Normal(x, 1.0), obs=y)


def test_prior_draws_have_the_priors_law(key):
    """alpha: 1e-6 for each of three means and 1e-6 for each of two Kolmogorov-Smirnov tests.

    With 4,000 draws these reject at a distance of 0.043; a shift of a fifth of an sd makes 0.08.
    """
    target = compile_model(triangle(y=np.float32(1e3)))  # far from the prior: data must not matter
    draw = jax.jit(jax.vmap(lambda k: target.constrain(target.sample_prior(k))))
    draws = jax.device_get(draw(jax.random.split(key, 4000)))
    check_mean(draws["u"], 2.0, delta=0.2, independent=True)
    # given u, x is uniform on (0, u)
    check_mean(draws["x"] / draws["u"], 0.5, delta=0.05, independent=True)
    check_mean(draws["u"] * (draws["x"] / draws["u"] - 0.5), 0.0, delta=0.2, independent=True)
    assert scipy.stats.kstest(draws["u"], scipy.stats.gamma(2).cdf).pvalue > 1e-6
    assert scipy.stats.kstest(draws["x"] / draws["u"], scipy.stats.uniform.cdf).pvalue > 1e-6


def test_simulations_have_the_joint_law(key):
    """x given u is uniform, y given x is normal, and the observed value does not matter."""
    bound = triangle(y=np.float32(1e3))
    draws = jax.device_get(jax.jit(jax.vmap(lambda k: bound.simulate(key=k)))(jax.random.split(key, 4000)))
    check_mean(draws["u"], 2.0, delta=0.2, independent=True)
    check_mean(draws["y"] - draws["x"], 0.0, delta=0.15, independent=True)
    check_mean((draws["y"] - draws["x"]) * draws["x"], 0.0, delta=0.3, independent=True)
    assert scipy.stats.kstest(draws["y"] - draws["x"], scipy.stats.norm.cdf).pvalue > 1e-6


# --- exact answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", CONJUGATE_PAIRS, ids=lambda p: p.name)
def test_quadrature_finds_the_conjugate_posterior(pair):
    """Closed forms and quadrature share no code, so the density and both oracles stand or fall together."""
    found = quadrature(pair.bind(), num_points=129)
    eps = 1.2e-7  # the pairs' data are float32, whatever the dtype of the density
    np.testing.assert_allclose(found.log_evidence, pair.moments.log_evidence, rtol=0, atol=200 * eps)
    for name, mean in pair.moments.mean.items():
        sd = pair.moments.sd[name]
        np.testing.assert_allclose(found.mean[name], mean, rtol=0, atol=100 * eps * (abs(mean) + sd).max())
        np.testing.assert_allclose(found.sd[name], sd, rtol=100 * eps)


TRANSITIONS = np.array([[0.7, 0.3], [0.2, 0.8]])
LIKELIHOODS = np.array([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15], [0.1, 0.9]])


@mcx.model
def hidden_markov(transitions, likelihoods):
    state = mcx.sample("x0", dist.Categorical(probs=jnp.array([0.5, 0.5])))
    mcx.factor("y0", jnp.log(likelihoods[0, state]))
    for t in range(1, len(likelihoods)):
        state = mcx.sample(f"x{t}", dist.Categorical(probs=transitions[state]))
        mcx.factor(f"y{t}", jnp.log(likelihoods[t, state]))


def test_enumeration_of_a_hidden_markov_model():
    bound = hidden_markov(jnp.asarray(TRANSITIONS), jnp.asarray(LIKELIHOODS))
    found = enumerate_discrete(bound)
    # by hand: forward-backward
    forward, backward = [np.array([0.5, 0.5]) * LIKELIHOODS[0]], [np.ones(2)]
    for row in LIKELIHOODS[1:]:
        forward.append(forward[-1] @ TRANSITIONS * row)
    for row in LIKELIHOODS[:0:-1]:
        backward.insert(0, TRANSITIONS @ (row * backward[0]))
    smoothed = np.array([f * b for f, b in zip(forward, backward, strict=True)]) / forward[-1].sum()
    np.testing.assert_allclose(smoothed[:, 1], [0.1793, 0.7510, 0.4901, 0.8818], atol=5e-5)
    np.testing.assert_allclose(found.log_evidence, -3.481979, atol=1e-6)
    means = [found.mean[f"x{t}"] for t in range(4)]
    np.testing.assert_allclose(means, smoothed[:, 1], rtol=20 * EPS)
    np.testing.assert_allclose(
        [found.sd[f"x{t}"] for t in range(4)], np.sqrt(smoothed.prod(1)), rtol=20 * EPS
    )


# --- shapes and transformations --------------------------------------------------------------------


def test_a_vector_lays_sites_out_in_program_order():
    target = program(
        Statement("latent", "b", family="normal", plates=("q", "p")),
        Statement("latent", "a", family="dirichlet"),
    )
    vector = jnp.arange(8.0)
    z = target.unravel(vector)
    np.testing.assert_array_equal(z["b"], vector[:6].reshape(3, 2))
    np.testing.assert_array_equal(z["a"], vector[6:])
    np.testing.assert_array_equal(target.ravel(z), vector)


def test_targets_go_through_jit_and_vmap():
    x, y = np.linspace(-1, 1, 4, dtype=np.float32), np.zeros(4, np.float32)

    @mcx.model
    def line(x, y):
        slope = mcx.sample("slope", dist.Normal(0.0, 2.0))
        mcx.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    target = compile_model(line(x, y))
    slopes = jnp.array([-1.0, 0.0, 2.0])
    batched = jax.jit(jax.vmap(lambda s: target.log_density({"slope": s})))(slopes)
    alone = [line(x, y).log_density({"slope": s}) for s in slopes]  # no Jacobian on the real line
    np.testing.assert_allclose(batched, alone, rtol=10 * EPS)

    data_sets = jax.tree_util.tree_map(lambda a: jnp.stack([a, a + 1]), target)
    by_data = jax.vmap(lambda t: t.log_density({"slope": 0.5}))(data_sets)
    np.testing.assert_allclose(
        by_data[1], compile_model(line(x + 1, y + 1)).log_density({"slope": 0.5}), rtol=10 * EPS
    )
