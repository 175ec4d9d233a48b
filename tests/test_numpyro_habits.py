"""What people who come from NumPyro type first: its arguments, names with "/", parameters, networks."""

import inspect

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.example_libraries import stax
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import mcx
from mcx.errors import (
    CapabilityError,
    DataError,
    InferenceWarning,
    KeyTypeError,
    MethodError,
    SiteNameError,
    SupportError,
)
from mcx.model.compile import compile_model
from mcx.model.observed_values import refuse_values

Y = jnp.array([0.1, 0.2])


@mcx.model
def location(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def run(bound, key, **more):
    return mcx.infer(bound, mcx.NUTS(num_warmup=50, num_samples=50), key=key, progress=False, **more)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"num_samples": 5}, r"mcx\.NUTS\(num_samples=\.\.\.\)"),
        ({"rng_key": 0}, r"infer\(key=\.\.\.\)"),
        ({"random_seed": 0}, r"infer\(key=\.\.\.\)"),
        ({"thinning": 2}, r"::10"),
        ({"target_accept_prob": 0.9}, r"mcx\.NUTS\(target_accept=\.\.\.\)"),
        ({"progress_bar": False}, r"infer\(progress=\.\.\.\)"),
        ({"chains": 2}, r"infer\(num_chains=\.\.\.\)"),
        ({"devise": 2}, r"infer\(devices=\.\.\.\)"),
        ({"nonsense": 2}, "expected: one of key"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_arguments_of_infer(arguments, answer):
    with pytest.raises(MethodError, match=rf"(?s)infer has no argument {next(iter(arguments))}.*{answer}"):
        mcx.infer(location(Y), mcx.NUTS(), **arguments)


def test_a_key_is_needed():
    with pytest.raises(KeyTypeError, match=r"jax\.random\.key\(0\)"):
        mcx.infer(location(Y), mcx.NUTS())


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: mcx.NUTS(target_accept_prob=0.8), r"NUTS\(target_accept=\.\.\.\)"),
        (lambda: mcx.NUTS(num_chains=4), r"infer\(bound, method, num_chains=\.\.\.\)"),
        (lambda: mcx.NUTS(num_sample=4), r"NUTS\(num_samples=\.\.\.\)"),
        (lambda: mcx.NUTS(500, 500), r"NUTS\(num_warmup=\.\.\."),
        (lambda: mcx.TemperedSMC(particles=3), "num_particles"),
    ],
)
def test_settings_of_methods(make, answer):
    with pytest.raises(MethodError, match=answer):
        make()


def test_signatures_are_shown():
    assert list(inspect.signature(mcx.NUTS).parameters)[:2] == ["num_warmup", "num_samples"]


def test_slashes_in_names(key):
    bound = mcx.model(handlers.scope(location.fn, prefix="a"))(Y)
    posterior = run(bound, key, warnings="ignore", coords={"a/n": ["one", "two"]})
    assert set(posterior.draws) == {"a/mu"}
    tree = posterior.to_datatree()
    assert list(tree["posterior"].data_vars) == ["a.mu"]
    assert list(tree["log_likelihood"]["a.y"].coords["a.n"].values) == ["one", "two"]
    mcx.predict(posterior, bound, key=key)


def test_names_that_are_one_in_results_are_refused():
    @mcx.model
    def model():
        for name in ("a/b", "a.b"):
            mcx.sample(name, dist.Normal(0.0, 1.0))

    (problem,) = model().check().problems
    assert isinstance(problem, SiteNameError) and problem.site == "a.b" and "'a/b'" in str(problem)


def test_networks_are_held_and_it_is_said(key):
    def model(x, y):
        net = numpyro.module("net", stax.Dense(1), (2,))
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        numpyro.sample("y", dist.Normal(net(x)[:, 0], scale), obs=y)

    bound = mcx.model(model)(jnp.ones((2, 2)), Y)
    assert {s.name: s.kind for s in bound.sites()} == {
        "net$params": "param",
        "scale": "latent",
        "y": "observed",
    }
    with pytest.warns(InferenceWarning, match=r"MCX-W017.*net\$params"):
        run(bound, key)


