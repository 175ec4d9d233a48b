"""Mistakes in models and data: each is named, by check() without raising and by infer() with."""

import contextlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from problems import forget_programs, regression, regression_data

import mcx
import mcx.dist as dist
from mcx.errors import (
    BroadcastError,
    DataError,
    DuplicateSiteError,
    InitializationError,
    ModelError,
    SiteNameError,
    SupportError,
)
from mcx.testing.strategies import models

METHOD = mcx.MALA(num_warmup=5, num_samples=5)  # takes gradients, and compiles faster than NUTS


def infer(bound, method=METHOD, key=0, **options):
    return mcx.infer(bound, method, key=key, progress=False, warnings="ignore", **options)


def assert_refused(bound, error, site, what, remedy):
    """Reported by check() and raised by infer(): of one type, naming the site, saying how to mend it."""
    report = bound.check()
    assert not report.ok
    with pytest.raises(ModelError) as caught:
        infer(bound)
    for problem in (report.problems[0], caught.value):
        assert type(problem) is error and problem.site == site
        assert f"site '{site}'" in str(problem) and re.search(what, problem.what), problem
        assert problem.remedy and re.search(remedy, problem.remedy), problem
    assert caught.value.what.splitlines()[0] in str(report)
    return caught.value


def assert_clean(bound):
    report = bound.check()
    assert report.ok, report
    assert "no problems found" in str(report)


def observing(distribution, y, **plates):
    """A model of one latent site and, in plates given as ``name=(size, dim)``, one observed site."""

    @mcx.model
    def model(y):
        x = mcx.sample("x", dist.Normal(0.0, 1.0))
        with contextlib.ExitStack() as around:
            for name, (size, dim) in plates.items():
                around.enter_context(mcx.plate(name, size, dim=dim))
            mcx.sample("y", distribution(x), obs=y)

    return model(y)


def floats(*shape):
    return np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape).astype(np.float32)


# --- names -----------------------------------------------------------------------------------------


class TestNames:
    @pytest.mark.parametrize(
        "second", [mcx.sample, lambda name, fn: mcx.deterministic(name, 1.0)], ids=["sample", "deterministic"]
    )
    def test_used_twice(self, second):
        @mcx.model
        def model():
            mcx.sample("x", dist.Normal(0.0, 1.0))
            second("x", dist.Normal(0.0, 1.0))

        assert_refused(model(), DuplicateSiteError, "x", "used twice", "rename.*submodel")

    def test_used_twice_by_a_submodel(self):
        @mcx.model
        def part():
            mcx.sample("x", dist.Normal(0.0, 1.0))

        @mcx.model
        def model():
            mcx.sample("a", part.bind())
            mcx.sample("a", part.bind())

        assert_refused(model(), DuplicateSiteError, "a.x", "used twice", "rename")

    def test_plates_may_be_entered_again(self):
        @mcx.model
        def model():
            plate = mcx.plate("n", 3)
            with plate:
                x = mcx.sample("x", dist.Normal(0.0, 1.0))
            with plate:
                mcx.sample("y", dist.Normal(x, 1.0))
            with mcx.plate("n", 3):
                mcx.sample("z", dist.Normal(x, 1.0))

        assert_clean(model())

    def named(self, name, plate="row"):
        @mcx.model
        def model(y):
            x = mcx.sample(name, dist.Normal(0.0, 1.0))
            with mcx.plate(plate, len(y)):
                mcx.sample("y", dist.Normal(x, 1.0), obs=y)

        return model(floats(3))

    @pytest.mark.parametrize("name", ["chain", "draw", "sample"])
    def test_reserved_for_the_results(self, name):
        assert_refused(self.named(name), SiteNameError, name, "dimension", "rename")

    def test_of_a_plate(self):
        assert_refused(self.named("row"), SiteNameError, "row", "dimension", "rename.*plate")

    def test_of_the_plate_around_the_site(self):
        @mcx.model
        def model(y):
            with mcx.plate("y", len(y)):
                mcx.sample("y", dist.Normal(0.0, 1.0), obs=y)

        assert_refused(model(floats(3)), SiteNameError, "y", "dimension", "rename.*plate")

    def test_of_the_dimension_of_another_site(self):
        @mcx.model
        def model():
            mcx.sample("x", dist.Normal(jnp.zeros(2), 1.0))
            mcx.sample("x_dim_0", dist.Normal(0.0, 1.0))

        assert_refused(model(), SiteNameError, "x_dim_0", "dimension", "rename")


