"""Bound models: conditioning, simulation, log densities, and values that Python needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from problems import EFFECT, SIGMA, coin, eight_schools

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, KeyTypeError, ModelError
from mcx.model.compile import compile_model

QUIET = {"progress": False, "warnings": "ignore"}


# --- condition, simulate, log_density --------------------------------------------------------------


class TestCondition:
    def test_values_become_observations(self):
        bound = coin(np.array(1)).condition({"p": 0.25})
        assert bound.sites()["p"].observed
        truth = scipy.stats.beta(2, 3).logpdf(0.25) + np.log(0.25)
        np.testing.assert_allclose(bound.log_density({}), truth, rtol=1e-6)
        assert compile_model(bound).dim == 0

    def test_the_original_stays(self):
        bound = coin()
        bound.condition({"p": 0.5})
        assert bound.conditions() == {} and not bound.sites()["p"].observed

    def test_conditions_add_up_and_later_ones_win(self):
        bound = coin().condition({"p": 0.25}).condition({"y": 1}).condition({"p": 0.5})
        assert bound.conditions() == {"p": 0.5, "y": 1}

    def test_an_observed_value_may_be_replaced(self):
        bound = coin(np.array(1)).condition({"y": np.array(0)})
        np.testing.assert_allclose(
            bound.log_density({"p": 0.25}), scipy.stats.beta(2, 3).logpdf(0.25) + np.log(0.75), rtol=1e-6
        )

    def test_conditioned_values_are_data(self):
        quarter, half = (coin().condition({"p": p}).structure for p in (0.25, 0.5))
        assert quarter == half and hash(quarter) == hash(half)

    @pytest.mark.parametrize("name", ["q", "school", "theta"])
    def test_wrong_names(self, name):
        with pytest.raises(ModelError, match=rf"(?s)site '{name}'.*one of .*mu, tau, z"):
            eight_schools(SIGMA).condition({name: 1.0})

    def test_wrong_shapes(self):
        with pytest.raises(ModelError, match=r"(?s)site 'z'.*expected: shape \(8,\).*found: shape \(5,\)"):
            eight_schools(SIGMA).condition({"z": np.zeros(5)})
        assert eight_schools(SIGMA).condition({"z": 0.0}).sites()["z"].num_terms == 8  # one for all is legal


class TestSimulate:
    def test_every_site_is_drawn_and_observations_afresh(self):
        bound = eight_schools(SIGMA, y=EFFECT)
        drawn = bound.simulate(key=0)
        assert set(drawn) == {"mu", "tau", "z", "theta", "y"}
        assert not np.array_equal(drawn["y"], EFFECT)
        np.testing.assert_allclose(drawn["theta"], drawn["mu"] + drawn["tau"] * drawn["z"], rtol=1e-6)

    def test_keys_decide(self):
        bound = coin()
        assert (
            bound.simulate(key=1)["p"]
            == bound.simulate(key=jax.random.key(1))["p"]
            != bound.simulate(key=2)["p"]
        )
        with pytest.raises(KeyTypeError):
            bound.simulate(key=None)

    def test_data_fed_back_in_reproduce_the_draw(self):
        bound = eight_schools(SIGMA)
        drawn = bound.simulate(key=0)
        fitted = eight_schools(SIGMA, y=drawn["y"])
        joint = bound.log_density({k: drawn[k] for k in ("mu", "tau", "z", "y")})
        np.testing.assert_allclose(
            fitted.log_density({k: drawn[k] for k in ("mu", "tau", "z")}), joint, rtol=1e-6
        )

    def test_improper_priors_are_refused(self):
        @mcx.model
        def flat():
            mcx.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

        with pytest.raises(CapabilityError, match=r"(?s)site 'x'.*improper.*condition"):
            flat().simulate(key=0)
        assert flat().condition({"x": 1.0}).sites()["x"].observed

    def test_factors_are_not_drawn(self):
        @mcx.model
        def tilted():
            x = mcx.sample("x", dist.Normal(0, 1))
            mcx.factor("f", -x)

        assert set(tilted().simulate(key=0)) == {"x"}

    def test_discrete_sites_and_subsampled_plates(self):
        @mcx.model
        def mixture():
            with mcx.plate("n", 10, subsample_size=4):
                k = mcx.sample("k", dist.Bernoulli(0.5))
                mcx.sample("x", dist.Normal(jnp.where(k, 10.0, -10.0), 1.0))

        drawn = mixture().simulate(key=0)
        np.testing.assert_array_equal(drawn["x"] > 0, drawn["k"] == 1)
        assert drawn["k"].shape == (4,)


class TestLogDensity:
    def test_every_latent_site_needs_a_value(self):
        with pytest.raises(ModelError, match=r"(?s)site 'tau'.*mu, tau, z"):
            eight_schools(SIGMA, y=EFFECT).log_density({"mu": 0.0, "z": np.zeros(8)})

    @pytest.mark.parametrize("name", ["theta", "y", "nothing"])
    def test_no_other_site_takes_one(self, name):
        values = {"mu": 0.0, "tau": 1.0, "z": np.zeros(8), name: 0.0}
        with pytest.raises(ModelError, match=f"site '{name}'"):
            eight_schools(SIGMA, y=EFFECT).log_density(values)


# --- values that Python needs ----------------------------------------------------------------------


class TestConcreteData:
    def test_branches_on_data(self):
        @mcx.model
        def model(y):
            scale = 1.0 if y[0] > 0 else 2.0
            mcx.sample("x", dist.Normal(0.0, scale))

        for value, scale in ((1.0, 1.0), (-1.0, 2.0), (1.0, 1.0)):
            density = model(np.array([value])).log_density({"x": 0.5})
            np.testing.assert_allclose(density, scipy.stats.norm(0, scale).logpdf(0.5), rtol=1e-6)

    def test_sizes_from_data(self):
        @mcx.model
        def model(groups, y):
            with mcx.plate("group", int(groups.max()) + 1):
                mean = mcx.sample("mean", dist.Normal(0.0, 1.0))
            mcx.sample("y", dist.Normal(mean[groups], 1.0), obs=y)

        bound = model(np.array([0, 0, 2]), np.zeros(3, np.float32))
        assert bound.sites()["mean"].shape == (3,)
        post = mcx.infer(bound, mcx.NUTS(num_warmup=20, num_samples=10), key=0, **QUIET)
        assert post.draws["mean"].shape == (4, 10, 3)
        assert set(bound.simulate(key=0)) == {"mean", "y"}
        assert bound.check().ok

    @pytest.mark.parametrize(
        "branch", [lambda x: float(x), lambda x: x > 0 and 1.0, lambda x: np.asarray(x).item()]
    )
    def test_branches_on_latent_values_are_refused(self, branch):
        @mcx.model
        def model(y):
            x = mcx.sample("x", dist.Normal(0.0, 1.0))
            mcx.sample("y", dist.Normal(branch(x), 1.0), obs=y)

        with pytest.raises(ModelError, match=r"(?s)model branches or indexes in Python.*jnp.where"):
            model(np.array(1.0)).sites()
        report = model(np.array(1.0)).check()
        assert not report.ok and isinstance(report.problems[0], ModelError)


@pytest.mark.parametrize(
    "verb", [lambda f, z: f(z), lambda f, z: jax.jit(f)(z)], ids=["eager", "closure in jit"]
)
def test_data_may_be_indexed_by_latent_values(verb):
    """numpy arrays cannot be indexed by traced values: targets hold JAX arrays."""

    @mcx.model
    def model(table):
        x = mcx.sample("x", dist.Normal(0.0, 1.0))
        mcx.factor("f", table[jnp.where(x > 0, 1, 0)])

    target = compile_model(model(np.array([0.0, -3.0])))
    np.testing.assert_allclose(verb(jax.vmap(target.log_likelihood), {"x": jnp.array([-1.0, 1.0])}), [0, -3])
