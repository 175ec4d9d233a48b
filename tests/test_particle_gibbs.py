"""Particle Gibbs against enumeration, quadrature over Kalman likelihoods, and joint simulation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs_problems import (
    Choice,
    T,
    Y,
    check_regimes,
    check_scan,
    check_two_chains,
    forecasting_scan,
    innovations_scan,
    regimes,
    two_chains,
    walk,
)
from problems import slow_unless

import mcx
import mcx.dist as dist
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.series.state_space import BlockData, state_space
from mcx.ops.random import choose
from mcx.testing import check_mean, enumerate_outcomes

ONE = {"num_chains": 1, "progress": False, "warnings": "ignore"}  # of many draws: it compiles fastest

# --- a whole sweep, enumerated ---------------------------------------------------------------------


RATES = jnp.array([0.3, 0.8])
LIKELIHOOD = jnp.array([[0.9, 0.2], [0.1, 0.7], [0.8, 0.3]])


@mcx.model
def tiny(likelihood):
    """Two values of a parameter, two states, three times."""
    theta = mcx.sample("theta", Choice(jnp.array([0.4, 0.6])))
    rate = RATES[theta]
    mcx.markov(
        "x",
        initial=lambda u: Choice(jnp.array([1 - rate, rate])),
        transition=lambda x, u: Choice(jnp.where(x == 1, jnp.array([0.4, 0.6]), jnp.array([1 - rate, rate]))),
        emission=lambda x, u: dist.Bernoulli(u[x]),
        obs=jnp.ones(3, jnp.int32),
        inputs=likelihood,
    )


def draw_theta(key, values):
    """From the full conditional law of theta."""
    theta = jnp.arange(2)
    log_p = jax.vmap(lambda t: tiny(LIKELIHOOD).log_density({**values, "theta": t}))(theta)
    return {"theta": choose(key, log_p)}


def joint_law():
    """Of (theta, x_0, x_1, x_2), as a vector of 16."""
    bound = tiny(LIKELIHOOD)
    bits = np.indices((2, 2, 2, 2)).reshape(4, -1)
    log_p = jax.vmap(lambda t, x: bound.log_density({"theta": t, "x": x}))(bits[0], bits[1:].T)
    p = np.exp(np.asarray(log_p, float))
    return bits, p / p.sum()


def after_one_sweep(backward, sweep):
    """Total variation between the posterior and its image."""
    method = mcx.ParticleGibbs(
        states=mcx.ConditionalSMC(num_particles=2, backward=backward, threshold=1.0), params=draw_theta
    )
    plan = method.plan(tiny(LIKELIHOOD))
    bits, law = joint_law()
    log_law, bits = jnp.asarray(np.log(law), float), jnp.asarray(bits)

    def run(key):
        key_start, key_sweep = jax.random.split(key)
        at = choose(key_start, log_law)
        state = jax.eval_shape(lambda k: plan.kernel.init(plan.data, k, plan_start), key)
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)
        state = state._replace(values={"theta": bits[0, at], "x": bits[1:, at]})
        new = sweep(plan.kernel, plan.data, key_sweep, state)
        return jnp.sum(jnp.stack([new["theta"], *new["x"]]) * jnp.array([8, 4, 2, 1]))

    plan_start = jax.tree.map(lambda x: x[0], method.initial_points(plan, None, 1, jax.random.key(0)))
    found = enumerate_outcomes(run, jax.random.key(0))
    after = np.bincount(np.asarray(found.outcomes), found.probabilities, 16)
    return 0.5 * np.abs(after - law).sum()


def right(kernel, data, key, state):
    u = {"code": jnp.int32(0), "keep": True}
    return kernel.step(data, key, state, u)[0].values


def stale(kernel, data, key, state):
    """Each part sees the other one as it was a sweep ago."""
    key_paths, key_params = jax.random.split(key)
    moved, _ = kernel.move_paths(data, key_paths, state)
    drawn, _ = kernel.move_params(data, key_params, state, jnp.int32(0))
    return {"x": moved.values["x"], "theta": drawn.values["theta"]}


@pytest.mark.parametrize("backward", slow_unless(["exact"], ["exact", "ancestor", "none"]))
def test_a_sweep_leaves_the_posterior_invariant(backward):
    assert after_one_sweep(backward, right) < (1e-12 if jax.config.jax_enable_x64 else 1e-6)


def test_parameters_of_the_sweep_before_are_found_out():
    assert after_one_sweep("exact", stale) > 0.04


# --- posteriors against quadrature -----------------------------------------------------------------


BOTH = mcx.ParticleGibbs(
    states={
        "a": mcx.ConditionalSMC(num_particles=10),
        "b": mcx.ConditionalSMC(num_particles=10, backward="ancestor"),
    },
    params=mcx.RandomWalk(),
    num_warmup=500,
    num_samples=24_000,
)


@pytest.fixture(scope="module")
def both():
    """A run on two chains, one path drawn backwards and one with ancestor sampling."""
    return mcx.infer(two_chains(Y), BOTH, key=mcx.testing.key_for("two chains"), **ONE)


@pytest.mark.slow
def test_two_chains_with_a_common_parameter_by_particle_gibbs(both):
    check_two_chains(both)


@pytest.mark.slow
def test_the_density_that_is_kept_is_given_the_present_paths(both):
    """A proposal that is refused leaves the density of the last step: it has to be of the new path."""
    target = condition_target(compile_model(two_chains(Y)), ("a", "b"))
    points = both.unconstrained[0, :200]

    def density(a, b, z):
        at = target.with_data((target.data[0], {"a": a, "b": b}))
        return at.log_density(at.unravel(z))

    exact = jax.vmap(density)(both["a"][0, :200], both["b"][0, :200], points)
    assert not np.all(both.stats["accepted"][0, :200])
    np.testing.assert_allclose(both.stats["lp"][0, :200], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_results_of_particle_gibbs(both):
    assert list(both.draws) == ["phi", "a", "b", "squared"]
    assert both["a"].shape == (1, 24_000, T) and both.unconstrained.shape == (1, 24_000, 1)
    rate = both.smc_stats["a.update_rate"]
    assert rate.shape == (1, T) and np.all(rate > 0.5) and np.all(rate <= 1)
    np.testing.assert_allclose(rate.mean(1), both.stats["a.update_rate"].mean(1), rtol=1e-4)
    moved = np.mean(np.diff(both["a"], axis=1) != 0, axis=1)
    np.testing.assert_allclose(rate, moved, atol=2e-3)
    assert np.all(both.smc_stats["b.ess"] <= 10) and np.all(both.smc_stats["b.unique_ancestors"] <= 10)
    assert len(both.summary()) == 2 + 2 * T and "phi" in repr(both)
    tree = both.to_datatree()
    assert tree["posterior"]["a"].dims == ("chain", "draw", "time")
    assert tree["smc_stats"]["a.update_rate"].dims == ("chain", "time")
    assert tree["sample_stats"]["a.ess"].dims == ("chain", "draw")
    prior = {k: np.asarray(v)[0, 0] for k, v in tree["log_prior"].items()}
    assert set(prior) == {"phi", "a", "b"}
    values = {k: both[k][0, 0] for k in ("phi", "a", "b")}
    total = sum(prior.values()) + sum(np.sum(v[0, 0]) for v in tree["log_likelihood"].values())
    assert float(total) == pytest.approx(float(two_chains(Y).log_density(values)), rel=1e-4)


@pytest.mark.slow
def test_a_path_that_does_not_move_is_told(both):
    stuck = both.smc_stats["a.update_rate"].copy()
    stuck[:, :3] = 0.02
    posterior = dataclasses.replace(both, smc_stats={**both.smc_stats, "b.update_rate": stuck})
    (found,) = [a.text for a in BOTH.diagnose(posterior) if a.code == "MCX-W008"]
    assert "path of 'b'" in found and "at 3 of 12 times" in found and 'backward="exact"' in found
    posterior = dataclasses.replace(both, smc_stats={**both.smc_stats, "a.update_rate": stuck})
    (found,) = [a.text for a in BOTH.diagnose(posterior) if a.code == "MCX-W008"]
    assert "Use more particles" in found
    assert not [a for a in BOTH.diagnose(both) if a.code == "MCX-W008"]


SCANS = [
    (forecasting_scan, "exact", 10),
    (forecasting_scan, "ancestor", 10),
    (innovations_scan, "none", 50),
]


@pytest.mark.parametrize("case", slow_unless([], SCANS))
def test_particle_gibbs_of_scan(case, key):
    """Carries that depend on a parameter are computed anew when it changes; x0 is drawn along."""
    program, backward, num_particles = case
    states = mcx.ConditionalSMC(num_particles=num_particles, backward=backward)
    method = mcx.ParticleGibbs(states=states, params=mcx.RandomWalk(), num_warmup=500, num_samples=24_000)
    check_scan(mcx.infer(mcx.model(program)(Y[0]), method, key=key, **ONE).draws)


def draw_level(key, values):
    """The normal full conditional of the level."""
    precision = 1.0 + jnp.sum(values["z"]) / 0.36
    mean = jnp.sum(values["z"] * Y[0]) / 0.36 / precision
    return {"level": mean + jax.random.normal(key) / jnp.sqrt(precision)}


@pytest.mark.slow
def test_discrete_states_with_a_conjugate_update(key):
    method = mcx.ParticleGibbs(
        states=mcx.ConditionalSMC(num_particles=6),
        params=(draw_level, mcx.RandomWalk()),
        num_warmup=500,
        num_samples=24_000,
    )
    post = mcx.infer(regimes(Y[0]), method, key=key, **ONE)
    check_regimes(post)
    assert set(post.to_datatree()["log_prior"].data_vars) == {"stay", "level", "z"}


@pytest.mark.slow
def test_a_path_may_count_as_a_parameter(key):
    """Chain b's path is moved by NUTS, along with the parameter; four chains."""
    states = {"a": mcx.ConditionalSMC(num_particles=10)}
    method = mcx.ParticleGibbs(states=states, num_warmup=500, num_samples=4000)
    post = mcx.infer(two_chains(Y), method, key=key, progress=False, warnings="ignore")
    assert post.unconstrained.shape == (4, 4000, 1 + T) and set(post.smc_stats) >= {"a.ess"}
    check_two_chains(post)


