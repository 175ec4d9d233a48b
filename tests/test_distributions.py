"""Every distribution that NumPyro exports, as a latent and as an observed site."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from distribution_table import LAWS, NOT_LAWS

import mcx
from mcx.errors import CapabilityError
from mcx.model.compile import compile_model
from mcx.testing import check_mean

DRAWS = 2000


def site(law, obs=None):
    return mcx.model(lambda obs: numpyro.sample("x", law, obs=obs))(obs)


def test_the_table_is_complete():
    exported = {
        name
        for name in dist.__all__
        if inspect.isclass(getattr(dist, name)) and issubclass(getattr(dist, name), dist.Distribution)
    }
    assert exported - NOT_LAWS <= set(LAWS), exported - NOT_LAWS - set(LAWS)


DRAWN = [name for name in LAWS if name != "IntervalCensoredDistribution"]  # whose draws are no intervals
NEEDS_TFP = ("GaussianCopula", "GaussianCopulaBeta")


@pytest.fixture(autouse=True)
def needed(request):
    """Two laws of NumPyro need another library."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("name") in NEEDS_TFP:
        pytest.importorskip("tensorflow_probability")


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_draws_have_the_mean_of_the_law(name, key):
    law = LAWS[name]()
    bound = site(law)
    if bound.sites()["x"].improper:
        with pytest.raises(CapabilityError, match="site 'x'.*improper"):
            bound.simulate(key=key)
        return
    draws = mcx.predict(None, bound, key=key, num_draws=DRAWS)["x"][0]
    assert draws.shape == (DRAWS, *law.shape())
    mean, spread = known_mean(law)
    if mean is None:
        return
    moving = spread > 1e-6
    if moving.any():
        check_mean(draws[:, moving], mean[moving], delta=0.4 * spread[moving], independent=True)
    np.testing.assert_allclose(draws[:, ~moving].mean(0), mean[~moving], atol=1e-4)


@pytest.mark.parametrize("name", DRAWN)
def test_latent(name, key):
    """The density at a point of unconstrained space is finite there, and that of the law at its value."""
    law = LAWS[name]()
    bound = site(law)
    target = compile_model(bound)
    if bound.sites()["x"].kind != "latent":
        return
    z = target.unravel(0.3 * jax.random.normal(key, (target.dim,)))
    value, gradient = jax.jit(jax.value_and_grad(target.log_density))(z)
    x = target.constrain(z)["x"]
    assert jnp.isfinite(value) and all(bool(jnp.isfinite(g).all()) for g in gradient.values())
    assert bool(jnp.all(law.support(x)))
    np.testing.assert_allclose(bound.log_density({"x": x}), jnp.sum(law.log_prob(x)), rtol=2e-4, atol=2e-4)


def test_a_site_of_one_value_is_fixed(key):
    """Delta has no density to move in: its value and its log density are constants."""

    def model(y):
        at = numpyro.sample("at", dist.Delta(1.5, log_density=0.7))
        x = numpyro.sample("x", dist.Normal(at, 1))
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    bound = mcx.model(model)(0.5)
    assert bound.sites()["at"].kind == "deterministic"
    expected = 0.7 + dist.Normal(1.5, 1).log_prob(1.0) + dist.Normal(1.0, 1).log_prob(0.5)
    np.testing.assert_allclose(bound.log_density({"x": 1.0}), expected, rtol=1e-6)
    posterior = mcx.infer(bound, mcx.NUTS(num_warmup=200), key=key, progress=False)
    check_mean(posterior.draws["x"], 1.0, delta=0.15)


def test_bounds_that_differ_between_members():
    law = dist.DiscreteUniform(jnp.array([1, 2]), jnp.array([3, 4]))
    with pytest.raises(CapabilityError, match="bounds differ between members"):
        mcx.infer(site(law), mcx.NUTS(), key=0, progress=False)
    assert site(law).simulate(key=0)["x"].shape == (2,)


def known_mean(law):
    """Mean and standard deviation, where both are known and finite; else None."""
    try:
        mean, spread = np.asarray(law.mean, float), np.sqrt(np.asarray(law.variance, float))
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return None, None
    angles = isinstance(law, dist.VonMises | dist.SineBivariateVonMises | dist.SineSkewed)
    known = mean.shape == spread.shape == law.shape() and np.isfinite(mean + spread).all()
    return (mean, spread) if known and not angles else (None, None)  # the mean of angles is another one


@pytest.mark.parametrize("name", LAWS)
def test_observed(name, key):
    """The density of a draw is that of the law."""
    law = LAWS[name]()
    try:
        x = law.sample(key)
    except NotImplementedError:
        pytest.skip("there is nothing to observe: the law cannot be drawn from")
    try:
        expected = jnp.sum(law.log_prob(x))
    except NotImplementedError:
        pytest.skip("NumPyro knows no density of it")
    np.testing.assert_allclose(site(law, x).log_density({}), expected, rtol=1e-5, atol=1e-5)
