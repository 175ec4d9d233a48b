"""SMC^2 against quadrature over Kalman likelihoods, and its inner filters against their own keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sp500
from gibbs_problems import (
    GRID,
    T,
    Y,
    autoregression,
    averaged,
    chain_model,
    check_regimes,
    check_scan,
    check_two_chains,
    forecasting_scan,
    persistence,
    regimes,
    two_chains,
)
from nested_problems import StopsAfter, check_weighted, log_evidences, run
from problems import slow_unless

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, MethodError, ModelError, NonFiniteError, WeightCollapse
from mcx.inference.pmmh.marginal import marginal_model
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.smc import loop_with
from mcx.inference.smc2.nested import nest, nested_filters
from mcx.inference.smc2.nested_moves import PMMHMoves, with_pmmh
from mcx.testing import check_mean

SMALL = {"num_params": 64, "num_particles": 8}


# --- against quadrature ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """64 replicates of 64 parameters with 8 particles each."""
    return run(persistence(Y[0]), mcx.SMC2(**SMALL), mcx.testing.key_for("smc2"), num_chains=64)


@pytest.mark.slow
def test_evidence_of_every_stretch(many):
    """Unbiased but for what moves learn from the cloud, of order 1 / 64; alpha 1e-6."""
    exact = log_evidences(Y[0])
    ratio = np.exp(many.smc_stats["log_evidence"] - exact)
    assert ratio.shape == (64, T)
    check_mean(ratio, 1.0, delta=np.linspace(0.15, 0.8, T), independent=True)
    assert many.log_evidence == pytest.approx(exact[-1], abs=5 * many.log_evidence_se)


@pytest.mark.slow
def test_parameters_and_paths(many):
    """Weighted by the estimated evidence they are unbiased, too; finds 0.6 posterior sds."""
    check_weighted(many, Y[0], finds=0.6)


@pytest.mark.slow
def test_results_of_smc2(many):
    assert list(many.draws) == ["phi", "x", "squared"] and many["x"].shape == (64, 64, T)
    np.testing.assert_allclose(many["squared"], many["phi"] ** 2, rtol=1e-5)
    stats = many.smc_stats
    assert all(x.shape == (64, T) for x in stats.values())
    moved = stats["moved"].astype(bool)
    assert moved[:, -1].all() and 0 < moved[:, :-1].mean() < 0.5
    assert (stats["ess"][moved[:, :-1].nonzero()] < 32).all()
    assert np.isfinite(stats["acceptance"][moved]).all() and np.isnan(stats["acceptance"][~moved]).all()
    assert (stats["num_moves"][moved] >= 1).all() and (stats["unique_ancestors"][moved] < 64).all()
    tree = many.to_datatree()
    assert tree["posterior"]["x"].dims == ("chain", "draw", "time") and "smc_stats" in tree.children
    assert many.info.settings["paths_that_differ"] < 0.01
    assert many.info.settings["num_particles"] == 8 and 1 < many.info.settings["log_evidence_sd"] < 3
    assert not [a for a in mcx.SMC2().diagnose(many) if a.code in ("MCX-W010", "MCX-W012")]


# --- what it is made of ----------------------------------------------------------------------------


def composed(move):
    """The model in its parts, run by the loop that runs everything."""
    nesting, data = nested_filters(marginal_model(persistence(Y[0])), 4)
    model = with_pmmh(nesting, PMMHMoves(), data) if move else nest(nesting, data)
    return nesting, data, model


@pytest.mark.parametrize("move", slow_unless([True], [False, True]))
def test_filters_are_had_once_more_from_their_keys(move):
    """After resampling and moves as well: every particle's evidence is that of the keys it carries."""
    nesting, data, model = composed(move)
    options = {"num_particles": 32, "resampling": "systematic", "history": "full"}
    result = mcx.smc(jax.random.key(1), model, **options)
    particles = result.state.particles
    assert bool(result.history.particles.stage.moved.any()) == move
    space = data.spaces["x"]

    def again(position, keys):
        target = nesting.path.target(data.path)
        ctx = space.feynman_kac.prepare({"phi": target.constrain(target.unravel(position))["phi"]})
        own = jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(keys), 0)
        keep = HistorySettings("none")
        return loop_with(own[0], own[1:], space.feynman_kac, ctx, nesting.settings, keep).log_evidence

    found = jax.jit(jax.vmap(again))(particles.position, particles.keys)
    np.testing.assert_allclose(found, particles.systems["x"].log_evidence, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("move", [False, True])
def test_composed(move, key):
    """Evidence of the parts put together by hand; alpha 1e-6, finds a tenth of it."""
    _, _, model = composed(move)
    runs = jax.jit(jax.vmap(lambda k: mcx.smc(k, model, num_particles=32).log_evidence))
    ratio = np.exp(np.asarray(runs(jax.random.split(key, 2000))) - log_evidences(Y[0])[-1])
    check_mean(ratio, 1.0, delta=0.15, independent=True)


@pytest.mark.slow
def test_a_point_for_a_prior(key):
    """Nothing but a bank of filters: the evidence is the mean of theirs, with their variance over the number.

    Filters of 4 particles, at the fourth time, before the evidence has heavy tails; 400 replicates give the
    variance within 10 % or so.
    """

    @mcx.model
    def known(y):
        phi = mcx.sample("phi", dist.Uniform(0.6, 0.6 + 1e-5))
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(phi * x, 0.7),
            emission=lambda x, u: dist.Normal(x, 0.5),
            obs=y,
        )

    exact = np.sum(autoregression(Y[0], 0.6).log_increments[:4])
    bank = mcx.filter(
        known(Y[0]), params={"phi": 0.600005}, num_particles=4, num_chains=4000, key=key, progress=False,
        history="none",
    )  # fmt: skip
    each = np.exp(bank.stats["log_evidence"][:, 3] - exact)
    # resampled at the end only
    post = run(known(Y[0]), mcx.SMC2(64, 4, threshold=1e-6), key, num_chains=400)
    ratio = np.exp(post.smc_stats["log_evidence"][:, 3] - exact)
    check_mean(ratio, 1.0, delta=0.1, independent=True)
    assert np.var(ratio) == pytest.approx(np.var(each) / 64, rel=0.4)
    assert not post.smc_stats["moved"][:, :-1].any()


