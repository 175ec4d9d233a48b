"""What a method cannot take is refused before it runs, and calls that make no sense."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from problems import EFFECT, SIGMA, eight_schools
from test_check import METHOD, NORMAL, floats, infer, observing

import mcx
import mcx.dist as dist
from mcx.errors import (
    CapabilityError,
    KeyTypeError,
    McxError,
    MethodError,
    ModelError,
)

# --- what a method cannot take ---------------------------------------------------------------------


class TestCapabilities:
    @staticmethod
    def discrete():
        @mcx.model
        def model(y):
            k = mcx.sample("k", dist.Poisson(2.0))
            mcx.sample("y", dist.Normal(10.0 * k, 1.0), obs=y)

        return model(np.array([9.0, 11.0], np.float32))

    @staticmethod
    def subsampled():
        @mcx.model
        def model(y):
            x = mcx.sample("x", dist.Normal(0.0, 1.0))
            with mcx.plate("row", len(y), subsample_size=2) as index:
                mcx.sample("y", dist.Normal(x, 1.0), obs=jnp.asarray(y)[index])

        return model(floats(6))

    @pytest.mark.parametrize(
        "bound, site, remedy", [("discrete", "k", "sum it out"), ("subsampled", "row", "subsample_size")]
    )
    def test_gradient_methods_refuse(self, bound, site, remedy):
        bound = getattr(self, bound)()
        with pytest.raises(CapabilityError, match=f"site '{site}'.*") as caught:
            infer(bound)
        assert remedy in caught.value.remedy
        report = bound.check()
        assert report.ok  # nothing is wrong with it as a model
        assert any(f"site '{site}'" in note for note in report.notes)

    def test_forward_runs_take_discrete_sites(self):
        bound = self.discrete()
        assert set(bound.simulate(key=0)) == {"k", "y"}
        prior = mcx.predict(None, bound, key=0, num_draws=200)
        assert prior["y"].shape == (1, 200, 2)  # as many draws as observations
        np.testing.assert_allclose(prior["y"], 10.0 * prior["k"][..., None] + [0, 0], atol=6.0)
        assert np.ptp(prior["y"], axis=-1).min() > 0.0
        # Poisson(1; 2) and two standard normal densities one sd from the mean
        np.testing.assert_allclose(
            bound.log_density({"k": 1}), np.log(2) - 2 - 1 - np.log(2 * np.pi), rtol=1e-6
        )

    def test_forward_runs_take_subsampled_plates(self):
        bound = self.subsampled()
        assert bound.simulate(key=0)["y"].shape == (2,)
        assert mcx.predict(None, bound, key=0, num_draws=3)["y"].shape == (1, 3, 2)
        with pytest.raises(CapabilityError, match="site 'row'.*at random"):
            bound.log_density({"x": 0.0})  # which rows?

    def test_latent_sites_without_a_support(self):
        class Own(dist.Distribution):
            def log_prob(self, value):
                return -jnp.abs(value)

            def sample(self, key, sample_shape=()):
                return jax.random.laplace(key, sample_shape)

        @mcx.model
        def model():
            mcx.sample("x", Own())

        with pytest.raises(CapabilityError, match=r"(?s)site 'x'.*Own declares no support.*constraints.real"):
            infer(model())
        assert np.isfinite(model().simulate(key=0)["x"])

    def test_nothing_to_infer(self):
        bound = observing(NORMAL["()"], floats(2)).condition({"x": 0.0})
        with pytest.raises(CapabilityError, match="no latent site"):
            mcx.program(bound, METHOD)
        assert infer(bound).log_evidence == bound.log_density({})

    def test_params_are_told(self):
        @mcx.model
        def model():
            w = numpyro.param("w", 1.0)
            mcx.sample("x", dist.Normal(w, 1.0))

        assert any("param 'w'" in note for note in model().check().notes)

    def test_improper_priors_are_told(self):
        @mcx.model
        def model(y):
            x = mcx.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
            mcx.sample("y", dist.Normal(x, 1.0), obs=y)

        assert any("improper" in note for note in model(floats(3)).check().notes)
        with pytest.raises(CapabilityError, match=r"(?s)site 'x'.*init="):
            infer(model(floats(3)), init="prior")


# --- calls -----------------------------------------------------------------------------------------


class TestCalls:
    bound = staticmethod(lambda: eight_schools(SIGMA, y=EFFECT))

    @pytest.mark.parametrize(
        "thing, remedy",
        [
            (eight_schools, "call (the model|it) with its data"),
            (lambda y: None, "wrap|call"),
            (SIGMA, "model"),
        ],
        ids=["unbound", "function", "array"],
    )
    def test_what_is_no_bound_model(self, thing, remedy):
        with pytest.raises(ModelError, match=r"no bound model") as caught:
            infer(thing)
        assert re.search(remedy, caught.value.remedy)

    def test_a_class_in_place_of_a_method(self):
        with pytest.raises(MethodError, match=r"(?s)is a class.*expected: NUTS\(\)"):
            infer(self.bound(), mcx.NUTS)

    @pytest.mark.parametrize("method", ["NUTS", None, 3])
    def test_what_is_no_method(self, method):
        with pytest.raises(MethodError, match=r"(?s)no inference method.*mcx.NUTS\(\)"):
            infer(self.bound(), method)

    def test_the_key_is_required(self):
        with pytest.raises(TypeError, match="key"):
            mcx.infer(self.bound(), METHOD)
        with pytest.raises(KeyTypeError, match=r"(?s)required.*jax.random.key\(0\)"):
            infer(self.bound(), key=None)

    @pytest.mark.parametrize("key", [True, 1.0, "0", np.zeros(3)], ids=str)
    def test_what_is_no_key(self, key):
        with pytest.raises(KeyTypeError, match="not a random key"):
            infer(self.bound(), key=key)

    def test_batches_of_keys(self):
        with pytest.raises(KeyTypeError, match=r"(?s)one key.*shape \(2,\)"):
            infer(self.bound(), key=jax.random.split(jax.random.key(0)))

    def test_legacy_keys_are_converted_with_a_warning(self):
        bound = self.bound()
        with pytest.warns(DeprecationWarning, match="legacy"):
            old = bound.simulate(key=jax.random.PRNGKey(3))
        np.testing.assert_array_equal(old["z"], bound.simulate(key=3)["z"])

    def test_check_takes_keys_too(self):
        with pytest.raises(KeyTypeError):
            self.bound().check(key=None)


def test_errors_carry_their_parts():
    error = McxError("it is wrong", site="x", expected="this", found="that", remedy="do so")
    assert (error.site, error.expected, error.found, error.remedy) == ("x", "this", "that", "do so")
    assert str(error).splitlines() == [
        "site 'x': it is wrong",
        "  expected: this",
        "  found: that",
        "  to mend it: do so",
    ]
