"""What counts in a NumPyro scan: observations, weights, names, parameters; and how it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scan_problems import PARAMS, QUIET, T, Y, bound, linear, linear_exactly

import mcx
from mcx.errors import ModelError
from mcx.inference.smc.smc import smc
from mcx.model.series.state_space import state_space


def closed_over(y):
    """Observations looked up by time."""

    def body(x_prev, t):
        x = numpyro.sample("x", dist.Normal(0.8 * x_prev, 0.6))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y[t])
        return x, x

    scan(body, 0.0, jnp.arange(y.shape[0]))


def unobserved(length):
    def body(x_prev, _):
        x = numpyro.sample("x", dist.Normal(0.8 * x_prev, 0.6))
        numpyro.sample("y", dist.Normal(x, 0.5))
        return x, x

    scan(body, 0.0, None, length=length)


def weighted(y, there):
    """A scale, a mask and a factor in the body."""

    def body(x_prev, now):
        y_t, there_t = now
        x = numpyro.sample("x", dist.Normal(0.8 * x_prev, 0.6))
        with handlers.scale(scale=2.0), handlers.mask(mask=there_t):
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        numpyro.factor("f", -x)
        return x, x

    scan(body, 0.0, (y, there))


def potential(model, x, t=4, params=None):
    """Log potential of a state, whose model keeps nothing but it."""
    fk = state_space(model).feynman_kac
    u = jax.tree_util.tree_map(lambda a: a[t], fk.inputs)
    state = {"sites": {"x": jnp.float32(x)}, "carry": (), "before": ()}
    return fk.log_potential(fk.prepare(params or {}), state, state, u)


def test_observations_by_closure_and_by_condition():
    truth = dist.Normal(0.3, 0.5).log_prob(Y[4])
    for model in (bound(closed_over, Y), bound(unobserved, T).condition({"y": Y})):
        np.testing.assert_allclose(potential(model, 0.3), truth, rtol=1e-6)
        assert state_space(model).feynman_kac.inputs["u"] is None  # what only leads to observations is none


def test_masks_scales_and_factors_count():
    there = np.arange(T) != 5
    model = bound(weighted, Y, there)
    np.testing.assert_allclose(
        potential(model, 0.3), 2 * dist.Normal(0.3, 0.5).log_prob(Y[4]) - 0.3, rtol=1e-6
    )
    np.testing.assert_allclose(potential(model, 0.3, t=5), -0.3, rtol=1e-6)


def test_which_outer_sites_are_parameters():
    def program(y):
        m = numpyro.sample("m", dist.Normal(0, 1))  # reaches the law of x0, not x0 itself
        both = numpyro.sample("both", dist.Normal(0, 1))
        x0 = numpyro.sample("x0", dist.Normal(m, 1))
        more = numpyro.sample("more", dist.Normal(x0, 1))
        unused = numpyro.sample("unused", dist.Normal(0, 1))

        def body(x_prev, y_t):
            x = numpyro.sample("x", dist.Normal(x_prev, 1))
            numpyro.sample("y", dist.Normal(x, jnp.exp(both)), obs=y_t)
            return x, x

        scan(body, x0 + more + both, y)
        return unused

    assert state_space(bound(program, Y)).params == ("m", "both", "unused")


@pytest.mark.slow
def test_submodels_and_scopes_name_their_sites(key):
    def outer(y):
        mcx.sample("a", mcx.model(linear).bind(y))

    space = state_space(bound(outer, Y))
    assert space.name == "a.x" and space.params == ("a.phi", "a.s")
    params = {f"a.{k}": v for k, v in PARAMS.items()}
    found = mcx.filter(bound(outer, Y), params=params, num_particles=200, key=key, **QUIET)
    assert set(found.mean) == {"a.x"} and found.mean["a.x"].shape == (T,)

    def scoped(y):
        with handlers.scope(prefix="b", divider="."):
            linear(y)

    assert state_space(bound(scoped, Y)).state_names == ("b.x",)


def test_names_decide_between_chains():
    def both(y):
        linear(y)
        mcx.markov(
            "w",
            initial=lambda u: dist.Normal(0, 1),
            transition=lambda x, u: dist.Normal(x, 1),
            emission=lambda x, u: dist.Normal(x, 1),
            obs=y,
        )

    model = bound(both, Y)
    with pytest.raises(ModelError, match="several Markov blocks"):
        state_space(model)
    with pytest.raises(ModelError, match="no such Markov block"):
        state_space(model, "x0")
    assert state_space(model, "x").params == state_space(model, "w").params[:2] == ("phi", "s")
    # of the Markov chain, whatever belongs to no chain is a parameter; the scan's path is none
    assert state_space(model, "w").params == ("phi", "s", "x0")


def test_new_data_and_parameters_of_scan_trace_nothing(key):
    runs = []

    def counted(y):
        runs.append(1)
        linear(y)

    model = mcx.model(counted)
    options = {"num_particles": 100, "key": key, **QUIET}
    first = mcx.filter(model(Y), params=PARAMS, **options)
    before = len(runs)
    second = mcx.filter(model(Y + 1), params={"phi": 0.2, "s": 1.0}, **options)
    assert len(runs) == before and first.log_evidence != second.log_evidence


@pytest.mark.slow
def test_parameters_vectorise(key):
    fk = state_space(bound(linear, Y)).feynman_kac
    phi = jnp.array([0.2, 0.8])
    run = lambda p: smc(key, fk, {"phi": p, "s": 0.6}, num_particles=100).log_evidence  # noqa: E731
    np.testing.assert_allclose(jax.vmap(run)(phi), [run(p) for p in phi], rtol=1e-5)


@pytest.mark.slow
def test_online(key):
    online = mcx.OnlineFilter(bound(linear, Y), params=PARAMS, num_particles=500)
    state = online.init(key, Y[0])
    for t in range(1, T):
        state = online.step(jax.random.fold_in(key, t), state, Y[t])
    mean, _ = online.moments(state)
    assert abs(mean["x"] - linear_exactly().filtered_means[-1, 0]) < 0.3