# --- refusals --------------------------------------------------------------------------------------


def unequal(y):
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    law = {
        "initial": lambda u: dist.Normal(0.0, 1.0),
        "transition": lambda x, u: dist.Normal(phi * x, 1.0),
        "emission": lambda x, u: dist.Normal(x, 1.0),
    }
    mcx.markov("a", obs=y, **law)
    mcx.markov("b", obs=y[:5], **law)


def test_refusals_of_smc2():
    method = mcx.SMC2(8, 4)
    for bad in ({"num_params": 1}, {"num_particles": 0}, {"threshold": 0.0}, {"filter": "bootstrap"}):
        with pytest.raises(MethodError):
            mcx.SMC2(**bad)
    for bound, error, message in (
        (mcx.model(unequal)(Y[0]), CapabilityError, "'a, b'(.|\n)*of the same length(.|\n)*PMMH"),
        (chain_model(), CapabilityError, "has no parameters"),
        (regimes(Y[0], seen=0.4), CapabilityError, "improper(.|\n)*initial_law="),
    ):
        with pytest.raises(error, match=message):
            run(bound, method, 0)
    with pytest.raises(MethodError, match="init="):
        run(persistence(Y[0]), method, 0, init=0.1)
    with pytest.raises(MethodError, match="keys of this kind(.|\n)*threefry"):
        run(persistence(Y[0]), method, jax.random.key(0, impl="rbg"))
    with pytest.raises(MethodError, match="cannot grow"):
        mcx.program(persistence(Y[0]), mcx.SMC2(8))


@pytest.mark.slow
def test_an_observation_that_nobody_explains():
    """At the last time, too: it is not taken for a run that was stopped."""

    @mcx.model
    def bounded(y):
        s = mcx.sample("s", dist.HalfNormal(1.0))
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(x, s),
            emission=lambda x, u: dist.Uniform(x - 1, x + 1),
            obs=y,
        )

    for at in (2, 4):
        y = np.zeros(5, np.float32)
        y[at] = 1e6
        with pytest.raises(WeightCollapse, match=f"step {at}(.|\n)*take more parameters"):
            run(bounded(y), mcx.SMC2(8, 4), 0, num_chains=2)


@pytest.mark.slow
def test_filters_that_are_no_numbers():
    @mcx.model
    def broken(y):
        s = mcx.sample("s", dist.HalfNormal(1.0))
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(x, s),
            emission=lambda x, u: dist.Normal(jnp.log(x - 1), 1.0),
            obs=y,
        )

    with pytest.raises(NonFiniteError, match="step 0"):
        run(broken(np.zeros(3, np.float32)), mcx.SMC2(8, 16), 0)


