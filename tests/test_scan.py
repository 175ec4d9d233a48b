"""Particle filters of unmodified NumPyro models with a scan: laws, structure, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scan_problems import PARAMS, QUIET, T, Y, bound, linear, linear_exactly

import mcx
from mcx.errors import CapabilityError, ModelError
from mcx.inference.smc.smc import smc
from mcx.model.series.state_space import state_space
from mcx.ops.batched_draws import ParticleKey, particle_keys
from mcx.testing import check_mean, forward_backward, kalman


def chain(y):
    """The same law as an ``mcx.markov`` statement."""
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    s = mcx.sample("s", dist.HalfNormal(1.0))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.3 * phi, jnp.sqrt(phi**2 + s**2)),
        transition=lambda x, u: dist.Normal(phi * x, s),
        emission=lambda x, u: dist.Normal(x, 0.5),
        obs=y,
    )


def hidden_markov(y):
    """Two regimes; an initial carry that is known."""
    rows = jnp.array([[0.9, 0.1], [0.3, 0.7]])

    def body(z_prev, y_t):
        z = numpyro.sample("z", dist.Categorical(rows[z_prev]))
        numpyro.sample("y", dist.Normal(jnp.array([-0.5, 0.8])[z], 0.6), obs=y_t)
        return z, None

    scan(body, 0, y)


def second_order(y):
    """An AR(2): the carry holds two states, so its path is no Markov chain in x alone."""
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def body(past, y_t):
        x = numpyro.sample("x", dist.Normal(phi * past[0] - 0.3 * past[1], 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return (x, past[0]), None

    scan(body, (0.0, 0.0), y)


def rich(data, heat):
    """Dictionaries, a clock, an input, a plate, an observation that looks at the state before."""
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def body(carry, now):
        y_t, heat_t = now
        with numpyro.plate("series", 2):
            x = numpyro.sample("x", dist.Normal(0.7 * carry["x"] + drift * heat_t, 0.5))
            law = dist.Normal(x + 0.4 * carry["x"] + 0.1 * carry["t"], 0.6)
            numpyro.sample("y", law, obs=y_t)
        return {"x": x, "t": carry["t"] + 1}, (x, y_t)

    with numpyro.plate("series", 2):
        start = numpyro.sample("start", dist.Normal(0.2, 1.0))
    scan(body, {"x": start, "t": 0}, (data, heat))


DATA = np.random.default_rng(4).normal(0.0, 1.0, (T, 2)).astype(np.float32)
HEAT = np.linspace(-1.0, 1.0, T).astype(np.float32)


def rich_exactly(series, drift=0.5):
    """State (x_t, x_{t-1})."""
    return kalman(
        DATA[:, series] - 0.1 * np.arange(T),
        initial_mean=[0.7 * 0.2 + drift * HEAT[0], 0.2],
        initial_cov=[[0.49 + 0.25, 0.7], [0.7, 1.0]],
        transition_matrix=[[0.7, 0.0], [1.0, 0.0]],
        transition_cov=[[0.25, 0.0], [0.0, 0.0]],
        transition_offset=np.stack([drift * HEAT, 0 * HEAT], 1),
        observation_matrix=[[1.0, 0.4]],
        observation_cov=0.36,
    )


def check_evidence(key, space, params, truth, *, num_particles=400, replicates=800, delta=0.2):
    """The evidence estimate is unbiased; a false alarm in a million runs."""
    run = jax.vmap(lambda k: smc(k, space.feynman_kac, params, num_particles=num_particles).log_evidence)
    check_mean(np.exp(run(jax.random.split(key, replicates)) - truth), 1.0, delta=delta, independent=True)


# --- laws ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evidence_of_a_linear_model(key):
    space = state_space(bound(linear, Y))
    assert space.params == ("phi", "s") and space.state_names == ("x",) and not space.no_density
    check_evidence(key, space, PARAMS, linear_exactly().log_evidence)


@pytest.mark.slow
def test_the_filter_agrees_with_kalman(key):
    found = mcx.filter(bound(linear, Y), params=PARAMS, num_particles=2000, num_chains=30, key=key, **QUIET)
    truth = linear_exactly()
    assert abs(found.log_evidence - truth.log_evidence) < 4 * found.log_evidence_se
    check_mean(found.record.mean["x"], truth.filtered_means[:, 0], delta=0.15, independent=True)
    sd = np.sqrt(truth.filtered_covs[:, 0, 0])
    check_mean(found.record.sd["x"], sd, delta=0.15, independent=True)
    tree = found.to_datatree()
    assert tree["filtering"]["x"].dims == ("time",)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y)


def test_functions_are_those_of_the_same_markov_chain(key):
    ours, theirs = (state_space(bound(program, Y)).feynman_kac for program in (linear, chain))
    ctx, other = ours.prepare(PARAMS), theirs.prepare(PARAMS)
    u, v = (jax.tree_util.tree_map(lambda a: a[3], fk.inputs) for fk in (ours, theirs))
    for a, b in ((0.3, -0.2), (-1.0, 2.0)):
        x_prev, x = ({"sites": {"x": jnp.float32(value)}, "carry": (), "before": ()} for value in (a, b))
        np.testing.assert_allclose(
            ours.log_potential(ctx, x_prev, x, u), theirs.log_potential(other, a, b, v)
        )
        np.testing.assert_allclose(
            ours.log_potential(ctx, None, x, u), theirs.log_potential(other, None, b, v)
        )
        np.testing.assert_allclose(
            ours.log_transition(ctx, x_prev, x, u), theirs.log_transition(other, a, b, v), rtol=1e-6
        )

    def moments(fk, ctx, u):
        draw = jax.jit(jax.vmap(fk.initial, (ParticleKey(None, 0), None, None)))
        (x,) = jax.tree_util.tree_leaves(draw(particle_keys(key, 20_000), ctx, u))
        return np.stack([x, x**2], 1)

    mean, square = 0.24, 0.24**2 + 0.64 + 0.36
    for fk, c, w in ((ours, ctx, u), (theirs, other, v)):
        check_mean(moments(fk, c, w), [mean, square], delta=0.1, independent=True)


@pytest.mark.slow
def test_a_hidden_markov_model(key):
    log_g = -0.5 * ((Y[:, None] - np.array([-0.5, 0.8])) / 0.6) ** 2 - np.log(0.6 * np.sqrt(2 * np.pi))
    truth = forward_backward([0.9, 0.1], [[0.9, 0.1], [0.3, 0.7]], log_g)
    model = bound(hidden_markov, Y)
    check_evidence(key, state_space(model), {}, truth.log_evidence)
    found = mcx.filter(model, num_particles=2000, num_chains=30, key=key, **QUIET)
    assert found.state.particles["sites"]["z"].dtype == jnp.int32
    check_mean(found.record.mean["z"], truth.filtered[:, 1], delta=0.1, independent=True)


@pytest.mark.slow
def test_a_second_order_autoregression_filters_but_has_no_transition_density(key):
    space = state_space(bound(second_order, Y))
    assert space.feynman_kac.log_transition is None
    assert "no Markov chain in 'x'" in space.no_density
    truth = kalman(
        Y,
        initial_mean=[0.0, 0.0],
        initial_cov=[[1.0, 0.0], [0.0, 0.0]],
        transition_matrix=[[0.5, -0.3], [1.0, 0.0]],
        transition_cov=[[1.0, 0.0], [0.0, 0.0]],
        observation_matrix=[[1.0, 0.0]],
        observation_cov=0.25,
    )
    check_evidence(key, space, {"phi": 0.5}, truth.log_evidence)


@pytest.mark.slow
def test_plates_dictionaries_clocks_inputs_and_the_state_before(key):
    model = bound(rich, DATA, HEAT)
    space = state_space(model)
    assert space.params == ("drift",) and space.state_names == ("x",)
    assert not space.no_density  # the clock is the same for all particles
    truth = sum(rich_exactly(i).log_evidence for i in range(2))
    check_evidence(key, space, {"drift": 0.5}, truth, num_particles=1500)
    found = mcx.filter(model, params={"drift": 0.5}, num_particles=2000, num_chains=30, key=key, **QUIET)
    means = np.stack([rich_exactly(i).filtered_means[:, 0] for i in range(2)], 1)
    check_mean(found.record.mean["x"], means, delta=0.2, independent=True)
    assert found.to_datatree()["filtering"]["x"].dims == ("time", "series")
    assert set(found.state.particles) == {"sites", "carry", "before", "start"}
    # x itself is in the carry once, as a site; before holds x and t as the observation sees them
    assert [v.dtype for v in found.state.particles["carry"]] == [jnp.int32]
    assert len(found.state.particles["before"]) == 2


def test_the_joint_density_is_the_models(key):
    """Initial law aside, transitions and potentials add up to NumPyro's density of the path."""
    model = bound(rich, DATA, HEAT)
    fk = state_space(model).feynman_kac
    ctx = fk.prepare({"drift": 0.5})
    start, path = jnp.array([0.1, -0.4]), jax.random.normal(key, (T, 2))
    before = jnp.concatenate([start[None], path[:-1]])

    def particle(t):
        return {"sites": {"x": path[t]}, "carry": (jnp.int32(t + 1),), "before": (jnp.int32(t), before[t])}

    total = -0.5 * jnp.sum((start - 0.2) ** 2) - np.log(2 * np.pi)
    for t in range(T):
        u = jax.tree_util.tree_map(lambda a, t=t: a[t], fk.inputs)
        if t:
            total += fk.log_transition(ctx, particle(t - 1), particle(t), u)
            total += fk.log_potential(ctx, particle(t - 1), particle(t), u)
        else:
            total += jnp.sum(dist.Normal(0.7 * start + 0.5 * HEAT[0], 0.5).log_prob(path[0]))
            total += fk.log_potential(ctx, None, particle(0), u)
    truth = model.log_density({"drift": 0.5, "start": start, "x": path})
    np.testing.assert_allclose(total + dist.Normal(0.0, 1.0).log_prob(0.5), truth, rtol=1e-5)