def test_parameters_are_at_their_initial_values(key):
    def model(y):
        shift = numpyro.param("shift", jnp.array(2.0))
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(shift, 1)), 1), obs=y)

    got = mcx.model(model)(Y).log_density({"mu": 0.5})
    expected = dist.Normal(2.0, 1).log_prob(0.5) + dist.Normal(0.5, 1).log_prob(Y).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_an_improper_site_whose_support_depends_on_another_one():
    """As in NumPyro's garch example: the Jacobian is that of the interval at hand."""

    def model():
        a = numpyro.sample("a", dist.Uniform(0, 1))
        support = dist.constraints.interval(0, 1 - a)
        numpyro.sample("b", dist.ImproperUniform(support, (), ()))

    target = compile_model(mcx.model(model)())
    for za, zb in ((0.3, -1.0), (-2.0, 0.7)):
        a, share = 1 / (1 + np.exp(-za)), 1 / (1 + np.exp(-zb))
        z = {"a": jnp.array(za), "b": jnp.array(zb)}
        expected = np.log(a * (1 - a)) + np.log((1 - a) * share * (1 - share))
        np.testing.assert_allclose(target.log_density(z), expected, rtol=1e-5)
        np.testing.assert_allclose(target.constrain(z)["b"], (1 - a) * share, rtol=1e-5)


@pytest.mark.parametrize(
    ("law", "bad", "error", "text"),
    [
        (dist.Normal(0.0, 1.0), [0.1, np.nan], DataError, "1 of the observed values are NaN.*obs_mask="),
        (dist.LogNormal(0.0, 1.0), [0.1, -2.0], SupportError, "1 that are not, -2"),
        (dist.Poisson(3.0), [1.0, 2.5], SupportError, "2.5 among them"),
        (dist.Poisson(3.0), [1, -2], SupportError, "-2 among them"),
        (dist.Bernoulli(0.3), [0, 2], SupportError, "2 among them"),
        (dist.Beta(1.0, 2.0), [0.3, 1.7], SupportError, "1.7"),
        (dist.Categorical(jnp.ones(3) / 3), [0, 3], SupportError, "3 among them"),
    ],
    ids=["nan", "negative", "fraction", "negative count", "coin", "share", "class"],
)
def test_data_are_looked_at_before_anything_compiles(law, bad, error, text, monkeypatch):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("z", dist.Normal(mu, 1), obs=0.3)
        numpyro.sample("y", law, obs=y)

    monkeypatch.setattr(mcx.NUTS, "plan", lambda self, bound: pytest.fail("a method was asked"))
    with pytest.raises(error, match=f"(?s)site 'y'.*{text}"):
        mcx.infer(mcx.model(model)(jnp.asarray(bad)), mcx.NUTS(), key=0, progress=False)


def test_bounds_are_not_taken_for_their_print():
    low = 1.23456789

    def model(y):
        numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Uniform(low, 2.0), obs=y)

    refuse_values(mcx.model(model)(jnp.array([1.234568, 1.9999999])))

    def many(y):
        numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Binomial(1234564, 0.5), obs=y)

    refuse_values(mcx.model(many)(jnp.array([1234563, 1234564])))


def test_steps_to_come_have_no_density():
    def series(y, future=0):
        s = numpyro.sample("s", dist.HalfNormal(1))

        def body(x, _):
            x = numpyro.sample("x", dist.Normal(x, s))
            numpyro.sample("y", dist.Normal(x, 1))
            return x, x

        with handlers.condition(data={"y": y}):
            scan(body, 0.0, jnp.arange(len(y) + future))

    bound = mcx.model(series)(Y, future=2)
    assert bound.simulate(key=0)["x"].shape == (4,)
    assert any("first steps only" in note for note in bound.check().notes)
    with pytest.raises(CapabilityError, match=r"(?s)first steps only.*mcx\.predict"):
        mcx.infer(bound, mcx.NUTS(), key=0, progress=False)