@pytest.mark.slow
def test_stopped_early(key):
    """Parameters given the observations so far, and their evidence; exported, and said."""
    y = np.tile(Y[0], 3)
    method = mcx.SMC2(256, 8)
    post = mcx.infer(persistence(y), method, key=key, progress=StopsAfter(), num_chains=8, warnings="ignore")
    assert not post.complete and list(post.draws) == ["phi"] and post["phi"].shape == (8, 256)
    known = np.isfinite(post.smc_stats["log_evidence"]).all(0)
    seen = int(known.sum())
    assert 1 < seen < len(y) and known[:seen].all() and post.smc_stats["ess"].shape == (8, len(y))
    exact = log_evidences(y)[seen - 1]
    assert post.log_evidence == pytest.approx(exact, abs=5 * post.log_evidence_se)
    (found,) = [a.text for a in method.diagnose(post) if a.code == "MCX-W010"]
    assert f"after {seen} of {len(y)} observations" in found
    tree = post.to_datatree()
    assert tree["smc_stats"]["ess"].dims == ("chain", "time") and "log_likelihood" not in tree.children
    assert "phi" in repr(post)
    with pytest.raises(ModelError, match="no paths"):
        mcx.forecast(post, 1, key=key)


# --- more models, and ways to run ------------------------------------------------------------------


@pytest.mark.slow
def test_two_chains_with_a_common_parameter_by_smc2(key):
    check_two_chains(run(two_chains(Y), mcx.SMC2(1000, 50), key, num_chains=20))


@pytest.mark.slow
def test_smc2_of_scan(key):
    check_scan(run(mcx.model(forecasting_scan)(Y[0]), mcx.SMC2(1000, 50), key, num_chains=20).draws)


@pytest.mark.slow
def test_discrete_states_and_an_improper_prior_by_smc2(key):
    """Drawn from a law of its own, which the prior replaces at time 0."""
    check_regimes(
        run(regimes(Y[0], seen=0.4), mcx.SMC2(1000, 50, initial_law=2.0), key, num_chains=20), seen=0.4
    )


@pytest.mark.slow
def test_number_of_particles_of_smc2(key):
    """Grown until moves are accepted; the series is long and its observations are precise."""
    y = np.tile(Y[0], 24) + 0.2 * np.random.default_rng(0).normal(size=24 * T).astype(np.float32)
    post = run(persistence(y), mcx.SMC2(128), key, num_chains=2)
    few = mcx.filter(
        persistence(y), params={"phi": post["phi"].mean()}, num_particles=64, num_chains=200, key=key,
        progress=False, history="none",
    )  # fmt: skip
    assert np.std(few.stats["log_evidence"][:, -1]) > 2.2
    assert post.info.settings["num_particles"] > 64 and post.info.settings["log_evidence_sd"] < 2.2
    each = [autoregression(y, phi).log_evidence for phi in GRID]
    assert post["phi"].mean() == pytest.approx(averaged(np.array(each), GRID), abs=0.05)


@pytest.mark.slow
def test_ways_to_run_smc2(tmp_path):
    bound, method = persistence(Y[0]), mcx.SMC2(64, 8)
    options = {"num_chains": 4}
    plain = run(bound, method, 3, **options)
    for other in (
        run(bound, method, 3, batch_size=2, **options),
        run(bound, method, 3, devices=2, **options),
        run(bound, mcx.SMC2(64, 8, batch_size=16), 3, **options),
        run(bound, method, 3, checkpoint=tmp_path / "run", **options),
        run(bound, method, 3, checkpoint=tmp_path / "run", **options),
    ):
        assert other["x"].shape == (4, 64, T)
        np.testing.assert_allclose(
            other.smc_stats["log_evidence"], plain.smc_stats["log_evidence"], atol=1e-3
        )
        np.testing.assert_allclose(other["phi"], plain["phi"], atol=1e-3)
    fit = mcx.program(bound, method, num_chains=2)
    posts = jax.jit(jax.vmap(lambda k, y: fit(k, persistence(y))))(jax.random.split(jax.random.key(0), 2), Y)
    assert posts["x"].shape == (2, 2, 64, T) and jnp.isfinite(posts["x"]).all()
    one = run(bound, method, 5, num_chains=1, devices=4)
    assert one["x"].shape == (1, 64, T) and np.isfinite(one.log_evidence)


@pytest.mark.slow
def test_sp500_by_smc2(key):
    """Ten replicates; the number of inner particles grows."""
    bound = sp500.stochastic_volatility(sp500.last_100()[0])
    post = run(bound, mcx.SMC2(500), key, num_chains=10)
    assert post.info.settings["log_evidence_sd"] < 1.8 and post.log_evidence_se < 0.15
    sp500.check_100(post)