# --- shapes ----------------------------------------------------------------------------------------

NORMAL = {
    "()": lambda x: dist.Normal(x, 1.0),
    "(8,)": lambda x: dist.Normal(x + jnp.zeros(8), 1.0),
    "(8, 1)": lambda x: dist.Normal(x + jnp.zeros((8, 1)), 1.0),
    "(8, 2)": lambda x: dist.Normal(x + jnp.zeros((8, 2)), 1.0),
    "vectors (8, 1)": lambda x: dist.Normal(x + jnp.zeros((8, 1, 2)), 1.0).to_event(1),
}


class TestBroadcasting:
    @pytest.mark.parametrize(
        "batch, value, plates, terms",
        [
            ("(8, 1)", (8,), {}, 64),
            ("(8,)", (8, 1), {}, 64),
            ("(8, 1)", (8,), {"n": (8, -1)}, 64),
            ("(8,)", (8, 1), {"n": (8, -1)}, 64),
            ("()", (8, 1), {"n": (8, -1)}, 64),
            ("(8, 1)", (1, 8), {}, 64),
            ("(8,)", (), {}, 8),
            ("(8,)", (1,), {}, 8),
            ("(8, 2)", (8, 1), {}, 16),
            ("vectors (8, 1)", (8, 2), {}, 64),
        ],
    )
    def test_that_multiplies_the_likelihood(self, batch, value, plates, terms):
        bound = observing(NORMAL[batch], floats(*value), **plates)
        count = 8 if batch.startswith("vectors") else int(np.prod(value))
        error = assert_refused(bound, BroadcastError, "y", f"^{count} observed values.*{terms} log", "plate")
        assert bound.sites()["y"].num_terms == terms
        assert "batch shape" in error.found

    @pytest.mark.parametrize(
        "batch, value, plates, terms",
        [
            ("()", (8,), {}, 8),  # independent observations of one law
            ("(8,)", (8,), {}, 8),
            ("()", (8,), {"n": (8, -1)}, 8),
            ("()", (), {"n": (8, -1)}, 8),  # one value for all, as declared
            ("()", (8, 1), {"n": (8, -2)}, 8),
            ("(8, 1)", (8, 1), {"n": (8, -2)}, 8),
            ("(8,)", (1, 8), {"n": (8, -1)}, 8),
            ("()", (8, 2), {"n": (8, -2), "m": (2, -1)}, 16),
            ("()", (8, 1), {"n": (8, -2), "m": (2, -1)}, 16),
            ("()", (2,), {"n": (8, -2), "m": (2, -1)}, 16),
            ("(8, 1)", (8, 2), {"m": (2, -1)}, 16),
            ("vectors (8, 1)", (8, 1, 2), {"n": (8, -2)}, 8),
        ],
    )
    def test_that_is_meant(self, batch, value, plates, terms):
        bound = observing(NORMAL[batch], floats(*value), **plates)
        assert_clean(bound)
        assert bound.sites()["y"].num_terms == terms

    @pytest.mark.parametrize("value", [(5,), (2, 8), (8, 3)])
    def test_that_is_impossible(self, value):
        bound = observing(NORMAL["(8, 2)"], floats(*value))
        assert_refused(bound, ModelError, "y", "does not fit", "shape of the data")


# --- data ------------------------------------------------------------------------------------------


