"""The language: binding and running, bound models as pytrees, submodels, conditioning, simulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import potential_energy
from problems import EFFECT, SIGMA, eight_schools, regression, regression_data

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, KeyTypeError, ModelError
from mcx.model.compile import compile_model
from mcx.testing import check_mean

QUIET = {"progress": False, "warnings": "ignore"}


@mcx.model
def coin(y=None):
    p = mcx.sample("p", dist.Beta(2.0, 3.0))
    mcx.sample("y", dist.Bernoulli(p), obs=y)
    return p


# --- binding and running ---------------------------------------------------------------------------


class TestCalls:
    def test_outside_a_call_binds_and_runs_nothing(self):
        calls = []

        @mcx.model
        def model(x):
            calls.append(x)

        assert isinstance(model(1.0), mcx.BoundModel) and isinstance(model.bind(1.0), mcx.BoundModel)
        assert calls == []

    def test_inside_a_model_a_call_runs(self):
        @mcx.model
        def outer():
            return coin()

        with handlers.seed(rng_seed=0):
            assert 0 < outer() < 1
        assert [s.name for s in outer().sites()] == ["p", "y"]

    def test_bind_binds_even_inside(self):
        with handlers.seed(rng_seed=0):
            assert isinstance(coin.bind(), mcx.BoundModel)

    @pytest.mark.parametrize(
        "context",
        [handlers.seed(rng_seed=0), handlers.trace(), numpyro.plate("n", 3)],
        ids=["seed", "trace", "plate"],
    )
    def test_any_handler_makes_a_call_run(self, context):
        @mcx.model
        def model():
            return "ran"

        with context:
            assert model() == "ran"
        assert isinstance(model(), mcx.BoundModel)

    def test_an_error_inside_leaves_no_handler_behind(self):
        @mcx.model
        def broken():
            mcx.sample("x", dist.Normal(0, 1))
            raise RuntimeError("on purpose")

        for verb in (lambda b: b.sites(), lambda b: b.simulate(0), lambda b: b.check()):
            with pytest.raises(RuntimeError, match="on purpose"):
                verb(broken())
            assert isinstance(coin(), mcx.BoundModel)

    def test_decorating_twice_is_decorating_once(self):
        assert mcx.model(coin) is coin

    def test_metadata_of_the_function_is_kept(self):
        def documented(y):
            """What it is."""

        model = mcx.model(documented)
        assert model.__doc__ == "What it is." and model.__name__ == "documented"
        assert repr(model) == "<mcx model documented(y)>"

    def test_callables_without_a_name_or_signature_serve(self):
        partial = mcx.model(functools.partial(coin.fn, y=np.array(1)))
        assert partial().sites()["y"].observed
        assert "partial" in repr(partial)

    @pytest.mark.parametrize("args, kwargs", [((), {}), ((1, 2, 3), {}), ((1,), {"z": 2}), ((1,), {"x": 2})])
    def test_wrong_arguments(self, args, kwargs):
        @mcx.model
        def model(x, y=None):
            pass

        with pytest.raises(ModelError, match=r"(?s)model: .*expected: model\(x, y=None\).*to mend it"):
            model(*args, **kwargs)

    def test_what_is_no_function(self):
        with pytest.raises(ModelError, match="callable"):
            mcx.model(3)

    def test_repr_shows_the_arguments(self):
        @mcx.model
        def model(x, n=3, label="a"):
            pass

        assert repr(model(np.zeros((2, 3), np.float32))) == "<model(x=float32[2,3], n=3, label='a')>"
        conditioned = coin().condition({"p": 0.5})
        assert repr(conditioned) == "<coin(y=None) | p>"


class TestStatementsOutsideOfModels:
    @pytest.mark.parametrize(
        "statement",
        [
            lambda: mcx.sample("x", dist.Normal(0, 1)),
            lambda: mcx.sample("x", coin.bind()),
            lambda: mcx.factor("x", 0.0),
        ],
        ids=["sample", "submodel", "factor"],
    )
    def test_they_say_so(self, statement):
        with pytest.raises(ModelError, match=r"(?s)site 'x'.*outside of a model.*@mcx.model"):
            statement()

    def test_unknown_kind_of_factor(self):
        with pytest.raises(ModelError, match=r"(?s)'likelihood' or 'prior'.*'posterior'"):
            mcx.factor("x", 0.0, kind="posterior")

    def test_a_key_makes_sample_draw_as_in_numpyro(self):
        x = mcx.sample("x", dist.Normal(0, 1), rng_key=jax.random.key(0))
        np.testing.assert_array_equal(x, dist.Normal(0, 1).sample(jax.random.key(0)))


class TestNumPyro:
    """A model is a NumPyro model, and the other way round."""

    def test_numpyros_mcmc(self):
        mcmc = MCMC(NUTS(eight_schools), num_warmup=50, num_samples=50, progress_bar=False)
        mcmc.run(jax.random.key(0), SIGMA, y=EFFECT)
        assert mcmc.get_samples()["theta"].shape == (50, 8)

    def test_numpyros_predictive(self):
        drawn = Predictive(eight_schools, num_samples=5)(jax.random.key(0), SIGMA)
        assert drawn["y"].shape == (5, 8)

    def test_numpyros_handlers(self):
        trace = handlers.trace(handlers.seed(eight_schools, rng_seed=0)).get_trace(SIGMA)
        assert set(trace) == {"mu", "tau", "school", "z", "theta", "y"}

    def test_a_bound_model_runs_there_too(self):
        bound = eight_schools(SIGMA, y=EFFECT)
        trace = handlers.trace(handlers.seed(bound.run, rng_seed=0)).get_trace()
        np.testing.assert_array_equal(trace["y"]["value"], EFFECT)

    def test_a_plain_numpyro_function(self):
        def plain(y):
            mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
            numpyro.factor("extra", -(mu**2))
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        bound = mcx.model(plain)(np.array(0.5, np.float32))
        truth = scipy.stats.norm.logpdf(0.25) - 0.25**2 + scipy.stats.norm.logpdf(0.5, 0.25)
        np.testing.assert_allclose(bound.log_density({"mu": 0.25}), truth, rtol=1e-6)
        assert compile_model(bound).sites["extra"].likelihood


# --- pytrees ---------------------------------------------------------------------------------------


def same_structure(a, b):
    return a.structure == b.structure and hash(a.structure) == hash(b.structure)


@mcx.model
def anything(*args, **kwargs):
    return args, kwargs


class TestPytree:
    def test_arrays_are_leaves_and_python_values_static(self):
        bound = anything(
            np.zeros(2), jnp.ones(3), np.float32(1), 2.5, 3, True, "text", None, len, name=np.arange(4)
        )
        leaves = jax.tree_util.tree_leaves(bound)
        assert [np.shape(x) for x in leaves] == [(2,), (3,), (), (4,)]

    def test_flatten_and_unflatten(self):
        bound = regression(*regression_data())
        leaves, treedef = jax.tree_util.tree_flatten(bound)
        again = jax.tree_util.tree_unflatten(treedef, leaves)
        assert same_structure(bound, again)
        np.testing.assert_array_equal(again.arguments()["y"], bound.arguments()["y"])

    def test_the_program_sees_its_arguments_as_they_were(self):
        args, kwargs = anything({"x": [np.arange(2), 3]}, label=("a", None)).run()
        np.testing.assert_array_equal(args[0]["x"][0], [0, 1])
        assert args[0]["x"][1] == 3 and kwargs == {"label": ("a", None)}

    def test_tree_map_changes_the_data(self):
        bound = regression(*regression_data())
        doubled = jax.tree_util.tree_map(lambda x: 2 * x, bound)
        assert isinstance(doubled, mcx.BoundModel)
        np.testing.assert_array_equal(doubled.arguments()["x"], 2 * bound.arguments()["x"])

    def test_jit_and_vmap_over_data(self):
        x, _ = regression_data()
        values = {"intercept": 0.5, "slope": 1.0, "noise": 1.0}
        sets = jnp.stack([regression_data(seed=s)[1] for s in range(3)])
        density = jax.jit(jax.vmap(lambda y: regression(x, y=y).log_density(values)))(sets)
        alone = [regression(x, y=y).log_density(values) for y in sets]
        np.testing.assert_allclose(density, alone, rtol=1e-5)

    def test_a_batch_of_bound_models(self):
        bounds = [regression(*regression_data(seed=s)) for s in range(3)]
        batch = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *bounds)
        values = {"intercept": 0.5, "slope": 1.0, "noise": 1.0}
        density = jax.jit(jax.vmap(lambda b: b.log_density(values)))(batch)
        np.testing.assert_allclose(density, [b.log_density(values) for b in bounds], rtol=1e-5)

    def test_gradients_with_respect_to_data(self):
        bound = regression(*regression_data())
        values = {"intercept": 0.5, "slope": 1.0, "noise": 1.0}
        gradient = jax.grad(lambda b: b.log_density(values))(bound)
        x, y = regression_data()
        np.testing.assert_allclose(gradient.arguments()["y"], 0.5 + x - y, rtol=1e-4, atol=1e-5)

    def test_structure_holds_shapes_and_dtypes_but_no_values(self):
        assert same_structure(anything(np.zeros(3)), anything(jnp.ones(3)))
        assert not same_structure(anything(np.zeros(3)), anything(np.zeros(4)))
        assert not same_structure(anything(np.zeros(3)), anything(np.zeros(3, int)))
        assert not same_structure(anything(np.zeros(3)), anything(x=np.zeros(3)))

    def test_one_model_bound_by_position_or_by_name(self):
        x, y = regression_data()
        assert same_structure(regression(x, y), regression(y=y, x=x))

    @pytest.mark.parametrize("a, b", [(1, True), (1, 1.0), (1.0, True), (0, False), (0.0, -0.0), ("1", 1)])
    def test_python_values_that_compare_equal_are_not_one(self, a, b):
        """They make different programs: 1 / n, x ** 2, `if flag is True`."""
        assert not same_structure(anything(a), anything(b))
        assert same_structure(anything(a), anything(a))

    def test_unhashable_statics_go_by_identity(self):
        labels = np.array(["a", "b"])
        assert same_structure(anything(labels), anything(labels))
        assert not same_structure(anything(labels), anything(labels.copy()))
        assert jax.tree_util.tree_leaves(anything(labels, {1, 2})) == []

    def test_dictionaries_are_taken_apart(self):
        data = {"x": np.zeros(2), "options": {"scale": 2.0}}
        assert len(jax.tree_util.tree_leaves(anything(data))) == 1
        assert not same_structure(anything(data), anything({**data, "options": {"scale": 3.0}}))

    def test_other_models_and_distributions_as_arguments(self):
        bound = anything(coin.bind(np.array(1)), dist.Normal(jnp.zeros(2), 1.0))
        (submodel, prior), _ = bound.run()
        assert submodel.name == "coin" and prior.batch_shape == (2,)

    def test_arguments_have_defaults(self):
        assert coin().arguments() == {"y": None}
        assert list(regression(*regression_data()).arguments()) == ["x", "y"]


class TestDataFrames:
    frame = pd.DataFrame({"x": [0.5, 1.5, -1.0], "n": [1, 2, 3], "name": ["a", "b", "c"]})

    def test_columns_are_data(self):
        bound = regression(self.frame["x"], y=self.frame["x"])
        assert [x.dtype.kind for x in jax.tree_util.tree_leaves(bound)] == ["f", "f"]
        assert np.isfinite(bound.log_density({"intercept": 0.0, "slope": 1.0, "noise": 1.0}))

    def test_columns_of_text_and_tables_are_static(self):
        assert jax.tree_util.tree_leaves(anything(self.frame["name"], self.frame)) == []

    @pytest.mark.parametrize(
        "column",
        [
            pd.Series([1, 2], dtype="Int64"),
            pd.Series([True, False], dtype="boolean"),
            pd.Series([0.5, 1.5], dtype="Float64"),
        ],
        ids=lambda c: str(c.dtype),
    )
    def test_nullable_columns_are_data(self, column):
        (leaf,) = jax.tree_util.tree_leaves(anything(column))
        assert leaf.dtype.kind == column.dtype.kind and leaf.shape == (2,)
        assert anything(column).structure == anything(column.copy()).structure

    def test_missing_values_of_nullable_columns_become_nan(self):
        (leaf,) = jax.tree_util.tree_leaves(anything(pd.Series([1, None], dtype="Int64")))
        np.testing.assert_array_equal(leaf, [1.0, np.nan])

    def test_dates_are_static(self):
        dates = pd.Series(pd.date_range("2020-01-01", periods=2))
        bound = anything(dates, dates.to_numpy(), np.timedelta64(1, "D"))
        assert jax.tree_util.tree_leaves(bound) == [] and hash(bound.structure)


# --- submodels -------------------------------------------------------------------------------------


@mcx.model
def group(scale, y=None):
    mean = mcx.sample("mean", dist.Normal(0.0, 1.0))
    sd = mcx.sample("sd", dist.HalfNormal(scale))
    with mcx.plate("item", 3):
        mcx.sample("y", dist.Normal(mean, sd), obs=y)
    return mean + sd


class TestSubmodels:
    def test_sites_join_with_a_dot(self):
        @mcx.model
        def outer(y):
            a = mcx.sample("a", group.bind(1.0, y=y))
            mcx.deterministic("seen", a)
            mcx.sample("b", group.bind(a))

        table = outer(np.zeros(3, np.float32)).sites()
        assert [s.name for s in table] == [
            "a.mean", "a.sd", "a.item", "a.y", "seen", "b.mean", "b.sd", "b.item", "b.y",
        ]  # fmt: skip
        assert table["a.y"].observed and table["a.y"].dims == ("a.item",)
        assert table["b.y"].kind == "latent"

    def test_they_nest(self):
        @mcx.model
        def middle():
            return mcx.sample("inner", group.bind(1.0))

        @mcx.model
        def outer():
            mcx.deterministic("value", mcx.sample("middle", middle.bind()))

        drawn = outer().simulate(0)
        assert "middle.inner.sd" in drawn
        np.testing.assert_allclose(
            drawn["value"], drawn["middle.inner.mean"] + drawn["middle.inner.sd"], rtol=1e-6
        )
        # the Jacobian of a constrained site stays in the prior, however deep
        target = compile_model(outer())
        assert target.log_likelihood(target.unravel(jnp.zeros(target.dim))) == 0.0

    def test_in_a_plate_there_is_one_a_member(self):
        @mcx.model
        def outer():
            with mcx.plate("school", 4):
                mcx.sample("s", coin.bind())

        table = outer().sites()
        assert table["s.p"].shape == (4,) and table["s.p"].dims == ("school",)

    def test_conditions_travel_with_them(self):
        @mcx.model
        def outer():
            mcx.sample("a", group.bind(1.0).condition({"sd": 2.0}))

        assert outer().sites()["a.sd"].observed

    def test_they_take_no_observation(self):
        @mcx.model
        def outer():
            mcx.sample("a", group.bind(1.0), obs=1.0)

        with pytest.raises(ModelError, match=r"(?s)site 'a'.*no obs=.*submodel.bind"):
            outer().sites()

    def test_calling_one_is_told_from_binding_one(self):
        @mcx.model
        def outer():
            mcx.sample("a", group)

        with pytest.raises(ModelError, match=r"(?s)site 'a'.*bind"):
            outer().sites()


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
        assert same_structure(coin().condition({"p": 0.25}), coin().condition({"p": 0.5}))

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
        drawn = bound.simulate(0)
        assert set(drawn) == {"mu", "tau", "z", "theta", "y"}
        assert not np.array_equal(drawn["y"], EFFECT)
        np.testing.assert_allclose(drawn["theta"], drawn["mu"] + drawn["tau"] * drawn["z"], rtol=1e-6)

    def test_keys_decide(self):
        bound = coin()
        assert bound.simulate(1)["p"] == bound.simulate(jax.random.key(1))["p"] != bound.simulate(2)["p"]
        with pytest.raises(KeyTypeError):
            bound.simulate(None)

    def test_data_fed_back_in_reproduce_the_draw(self):
        bound = eight_schools(SIGMA)
        drawn = bound.simulate(0)
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
            flat().simulate(0)
        assert flat().condition({"x": 1.0}).sites()["x"].observed

    def test_factors_are_not_drawn(self):
        @mcx.model
        def tilted():
            x = mcx.sample("x", dist.Normal(0, 1))
            mcx.factor("f", -x)

        assert set(tilted().simulate(0)) == {"x"}

    def test_discrete_sites_and_subsampled_plates(self):
        @mcx.model
        def mixture():
            with mcx.plate("n", 10, subsample_size=4):
                k = mcx.sample("k", dist.Bernoulli(0.5))
                mcx.sample("x", dist.Normal(jnp.where(k, 10.0, -10.0), 1.0))

        drawn = mixture().simulate(0)
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
        assert set(bound.simulate(0)) == {"mean", "y"}
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


# --- scans -----------------------------------------------------------------------------------------


def volatility(returns):
    """A stochastic volatility model with a Gaussian random walk, as NumPyro's examples write it."""
    step = numpyro.sample("step", dist.Exponential(10.0))

    def day(level, observed):
        level = numpyro.sample("level", dist.Normal(level, step))
        observed = numpyro.sample("returns", dist.StudentT(5.0, 0.0, jnp.exp(level)), obs=observed)
        return level, level

    _, levels = scan(day, 0.0, returns)
    numpyro.deterministic("last", levels[-1])


