"""``mcx.filter`` as a user meets it: exact answers, replicates, results, forecasts, faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import mcx
import mcx.dist as dist
from mcx.errors import (
    CapabilityError,
    DataError,
    MethodError,
    ModelError,
)
from mcx.model.series.state_space import state_space
from mcx.testing import check_mean, forward_backward, kalman

T, PHI = 40, 0.9


def simulate_ar(length, seed=11):
    rng = np.random.default_rng(seed)
    x = np.zeros(length)
    x[0] = rng.normal() / np.sqrt(1 - PHI**2)
    for t in range(1, length):
        x[t] = PHI * x[t - 1] + rng.normal()
    return (x + 0.5 * rng.normal(size=length)).astype(np.float32)


Y = simulate_ar(T)
Y[7] = np.nan


def exact(y=Y, phi=PHI):
    return kalman(
        y, initial_mean=0.0, initial_cov=1 / (1 - phi**2), transition_matrix=phi, transition_cov=1.0,
        observation_matrix=1.0, observation_cov=0.25,
    )  # fmt: skip


def conditional_law(x, u, y):
    """x_t given x_{t-1} and y_t: the proposal that makes the weights free of x_t."""
    precision = 1.0 + 4.0
    return dist.Normal((PHI * x + 4.0 * y) / precision, precision**-0.5)


def first_law(u, y):
    precision = (1 - PHI**2) + 4.0
    return dist.Normal(4.0 * y / precision, precision**-0.5)


def next_density(x, u, y):
    return dist.Normal(PHI * x, jnp.sqrt(1.25)).log_prob(y)


@mcx.model
def linear(y, kind="bootstrap"):
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1 / jnp.sqrt(1 - phi**2)),
        transition=lambda x, u: dist.Normal(phi * x, 1.0),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
        proposal=conditional_law if kind != "bootstrap" else None,
        initial_proposal=first_law if kind != "bootstrap" else None,
        lookahead=next_density if kind == "auxiliary" else None,
    )


def run(y=Y, kind="bootstrap", num_particles=1000, method=None, **options):
    options = {"params": {"phi": PHI}, "num_particles": num_particles, "progress": False, "key": 0, **options}
    return mcx.filter(linear(y, kind), method=method, **options)


class TestExactAnswers:
    LARGE, SMALL = (2000, 256), (500, 64)

    @pytest.mark.parametrize(
        ("kind", "size", "delta"),
        [
            ("guided", SMALL, 0.15),
            pytest.param("bootstrap", LARGE, 0.15, marks=pytest.mark.slow),
            pytest.param("guided", LARGE, 0.05, marks=pytest.mark.slow),
            pytest.param("auxiliary", LARGE, 0.05, marks=pytest.mark.slow),
        ],
    )
    def test_evidence_and_moments(self, kind, size, delta, key):
        """Replicates: the mean evidence ratio is 1, and moments are Kalman's; alpha 1e-6 each.

        Finds a bias of the evidence of ``delta`` and of the filtering mean of 0.1 posterior sd.
        """
        found = run(kind=kind, key=key, num_particles=size[0], num_chains=size[1], quantiles=(0.1, 0.9))
        truth = exact()
        ratio = np.exp(found.stats["log_evidence"][:, -1] - truth.log_evidence)
        check_mean(ratio, 1.0, delta=delta, independent=True)
        sd = np.sqrt(truth.filtered_covs[:, 0, 0])
        means = found.record.mean["x"]
        # one replicate's weighted mean has a bias of order 1/N beside a sd of order 1/sqrt(N)
        check_mean(means, truth.filtered_means[:, 0], delta=0.1 * sd, independent=True)
        np.testing.assert_allclose(found.mean["x"], truth.filtered_means[:, 0], atol=0.05)
        np.testing.assert_allclose(found.sd["x"], sd, rtol=0.05)
        np.testing.assert_allclose(
            found.quantiles["x"], truth.filtered_means[:, 0] + sd * np.array([[-1.2816], [1.2816]]), atol=0.08
        )
        assert found.mean["x"].shape == found.ess.shape == (T,)

    @pytest.mark.slow
    def test_better_proposals_have_less_variance(self):
        spread = {k: run(kind=k, num_chains=64).stats["log_evidence"][:, -1].std() for k in KINDS}
        assert spread["auxiliary"] < spread["guided"] < 0.5 * spread["bootstrap"]

    @pytest.mark.slow
    def test_kinds_can_be_held_back(self):
        held = run(kind="auxiliary", method=mcx.ParticleFilter(kind="bootstrap"))
        assert held.log_evidence == run(kind="bootstrap").log_evidence

    @pytest.mark.slow
    def test_another_scheme(self, key):
        scheme = mcx.ParticleFilter(resampling="systematic")
        found = run(method=scheme, num_particles=2000, num_chains=256, key=key)
        ratio = np.exp(found.stats["log_evidence"][:, -1] - exact().log_evidence)
        check_mean(ratio, 1.0, delta=0.25, independent=True)

    def test_hidden_markov_model(self, key):
        """Two states, as a NumPyro model: log Z and filtering probabilities."""
        likelihood = np.array([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15], [0.1, 0.9]])
        transition = np.array([[0.7, 0.3], [0.2, 0.8]])

        @mcx.model
        def hmm(table):
            mcx.markov(
                "z",
                initial=lambda u: dist.Categorical(jnp.array([0.5, 0.5])),
                transition=lambda z, u: dist.Categorical(jnp.asarray(transition)[z]),
                emission=lambda z, u: dist.Bernoulli(u[z]),
                obs=np.ones(4, int),
                inputs=table,
            )

        found = mcx.filter(hmm(likelihood), num_particles=1000, num_chains=256, key=key, progress=False)
        truth = forward_backward(np.array([0.5, 0.5]), transition, np.log(likelihood))
        assert truth.log_evidence == pytest.approx(-3.481979, abs=1e-6)
        ratio = np.exp(found.stats["log_evidence"][:, -1] - truth.log_evidence)
        check_mean(ratio, 1.0, delta=0.03, independent=True)
        check_mean(found.record.mean["z"], truth.filtered[:, 1], delta=0.01, independent=True)
        assert state_space(hmm(likelihood)).state_names == ("z",)

    @pytest.mark.slow
    def test_structured_states_with_two_observations(self, key):
        """Level and slope, a missing value, an input: against the Kalman filter."""
        rng = np.random.default_rng(5)
        heat = np.linspace(-1, 1, T).astype(np.float32)
        y = {"a": rng.normal(size=T).astype(np.float32), "b": rng.normal(size=T).astype(np.float32)}
        y["b"][3] = np.nan

        @mcx.model
        def trend(y):
            mcx.markov(
                "s",
                initial=lambda u: {"level": dist.Normal(u, 1.0), "slope": dist.Normal(0.1, 0.5)},
                transition=lambda s, u: {
                    "level": dist.Normal(s["level"] + s["slope"] + u, 0.7),
                    "slope": dist.Normal(0.5 * s["slope"], 0.5),
                },
                emission=lambda s, u: {"a": dist.Normal(s["level"], 1.0), "b": dist.Normal(s["slope"], 0.8)},
                obs=y,
                inputs=heat,
            )

        found = mcx.filter(trend(y), num_particles=4000, num_chains=32, key=key, progress=False)
        offset = np.stack([heat, np.zeros(T)], 1)
        truth = kalman(
            np.stack([y["a"], y["b"]], 1), initial_mean=[heat[0], 0.1], initial_cov=np.diag([1.0, 0.25]),
            transition_matrix=[[1.0, 1.0], [0.0, 0.5]], transition_cov=np.diag([0.49, 0.25]),
            observation_matrix=np.eye(2), observation_cov=np.diag([1.0, 0.64]), transition_offset=offset,
        )  # fmt: skip
        ratio = np.exp(found.stats["log_evidence"][:, -1] - truth.log_evidence)
        check_mean(ratio, 1.0, delta=0.3, independent=True)
        check_mean(found.record.mean["s.level"], truth.filtered_means[:, 0], delta=0.1, independent=True)
        check_mean(found.record.mean["s.slope"], truth.filtered_means[:, 1], delta=0.1, independent=True)


KINDS = ("bootstrap", "guided", "auxiliary")


class TestResults:
    @pytest.mark.slow
    def test_standard_errors(self):
        """Within one run, and across replicates: both near the spread of 64 replicates."""
        many = run(num_chains=64)
        spread = many.stats["log_evidence"][:, -1].std()
        assert 0.5 < run().log_evidence_se / spread < 2
        assert 0.5 < many.log_evidence_se / (spread / 8) < 2
        assert np.isnan(run(method=mcx.ParticleFilter(resampling="systematic")).log_evidence_se)

    def test_print(self):
        text = repr(run())
        assert (
            "ParticleFilter of 'x': 40 times, 1000 particles" in text
            and "log evidence" in text
            and "+-" in text
        )
        assert "num_chains" in repr(run(method=mcx.ParticleFilter(resampling="systematic")))

    @pytest.mark.slow
    def test_datatree(self, tmp_path):
        found = run(
            num_particles=50, num_chains=2, history="full", quantiles=(0.05, 0.95),
            coords={"time": np.arange(1900, 1940)},
        )  # fmt: skip
        tree = found.to_datatree()
        assert tree["filtering"]["x"].dims == tree["filtering"]["x_sd"].dims == ("time",)
        assert tree["filtering"]["x_quantile"].dims == ("quantile", "time")
        assert tree["filtering"]["time"].values[0] == 1900
        assert tree["smc_stats"]["ess"].dims == ("chain", "step")
        assert tree["smc_stats"]["unique_ancestors"].max() <= 50
        assert tree["weighted_posterior"]["x"].dims == ("chain", "time", "particle")
        total = np.exp(tree["weighted_posterior"]["log_weight"]).sum("particle")
        np.testing.assert_allclose(total, 1.0, rtol=1e-5)
        assert np.isnan(tree["observed_data"]["x_obs"]).sum() == 1
        assert tree.attrs["log_evidence"] == pytest.approx(found.log_evidence)
        tree.to_netcdf(tmp_path / "run.nc")
        again = xr.open_datatree(tmp_path / "run.nc")
        np.testing.assert_array_equal(again["filtering"]["x"], tree["filtering"]["x"])

    def test_no_history(self):
        found = run(history="none")
        assert found.mean is None and found.ess.shape == (T,)
        assert found.log_evidence == run().log_evidence
        with pytest.raises(MethodError, match="history='full'"):
            found.paths(3, key=0)

    @pytest.mark.slow
    def test_paths_and_smoothing(self, key):
        """Paths end in the filtering law; fixed-lag means come near the smoothing means."""
        found = run(num_particles=5000, history="full", key=key)
        truth = exact()
        paths = found.paths(4000, key=key)["x"]
        assert paths.shape == (4000, T)
        sd = np.sqrt(truth.filtered_covs[-1, 0, 0])
        assert abs(paths[:, -1].mean() - truth.filtered_means[-1, 0]) < 0.15 * sd
        smoothed = found.smoothed_mean(6)["x"]
        assert np.abs(smoothed - truth.smoothed_means[:, 0]).max() < 0.15
        np.testing.assert_allclose(found.smoothed_mean(0)["x"], found.mean["x"], rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_forecast(self, key):
        """Moments of the states and observations ahead are the Kalman predictions; alpha 1e-6."""
        found = run(num_particles=20_000, key=key)
        ahead = found.forecast(3, key=key, num_draws=20_000)
        assert ahead["x"].shape == ahead["x_obs"].shape == (20_000, 3)
        truth = exact(np.concatenate([Y, np.full(3, np.nan)]))
        mean, variance = truth.filtered_means[-3:, 0], truth.filtered_covs[-3:, 0, 0]
        check_mean(ahead["x"], mean, delta=0.1 * np.sqrt(variance), independent=True)
        check_mean(
            (ahead["x_obs"] - mean) ** 2, variance + 0.25, delta=0.1 * (variance + 0.25), independent=True
        )
        low, high = ahead.quantiles([0.1, 0.9])["x_obs"]
        assert (low < high).all()

    def test_results_do_not_depend_on_the_chunks(self, monkeypatch):
        whole = run()
        monkeypatch.setattr("mcx.inference.filtering.filter._PARTICLE_STEPS_PER_CHUNK", 7000)
        np.testing.assert_array_equal(run().stats["log_evidence"], whole.stats["log_evidence"])
        np.testing.assert_array_equal(run().log_evidence_se, whole.log_evidence_se)

    def test_one_time(self):
        found = run(Y[:1])
        assert found.mean["x"].shape == (1,)
        assert found.log_evidence == pytest.approx(exact(Y[:1]).log_evidence, abs=0.2)

    def test_new_data_and_parameters_trace_nothing(self):
        traces = []

        @mcx.model
        def counted(y):
            traces.append(1)
            s = mcx.sample("s", dist.HalfNormal(1.0))
            mcx.markov(
                "x",
                initial=lambda u: dist.Normal(0, 1),
                transition=lambda x, u: dist.Normal(x, s),
                emission=lambda x, u: dist.Normal(x, 1),
                obs=y,
            )

        def go(y, s):
            return mcx.filter(counted(y), params={"s": s}, key=0, num_particles=20, progress=False)

        go(Y, 1.0)
        before = len(traces)
        go(2 * Y, 0.5)
        assert len(traces) == before

    @pytest.mark.slow
    def test_gradient_and_vmap_over_parameters(self, key):
        """The gradient of the evidence is unbiased; here its average against the Kalman filter's."""
        fk = state_space(linear(Y)).feynman_kac
        evidence = lambda phi, key: mcx.smc(key, fk, {"phi": phi}, num_particles=700).log_evidence  # noqa: E731
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(evidence), (None, 0)))(
            jnp.float32(0.8), jax.random.split(key, 2000)
        )
        h = 1e-4
        truth = (exact(phi=0.8 + h).log_evidence - exact(phi=0.8 - h).log_evidence) / (2 * h)
        weight = np.exp(np.asarray(values, float) - exact(phi=0.8).log_evidence)
        check_mean(
            weight * np.asarray(slopes, float), truth, delta=max(0.3 * abs(truth), 3.0), independent=True
        )
        both = jax.vmap(evidence, (0, None))(jnp.array([0.5, 0.8]), key)
        assert both.shape == (2,) and both[0] != both[1]