class TestSupport:
    # densities that stay finite outside of their support, that become -inf, and of integers
    @pytest.mark.parametrize(
        "distribution, value, support",
        [
            pytest.param(
                lambda x: dist.HalfNormal(jnp.exp(x)), [1.0, -1.0], "positive", marks=pytest.mark.slow
            ),
            pytest.param(
                lambda x: dist.Gamma(2.0, jnp.exp(x)), [1.0, -1.0], "positive", marks=pytest.mark.slow
            ),
            (lambda x: dist.Poisson(jnp.exp(x)), [3, -1], "nonnegative"),
        ],
        ids=["half-normal", "gamma", "Poisson"],
    )
    def test_values_outside(self, distribution, value, support):
        error = assert_refused(
            observing(distribution, self.data(value)),
            SupportError,
            "y",
            "outside the support",
            "units, signs",
        )
        assert re.search(support, error.expected)

    @staticmethod
    def data(value):
        y = np.array(value)
        return y.astype(np.float32) if y.dtype.kind == "f" else y

    @pytest.mark.parametrize(
        "distribution, value, support",
        [
            (lambda x: dist.Bernoulli(logits=x), [0, 2], "boolean"),
            (lambda x: dist.Beta(jnp.exp(x), 2.0), [0.5, 1.5], "unit_interval|interval"),
            (lambda x: dist.Uniform(0.0, 1.0 + x**2), [0.5, 1e3], "interval"),
            (lambda x: dist.Categorical(logits=jnp.stack([x, 0 * x])), [0, 2], "integer_interval"),
            (lambda x: dist.Dirichlet(jnp.exp(x) * jnp.ones(2)), [[0.5, 0.6]], "simplex"),
        ],
        ids=["Bernoulli", "beta", "uniform", "categorical", "Dirichlet"],
    )
    def test_values_outside_of_other_supports(self, distribution, value, support):
        error = observing(distribution, self.data(value)).check().problems[0]
        assert type(error) is SupportError and error.site == "y" and re.search(support, error.expected)

    def test_a_support_that_moves_needs_only_one_good_start(self):
        # y = 1.5 lies in (0, 1 + x^2) where |x| > 0.7: the search for starting points finds such
        assert_clean(observing(lambda x: dist.Uniform(0.0, 1.0 + x**2), np.array([1.5], np.float32)))

    @pytest.mark.slow
    def test_conditioned_values_count(self):
        x, y = regression_data()
        bound = regression(x, y=y).condition({"noise": -1.0})
        assert_refused(bound, SupportError, "noise", "HalfNormal", "signs")

    def test_a_distribution_that_declares_no_support(self):
        class Own(dist.Distribution):
            def log_prob(self, value):
                return -jnp.abs(value)

        assert_clean(observing(lambda x: Own(), np.float32(0.5)))


class TestValues:
    def test_nan(self):
        y = np.array([1.0, np.nan, np.nan], np.float32)
        error = assert_refused(observing(NORMAL["()"], y), DataError, "y", "^2 .*NaN", "mask")
        assert error.expected == "finite data"

    def test_nan_that_is_masked_and_replaced(self):
        """The remedy that the message offers works."""

        @mcx.model
        def model(y, missing):
            x = mcx.sample("x", dist.Normal(0.0, 1.0))
            mcx.sample("y", dist.Normal(x, 1.0).mask(~missing), obs=jnp.where(missing, 0.0, y))

        y = np.array([1.0, np.nan], np.float32)
        bound = model(y, np.isnan(y))
        assert_clean(bound)
        alone = observing(NORMAL["()"], y[:1]).log_density({"x": 0.5})
        np.testing.assert_allclose(bound.log_density({"x": 0.5}), alone, rtol=1e-6)

    def test_nan_comes_before_other_complaints(self):
        y = np.array([np.nan, -1.0], np.float32)
        assert_refused(observing(lambda x: dist.HalfNormal(jnp.exp(x)), y), DataError, "y", "NaN", "mask")

    @pytest.mark.parametrize("dtype", [int, np.int8, bool])
    def test_integers_for_a_continuous_law(self, dtype):
        bound = observing(NORMAL["()"], np.array([0, 1], dtype))
        error = assert_refused(bound, DataError, "y", "Normal is continuous", "float")
        assert error.expected == "floating-point data"

    @pytest.mark.parametrize("dtype", [int, np.uint8, np.float32])
    def test_counts_of_any_dtype_for_a_discrete_law(self, dtype):
        assert_clean(observing(lambda x: dist.Poisson(jnp.exp(x)), np.array([0, 3], dtype)))
        assert_clean(observing(lambda x: dist.Bernoulli(logits=x), np.array([0, 1], dtype)))

    def test_truth_values_for_bernoulli(self):
        assert_clean(observing(lambda x: dist.Bernoulli(logits=x), np.array([True, False])))

    def test_infinities(self):
        bound = observing(NORMAL["()"], np.array([np.inf], np.float32))
        assert_refused(bound, SupportError, "y", "outside the support of Normal", "data")


