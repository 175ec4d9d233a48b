"""The language: binding and running, NumPyro programs, submodels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from problems import EFFECT, SIGMA, coin, eight_schools

import mcx
import mcx.dist as dist
from mcx.errors import ModelError
from mcx.model.compile import compile_model

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

        for verb in (lambda b: b.sites(), lambda b: b.simulate(key=0), lambda b: b.check()):
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
        assert "coin" in repr(partial)

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

    @pytest.mark.slow
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

        drawn = outer().simulate(key=0)
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
