"""Posteriors, summaries, ArviZ."""

import warnings

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import pytest
import scipy.integrate
import scipy.stats
import xarray as xr
from problems import EFFECT, SIGMA, eight_schools, regression, regression_data

import mcx
import mcx.dist as dist
from mcx.errors import DiagnosticWarning, InferenceWarning, MethodError, PosteriorShapeError

SCHOOLS = list("ABCDEFGH")


@pytest.fixture(scope="module")
def bound():
    return eight_schools(SIGMA, y=EFFECT)


@pytest.fixture(scope="module")
def posterior(bound):
    method = mcx.NUTS(num_warmup=500, num_samples=500, target_accept=0.99)
    return mcx.infer(bound, method, key=0, progress=False, coords={"school": SCHOOLS})


@pytest.fixture(scope="module")
def tree(posterior, bound):
    return posterior.to_datatree(
        posterior_predictive=mcx.predict(posterior, bound, key=1),
        prior=mcx.predict(None, bound, key=2, num_draws=200),
        predictions=mcx.predict(posterior, eight_schools(SIGMA[:3]), key=3, resample=["z"]),
    )


def test_groups_variables_and_dimensions(tree):
    expected = {
        "posterior": {"mu", "tau", "z", "theta"},
        "sample_stats": {
            "lp", "energy", "acceptance_rate", "step_size", "n_steps", "tree_depth", "diverging",
            "reached_max_treedepth",
        },
        "log_likelihood": {"y"},
        "log_prior": {"mu", "tau", "z"},
        "observed_data": {"y"},
        "constant_data": {"sigma"},
        "posterior_predictive": {"y"},
        "prior": {"mu", "tau", "z", "theta"},
        "prior_predictive": {"y"},
        "predictions": {"z", "theta", "y"},
    }  # fmt: skip
    assert {name: set(tree[name].data_vars) for name in tree.children} == expected
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert tree["posterior"]["school"].values.tolist() == SCHOOLS
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert tree["observed_data"]["y"].dims == ("school",)
    assert tree["predictions"]["z"].shape == (4, 500, 3)
    assert tree["sample_stats"]["diverging"].dtype == bool
    assert tree.attrs["method"] == "NUTS" and tree.attrs["complete"] == 1
    assert tree["posterior"].attrs["inference_library"] == "mcx"