@pytest.mark.slow
def test_block_of_numpyro_gibbs(key):
    Gibbs = pytest.importorskip("numpyro.infer.gibbs").Gibbs
    from numpyro.infer import MCMC, NUTS

    block = mcx.PathGibbs(forecasting_scan, mcx.ConditionalSMC(num_particles=10))
    kernel = Gibbs([(block, ["x0", "x"]), (NUTS(forecasting_scan), None)])
    mcmc = MCMC(kernel, num_warmup=500, num_samples=15_000, progress_bar=False)
    mcmc.run(key, jnp.asarray(Y[0]))
    check_scan(mcmc.get_samples(group_by_chain=True))


# --- simulated jointly with the data ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("params", [mcx.NUTS(step_size=0.7), mcx.RandomWalk()], ids=["nuts", "random_walk"])
def test_sweeps_and_new_data_in_turn_have_the_prior_law(params, key):
    """Geweke (2004): moments of the prior are known exactly; alpha 1e-6, finds a tenth of an sd or less."""
    method = mcx.ParticleGibbs(states=mcx.ConditionalSMC(num_particles=4), params=params)
    kernel = method.plan(walk(np.zeros(3, np.float32))).kernel

    def data_of(y):
        return BlockData(compile_model(walk(y)).data, {"x": state_space(walk(y), "x", whole=True)})

    def start(key):
        drawn = walk(jnp.zeros(3)).simulate(key=key)
        data = data_of(drawn["x_obs"])
        z = kernel.mcmc.target((data.model, {"x": drawn["x"]})).unconstrain(drawn)
        position = jnp.stack([z["phi"], z["s"]])
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape_of_state)
        at = kernel.mcmc.at((data.model, {"x": drawn["x"]}), position)
        return state._replace(values={"x": drawn["x"]}, params=at), drawn["x_obs"]

    def step(carry, key):
        state, y = carry
        key_sweep, key_y = jax.random.split(key)
        state, _ = kernel.step(data_of(y), key_sweep, state, {"code": jnp.int32(0), "keep": False})
        x = state.values["x"]
        y = x + 0.5 * jax.random.normal(key_y, x.shape)
        values = kernel._values(data_of(y), state.values, state.params.position)
        phi, s = values["phi"], values["s"]
        seen = [phi, phi**2, s, s**2, x[0], x[0] ** 2, x[1] ** 2, x[2] ** 2, phi * x[0] * x[1], y[2] ** 2]
        return (state, y), jnp.stack(seen)

    def chain(key):
        key_start, key_run = jax.random.split(key)
        return jax.lax.scan(step, start(key_start), jax.random.split(key_run, 8000))[1]

    plan = method.plan(walk(np.zeros(3, np.float32)))
    starts = jax.tree.map(lambda x: x[0], method.initial_points(plan, None, 1, key))
    shape_of_state = jax.eval_shape(lambda k: kernel.init(plan.data, k, starts), key)
    seen = jax.jit(jax.vmap(chain))(jax.random.split(key, 64))
    s2 = 0.63
    x1, x2 = 1 / 3 + s2, 1 / 5 + s2 / 3 + s2
    truth = [0, 1 / 3, 0.75, s2, 0, 1, x1, x2, 1 / 3, x2 + 0.25]
    check_mean(seen, truth, delta=[0.1, 0.05, 0.05, 0.08, 0.15, 0.2, 0.2, 0.25, 0.15, 0.25])