# --- starting points -------------------------------------------------------------------------------


class TestStartingPoints:
    def test_no_finite_density(self):
        @mcx.model
        def model(y):
            x = mcx.sample("x", dist.Normal(0.0, 1.0))
            s = mcx.sample("s", dist.HalfNormal(1.0))
            mcx.sample("y", dist.Normal(x, s), obs=y)
            mcx.factor("hopeless", jnp.where(x > 50.0, 0.0, -jnp.inf))

        error = assert_refused(
            model(floats(3)), InitializationError, "hopeless", "no starting point", "init="
        )
        table = error.what.splitlines()
        assert "0 with finite density" in table[1]
        assert any(re.match(r"  y: log prob -?\d.* to -?\d", line) for line in table)
        assert any(line.startswith("  hopeless: log prob never finite") for line in table)

    def test_no_finite_gradient(self):
        @mcx.model
        def model():
            x = mcx.sample("x", dist.Normal(0.0, 1.0))
            y = mcx.sample("y", dist.Normal(0.0, 1.0))
            # where() hides the infinity from the value and not from the gradient
            mcx.factor("f", jnp.where(x > 100.0, jnp.sqrt(x - 100.0), 0.0) + y)

        error = assert_refused(model(), InitializationError, "x", "no starting point", "init=")
        assert re.search(r"  x: log prob .*, gradient finite at 0\n", error.what)
        assert not re.search(r"  y: .*gradient", error.what)

    def test_a_bad_parameter(self):
        bound = observing(lambda x: dist.Normal(x, -jnp.exp(x)), floats(2))
        assert_refused(bound, InitializationError, "y", "no starting point", "parameters")

    def test_some_bad_points_are_reported_and_not_refused(self):
        @mcx.model
        def model():
            x = mcx.sample("x", dist.Normal(0.0, 1.0))
            mcx.factor("half", jnp.where(x > 0.0, 0.0, -jnp.inf))

        report = model().check()
        assert report.ok
        assert re.search(r"half: log prob 0 to 0 \(finite at \d+\)", report.starts)

    @pytest.mark.parametrize(
        "init, error, says",
        [
            ("posterior", InitializationError, "not understood"),
            ([1.0], InitializationError, "not understood"),
            (True, InitializationError, "not understood"),
            ({"slope": 0.0, "sigma": 1.0}, InitializationError, "site 'sigma'.*no latent site"),
            ({"intercept": "a", "slope": 0.0, "noise": 1.0}, InitializationError, "'intercept'.*no number"),
            (
                {"intercept": 0.0, "slope": np.zeros(3), "noise": 1.0},
                InitializationError,
                "site 'slope'.*shape",
            ),
            ({"intercept": 0.0, "slope": 0.0, "noise": -1.0}, InitializationError, "site 'noise'"),
        ],
    )
    def test_bad_init(self, init, error, says):
        with pytest.raises(error, match=says):
            infer(regression(*regression_data()), init=init)


# --- what is right is not refused ------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=3, derandomize=True)
@given(bound=models(max_latent=3))
def test_generated_models_are_clean(bound):
    assert_clean(bound)


@pytest.mark.slow
@settings(max_examples=40)
@given(bound=models())
def test_many_generated_models_are_clean(bound):
    forget_programs()
    assert_clean(bound)