def autoregression(y):
    """A second-order autoregression on its own past values, conditioned from outside of the scan."""
    weights = numpyro.sample("weights", dist.Normal(0.0, 0.5).expand([2]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))

    def step(past, _):
        mean = weights[0] * past[0] + weights[1] * past[1]
        new = numpyro.sample("y", dist.Normal(mean, noise))
        return (new, past[0]), mean

    with handlers.condition(data={"y": y[2:]}):
        scan(step, (y[1], y[0]), None, length=len(y) - 2)


RETURNS = np.array([0.3, -1.2, 0.4, 2.0, -0.1], np.float32)


@pytest.mark.parametrize("program", [volatility, autoregression])
@pytest.mark.parametrize("submodel", [False, True], ids=["alone", "as a submodel"])
class TestScans:
    def bound(self, program, submodel):
        inner = mcx.model(program)

        @mcx.model
        def outer(y):
            mcx.sample("a", inner.bind(y))

        return (outer if submodel else inner)(RETURNS), "a." if submodel else ""

    def test_density_and_sites(self, program, submodel, key):
        bound, prefix = self.bound(program, submodel)
        target = compile_model(bound)
        z = target.unravel(jax.random.uniform(key, (target.dim,), minval=-1.5, maxval=1.5))
        bare = {name.removeprefix(prefix): value for name, value in z.items()}
        truth, gradient = jax.value_and_grad(
            lambda z: -potential_energy(program, (jnp.asarray(RETURNS),), {}, z)
        )(bare)
        found, own = jax.value_and_grad(target.log_density)(z)
        np.testing.assert_allclose(found, truth, rtol=1e-5)
        for name in bare:
            np.testing.assert_allclose(own[prefix + name], gradient[name], rtol=1e-4, atol=1e-4)
        pointwise = target.pointwise(z)
        assert set(pointwise) == {s.name for s in target.sites.of_kind("observed")}
        total = sum(np.sum(terms) for terms in pointwise.values())
        np.testing.assert_allclose(total, target.log_likelihood(z), rtol=1e-5)
        back = target.unconstrain(target.constrain(z))
        for name in z:
            np.testing.assert_allclose(back[name], z[name], rtol=1e-4, atol=1e-5)

    def test_nuts_runs(self, program, submodel):
        bound, prefix = self.bound(program, submodel)
        post = mcx.infer(bound, mcx.NUTS(num_warmup=30, num_samples=20), key=0, **QUIET)
        assert np.isfinite(post.stats["lp"]).all()
        assert all(name.startswith(prefix) for name in post.draws)
        predicted = mcx.predict(post, bound, key=1)
        assert all(np.isfinite(v).all() for v in predicted.values())


