"""Anything that can be called is a model: handlers, partials, methods, objects, modules, jitted functions."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density

import mcx
from mcx.errors import ModelError
from mcx.model.compile import compile_model

Y = jnp.array([0.5, -1.0])
VALUES = {"mu": jnp.array(0.3), "t": jnp.array(0.1)}


def f(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    t = numpyro.sample("t", dist.Normal(mu, 2))
    numpyro.sample("y", dist.Normal(t, 1), obs=y)
    return t


def exact(mu=0.3, t=0.1, prior=1.0):
    """The log density of f at these values, by SciPy."""
    normal = scipy.stats.norm.logpdf
    return prior * (normal(mu) + normal(t, mu, 2)) + normal(np.asarray(Y), t, 1).sum()


HANDLED = {
    "scale": (lambda g: handlers.scale(g, scale=10.0), ("mu", "t"), 10 * exact()),
    "mask": (lambda g: handlers.mask(g, mask=False), ("mu", "t"), 0.0),
    "condition": (lambda g: handlers.condition(g, data={"mu": 0.7}), ("t",), exact(mu=0.7)),
    "substitute": (lambda g: handlers.substitute(g, data={"mu": 0.7}), ("t",), exact(mu=0.7)),
    "do": (lambda g: handlers.do(g, data={"mu": 0.7}), ("mu", "t"), None),
    "scope": (lambda g: handlers.scope(g, prefix="a", divider="."), ("a.mu", "a.t"), exact()),
    "lift": (lambda g: handlers.lift(g, prior=dist.Normal(0, 1)), ("mu", "t"), exact()),
    "seed": (lambda g: handlers.seed(g, 0), ("mu", "t"), exact()),
    "two": (
        lambda g: handlers.scale(handlers.condition(g, data={"mu": 0.7}), scale=2.0),
        ("t",),
        2 * exact(mu=0.7),
    ),
}


@pytest.mark.parametrize("name", HANDLED)
@pytest.mark.parametrize("way", ["model(handler(f))", "handler(model(f))(y)", "handler(model(f)(y))()"])
def test_handlers_are_kept(name, way):
    handler, latent, expected = HANDLED[name]
    if way == "model(handler(f))":
        bound = mcx.model(handler(f))(Y)
    elif way == "handler(model(f))(y)":
        bound = mcx.model(handler(f))(Y) if name == "seed" else handler(mcx.model(f))(Y)
    else:
        bound = mcx.model(handler(f))(Y) if name == "seed" else handler(mcx.model(f)(Y))()
    assert isinstance(bound, mcx.BoundModel) and bound.name == "f"
    assert tuple(s.name for s in bound.sites().of_kind("latent")) == latent
    values = {n: VALUES[n.removeprefix("a.")] for n in latent}
    if expected is None:  # what follows from the intervention, with the site itself still drawn
        expected = exact(mu=0.7) + scipy.stats.norm.logpdf(0.3) - scipy.stats.norm.logpdf(0.7)
    np.testing.assert_allclose(bound.log_density(values), expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(log_density(handler(f), (Y,), {}, values)[0], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("around", ["function", "model", "bound"])
def test_reparametrised_sites(around):
    config = {"t": LocScaleReparam(0.0)}
    if around == "function":
        bound = mcx.model(handlers.reparam(f, config=config))(Y)
    elif around == "model":
        bound = handlers.reparam(mcx.model(f), config=config)(Y)
    else:
        bound = handlers.reparam(mcx.model(f)(Y), config=config)()
    kinds = {s.name: s.kind for s in bound.sites()}
    assert kinds == {"mu": "latent", "t_decentered": "latent", "t": "deterministic", "y": "observed"}
    at = bound.log_density({"mu": 0.3, "t_decentered": (0.1 - 0.3) / 2})
    np.testing.assert_allclose(at, exact() + np.log(2), rtol=1e-6)


def test_the_posterior_is_that_of_the_model_under_the_handler():
    """Conditioned on mu, t has a normal posterior: precision 1/4 + 2, mean of (mu/4 + sum y) over that."""
    bound = mcx.model(handlers.condition(f, data={"mu": 2.0}))(Y)
    posterior = mcx.infer(bound, mcx.NUTS(num_warmup=200, num_samples=500), key=0, progress=False)
    row = posterior.summary()["t"]
    assert abs(row["mean"] - (0.5 + float(Y.sum())) / 2.25) < 5 * row["mcse_mean"]


def test_one_handler_around_a_model_is_one_program():
    handled = handlers.scale(mcx.model(f), scale=3.0)
    assert handled(Y).structure == handled(Y + 1).structure


def test_handlers_keep_nothing_of_a_run():
    bound = mcx.model(handlers.seed(f, 0))(Y)
    before = {k: str(v) for k, v in vars(bound.fn).items()}
    for _ in range(2):
        np.testing.assert_allclose(bound.log_density(VALUES), exact(), rtol=1e-6)
    assert {k: str(v) for k, v in vars(bound.fn).items()} == before


def test_substituted_paths_of_scans_are_fixed():
    def series(y):
        s = numpyro.sample("s", dist.HalfNormal(1))

        def body(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, s))
            numpyro.sample("y", dist.Normal(x, 1), obs=y_t)
            return x, x

        scan(body, 0.0, y)

    path = jnp.array([0.1, 0.2])
    bound = mcx.model(handlers.substitute(series, data={"x": path}))(Y)
    assert [s.name for s in bound.sites().of_kind("latent")] == ["s"]
    np.testing.assert_allclose(
        bound.log_density({"s": 0.8}), mcx.model(series)(Y).log_density({"s": 0.8, "x": path}), rtol=1e-6
    )


class Callable:
    def __init__(self, scale):
        self.scale = scale
        self.fn, self.bind = (lambda y: None), 5

    def __call__(self, y):
        mu = numpyro.sample("mu", dist.Normal(0, self.scale))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    def method(self, y):
        return self(y)


class Module(eqx.Module):
    scale: jax.Array

    def __call__(self, y):
        mu = numpyro.sample("mu", dist.Normal(0, self.scale))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    def method(self, y):
        return self(y)


def scaled(scale):
    return scipy.stats.norm.logpdf(0.3, 0, scale) + scipy.stats.norm.logpdf(np.asarray(Y), 0.3, 1).sum()


@pytest.mark.parametrize("make", [Callable, lambda s: Callable(s).method], ids=["object", "method"])
def test_objects_are_what_they_are_when_they_run(make):
    callee = make(1.0)
    owner = getattr(callee, "__self__", callee)
    for scale in (1.0, 3.0, 1.0):
        owner.scale = scale
        np.testing.assert_allclose(mcx.model(callee)(Y).log_density({"mu": 0.3}), scaled(scale), rtol=1e-6)


@pytest.mark.parametrize("make", [Module, lambda s: Module(s).method], ids=["module", "method"])
def test_arrays_of_modules_are_data(make):
    one, three = (mcx.model(make(jnp.array(s)))(Y) for s in (1.0, 3.0))
    assert one.structure == three.structure and len(one.data) == 2
    for bound, scale in ((one, 1.0), (three, 3.0)):
        np.testing.assert_allclose(bound.log_density({"mu": 0.3}), scaled(scale), rtol=1e-6)


def decorated(g):
    @functools.wraps(g)
    def wrapper(y, unused):
        return g(y)

    return wrapper


@pytest.mark.parametrize(
    ("callee", "args"),
    [
        (functools.partial(f, Y), ()),
        (functools.partial(f, y=Y), ()),
        (jax.jit(f), (Y,)),
        (functools.partial(jax.jit(f), Y), ()),
        (decorated(f), (Y, 3)),
        (handlers.scale(jax.jit(f), scale=1.0), (Y,)),
    ],
    ids=[
        "partial",
        "partial by name",
        "jit",
        "partial of jit",
        "decorator with its own arguments",
        "scaled jit",
    ],
)
def test_other_callables(callee, args):
    np.testing.assert_allclose(mcx.model(callee)(*args).log_density(VALUES), exact(), rtol=1e-6)


def test_attributes_of_functions_are_not_the_models():
    def g(y):
        return f(y)

    g.fn, g.bind = (lambda y: None), 7
    np.testing.assert_allclose(mcx.model(g)(Y).log_density(VALUES), exact(), rtol=1e-6)


@pytest.mark.parametrize("verb", ["log_density", "simulate", "infer"])
def test_sites_within_a_jitted_part_are_not_lost_in_silence(verb):
    def inner(y):
        f(y)

    def outer(y):
        jax.jit(inner)(y)

    bound = mcx.model(outer)(Y)
    run = {
        "log_density": lambda: bound.log_density(VALUES),
        "simulate": lambda: bound.simulate(key=0),
        "infer": lambda: mcx.infer(bound, mcx.NUTS(), key=0, progress=False),
    }
    with pytest.raises(ModelError, match=r"jax\.jit"):
        run[verb]()


def test_mistakes_are_explained():
    with pytest.raises(ModelError, match="this handler has none"):
        mcx.model(handlers.scale(scale=2.0))
    with pytest.raises(ModelError, match=r"f\(y\)"):
        mcx.model(handlers.scale(f, scale=2.0))(Y, 3)
    with pytest.raises(ModelError, match="has its data already"):
        mcx.model(f)(Y)()


def test_a_hidden_site_is_mentioned():
    report = mcx.model(handlers.block(f, hide=["mu"]))(Y).check()
    assert any("handlers.block hides" in note for note in report.notes)
    assert not any("handlers.block hides" in note for note in mcx.model(f)(Y).check().notes)


def test_models_run_under_handlers_that_run_models():
    with handlers.seed(rng_seed=0):
        assert jnp.ndim(mcx.model(f)(Y)) == 0
    assert set(handlers.trace(handlers.seed(mcx.model(f), 0)).get_trace(Y)) == {"mu", "t", "y"}


@pytest.mark.parametrize(
    ("handler", "power"),
    [(lambda g: handlers.scale(g, scale=3.0), 3.0), (lambda g: handlers.mask(g, mask=False), 0.0)],
    ids=["scale", "mask"],
)
def test_jacobians_are_not_scaled_or_masked(handler, power):
    """The density of log x is that of x, to a power, times x: the map has a volume of its own."""

    def positive():
        numpyro.sample("x", dist.Gamma(2.0, 3.0))

    target = compile_model(mcx.model(handler(positive))())
    for z in (-0.5, 1.2):
        expected = power * scipy.stats.gamma.logpdf(np.exp(z), 2, scale=1 / 3) + z
        np.testing.assert_allclose(target.log_density({"x": jnp.array(z)}), expected, rtol=1e-5)