def test_stored_densities_are_the_models(tree):
    # scipy-free recomputation of the formulas, at every draw
    p = {k: v.values.astype(np.float64) for k, v in tree["posterior"].data_vars.items()}
    log_normal = lambda x, m, s: -0.5 * ((x - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)  # noqa: E731
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"], log_normal(EFFECT, p["theta"], SIGMA), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(tree["log_prior"]["mu"], log_normal(p["mu"], 0, 5), rtol=1e-4, atol=1e-4)
    half_cauchy = np.log(2 / (np.pi * 5)) - np.log1p((p["tau"] / 5) ** 2)
    np.testing.assert_allclose(tree["log_prior"]["tau"], half_cauchy, rtol=1e-4, atol=1e-4)
    jacobian = np.log(p["tau"])
    total = sum(
        tree[g][v].values.reshape(4, 500, -1).sum(-1)
        for g, v in [("log_prior", "mu"), ("log_prior", "tau"), ("log_prior", "z"), ("log_likelihood", "y")]
    )
    np.testing.assert_allclose(tree["sample_stats"]["lp"], total + jacobian, rtol=1e-4, atol=1e-3)


def exact_elpd_loo() -> float:
    """Sum of log p(y_i | y_-i) = log Z(y) - log Z(y_-i), mu integrated out and tau by quadrature."""

    def log_z(keep):
        y, s = EFFECT[keep].astype(float), SIGMA[keep].astype(float)

        def density(tau):
            covariance = np.diag(s**2 + tau**2) + 25.0
            return scipy.stats.multivariate_normal(np.zeros(len(y)), covariance).pdf(y) * half_cauchy(tau)

        half_cauchy = scipy.stats.halfcauchy(scale=5).pdf
        # the tail matters: split where the likelihood has long given up, so that quad sees both parts
        parts = [scipy.integrate.quad(density, a, b, epsabs=0)[0] for a, b in ((0, 50), (50, np.inf))]
        return np.log(sum(parts))

    whole = np.arange(8)
    return sum(log_z(whole) - log_z(whole != i) for i in range(8))


def test_arviz_numbers(tree, posterior):
    table = az.summary(tree, var_names=["mu", "tau", "theta"])
    assert table["r_hat"].astype(float).max() < 1.02
    own = posterior.summary(["mu", "tau", "theta"])
    assert list(own) == list(table.index)
    np.testing.assert_allclose(own.columns["ess_bulk"], table["ess_bulk"].astype(float), atol=1.0)
    has_errors, _ = az.diagnose(tree, return_diagnostics=True)
    assert not has_errors
    loo = az.loo(tree)
    # Pareto-smoothed importance sampling of 2,000 draws: its error here is some hundredths
    assert abs(loo.elpd - exact_elpd_loo()) < 0.15
    comparison = az.compare({"one": tree, "two": tree})
    assert len(comparison) == 2
    sensitivity = az.psense_summary(tree)
    assert np.isfinite(sensitivity.loc["mu", ["prior", "likelihood"]].astype(float)).all()


@pytest.mark.parametrize(
    "plot",
    [
        lambda t: az.plot_trace(t, var_names=["mu", "tau"]),
        lambda t: az.plot_forest(t, var_names=["theta"]),
        lambda t: az.plot_rank(t, var_names=["mu", "tau"]),
        lambda t: az.plot_pair(t, var_names=["mu", "tau"]),
        az.plot_energy,
    ],
    ids=["trace", "forest", "rank", "pair", "energy"],
)
def test_arviz_plots(tree, plot):
    assert plot(tree) is not None
    plt.close("all")


@pytest.mark.parametrize("store", ["netcdf", "zarr"])
def test_round_trip(tree, tmp_path, store):
    path = tmp_path / f"run.{store}"
    if store == "netcdf":
        tree.to_netcdf(path)
        back = xr.open_datatree(path, engine="netcdf4")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr's own notes about its format
            tree.to_zarr(path)
            back = xr.open_datatree(path, engine="zarr")
    xr.testing.assert_identical(back.load()["posterior"].dataset, tree["posterior"].dataset)
    assert back.attrs == tree.attrs
    assert az.summary(back).sort_index().equals(az.summary(tree).sort_index())


def test_a_posterior_is_a_pytree(posterior):
    doubled = jax.tree_util.tree_map(lambda x: x * 2 if x.dtype == np.float32 else x, posterior)
    np.testing.assert_allclose(doubled.draws["mu"], 2 * posterior.draws["mu"])
    assert doubled.info is posterior.info
    assert list(doubled.summary(["mu", "tau"])) == ["mu", "tau"]
    assert next(iter(doubled.summary())) == "mu"  # program order, though pytrees sort dictionaries


def test_repr_fits_one_screen(posterior):
    text = repr(posterior)
    assert len(text.splitlines()) < 24
    assert "NUTS: 4 chains x 500 draws after 500 warm-up steps" in text
    assert "not shown: theta(8,)" in text or "not shown: z(8,)" in text


def test_summary_labels_and_values(posterior):
    summary = posterior.summary(["theta"])
    assert list(summary)[0] == "theta[A]"
    draws = posterior.draws["theta"][..., 0].astype(float)
    row = summary["theta[A]"]
    assert row["mean"] == pytest.approx(draws.mean()) and row["sd"] == pytest.approx(draws.std(ddof=1))
    assert row["5%"] == pytest.approx(np.quantile(draws, 0.05))
    assert summary.to_dataframe().shape == (8, 9)
    with pytest.raises(PosteriorShapeError, match="nothing"):
        posterior.summary(["nothing"])


def test_one_chain_has_no_r_hat(bound):
    method = mcx.NUTS(num_warmup=100, num_samples=100)
    post = mcx.infer(bound, method, key=0, num_chains=1, progress=False, warnings="ignore")
    assert np.isnan(post.summary(["mu"])["mu"]["r_hat"])
    assert post.to_datatree()["posterior"]["mu"].shape == (1, 100)


@pytest.mark.slow
def test_types_that_files_refuse_are_converted(tmp_path):
    @mcx.model
    def model():
        x = mcx.sample("x", dist.Normal(0, 1))
        mcx.deterministic("positive", x > 0)
        mcx.deterministic("short", x.astype(jnp.bfloat16))

    post = mcx.infer(
        model(), mcx.NUTS(num_warmup=50, num_samples=20), key=0, progress=False, warnings="ignore"
    )
    tree = post.to_datatree()
    assert tree["posterior"]["positive"].dtype == np.int8
    assert tree["posterior"]["short"].dtype == np.float32
    az.summary(tree)
    tree.to_netcdf(tmp_path / "x.nc")


def test_coords_are_checked(bound):
    method = mcx.NUTS(num_warmup=20, num_samples=10)
    options = {"key": 0, "progress": False, "warnings": "ignore"}
    with pytest.raises(PosteriorShapeError, match="skool"):
        mcx.infer(bound, method, coords={"skool": SCHOOLS}, **options)
    with pytest.raises(PosteriorShapeError, match="number of labels"):
        mcx.infer(bound, method, coords={"school": SCHOOLS[:3]}, **options)


class TestWarnings:
    funnel_settings = mcx.NUTS(num_warmup=0, num_samples=200, step_size=1.0)  # far too large in the neck

    @staticmethod
    def funnel():
        @mcx.model
        def funnel():
            v = mcx.sample("v", dist.Normal(0, 3))
            mcx.sample("x", dist.Normal(jnp.zeros(9), jnp.exp(v / 2)))

        return funnel()

    @pytest.mark.slow
    def test_one_block_with_advice(self):
        with pytest.warns(InferenceWarning) as caught:
            mcx.infer(self.funnel(), self.funnel_settings, key=0, progress=False)
        assert len(caught) == 1
        text = str(caught[0].message)
        assert "MCX-W003" in text and "divergent" in text and "target_accept" in text
        assert caught[0].filename == __file__

    def test_raise_keeps_the_run(self):
        with pytest.raises(DiagnosticWarning, match="divergent") as error:
            mcx.infer(self.funnel(), self.funnel_settings, key=0, progress=False, warnings="raise")
        assert error.value.result.draws["v"].shape == (4, 200)

    def test_a_clean_run_says_nothing(self):
        x, y = regression_data()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mcx.infer(regression(x, y=y), mcx.NUTS(), key=0, progress=False, warnings="raise")

    @pytest.mark.slow
    def test_two_modes_are_told(self):
        @mcx.model
        def modes():
            mixture = dist.MixtureSameFamily(
                dist.Categorical(probs=jnp.ones(2) / 2), dist.Normal(jnp.array([-20.0, 20.0]), 1.0)
            )
            mcx.sample("x", mixture)

        start = {"x": np.array([-20.0, 20.0, -20.0, 20.0])}
        with pytest.warns(InferenceWarning, match="MCX-W005.*r_hat"):
            mcx.infer(modes(), mcx.NUTS(num_warmup=200, num_samples=200), key=0, init=start, progress=False)

    def test_unknown_mode(self, bound):
        with pytest.raises(MethodError, match="warnings"):
            mcx.infer(bound, mcx.NUTS(num_warmup=20, num_samples=10), key=0, warnings="never", progress=False)


class TestPredict:
    def test_posterior_predictive_law(self, posterior, bound):
        y = mcx.predict(posterior, bound, key=5)["y"]
        residual = (y - posterior.draws["theta"]) / SIGMA
        # given theta, the residuals are independent standard normals
        mcx.testing.check_mean(residual.reshape(-1, 8), 0.0, delta=0.2, independent=True)
        mcx.testing.check_mean(residual.reshape(-1, 8) ** 2, 1.0, delta=0.3, independent=True)

    def test_deterministic_sites_follow_the_draws(self, posterior, bound):
        theta = mcx.predict(posterior, bound, key=5)["theta"]
        np.testing.assert_allclose(theta, posterior.draws["theta"], rtol=1e-5, atol=1e-5)

    def test_new_data(self, key):
        x, y = regression_data()
        post = mcx.infer(regression(x, y=y), mcx.NUTS(), key=key, progress=False)
        new = np.array([-5.0, 0.0, 5.0], np.float32)
        drawn = mcx.predict(post, regression(new), key=1)["y"]
        assert drawn.shape == (4, 1000, 3)
        mean = post.draws["intercept"][..., None] + post.draws["slope"][..., None] * new
        z = ((drawn - mean) / post.draws["noise"][..., None]).reshape(-1, 3)
        mcx.testing.check_mean(z, 0.0, delta=0.2, independent=True)

    def test_prior_predictive(self, bound, key):
        prior = mcx.predict(None, bound, key=key, num_draws=4000)
        assert prior["y"].shape == (1, 4000, 8)
        mcx.testing.check_mean(prior["mu"][0], 0.0, delta=0.6, independent=True)
        mcx.testing.check_mean(prior["mu"][0] ** 2, 25.0, delta=5.0, independent=True)
        assert set(prior) == {"mu", "tau", "z", "theta", "y"}

    def test_shapes_that_do_not_fit(self, posterior):
        with pytest.raises(PosteriorShapeError, match=r"site 'z'.*\n.*\n.*\n.*resample=\['z'\]"):
            mcx.predict(posterior, eight_schools(SIGMA[:3]), key=0)

    def test_unknown_resample(self, posterior, bound):
        with pytest.raises(PosteriorShapeError, match="nothing"):
            mcx.predict(posterior, bound, key=0, resample=["nothing"])

    def test_sites_that_the_posterior_lacks(self, posterior):
        """A renamed site, and an unrelated model: nothing comes from the prior unless that is asked for."""

        @mcx.model
        def renamed(sigma, y=None):
            mu = mcx.sample("mean", dist.Normal(0, 5))
            tau = mcx.sample("tau", dist.HalfNormal(5))
            with numpyro.plate("school", len(sigma)):
                z = mcx.sample("z", dist.Normal(0, 1))
                mcx.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

        @mcx.model
        def unrelated():
            mcx.sample("b", dist.Normal(mcx.sample("a", dist.Normal(0, 1)), 1))

        for y in (None, np.zeros(8)):
            with pytest.raises(PosteriorShapeError, match="no draws of latent") as caught:
                mcx.predict(posterior, renamed(SIGMA, y), key=0)
            assert caught.value.site == "mean" and "resample=['mean']" in caught.value.remedy
        drawn = mcx.predict(posterior, renamed(SIGMA), key=0, resample=["mean"])
        assert np.std(drawn["mean"]) == pytest.approx(5, rel=0.1)
        with pytest.raises(PosteriorShapeError, match="site 'a, b'"):
            mcx.predict(posterior, unrelated(), key=0)

    def test_blocks_do_not_change_the_draws(self, posterior, bound, monkeypatch):
        from mcx.results import map_draws as blocks

        whole = mcx.predict(posterior, bound, key=5)["y"]
        monkeypatch.setattr(blocks, "_BLOCK_BYTES", 64 * 7)
        np.testing.assert_array_equal(mcx.predict(posterior, bound, key=5)["y"], whole)
