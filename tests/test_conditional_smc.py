"""Conditional SMC is exact: every random choice of the shipped kernel is enumerated on a small chain."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless

from mcx import FeynmanKac
from mcx.errors import CapabilityError, MethodError
from mcx.inference.conditional_smc import conditional_smc
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, sweep
from mcx.inference.smc.backward import backward_path
from mcx.inference.smc.smc import smc
from mcx.ops.random import choose
from mcx.testing import check_mean, enumerate_outcomes, forward_backward, kalman, path_law

INITIAL = np.array([0.5, 0.5])
TRANSITION = np.array([[0.7, 0.3], [0.2, 0.8]])
LIKELIHOOD = np.array([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15]])
PROPOSAL = np.array([[0.5, 0.5], [0.6, 0.4]])
T = len(LIKELIHOOD)
CODE = 2 ** np.arange(T)  # a path as a number


def model(guided=False, look=False, density=True):
    """A two-state chain; guided: other kernels, corrected in potentials that depend on the state before."""
    log_p, log_q = jnp.log(TRANSITION), jnp.log(PROPOSAL if guided else TRANSITION)

    def log_potential(ctx, x_prev, x, u):
        ratio = 0.0 if x_prev is None else log_p[x_prev, x] - log_q[x_prev, x]
        return jnp.log(u[x]) + ratio

    return FeynmanKac(
        initial=lambda key, ctx, u: choose(key, jnp.log(INITIAL)),
        transition=lambda key, ctx, x, u: choose(key, log_q[x]),
        log_potential=log_potential,
        num_times=T,
        inputs=jnp.asarray(LIKELIHOOD),
        log_transition=(lambda ctx, x_prev, x, u: log_q[x_prev, x]) if density else None,
        log_lookahead=(lambda ctx, x, u: jnp.log(0.3 + jnp.exp(2 * log_p[x, 0]) * u[0])) if look else None,
    )


def total_variation(values, probabilities, law, times=T):
    exact = np.bincount(law.paths @ CODE[:times], law.probabilities, 2**T)
    found = np.bincount(np.asarray(values), probabilities, 2**T)
    return 0.5 * np.abs(found - exact).sum()


def after_one_sweep(fk, method):
    """Outcomes of a sweep from a path that is itself drawn from the exact law."""
    law = path_law(INITIAL, TRANSITION, np.log(LIKELIHOOD))
    paths, log_p = jnp.asarray(law.paths), jnp.asarray(np.log(law.probabilities))

    def run(key):
        key_path, key_sweep = jax.random.split(key)
        path = paths[choose(key_path, log_p)]
        new, info = sweep(key_sweep, fk, None, path, method)
        return new @ jnp.asarray(CODE), info.log_evidence

    return enumerate_outcomes(run, jax.random.key(0)), law


@pytest.mark.parametrize("threshold", slow_unless([0.8], [0.0, 0.8, 1.0]))
@pytest.mark.parametrize("backward", ["none", "ancestor", "exact"])
def test_leaves_the_smoothing_law_invariant(backward, threshold):
    """N = 2, where bookkeeping errors are largest; potentials depend on the state before, with a look-ahead.

    Also E[1 / Zhat] = 1 / Z under the conditional law.
    """
    method = ConditionalSMC(num_particles=2, backward=backward, threshold=threshold)
    found, law = after_one_sweep(model(guided=True, look=True), method)
    code, log_z = found.outcomes
    assert total_variation(code, found.probabilities, law) < 1e-6
    ratio = found.mean(np.exp(law.log_evidence - np.asarray(log_z, float)))
    assert ratio == pytest.approx(1.0, abs=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("backward", slow_unless(["exact"], ["none", "ancestor", "exact"]))
def test_leaves_the_smoothing_law_invariant_to_double_precision(backward):
    method = ConditionalSMC(num_particles=2, backward=backward, threshold=0.8)
    found, law = after_one_sweep(model(guided=True, look=True), method)
    assert total_variation(found.outcomes[0], found.probabilities, law) < 1e-12


def test_three_particles():
    found, law = after_one_sweep(model(), ConditionalSMC(num_particles=3, backward="none", threshold=0.0))
    assert total_variation(found.outcomes[0], found.probabilities, law) < 1e-6


def test_a_wrong_kernel_is_found(monkeypatch):
    """Ancestors sorted before slot 0 is overwritten: the defect that shipped in well-known libraries."""

    def ordered(nailed, ctx, state, u, draw_ancestor):
        return lambda key, log_w, num: jnp.sort(choose(key, log_w, (num,))).at[0].set(0)

    monkeypatch.setattr(conditional_smc, "pinned", ordered)
    found, law = after_one_sweep(model(), ConditionalSMC(num_particles=2, backward="none", threshold=1.0))
    assert total_variation(found.outcomes[0], found.probabilities, law) > 5e-3


def test_backward_sampling_of_a_filter():
    """E[Zhat f(path)] = Z E[f | y]: a path drawn backwards through a plain filter is properly weighted."""
    fk = model(guided=True)
    law = path_law(INITIAL, TRANSITION, np.log(LIKELIHOOD))

    def run(key):
        key_filter, key_back = jax.random.split(key)
        result = smc(key_filter, fk, num_particles=2, history="full", threshold=0.8)
        path, _ = backward_path(key_back, fk, None, result.history.particles, result.history.log_w)
        return path @ jnp.asarray(CODE), result.log_evidence

    found = enumerate_outcomes(run, jax.random.key(0))
    code, log_z = found.outcomes
    weight = found.probabilities * np.exp(np.asarray(log_z, float) - law.log_evidence)
    assert weight.sum() == pytest.approx(1.0, abs=1e-5)
    assert total_variation(code, weight, law) < 1e-5


def linear_gaussian(y):
    def log_normal(x, mean, sd):
        return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.9189385

    return FeynmanKac(
        initial=lambda key, phi, u: jax.random.normal(key) / jnp.sqrt(1 - phi**2),
        transition=lambda key, phi, x, u: phi * x + jax.random.normal(key),
        log_potential=lambda phi, x_prev, x, u: log_normal(u, x, 0.5),
        num_times=len(y),
        inputs=jnp.asarray(y),
        log_transition=lambda phi, x_prev, x, u: log_normal(x, phi * x_prev, 1.0),
    )


@pytest.mark.slow
def test_a_chain_of_sweeps_has_the_smoothing_moments(key):
    """64 chains of 400 sweeps with 10 particles against Kalman; alpha 1e-6, finds 0.5 posterior sd."""
    y = np.random.default_rng(2).normal(size=25).astype(np.float32)
    phi = 0.8
    exact = kalman(
        y, initial_mean=0.0, initial_cov=1 / (1 - phi**2), transition_matrix=phi, transition_cov=1.0,
        observation_matrix=1.0, observation_cov=0.25,
    )  # fmt: skip
    fk, method = linear_gaussian(y), ConditionalSMC(num_particles=10)

    def chain(key):
        def step(path, key):
            new, info = sweep(key, fk, jnp.float32(phi), path, method)
            return new, (new, info.updated)

        return jax.lax.scan(step, jnp.zeros(25), jax.random.split(key, 400))[1]

    paths, updated = jax.jit(jax.vmap(chain))(jax.random.split(key, 64))
    sd = np.sqrt(exact.smoothed_covs[:, 0, 0])
    check_mean(paths[:, 100:], exact.smoothed_means[:, 0], delta=0.5 * sd)
    # with backward sampling the first time is renewed as well as the last
    rate = np.asarray(updated)[:, 100:].mean((0, 1))
    assert rate[0] > 0.5 and rate[-1] > 0.5


def test_refusals_of_conditional_smc():
    for bad in ({"num_particles": 1}, {"backward": "sideways"}, {"threshold": 2.0}):
        with pytest.raises(MethodError):
            ConditionalSMC(**bad)
    fk = model(density=False)
    with pytest.raises(CapabilityError, match="needs the density of the transition"):
        sweep(jax.random.key(0), fk, None, jnp.zeros(T, jnp.int32), ConditionalSMC(num_particles=2))
    adapting = replace(model(), adapt=lambda ctx, x, log_w, u: ctx)
    with pytest.raises(CapabilityError, match="adapts to the particles"):
        sweep(jax.random.key(0), adapting, None, jnp.zeros(T, jnp.int32), ConditionalSMC(num_particles=2))


def test_two_state_smoothing_probabilities():
    """The oracles of the other tests agree with each other."""
    law = path_law(INITIAL, TRANSITION, np.log(LIKELIHOOD))
    smoothed = forward_backward(INITIAL, TRANSITION, np.log(LIKELIHOOD)).smoothed
    np.testing.assert_allclose(law.probabilities @ law.paths, smoothed[:, 1])