def test_simulated_paths_carry_their_own_values(key):
    """An observation that the scan carries along is drawn afresh *and* carried: var y_t = t + 1, not 1."""

    @mcx.model
    def walk(y):
        def step(x, _):
            x = mcx.sample("y", dist.Normal(x, 1.0))
            return x, None

        with handlers.condition(data={"y": y}):
            scan(step, 0.0, None, length=len(y))

    bound = walk(np.zeros(5, np.float32))
    y = jax.device_get(jax.jit(jax.vmap(bound.simulate))(jax.random.split(key, 4000)))["y"]
    check_mean(y**2, np.arange(1.0, 6.0), delta=np.arange(1.0, 6.0) * 0.2, independent=True)
    np.testing.assert_allclose(bound.log_density({}), 5 * scipy.stats.norm.logpdf(0.0), rtol=1e-6)


def test_cond_in_a_submodel():
    @mcx.model
    def branches(flag):
        scale = mcx.sample("scale", dist.HalfNormal(1.0))
        return cond(
            flag,
            lambda s: numpyro.sample("x", dist.Normal(0.0, s)),
            lambda s: numpyro.sample("x", dist.Normal(10.0, s)),
            scale,
        )

    @mcx.model
    def outer(flag):
        mcx.sample("a", branches.bind(flag))

    for flag, mean in ((True, 0.0), (False, 10.0)):
        bound = outer(np.array(flag))
        found = bound.log_density({"a.scale": 2.0, "a.x": 9.0})
        truth = scipy.stats.halfnorm.logpdf(2.0) + scipy.stats.norm(mean, 2.0).logpdf(9.0)
        np.testing.assert_allclose(found, truth, rtol=1e-6)
        target = compile_model(bound)
        z = target.unconstrain({"a.scale": 2.0, "a.x": 9.0})
        np.testing.assert_allclose(target.log_prior(z), truth + np.log(2.0), rtol=1e-6)


def test_regression_with_plates_from_numpyros_documentation():
    """A hierarchical regression with group effects runs as it stands, and finds the effects."""

    def model(group, x, y=None):
        mu_slope = numpyro.sample("mu_slope", dist.Normal(0.0, 5.0))
        sd_slope = numpyro.sample("sd_slope", dist.HalfNormal(2.0))
        with numpyro.plate("groups", 3):
            slope = numpyro.sample("slope", dist.Normal(mu_slope, sd_slope))
        noise = numpyro.sample("noise", dist.HalfNormal(2.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(slope[group] * x, noise), obs=y)

    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(3), 30), rng.normal(size=90).astype(np.float32)
    slopes = np.array([-1.0, 0.5, 3.0])
    y = (slopes[group] * x + 0.1 * rng.normal(size=90)).astype(np.float32)
    bound = mcx.model(model)(group, x, y=y)
    post = mcx.infer(bound, mcx.NUTS(num_warmup=300, num_samples=200), key=0, **QUIET)
    # standard errors of the slopes are 0.02: a mistake in the groups would be off by 1.5
    np.testing.assert_allclose(post.draws["slope"].mean((0, 1)), slopes, atol=0.1)
    assert bound.sites()["slope"].dims == ("groups",)