class TestOnline:
    def test_agrees_with_the_whole(self, key):
        online = mcx.OnlineFilter(linear(Y), params={"phi": PHI}, num_particles=5000)
        state = online.init(key, Y[0])
        for t in range(1, T):
            state = online.step(jax.random.fold_in(key, t), state, Y[t])
        truth = exact()
        assert int(state.time) == T - 1
        assert abs(state.log_evidence - truth.log_evidence) < 6 * float(state.log_evidence_se) < 3
        mean, sd = online.moments(state)
        assert abs(mean["x"] - truth.filtered_means[-1, 0]) < 0.1
        assert sd["x"] == pytest.approx(np.sqrt(truth.filtered_covs[-1, 0, 0]), rel=0.1)

    def test_refuses_other_shapes(self):
        online = mcx.OnlineFilter(linear(Y), params={"phi": PHI}, num_particles=50)
        with pytest.raises(DataError, match="wrong shape"):
            online.init(0, Y)
        with pytest.raises(DataError, match="structure"):
            online.init(0, {"q": 1.0})


class TestSeveralChains:
    def test_chain_driven_by_another(self, key):
        """The second block's input is the first one's path, which is then a parameter."""

        @mcx.model
        def two(y):
            a = mcx.markov(
                "a",
                initial=lambda u: dist.Normal(0, 1),
                transition=lambda x, u: dist.Normal(x, 1),
                emission=lambda x, u: dist.Normal(x, 1),
                obs=y,
            )
            shift = mcx.deterministic("shift", a[0])
            mcx.markov(
                "b",
                initial=lambda u: dist.Normal(shift, 1),
                transition=lambda x, u: dist.Normal(0.5 * x, 1),
                emission=lambda x, u: dist.Normal(x, 1),
                obs=y,
            )

        with pytest.raises(CapabilityError, match="depends on the path of 'a'"):
            mcx.filter(two(Y), name="a", key=key)
        with pytest.raises(ModelError, match="no value for this site"):
            mcx.filter(two(Y), name="b", key=key)
        path = np.full(T, 2.0, np.float32)
        found = mcx.filter(two(Y), name="b", params={"a": path}, num_particles=5000, key=key, progress=False)
        truth = kalman(
            Y, initial_mean=2.0, initial_cov=1.0, transition_matrix=0.5, transition_cov=1.0,
            observation_matrix=1.0, observation_cov=1.0,
        )  # fmt: skip
        assert abs(found.log_evidence - truth.log_evidence) < 6 * found.log_evidence_se < 3
