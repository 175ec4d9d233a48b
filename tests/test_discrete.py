"""Discrete latent sites are summed out: densities, probabilities, draws and leave-one-out by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp

import mcx
from mcx.errors import CapabilityError
from mcx.model.compile import compile_model
from mcx.testing import check_mean

Y = jnp.array([-2.1, 0.4, 2.2, 1.8])


def mixture(y):
    w = numpyro.sample("w", dist.Normal(0, 1))
    mu = numpyro.sample("mu", dist.Normal(jnp.array([-2.0, 2.0]), 1).to_event(1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(logits=jnp.stack([w, 0.0])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def change_point(y):
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.DiscreteUniform(0, len(y)))
    numpyro.sample("y", dist.Normal(jnp.where(jnp.arange(len(y)) < tau, a, b), 1.0), obs=y)


def global_and_local(y):
    c = numpyro.sample("c", dist.Bernoulli(0.3))
    m = numpyro.sample("m", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(logits=jnp.array([0.2, -0.5, 1.0]) * (1.0 + c)))
        numpyro.sample("y", dist.Normal(m + z * (1 + c), 1.0), obs=y)


def two_plates(y):
    skill = numpyro.sample("skill", dist.Normal(0, 1))
    with numpyro.plate("item", 2):
        true = numpyro.sample("true", dist.Bernoulli(0.4))
        with numpyro.plate("annotator", 2):
            spam = numpyro.sample("spam", dist.Bernoulli(0.3))
            mean = jnp.where(spam == 1, 0.0, skill * true)
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y.reshape(2, 2))


def several_observations(y):
    """An occupancy model: sites are occupied or not, and visited twice."""
    logit = numpyro.sample("logit", dist.Normal(0, 1))
    with numpyro.plate("site", 4, dim=-2):
        occupied = numpyro.sample("occupied", dist.Bernoulli(0.6))
        with numpyro.plate("visit", 2, dim=-1):
            p = jnp.where(occupied == 1, jax.nn.sigmoid(logit), 1e-3)
            numpyro.sample("seen", dist.Bernoulli(p), obs=jnp.array([[1, 0], [0, 0], [1, 1], [0, 0]]))


def loop(y):
    """A hidden Markov chain, written as a loop."""
    s = numpyro.sample("s", dist.Normal(0, 1))
    state = 0
    for t in range(len(y)):
        law = jnp.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])[state]
        state = numpyro.sample(f"x{t}", dist.Categorical(law))
        numpyro.sample(f"y{t}", dist.Normal(s * state, 1.0), obs=y[t])


def coupled(y):
    """Members of a plate that meet in one density."""
    m = numpyro.sample("m", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        on = numpyro.sample("on", dist.Bernoulli(0.4))
    numpyro.sample("y", dist.Normal(m * on.sum(), 1.0), obs=y[0])


def reversed_members(y):
    """Members whose densities have the right shape and look at other members all the same."""
    m = numpyro.sample("m", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        numpyro.sample("y", dist.Normal(m * z[::-1], 1.0), obs=y)


def vector(y):
    m = numpyro.sample("m", dist.Normal(0, 1))
    on = numpyro.sample("on", dist.Bernoulli(jnp.array([0.2, 0.5, 0.7])).to_event(1))
    numpyro.sample("y", dist.Normal(m * on @ jnp.array([1.0, -2.0, 0.5]), 1.0), obs=y)


def prior_terms(y):
    """The prior is no product of laws: it has a factor, a scaled law, a latent site given a discrete one."""
    c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    m = numpyro.sample("m", dist.Normal(c * 1.0, 1))
    mcx.factor("tilt", 0.7 * c, kind="prior")
    with numpyro.handlers.scale(scale=2.0), numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(m + z, 1.0), obs=y)


def impossible(y):
    """Transitions and emissions of probability zero."""
    m = numpyro.sample("m", dist.Normal(0, 1))
    x = numpyro.sample("x", dist.Categorical(jnp.array([0.5, 0.5, 0.0])))
    u = numpyro.sample("u", dist.Categorical(jnp.array([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0, 1.0]])[x]))
    numpyro.sample("y", dist.Normal(m * u, 1.0), obs=y)


MODELS = [
    mixture,
    change_point,
    global_and_local,
    two_plates,
    several_observations,
    loop,
    coupled,
    reversed_members,
    vector,
    prior_terms,
    impossible,
]


def assignments(bound):
    """All values of the discrete sites, a leading axis of assignments."""
    sites = bound.sites().of_kind("discrete")
    ranges = []
    for site in sites:
        low, high = (
            (int(x) for x in site.support.partition("(")[2].rstrip(")").split(", "))
            if ("interval" in site.support)
            else (0, 1)
        )
        ranges += [range(low, high + 1)] * int(np.prod(site.shape))
    grid = jnp.asarray(list(itertools.product(*ranges)))
    found, start = {}, 0
    for site in sites:
        size = int(np.prod(site.shape))
        found[site.name] = grid[:, start : start + size].reshape(-1, *site.shape)
        start += size
    return found


def joint(bound, z):
    """Log joint densities of all assignments."""
    table = assignments(bound)
    return table, jax.vmap(lambda values: bound.log_density({**values, **z}))(table)


def point(bound, seed=0):
    target = compile_model(bound)
    return target, target.unravel(0.7 * jax.random.normal(jax.random.key(seed), (target.dim,)))


FAST = (mixture, global_and_local, loop, coupled, prior_terms)
DRAWN = [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]


@pytest.fixture(params=MODELS, ids=lambda m: m.__name__)
def bound(request):
    return mcx.model(request.param)(Y)


def test_density_and_gradient(bound):
    target, z = point(bound)
    expected = logsumexp(joint(bound, z)[1])
    np.testing.assert_allclose(target.log_density(z), expected, rtol=2e-6, atol=1e-5)
    got = jax.grad(target.log_density)(z)
    exact = jax.grad(lambda z: logsumexp(joint(bound, z)[1]))(z)
    for name in got:
        np.testing.assert_allclose(got[name], exact[name], rtol=1e-4, atol=1e-5)


def test_prior_and_likelihood_apart(bound):
    """The prior is the sum with the likelihood left out, whether or not it is one."""
    target, z = point(bound)
    observed = [s.name for s in bound.sites().of_kind("observed")]
    masked = mcx.model(lambda: numpyro.handlers.block(bound.run, hide=observed)())()
    expected = logsumexp(joint(masked, z)[1])
    np.testing.assert_allclose(target.log_prior(z), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("model", DRAWN, ids=lambda m: m.__name__)
def test_probabilities_and_draws(model, key):
    bound = mcx.model(model)(Y)
    target, z = point(bound)
    table, log_p = joint(bound, z)
    p = np.exp(np.asarray(log_p - logsumexp(log_p), float))
    found = target.functions.probabilities(target.data, z)
    for name, got in found.items():
        values = np.asarray(table[name])
        exact = np.stack(
            [(p.reshape(-1, *[1] * (values.ndim - 1)) * (values == k)).sum(0) for k in range(got.shape[-1])],
            -1,
        )
        np.testing.assert_allclose(got, exact, atol=2e-5)
    shifts = 3e-4 * jax.random.normal(key, (4000, target.dim))  # draws are functions of the point
    base = target.ravel(z)
    draws = jax.jit(jax.vmap(lambda s: target.constrain(target.unravel(base + s))))(shifts)
    for name, values in table.items():
        values = np.asarray(values, float)
        mean = np.tensordot(p, values, 1)
        spread = np.tensordot(p, (values - mean) ** 2, 1)
        drawn = np.asarray(draws[name], float)
        fixed = spread < 1e-4
        np.testing.assert_allclose(drawn.mean(0)[fixed], mean[fixed], atol=0.01)
        if (~fixed).any():
            check_mean(drawn[:, ~fixed], mean[~fixed], delta=0.15 * np.sqrt(spread[~fixed]), independent=True)
    # jointly: the density of what was drawn
    log_q = jax.vmap(lambda v: bound.log_density({**v, **z}))({n: draws[n] for n in table})
    if np.isfinite(log_p).all():
        check_mean(
            np.asarray(log_q, float),
            float(np.sum(p * np.asarray(log_p, float))),
            delta=0.15
            * float(
                np.sqrt(np.sum(p * (np.asarray(log_p, float) - np.sum(p * np.asarray(log_p, float))) ** 2))
            )
            + 1e-3,
            independent=True,
        )


@pytest.mark.parametrize(
    "model", [mixture, change_point, two_plates, several_observations], ids=lambda m: m.__name__
)
def test_leave_one_out(model):
    """log p(y_i | other observations), by leaving the i-th out of the enumeration."""
    bound = mcx.model(model)(Y)
    target, z = point(bound)
    table, log_p = joint(bound, z)
    (name,) = (s.name for s in bound.sites().of_kind("observed"))
    terms = jax.vmap(lambda v: _terms(bound, {**v, **z}, name))(table)
    axes = (slice(None), *[None] * (terms.ndim - 1))
    expected = logsumexp(log_p) - logsumexp(log_p[axes] - terms, 0)
    np.testing.assert_allclose(target.pointwise(z)[name], expected, rtol=1e-5, atol=2e-5)


def _terms(bound, values, name):
    from mcx.model.capture import record
    from mcx.model.density import site_log_prob

    return site_log_prob(record(bound.run, values=values).sites[name])


def test_the_same_posterior_and_evidence_as_without_the_discrete_site(key):
    def summed(y):
        w = numpyro.sample("w", dist.Normal(0, 1))
        mu = numpyro.sample("mu", dist.Normal(jnp.array([-2.0, 2.0]), 1).to_event(1))
        with numpyro.plate("n", len(y)):
            law = dist.Categorical(logits=jnp.stack([w, 0.0]))
            numpyro.sample("y", dist.MixtureSameFamily(law, dist.Normal(mu, 1.0)), obs=y)

    one, other = (point(mcx.model(f)(Y)) for f in (mixture, summed))
    for part, exact in zip(one[0].log_parts(one[1]), other[0].log_parts(other[1]), strict=True):
        np.testing.assert_allclose(part, exact, rtol=2e-6)
    runs = [
        mcx.infer(mcx.model(f)(Y), mcx.TemperedSMC(num_particles=400), key=key, progress=False)
        for f in (mixture, summed)
    ]
    errors = np.hypot(*(float(r.log_evidence_se) for r in runs))
    assert abs(float(runs[0].log_evidence) - float(runs[1].log_evidence)) < 5 * errors < 0.5


def test_results(key):
    bound = mcx.model(mixture)(Y)
    posterior = mcx.infer(bound, mcx.NUTS(num_warmup=300, num_samples=500), key=key, progress=False)
    assert posterior.draws["z"].shape == (4, 500, 4) and posterior.draws["z"].dtype.kind == "i"
    tree = posterior.to_datatree()
    share = tree["probabilities"]["z"].mean("chain")
    assert share.dims == ("n", "z_value")
    for i in range(4):
        check_mean((np.asarray(posterior.draws["z"])[..., i] == 1) * 1.0, float(share[i, 1]), delta=0.1)
    assert tree["log_likelihood"]["y"].shape == (4, 500, 4)
    predicted = mcx.predict(posterior, bound, key=key)
    assert predicted["y"].shape == (4, 500, 4)
    assert "summed out: 2 values" in str(bound.sites())


def test_what_cannot_be_summed_is_refused_with_its_size():
    def poisson(y):
        n = numpyro.sample("n", dist.Poisson(4.0))
        numpyro.sample("y", dist.Normal(n, numpyro.sample("s", dist.HalfNormal(1))), obs=y)

    def many(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        on = numpyro.sample("on", dist.Bernoulli(0.5).expand([30]))
        numpyro.sample("y", dist.Normal(m * on.sum(), 1.0), obs=y)

    for model, text in (
        (poisson, "infinitely many"),
        (many, r"2\^30 values; its members depend on each other"),
    ):
        with pytest.raises(CapabilityError, match=text):
            mcx.infer(mcx.model(model)(Y), mcx.NUTS(), key=0, progress=False)


def test_supports_that_depend_on_discrete_sites_are_refused():
    def model(y):
        c = numpyro.sample("c", dist.Bernoulli(0.5))
        x = numpyro.sample("x", dist.Uniform(0.0, 1.0 + c))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(CapabilityError, match=r"site 'x'.*support.*summed out"):
        mcx.infer(mcx.model(model)(Y), mcx.NUTS(), key=0, progress=False)


def test_models_with_discrete_sites_alone_are_exact(key):
    def model(y):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        numpyro.deterministic("twice", 2 * c)
        numpyro.sample("y", dist.Normal(c, 1.0), obs=y)

    bound = mcx.model(model)(Y)
    _, log_p = joint(bound, {})
    p = np.exp(log_p - logsumexp(log_p))
    posterior = mcx.infer(bound, mcx.NUTS(), key=key, progress=False)
    np.testing.assert_allclose(posterior.log_evidence, logsumexp(log_p), rtol=1e-6)
    assert float(posterior.log_evidence_se) == 0
    draws = np.asarray(posterior.draws["c"])
    for level in range(3):
        check_mean((draws == level).reshape(-1) * 1.0, float(p[level]), delta=0.05, independent=True)
    np.testing.assert_array_equal(posterior.draws["twice"], 2 * draws)


def test_models_without_latent_sites_give_the_rest(key):
    def model(y):
        numpyro.deterministic("mean", y.mean())
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    bound = mcx.model(model)(Y)
    posterior = mcx.infer(bound, mcx.NUTS(num_samples=7), key=key, progress=False)
    np.testing.assert_allclose(posterior.draws["mean"], np.full((4, 7), Y.mean()), rtol=1e-6)
    np.testing.assert_allclose(posterior.log_evidence, bound.log_density({}), rtol=1e-6)
    assert "observed_data" in posterior.to_datatree() and "mean" in str(posterior)