@pytest.mark.slow
def test_gradient_of_the_log_evidence(key):
    """The reparametrised estimator is that of Z; its ratio to Z is biased by O(1/N), within delta."""
    fk = state_space(bound(linear, Y)).feynman_kac
    estimate = jax.value_and_grad(
        lambda phi, k: jnp.exp(
            smc(k, fk, {"phi": phi, "s": 0.6}, num_particles=200).log_evidence - linear_exactly().log_evidence
        )
    )
    _, slopes = jax.vmap(estimate, (None, 0))(jnp.float32(0.8), jax.random.split(key, 600))
    step = 1e-4
    truth = (linear_exactly(phi=0.8 + step).log_evidence - linear_exactly(phi=0.8 - step).log_evidence) / (
        2 * step
    )
    check_mean(slopes, truth, delta=max(0.5, 0.5 * abs(truth)), independent=True)


# --- forecasts -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forecasts(key):
    found = mcx.filter(bound(linear, Y), params=PARAMS, num_particles=2000, num_chains=30, key=key, **QUIET)
    drawn = found.forecast(2, key=key, num_draws=4000)
    truth = linear_exactly()
    mean, var = truth.filtered_means[-1, 0], truth.filtered_covs[-1, 0, 0]
    for t in range(2):
        mean, var = 0.8 * mean, 0.64 * var + 0.36
        for site, extra in (("x", 0.0), ("y", 0.25)):
            z = (drawn[site][:, t] - mean) / np.sqrt(var + extra)
            check_mean(np.stack([z, z**2], 1), [0.0, 1.0], delta=0.2, independent=True)


@pytest.mark.slow
def test_forecasts_take_the_inputs_that_are_no_observations(key):
    found = mcx.filter(bound(rich, DATA, HEAT), params={"drift": 0.5}, num_particles=200, key=key, **QUIET)
    drawn = found.forecast(3, key=key, num_draws=50, inputs=(None, np.ones(3)))
    assert drawn["x"].shape == drawn["y"].shape == (50, 3, 2)
    with pytest.raises(ModelError, match="inputs"):
        found.forecast(3, key=key)


@pytest.mark.slow
def test_no_forecast_where_observations_feed_back(key):
    def program(y):
        def body(carry, y_t):
            x = numpyro.sample("x", dist.Normal(0.5 * carry[0] + 0.2 * carry[1], 1.0))
            y_t = numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
            return (x, y_t), None

        scan(body, (0.0, 0.0), y)

    found = mcx.filter(bound(program, Y), num_particles=100, key=key, **QUIET)
    assert not found.space.no_density  # the observations are known
    with pytest.raises(CapabilityError, match="states depend on the observations y"):
        found.forecast(2, key=key)
