"""``mcx.markov`` as a statement: densities, draws, missing data, structure, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from numpyro.infer.util import log_density as numpyro_log_density

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, DataError, ModelError
from mcx.model.compile import compile_model
from mcx.testing import check_mean, dense_gaussian, kalman

logpdf = scipy.stats.norm.logpdf
T = 12
Y = np.random.default_rng(3).normal(0.0, 0.7, T).astype(np.float32)


@mcx.model
def linear(y, length=None):
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.3, 1 / jnp.sqrt(1 - phi**2)),
        transition=lambda x, u: dist.Normal(phi * x, 1.0),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
        length=length,
    )


@mcx.model
def autoregression(y, length=None):
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.3, 1 / 0.6),
        transition=lambda x, u: dist.Normal(0.8 * x, 1.0),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
        length=length,
    )


def linear_density(phi, x, y):
    seen = ~np.isnan(y)
    return (
        np.log(0.5)
        + logpdf(x[0], 0.3, 1 / np.sqrt(1 - phi**2))
        + logpdf(x[1:], phi * x[:-1], 1.0).sum()
        + logpdf(y[seen], x[seen], 0.5).sum()
    )


@mcx.model
def trend(y, heat):
    """Two components, an input, two kinds of observation."""
    drift = mcx.sample("drift", dist.Normal(0, 1))
    path = mcx.markov(
        "s",
        initial=lambda u: {"level": dist.Normal(u, 1.0), "slope": dist.Normal(drift, 0.5)},
        transition=lambda s, u: {
            "level": dist.Normal(s["level"] + s["slope"] + u, 1.0),
            "slope": dist.Normal(0.9 * s["slope"] + 0.1 * s["level"], 0.5),
        },
        emission=lambda s, u: {"a": dist.Normal(s["level"], 1.0), "b": dist.Poisson(jnp.exp(s["slope"]))},
        obs=y,
        inputs=heat,
    )
    mcx.deterministic("last", path["level"][-1])


COUNTS = np.random.default_rng(4).poisson(2.0, T)
HEAT = np.linspace(-1, 1, T).astype(np.float32)


def test_density_is_the_product_over_time():
    rng = np.random.default_rng(0)
    y = Y.copy()
    y[4] = np.nan
    x, phi = rng.normal(size=T), 0.7
    ours = linear(y).log_density({"phi": phi, "x": x})
    np.testing.assert_allclose(ours, linear_density(phi, x, y), rtol=1e-5)


def test_density_of_a_structured_state():
    rng = np.random.default_rng(1)
    level, slope, drift = rng.normal(size=T), rng.normal(size=T) * 0.3, 0.4
    ours = trend({"a": Y, "b": COUNTS}, HEAT).log_density(
        {"drift": drift, "s.level": level, "s.slope": slope}
    )
    theirs = (
        logpdf(drift)
        + logpdf(level[0], HEAT[0])
        + logpdf(slope[0], drift, 0.5)
        + logpdf(level[1:], level[:-1] + slope[:-1] + HEAT[1:], 1.0).sum()
        + logpdf(slope[1:], 0.9 * slope[:-1] + 0.1 * level[:-1], 0.5).sum()
        + logpdf(Y, level, 1.0).sum()
        + scipy.stats.poisson.logpmf(COUNTS, np.exp(slope)).sum()
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_parts_gradients_and_terms():
    y = Y.copy()
    y[[2, 7]] = np.nan
    target = compile_model(linear(y))
    z = {"phi": jnp.float32(0.4), "x": jnp.asarray(Y) * 0.5}
    gradient = jax.grad(lambda z: target.log_density(z))(z)
    assert all(np.isfinite(g).all() for g in gradient.values())
    terms = target.pointwise(z)["x_obs"]
    assert terms.shape == (T,)
    np.testing.assert_array_equal(np.asarray(terms) == 0, np.isnan(y))
    np.testing.assert_allclose(target.log_likelihood(z), terms.sum(), rtol=1e-6)


def test_numpyro_sees_the_same_density():
    x = np.random.default_rng(2).normal(size=T)
    value, _ = numpyro_log_density(linear, (Y,), {}, {"phi": 0.3, "x": x})
    np.testing.assert_allclose(value, linear_density(0.3, x, Y), rtol=1e-5)


@pytest.mark.slow
def test_nuts_agrees_with_the_exact_posterior(key):
    """Means of a linear-Gaussian path; alpha 1e-6, finds an error of a fifth of a posterior sd."""
    y = Y.copy()
    y[5] = np.nan
    phi = 0.8
    post = mcx.infer(
        linear(y).condition({"phi": np.float32(phi)}),
        mcx.NUTS(num_warmup=300, num_samples=1000),
        key=key,
        progress=False,
    )
    exact = kalman(
        y, initial_mean=0.3, initial_cov=1 / (1 - phi**2), transition_matrix=phi, transition_cov=1.0,
        observation_matrix=1.0, observation_cov=0.25,
    )  # fmt: skip
    sd = np.sqrt(exact.smoothed_covs[:, 0, 0])
    check_mean(post["x"], exact.smoothed_means[:, 0], delta=0.2 * sd)
    tree = post.to_datatree()
    assert tree["posterior"]["x"].dims == ("chain", "draw", "time")
    assert tree["log_likelihood"]["x_obs"].dims == ("chain", "draw", "time")
    assert np.isnan(tree["observed_data"]["x_obs"]).sum() == 1
    assert "constant_data" not in tree


def test_prior_draws_have_the_right_moments(key):
    """Variances and lag-one products of the drawn paths; alpha 1e-6, finds an error of 10 %."""
    draws = mcx.predict(None, autoregression(None, length=4), key=key, num_draws=20_000)
    x, y = draws["x"][0] - 0.3 * 0.8 ** np.arange(4), draws["x_obs"][0]
    variance = 1 / (1 - 0.64)
    check_mean(x**2, np.full(4, variance), delta=0.1 * variance, independent=True)
    check_mean(x[:, 1:] * x[:, :-1], np.full(3, 0.8 * variance), delta=0.1 * variance, independent=True)
    check_mean((y - draws["x"][0]) ** 2, np.full(4, 0.25), delta=0.025, independent=True)


def test_components_are_drawn_together(key):
    """slope_t - 0.9 slope_{t-1} has covariance 0.1 Var(level) with level: gone if drawn apart."""
    model = trend({"a": Y[:2], "b": COUNTS[:2]}, HEAT[:2])
    draws = mcx.predict(None, model, key=key, num_draws=20_000)
    level, slope = draws["s.level"][0], draws["s.slope"][0]
    product = (slope[:, 1] - 0.9 * slope[:, 0]) * (level[:, 0] - HEAT[0])
    check_mean(product, 0.1, delta=0.03, independent=True)
    np.testing.assert_array_equal(draws["last"][0], level[:, -1])


def test_a_given_component_stays_given():
    given = numpyro.handlers.substitute(trend, data={"s.level": jnp.zeros(T)})
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
        given({"a": Y, "b": COUNTS}, HEAT)
    assert trace["last"]["value"] == 0.0
    assert np.std(trace["s.slope"]["value"]) > 0


def test_site_table():
    table = trend({"a": Y, "b": COUNTS}, HEAT).sites()
    assert [s.name for s in table] == ["drift", "s.level", "s.slope", "a", "b", "last"]
    assert table["s.level"].dims == ("time",) and table["a"].num_terms == T
    assert table["s.level"].distribution == "Markov(Normal)" and table["b"].distribution == "Poisson"


@mcx.model
def vectors(y, correlated):
    scale = jnp.array([1.0, 2.0, 0.5])
    law = (
        (lambda x, u: dist.MultivariateNormal(x, jnp.diag(scale**2)))
        if correlated
        else (lambda x, u: dist.Normal(x, scale).to_event(1))
    )
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(jnp.zeros(3), 1.0),
        transition=lambda x, u: dist.MultivariateNormal(0.9 * x, jnp.eye(3)),
        emission=law,
        obs=y,
    )


def test_shapes_of_initial_and_transition_may_split_differently():
    y = np.random.default_rng(5).normal(size=(T, 3)).astype(np.float32)
    x = y * 0.5
    ours = vectors(y, False).log_density({"x": x})
    theirs = (
        logpdf(x[0]).sum() + logpdf(x[1:], 0.9 * x[:-1]).sum() + logpdf(y, x, np.array([1.0, 2.0, 0.5])).sum()
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(vectors(y, True).log_density({"x": x}), theirs, rtol=1e-5)


def test_vectors_missing_in_part():
    y = np.random.default_rng(5).normal(size=(T, 3)).astype(np.float32)
    x = y * 0.5
    y[3, 1] = np.nan
    y[6] = np.nan
    scale = np.broadcast_to([1.0, 2.0, 0.5], y.shape)
    seen = ~np.isnan(y)
    theirs = (
        logpdf(x[0]).sum() + logpdf(x[1:], 0.9 * x[:-1]).sum() + logpdf(y[seen], x[seen], scale[seen]).sum()
    )
    np.testing.assert_allclose(vectors(y, False).log_density({"x": x}), theirs, rtol=1e-5)
    with pytest.raises(DataError, match="missing in part"):
        raise vectors(y, True).check(key=0).problems[0]
    y[3] = np.nan
    assert vectors(y, True).check(key=0).ok
    assert np.isfinite(vectors(y, True).log_density({"x": x}))


@mcx.model
def counts(y, missing):
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0, 1),
        transition=lambda x, u: dist.Normal(x, 0.5),
        emission=lambda x, u: dist.Poisson(jnp.exp(x)),
        obs=y,
        missing=missing,
    )


def test_masks_of_integers():
    missing = np.zeros(T, bool)
    missing[3] = True
    x = np.linspace(-1, 1, T)
    y = COUNTS.copy()
    y[3] = -99  # whatever stands there
    prior = logpdf(x[0]) + logpdf(x[1:], x[:-1], 0.5).sum()
    likelihood = scipy.stats.poisson.logpmf(COUNTS, np.exp(x))[~missing].sum()
    np.testing.assert_allclose(counts(y, missing).log_density({"x": x}), prior + likelihood, rtol=1e-5)
    assert counts(y, missing).check(key=0).ok


@mcx.model
def parent(y):
    mcx.sample("one", linear.bind(y))
    mcx.sample("two", linear.bind(y + 0.5))


def test_submodels():
    bound = parent(Y)
    assert [s.name for s in bound.sites()] == [
        "one.phi",
        "one.x",
        "one.x_obs",
        "two.phi",
        "two.x",
        "two.x_obs",
    ]
    found = mcx.filter(
        bound,
        name="two.x",
        params={"one.phi": 0.5, "two.phi": 0.8},
        key=0,
        num_particles=20_000,
        progress=False,
    )
    exact = kalman(
        Y + 0.5, initial_mean=0.3, initial_cov=1 / (1 - 0.64), transition_matrix=0.8, transition_cov=1.0,
        observation_matrix=1.0, observation_cov=0.25,
    )  # fmt: skip
    assert abs(found.log_evidence - exact.log_evidence) < 6 * found.log_evidence_se < 0.5
    assert list(found.mean) == ["two.x"]


def test_runs_in_a_stock_numpyro_program():
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
        linear(Y)
    assert trace["x"]["value"].shape == (T,) and trace["x_obs"]["is_observed"]


def statement(**changes):
    settings = {
        "initial": lambda u: dist.Normal(0, 1),
        "transition": lambda x, u: dist.Normal(x, 1),
        "emission": lambda x, u: dist.Normal(x, 1),
        "obs": Y,
        **changes,
    }
    return mcx.model(lambda: mcx.markov("x", **settings) and None)()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": None}, "number of times is unknown"),
        ({"inputs": HEAT[:3]}, "numbers of times disagree"),
        ({"length": 5}, "numbers of times disagree"),
        ({"obs": np.float32(1.0)}, "without a time axis"),
        ({"transition": lambda x, u: dist.Normal(jnp.zeros(2), 1)}, "different shapes"),
        ({"transition": lambda x, u: dist.HalfNormal(1.0)}, "different supports"),
        ({"transition": lambda x, u: {"a": dist.Normal(0, 1)}}, "different components"),
        ({"emission": None}, "no emission"),
        ({"obs": {"y": Y}}, "do not name the same sites"),
        ({"missing": {"q": np.zeros(T, bool)}}, "masks an observation that is not among"),
    ],
)
def test_refusals_of_markov(changes, message):
    with pytest.raises(ModelError, match=message):
        statement(**changes).sites()


def test_refuses_plates_and_the_outside():
    @mcx.model
    def plated():
        with mcx.plate("n", 3):
            mcx.markov(
                "x", initial=lambda u: dist.Normal(0, 1), transition=lambda x, u: dist.Normal(x, 1), length=3
            )

    with pytest.raises(ModelError, match="within a plate"):
        plated().sites()
    with pytest.raises(ModelError, match="outside of a model"):
        mcx.markov(
            "x", initial=lambda u: dist.Normal(0, 1), transition=lambda x, u: dist.Normal(x, 1), length=3
        )


def test_nan_elsewhere_is_still_refused():
    @mcx.model
    def plain(y):
        mcx.sample("m", dist.Normal(0, 1))
        mcx.sample("y", dist.Normal(0, 1), obs=y)

    y = Y.copy()
    y[0] = np.nan
    assert not plain(y).check(key=0).ok


def test_dense_answer():
    """The joint density of path and data integrates to the evidence: at any path, joint - posterior."""
    phi = 0.6
    arguments = {
        "initial_mean": 0.3, "initial_cov": 1 / (1 - phi**2), "transition_matrix": phi, "transition_cov": 1.0,
        "observation_matrix": 1.0, "observation_cov": 0.25,
    }  # fmt: skip
    exact = dense_gaussian(Y, **arguments)
    mean, cov = exact.means[:, 0], exact.cov[:, 0, :, 0]
    path = mean + 0.3
    joint = linear(Y).condition({"phi": np.float32(phi)}).log_density({"x": path}) - np.log(0.5)
    posterior = scipy.stats.multivariate_normal.logpdf(path, mean, cov)
    np.testing.assert_allclose(joint - posterior, exact.log_evidence, rtol=1e-5)


def test_methods_say_what_they_lack():
    @mcx.model
    def discrete(y):
        mcx.markov(
            "z",
            initial=lambda u: dist.Categorical(jnp.array([0.5, 0.5])),
            transition=lambda z, u: dist.Categorical(jnp.array([[0.7, 0.3], [0.2, 0.8]])[z]),
            emission=lambda z, u: dist.Normal(z, 1.0),
            obs=y,
        )

    with pytest.raises(CapabilityError, match="discrete latent variable"):
        mcx.infer(discrete(Y), mcx.NUTS(), key=0)
