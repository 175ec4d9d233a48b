"""mcx.smooth and mcx.maximize against dense Gaussian algebra and the Kalman likelihood."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib.control_flow import scan
from problems import slow_unless
from scipy.optimize import minimize

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, InitializationError, MethodError, ModelError, WeightCollapse
from mcx.results.estimate import Estimate
from mcx.testing import check_mean, dense_gaussian, kalman

NOISE = 0.2
PARAMS = {"rho": 0.9, "s": 1.0}


@mcx.model
def ar(y):
    rho = mcx.sample("rho", dist.Uniform(-1, 1))
    s = mcx.sample("s", dist.HalfNormal(1.0))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, s / jnp.sqrt(1 - rho**2)),
        transition=lambda x, u: dist.Normal(rho * x, s),
        emission=lambda x, u: dist.Normal(x, NOISE**0.5),
        obs=y,
    )


def data(times, seed=0):
    rng = np.random.default_rng(seed)
    x = np.zeros(times)
    x[0] = rng.normal() / (1 - 0.9**2) ** 0.5
    for t in range(1, times):
        x[t] = 0.9 * x[t - 1] + rng.normal()
    return (x + NOISE**0.5 * rng.normal(size=times)).astype(np.float32)


def matrices(rho=0.9, s=1.0):
    return {
        "initial_mean": 0.0,
        "initial_cov": s**2 / (1 - rho**2),
        "transition_matrix": rho,
        "transition_cov": s**2,
        "observation_matrix": 1.0,
        "observation_cov": NOISE,
    }


def second_moments(y):
    """E[x_s x_t | y]."""
    exact = dense_gaussian(y, **matrices())
    mean = exact.means[:, 0]
    return exact.cov[:, 0, :, 0] + np.outer(mean, mean)


def log_likelihood(y, rho, s):
    return kalman(y, **matrices(rho, s)).log_evidence


def derivative(y, step=1e-4):
    """Of the Kalman likelihood, in rho and s."""
    return [
        (log_likelihood(y, 0.9 + a, 1 + b) - log_likelihood(y, 0.9 - a, 1 - b)) / (2 * step)
        for a, b in ((step, 0.0), (0.0, step))
    ]


METHODS = {
    "PPG": mcx.PPG(num_particles=30, num_warmup=8, num_samples=4),
    "PPG exact": mcx.PPG(num_particles=20, num_warmup=8, num_samples=4, backward="exact"),
    "PaRIS": mcx.PaRIS(num_particles=400),
    "PaRIS all": mcx.PaRIS(num_particles=200, backward="all"),
    "FFBS": mcx.FFBS(num_particles=400, num_paths=400),
}
T = 25
smooth = functools.partial(mcx.smooth, params=PARAMS, progress=False)


@pytest.mark.parametrize("name", slow_unless([], list(METHODS)))
def test_two_functionals_at_once(key, name):
    """64 chains against dense Gaussian algebra; alpha 1e-6, finds biases of 3 and of 0.4."""
    y = data(T)
    exact = second_moments(y)

    def functional(x_prev, x, t):
        return {"product": x_prev * x, "late": jnp.where(t > 20, x, 0.0)}

    found = smooth(ar(y), functional, method=METHODS[name], key=key, num_chains=64)
    draws = {k: np.asarray(v).mean(1) for k, v in found.draws.items()}
    truth = np.trace(exact, offset=1)
    check_mean(draws["product"], truth, delta=3.0, independent=True)
    mean = dense_gaussian(y, **matrices()).means[21:, 0].sum()
    check_mean(draws["late"], mean, delta=0.4, independent=True)
    assert found.se["product"] == pytest.approx(draws["product"].std(ddof=1) / 8, rel=1e-4)


@pytest.mark.parametrize("name", slow_unless([], ["PPG", "PaRIS", "FFBS"]))
def test_the_score_is_that_of_the_kalman_likelihood(key, name):
    y = data(T)
    found = smooth(ar(y), mcx.functionals.score(), method=METHODS[name], key=key, num_chains=64)
    for site, truth in zip(("rho", "s"), derivative(y), strict=True):
        check_mean(np.asarray(found.draws[site]).mean(1), truth, delta=1.5, independent=True)


@pytest.mark.slow
def test_moments_at_every_time(key):
    """Means and covariances of every time from one run each; alpha 1e-6."""
    y = data(T)
    exact = kalman(y, **matrices())
    found = smooth(ar(y), mcx.functionals.covariances(), method=METHODS["FFBS"], key=key, num_chains=32)
    assert found.value.shape == found.se.shape == (T, 1, 1)
    first, second = (np.asarray(x)[:, 0] for x in found.draws)
    check_mean(first[..., 0], exact.smoothed_means[:, 0], delta=0.2, independent=True)
    truth = exact.smoothed_covs[:, 0, 0]
    check_mean(second[..., 0, 0], truth + exact.smoothed_means[:, 0] ** 2, delta=0.8, independent=True)
    # what finish= makes of them, with its jackknife: 6 standard errors and the bias of 1/400
    np.testing.assert_array_less(np.abs(found.value[:, 0, 0] - truth), 6 * found.se[:, 0, 0] + truth / 200)


@pytest.mark.slow
def test_means_at_every_time_by_ppg(key):
    y = data(T)
    found = smooth(ar(y), mcx.functionals.means(), method=METHODS["PPG"], key=key, num_chains=16)
    exact = kalman(y, **matrices()).smoothed_means[:, 0]
    check_mean(np.asarray(found.draws).mean(1), exact, delta=0.5, independent=True)
    assert np.asarray(found.stats["updated"]).shape == (16, 4, T)


@pytest.mark.slow
def test_smoothing_as_data_arrive(key):
    """One observation at a time; 40 runs against the smoothed sum at the last time. Memory stays as it is."""
    y = data(8)
    truth = np.trace(second_moments(y), offset=1)
    online = mcx.OnlineSmoother(
        ar(y[:1]), lambda x_prev, x, t: x_prev * x, params=PARAMS, method=mcx.PaRIS(num_particles=300)
    )
    found = []
    for run in jax.random.split(key, 40):
        keys = jax.random.split(run, len(y))
        state = online.init(keys[0], y[0])
        for k, observation in zip(keys[1:], y[1:], strict=True):
            state = online.step(k, state, observation)
        found.append(state.value)
    check_mean(np.array(found), truth, delta=1.5, independent=True)
    assert float(state.log_evidence) == pytest.approx(log_likelihood(y, 0.9, 1.0), abs=1.0)
    with pytest.raises(MethodError, match="keeps its terms apart"):
        mcx.OnlineSmoother(ar(y), mcx.functionals.means(), params=PARAMS)


@pytest.mark.slow
def test_ppg_removes_the_bias_of_paris(key):
    """T = 100, sum of x_{t-1} x_t: PaRIS with 50 particles is off by about -7, PPG with 50 by nothing."""
    y = data(100)
    truth = np.trace(second_moments(y), offset=1)

    def h(x_prev, x, t):
        return x_prev * x

    exact = {"num_particles": 50, "backward": "exact", "threshold": 1.0}
    paris = smooth(ar(y), h, method=mcx.PaRIS(**exact), key=key, num_chains=400)
    assert -12 < paris.value - truth < -4
    for backward in ({"backward": "exact"}, {"num_mh_steps": 2}):
        method = mcx.PPG(**{**exact, "backward": "imh", **backward}, num_warmup=7, num_samples=8)
        ppg = smooth(ar(y), h, method=method, key=key, num_chains=400)
        check_mean(np.asarray(ppg.draws).mean(1), truth, delta=2.0, independent=True)


@pytest.mark.slow
def test_a_numpyro_scan_is_smoothed(key):
    def model(y):
        rho = numpyro.sample("rho", dist.Uniform(-1, 1))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(rho * x, 1.0))
            numpyro.sample("y", dist.Normal(x, NOISE**0.5), obs=y)
            return x, None

        scan(step, 0.0, y)

    y = data(T)
    found = mcx.smooth(
        mcx.model(model)(y), lambda x_prev, x, t: x_prev["x"] * x["x"], params={"rho": 0.9},
        method=mcx.FFBS(num_particles=300, num_paths=300), key=key, num_chains=32, progress=False,
    )  # fmt: skip
    exact = dense_gaussian(y, **{**matrices(), "initial_cov": 1.0})
    mean = exact.means[:, 0]
    truth = np.trace(exact.cov[:, 0, :, 0] + np.outer(mean, mean), offset=1)
    check_mean(np.asarray(found.draws)[:, 0], truth, delta=3.0, independent=True)


def test_what_is_printed_and_stored(key, tmp_path):
    y = data(T)
    method = mcx.FFBS(num_particles=50, num_paths=50)
    found = smooth(ar(y), lambda x_prev, x, t: x, method=method, key=key)
    text = repr(found)
    assert "FFBS: 4 runs" in text and "value = " in text and "+-" in text and "bias of order T / N" in text
    tree = found.to_datatree()
    assert tree["smc_stats"]["ess"].dims == ("chain", "iteration", "time")
    assert float(tree["estimates"]["value"]) == pytest.approx(float(found.value))
    assert float(tree["estimates"]["se_value"]) == pytest.approx(float(found.se))
    tree.to_netcdf(tmp_path / "smooth.nc")
    alone = Estimate.of(found.draws[:1], {}, found.info)
    assert np.isnan(alone.se) and "1 runs" in repr(alone)
    within = Estimate.of(np.random.default_rng(0).normal(size=(2, 500, 3)), {}, found.info)
    np.testing.assert_allclose(within.se, 1 / 1000**0.5, rtol=0.3)


@pytest.mark.parametrize(
    "method", [mcx.PaRIS(8), mcx.FFBS(num_particles=8, num_paths=4)], ids=["PaRIS", "FFBS"]
)
def test_smoothers_without_a_state_are_saved(key, tmp_path, method):
    """They have nothing to go on from but their results, which a second call opens."""

    def run(**options):
        found = smooth(ar(data(3)), lambda a, b, t: a * b, method=method, key=key, **options)
        return np.asarray(found.value)

    first, again = run(checkpoint=tmp_path), run(checkpoint=tmp_path)
    assert first == again == run()


def test_smoothing_refuses_what_it_cannot_do(key):
    y = data(T)
    with pytest.raises(MethodError, match="not an additive functional"):
        smooth(ar(y), 3.0, key=key)
    bad = mcx.AdditiveFunctional(lambda a, b, t: {"x": b}, lambda x: x)
    with pytest.raises(MethodError, match="do not add up"):
        smooth(ar(y), bad, key=key)
    with pytest.raises(MethodError, match=r"PPG(.|\n)*FFBS"):
        smooth(ar(y), lambda a, b, t: a, method=mcx.NUTS(), key=key)
    with pytest.raises(ModelError, match="no value for this site"):
        mcx.smooth(ar(y), lambda a, b, t: a, params={"rho": 0.9}, key=key)
    for make in (
        lambda: mcx.PPG(num_samples=0),
        lambda: mcx.PPG(num_particles=1),
        lambda: mcx.PPG(backward="all"),
        lambda: mcx.PaRIS(backward="sideways"),
        lambda: mcx.PaRIS(num_backward=0),
        lambda: mcx.FFBS(num_paths=0),
        lambda: mcx.FFBS(threshold=1.5),
        lambda: mcx.ScoreAscent(average=0.0),
        lambda: mcx.ScoreAscent(smoother=mcx.NUTS()),
    ):
        with pytest.raises(MethodError):
            make()


@pytest.mark.slow
def test_a_collapse_is_told(key):
    @mcx.model
    def bounded(y):
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(x, 1.0),
            emission=lambda x, u: dist.Uniform(x - 0.5, x + 0.5),
            obs=y,
        )

    y = np.array([0.0, 0.0, 80.0, 0.0], np.float32)
    with pytest.raises(WeightCollapse, match="step 2") as error:
        mcx.smooth(
            bounded(y),
            lambda a, b, t: b,
            method=mcx.FFBS(num_particles=20, num_paths=5),
            key=key,
            progress=False,
        )
    assert np.isnan(error.value.result.value)


def test_steps_without_a_density_are_refused(key):
    def model(y):
        def step(carry, y):
            x, total = carry
            x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0))
            total = total + jnp.exp(x)  # more than the states of this step
            numpyro.sample("y", dist.Normal(total, 1.0), obs=y)
            return (x, total), None

        scan(step, (0.0, 0.0), y)

    with pytest.raises(CapabilityError, match="density of the transition"):
        mcx.smooth(mcx.model(model)(data(5)), lambda a, b, t: b["x"], key=key)


def maximum(y):
    """Of the Kalman likelihood, and standard errors from its second derivatives."""

    def minus(q):
        return -log_likelihood(y, *q)

    best = minimize(minus, [0.8, 1.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-8}).x
    step = 1e-3
    shifts = step * np.eye(2)
    hessian = [
        [
            (minus(best + a + b) - minus(best + a - b) - minus(best - a + b) + minus(best - a - b))
            / (4 * step**2)
            for b in shifts
        ]
        for a in shifts
    ]
    return best, np.sqrt(np.diag(np.linalg.inv(hessian)))


ASCENTS = {
    "FFBS": mcx.ScoreAscent(smoother=mcx.FFBS(num_particles=100, num_paths=50), num_updates=300),
    "PaRIS": mcx.ScoreAscent(smoother=mcx.PaRIS(num_particles=100), num_updates=300),
    "PPG": mcx.ScoreAscent(num_updates=300),
}


@pytest.mark.slow
def test_the_maximum_is_found(key):
    """Without standard errors, from the start given; 5 Monte Carlo errors and the bias of 1 / N."""
    y = data(30)
    best, se = maximum(y)
    method = mcx.ScoreAscent(smoother=mcx.PaRIS(num_particles=60), num_updates=150, num_information=0)
    found = mcx.maximize(ar(y), method=method, init={"rho": 0.5, "s": 1.0}, key=key, progress=False)
    for i, site in enumerate(("rho", "s")):
        assert found.mc_se[site] < 0.1 * se[i]
        assert abs(found.params[site] - best[i]) < 5 * found.mc_se[site] + 0.1 * se[i]
        assert np.isnan(found.se[site])
    assert "no standard errors were asked for" in repr(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ASCENTS))
def test_maximum_likelihood_by_score_ascent(key, name):
    """Against the maximum of the Kalman likelihood: 5 Monte Carlo errors; standard errors within 15 %.

    Monte Carlo errors are small beside the standard errors. What is not PPG has a bias of order T / N, for
    which a tenth of a standard error is allowed.
    """
    y = data(100)
    best, se = maximum(y)
    found = mcx.maximize(ar(y), method=ASCENTS[name], key=key, progress=False)
    for i, site in enumerate(("rho", "s")):
        assert found.mc_se[site] < 0.2 * se[i]
        bias = 0.0 if name == "PPG" else 0.1 * se[i]
        assert abs(found.params[site] - best[i]) < 5 * found.mc_se[site] + bias
        assert found.se[site] == pytest.approx(se[i], rel=0.15)
        assert found.trace[site].shape == (300,)
    assert "rho = 0.8" in repr(found) and found.notes == ()


def test_the_score_of_a_discrete_parameter_is_refused(key):
    @mcx.model
    def model(y):
        level = mcx.sample("level", dist.Categorical(jnp.array([0.5, 0.5])))
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(x, 1.0),
            emission=lambda x, u: dist.Normal(x + level, 1.0),
            obs=y,
        )

    with pytest.raises(CapabilityError, match="discrete"):
        mcx.smooth(model(data(4)), mcx.functionals.score(), params={"level": 1}, key=key)


def test_maximize_refuses_what_it_cannot_do(key):
    y = data(T)
    with pytest.raises(InitializationError, match="does not fit"):
        mcx.maximize(ar(y), init={"rho": 0.1}, key=key)
    with pytest.raises(MethodError, match=r"ScoreAscent(.|\n)*ScoreClimbing"):
        mcx.maximize(ar(y), method=mcx.PPG(), key=key)

    @mcx.model
    def known(y):
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(x, 1.0),
            emission=lambda x, u: dist.Normal(x, 1.0),
            obs=y,
        )

    with pytest.raises(CapabilityError, match="continuous parameters"):
        mcx.maximize(known(y), key=key)
