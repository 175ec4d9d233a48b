"""Particle marginal Metropolis-Hastings against enumeration and quadrature over Kalman likelihoods."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
import sp500
from gibbs_problems import (
    GRID,
    T,
    Y,
    autoregression,
    averaged,
    chain_model,
    check_persistence,
    check_regimes,
    check_scan,
    check_two_chains,
    forecasting_scan,
    innovations_scan,
    persistence,
    regimes,
    two_chains,
)
from numpyro.contrib.control_flow import scan

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, InitializationError, MethodError, ModelError, SupportError
from mcx.testing import check_mean

ONE = {"num_chains": 1, "progress": False, "warnings": "ignore"}  # of many draws: it compiles fastest


# --- posteriors against quadrature -----------------------------------------------------------------


FEW = mcx.PMMH(20, num_warmup=1000, num_samples=30_000)


@pytest.fixture(scope="module")
def few():
    """A run with 20 particles."""
    return mcx.infer(persistence(Y[0]), FEW, key=mcx.testing.key_for("few particles"), **ONE)


@pytest.mark.slow
def test_few_particles(few):
    check_persistence(few.draws, Y[0], 0.3)


@pytest.mark.slow
def test_many_particles(key):
    method = mcx.PMMH(2000, num_warmup=300, num_samples=2500)
    post = mcx.infer(persistence(Y[0]), method, key=key, **ONE)
    check_persistence(post.draws, Y[0], 0.8)
    assert post.info.settings["log_evidence_sd"] < 0.15


@pytest.mark.slow
def test_results_of_pmmh(few):
    assert list(few.draws) == ["phi", "x", "squared"]
    assert few["x"].shape == (1, 30_000, T) and few.unconstrained.shape == (1, 30_000, 1)
    tree = few.to_datatree()
    assert tree["posterior"]["x"].dims == ("chain", "draw", "time")
    assert set(tree["log_prior"].data_vars) == {"phi", "x"} and len(few.summary()) == 2 + T
    # a path, its parameters and their evidence change together, or not at all
    moved = few.stats["accepted"][0, 1:]
    assert 0.1 < moved.mean() < 0.6
    for values in (few["phi"], few.stats["log_evidence"], few["x"].mean(-1)):
        np.testing.assert_array_equal(np.diff(values[0]) != 0, moved)
    predicted = mcx.predict(few, persistence(Y[0]), key=0)
    assert predicted["x_obs"].shape == (1, 30_000, T)
    assert np.std(predicted["x_obs"] - few["x"]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_forecast(few, key):
    """Two times ahead, every draw with its own parameter; alpha 1e-6, finds a tenth of an sd."""
    ahead = mcx.forecast(few, 2, key=key)
    assert ahead["x"].shape == ahead["x_obs"].shape == (30_000, 2)
    runs = [autoregression(Y[0], phi) for phi in GRID]
    log_p = [r.log_evidence for r in runs]
    mean, second = (np.array([m[-1].item() for m in moments]) for moments in (
        [r.filtered_means for r in runs], [r.filtered_means**2 + r.filtered_covs[:, 0] for r in runs]
    ))  # fmt: skip
    for h in range(2):
        mean, second = GRID * mean, GRID**2 * second + 0.49
        x = ahead["x"][None, :, h]
        check_mean(x, averaged(log_p, mean), delta=0.1)
        check_mean(x**2, averaged(log_p, second), delta=0.15)
        check_mean(ahead["x_obs"][None, :, h] ** 2, averaged(log_p, second + 0.25), delta=0.15)
        check_mean(x * few["phi"], averaged(log_p, GRID * mean), delta=0.1)
    with pytest.raises(ModelError, match="'x'(.|\n)*draw parameters and paths"):
        mcx.forecast(dataclasses.replace(few, draws={"phi": few["phi"]}), 2, key=key)
    with pytest.raises(MethodError, match="horizon"):
        mcx.forecast(few, 0, key=key)


@pytest.mark.slow
def test_noise_in_the_evidence_is_told(few):
    info = few.info
    assert info.settings["num_particles"] == 20 and 0.3 < info.settings["log_evidence_sd"] < 1.2
    assert not [a for a in FEW.diagnose(few) if a.code == "MCX-W009"]
    for sd, words in ((2.4, "standard deviation of 2.4(.|\n)*about 80 particles"), (np.inf, "Take more")):
        settings = {**info.settings, "log_evidence_sd": sd}
        noisy = dataclasses.replace(few, info=dataclasses.replace(info, settings=settings))
        (found,) = [a.text for a in FEW.diagnose(noisy) if a.code == "MCX-W009"]
        assert re.search(words, found)


# --- the density of the parameters without the chains ----------------------------------------------


def weighted_scan(y):
    """A scan with a factor in its body, a likelihood and a factor outside, and a state before time 0."""
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))

    def body(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, 0.7))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        numpyro.factor("tilt", -(phi**2))
        return x, None

    scan(body, numpyro.sample("x0", dist.Normal(0.5, 1.0)), y)
    numpyro.sample("z", dist.Normal(phi, 0.1), obs=0.3)
    numpyro.factor("outside", -0.7 * phi)


def test_the_chain_is_left_out_of_the_density():
    plan = mcx.PMMH(10).plan(mcx.model(weighted_scan)(Y[0]))
    assert plan.model.marginal.shapes == (("phi", ()),)
    for phi in (-0.4, 1.3):
        exact = scipy.stats.norm.logpdf(phi, 0, 2) + scipy.stats.norm.logpdf(0.3, phi, 0.1) - 0.7 * phi
        found = plan.model.marginal.log_density({"phi": jnp.asarray(phi)})
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_independent_chains_multiply():
    plan = mcx.PMMH(10).plan(two_chains(Y))
    assert set(plan.data.spaces) == {"a", "b"} and plan.model.marginal.shapes == (("phi", ()),)
    np.testing.assert_allclose(
        plan.model.marginal.log_density({"phi": jnp.zeros(())}), np.log(0.5) + np.log(0.5), rtol=1e-6
    )


# --- refusals --------------------------------------------------------------------------------------


def no_chain():
    mcx.sample("a", dist.Normal(0.0, 1.0))


def chain_on_chain(y):
    s = mcx.sample("s", dist.HalfNormal(1.0))
    law = {"initial": lambda u: dist.Normal(0.0, 1.0), "emission": lambda x, u: dist.Normal(x, 1.0), "obs": y}
    a = mcx.markov("a", transition=lambda x, u: dist.Normal(x, s), **law)
    mcx.markov("b", transition=lambda x, u: dist.Normal(x + u, s), inputs=jnp.cumsum(a), **law)


def chain_after_chain(y):
    s = mcx.sample("s", dist.HalfNormal(1.0))
    law = {"initial": lambda u: dist.Normal(0.0, 1.0), "emission": lambda x, u: dist.Normal(x, 1.0), "obs": y}
    a = mcx.markov("a", transition=lambda x, u: dist.Normal(x, s), **law)
    mcx.markov("b", transition=lambda x, u: dist.Normal(x + a[3], s), **law)


def scale():
    mcx.sample("s", dist.HalfNormal(1.0))


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (mcx.model(no_chain)(), "no_chain has no Markov block(.|\n)*mcx.NUTS"),
        (chain_model(), "has no parameters"),
        (chain_model(extra=scale, obs=None, length=5), "site 'x_obs': the emission is not observed"),
        (chain_model(extra=lambda: mcx.sample("k", dist.Bernoulli(0.5))), "site 'k': a discrete"),
        (mcx.model(chain_on_chain)(Y[0]), "'b'"),
        (mcx.model(chain_after_chain)(Y[0]), "'b'"),
    ],
)
def test_models_that_pmmh_cannot_take(bound, message):
    with pytest.raises(CapabilityError, match=message):
        mcx.infer(bound, mcx.PMMH(10), key=0, progress=False)


def test_settings_of_pmmh_that_make_no_sense():
    for bad in (
        {"num_particles": 0}, {"num_particles": 2.5}, {"num_samples": 0}, {"target_accept": 1.0},
        {"filter": "bootstrap"},
    ):  # fmt: skip
        with pytest.raises(MethodError):
            mcx.PMMH(**bad)
    with pytest.raises(CapabilityError, match="needs proposal="):
        mcx.infer(
            persistence(Y[0]), mcx.PMMH(9, filter=mcx.ParticleFilter(kind="guided")), key=0, progress=False
        )
    with pytest.raises(MethodError, match=r"num_particles=\.\.\."):
        mcx.program(persistence(Y[0]), mcx.PMMH())


@pytest.mark.slow
def test_starts_without_evidence():
    short = mcx.PMMH(10, num_warmup=0, num_samples=2)
    narrow = chain_model(extra=scale, emission=lambda x, u: dist.Uniform(0.0, 1.0))
    with pytest.raises(SupportError, match="x_obs"):
        mcx.infer(narrow, short, key=0, progress=False)
    exact = chain_model(extra=scale, emission=lambda x, u: dist.Normal(x, 1e-25))
    with pytest.raises(InitializationError, match="site 'x': no particle of the filters explains"):
        mcx.infer(exact, short, key=0, progress=False)

    def impossible():
        scale()
        mcx.factor("never", -jnp.inf)

    with pytest.raises(InitializationError, match="never"):
        mcx.infer(chain_model(extra=impossible), short, key=0, progress=False)


# --- more models, filters and ways to run ----------------------------------------------------------


@pytest.mark.slow
def test_two_chains_with_a_common_parameter_by_pmmh(key):
    method = mcx.PMMH(20, num_warmup=1000, num_samples=30_000)
    check_two_chains(mcx.infer(two_chains(Y), method, key=key, **ONE))


@pytest.mark.slow
@pytest.mark.parametrize("program", [forecasting_scan, innovations_scan])
def test_pmmh_of_scan(program, key):
    """Particles that hold what depends on the parameter; a state before time 0; no transition density."""
    method = mcx.PMMH(30, num_warmup=1000, num_samples=30_000)
    check_scan(mcx.infer(mcx.model(program)(Y[0]), method, key=key, **ONE).draws)


@pytest.mark.slow
def test_discrete_states_and_an_improper_prior_by_pmmh(key):
    """The covariance of two parameters is adapted; one of them is seen outside of the chain, too."""
    method = mcx.PMMH(20, num_warmup=1000, num_samples=40_000)
    check_regimes(mcx.infer(regimes(Y[0], seen=0.4), method, key=key, **ONE), seen=0.4)


@mcx.model
def seen_ahead(y):
    """The autoregression, with its locally optimal proposal and the look-ahead that makes weights equal."""
    phi = mcx.sample("phi", dist.Uniform(-1, 1))

    def best(mean, var, y):
        gain = var / (var + 0.25)
        return dist.Normal(mean + gain * (y - mean), jnp.sqrt(0.25 * gain))

    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(phi * x, 0.7),
        emission=lambda x, u: dist.Normal(x, 0.5),
        initial_proposal=lambda u, y: best(0.0, 1.0, y),
        proposal=lambda x, u, y: best(phi * x, 0.49, y),
        lookahead=lambda x, u, y: dist.Normal(phi * x, jnp.sqrt(0.74)).log_prob(y),
        obs=y,
    )
    mcx.deterministic("squared", phi**2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "particle_filter",
    [
        mcx.ParticleFilter(kind="guided", resampling="systematic"),
        mcx.ParticleFilter(kind="auxiliary", threshold=1.0, batch_size=4),
    ],
)
def test_filters_with_the_observation_in_view(particle_filter, few, key):
    method = mcx.PMMH(20, filter=particle_filter, num_warmup=1000, num_samples=30_000)
    post = mcx.infer(seen_ahead(Y[0]), method, key=key, **ONE)
    check_persistence(post.draws, Y[0], 0.3)
    assert post.info.settings["log_evidence_sd"] < 0.7 * few.info.settings["log_evidence_sd"]


@pytest.mark.slow
def test_number_of_particles_of_pmmh(key):
    """Chosen for a standard deviation of 1.2 of the log evidence, from a start that is far off."""
    y = np.tile(Y[0], 12) + 0.2 * np.random.default_rng(0).normal(size=12 * T).astype(np.float32)
    post = mcx.infer(persistence(y), mcx.PMMH(num_warmup=1000, num_samples=5000), key=key, progress=False)
    number = post.info.settings["num_particles"]
    found = mcx.filter(
        persistence(y), params={"phi": post["phi"].mean()}, num_particles=number, num_chains=400, key=key,
        progress=False, history="none",
    )  # fmt: skip
    sd = np.std(found.stats["log_evidence"][:, -1])
    assert 0.8 < sd < 1.5 and abs(sd / post.info.settings["log_evidence_sd"] - 1) < 0.4
    check_persistence(post.draws, y, 0.6)


@pytest.mark.slow
def test_ways_to_run_pmmh(tmp_path):
    bound, method = persistence(Y[0]), mcx.PMMH(10, num_warmup=100, num_samples=40)
    options = {"key": 3, "num_chains": 4, "progress": False, "warnings": "ignore"}
    plain = mcx.infer(bound, method, **options)
    for other in (
        mcx.infer(bound, method, batch_size=2, **options),
        mcx.infer(bound, method, devices=2, **options),
        mcx.infer(bound, method, checkpoint=tmp_path / "run", **options),
        mcx.infer(bound, method, checkpoint=tmp_path / "run", **options),
    ):
        assert other["x"].shape == (4, 40, T)
        np.testing.assert_allclose(other["phi"], plain["phi"], atol=1e-4)
    fit = mcx.program(bound, method, num_chains=2)
    posts = jax.jit(jax.vmap(lambda k, y: fit(k, persistence(y))))(jax.random.split(jax.random.key(0), 2), Y)
    assert posts["x"].shape == (2, 2, 40, T) and np.isfinite(posts["x"]).all()
    for init in ("prior", 0.1, {"phi": 0.5}, {"phi": [0.1, 0.2, 0.3, 0.4]}):
        post = mcx.infer(bound, method, init=init, **options)
        assert np.isfinite(post["x"]).all()
    still = dataclasses.replace(method, num_warmup=0, num_samples=1, step_size=1e-6)
    post = mcx.infer(bound, still, init={"phi": [0.1, 0.2, 0.3, 0.4]}, **options)
    np.testing.assert_allclose(post["phi"][:, 0], [0.1, 0.2, 0.3, 0.4], atol=1e-4)


# --- real data -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sp500_by_pmmh(key):
    bound = sp500.stochastic_volatility(sp500.last_100()[0])
    post = mcx.infer(bound, mcx.PMMH(num_samples=10_000), key=key, progress=False, warnings="ignore")
    assert post.info.settings["log_evidence_sd"] < 1.8
    sp500.check_100(post)
