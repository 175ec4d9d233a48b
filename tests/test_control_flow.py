"""NumPyro's scan and cond within models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.util import potential_energy
from problems import slow_unless

import mcx
import mcx.dist as dist
from mcx.model.compile import compile_model
from mcx.testing import check_mean

QUIET = {"progress": False, "warnings": "ignore"}


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


@pytest.mark.parametrize("program", slow_unless([volatility], [volatility, autoregression]))
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

    @pytest.mark.slow
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
    y = jax.device_get(jax.jit(jax.vmap(lambda k: bound.simulate(key=k)))(jax.random.split(key, 4000)))["y"]
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


@pytest.mark.slow
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
