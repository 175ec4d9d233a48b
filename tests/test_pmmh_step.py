"""One step of PMMH, enumerated, and mutants of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs_problems import (
    Choice,
)
from problems import slow_unless

import mcx
import mcx.dist as dist
from mcx.methods.initial_points import as_initial_points
from mcx.ops.random import choose
from mcx.testing import KeyReuse, enumerate_outcomes, forward_backward, path_law

LIKELIHOOD = np.array([[0.9, 0.2], [0.1, 0.7]])


@mcx.model
def tiny(likelihood):
    """Two states, two times; how often the chain moves up is unknown."""
    up = jax.nn.sigmoid(mcx.sample("logit", dist.Normal(0.0, 1.0)))
    mcx.markov(
        "x",
        initial=lambda u: Choice(jnp.array([1 - up, up])),
        transition=lambda x, u: Choice(jnp.where(x == 1, jnp.array([0.4, 0.6]), jnp.array([1 - up, up]))),
        emission=lambda x, u: dist.Bernoulli(u[x]),
        obs=jnp.ones(2, jnp.int32),
        inputs=likelihood,
    )


LOGITS = np.array([-1.2, 0.8])  # the random walk is confined to these: it proposes the other one


def exact_law():
    """Of (logit, x_0, x_1), as a vector of 8, and the evidence at each logit."""
    parts = []
    for logit in LOGITS:
        up = 1 / (1 + np.exp(-logit))
        chain = [1 - up, up], [[1 - up, up], [0.4, 0.6]], np.log(LIKELIHOOD)
        evidence = np.exp(forward_backward(*chain).log_evidence)
        law = path_law(*chain)
        place = law.paths @ [2, 1]
        parts.append((np.bincount(place, law.probabilities, 4), evidence, np.exp(-0.5 * logit**2)))
    mass = np.concatenate([p * z * prior for p, z, prior in parts])
    return mass / mass.sum(), np.array([z for _, z, _ in parts])


def tiny_plan():
    plan = mcx.PMMH(2, filter=mcx.ParticleFilter(threshold=1.0)).plan(tiny(jnp.asarray(LIKELIHOOD)))
    return plan, plan.kernel


def after_one_step(decide):
    """Total variation of the posterior from its image, and how far the mean of 1 / Zhat is off.

    The chain starts from the extended law, by weights: uniform over the logits, a filter there, and the
    weight is the density of that point.
    """
    plan, kernel = tiny_plan()
    logits = jnp.asarray(LOGITS)

    def run(key):
        key_logit, key_start, key_filter, key_accept = jax.random.split(key, 4)
        at = choose(key_logit, jnp.zeros(2))
        start = kernel.at(plan.data, key_start, logits[at][None])
        new = kernel.at(plan.data, key_filter, logits[1 - at][None])
        point = decide(kernel, plan.data, key_accept, start, new)
        place = (point.position[0] > 0) * 4 + point.paths["x"] @ jnp.array([2, 1])
        return jnp.exp(start.log_target), place, jnp.exp(-point.log_evidence)

    found = enumerate_outcomes(run, jax.random.key(0))
    weight, place, inverse = (np.asarray(x, float) for x in found.outcomes)
    weight *= found.probabilities / np.sum(found.probabilities * weight)
    law, evidence = exact_law()
    after = np.bincount(place.astype(int), weight, 8)
    # under the extended law E[1 / Zhat | logit] = 1 / Z
    distance = 0.5 * np.abs(after - law).sum()
    bias = np.sum(weight * inverse) / np.sum(law.reshape(2, 4).sum(1) / evidence) - 1
    return distance, bias


def right(kernel, data, key, start, new):
    return kernel.decide(key, start, new)[0]


def estimated_anew(kernel, data, key, start, new):
    """The evidence of the present point is estimated again: 'Monte Carlo within Metropolis'."""
    first, second = jax.random.split(key)
    again = kernel.at(data, first, start.position)
    return kernel.decide(second, start._replace(log_evidence=again.log_evidence), new)[0]


def old_path(kernel, data, key, start, new):
    """The path does not come along."""
    return kernel.decide(key, start, new)[0]._replace(paths=start.paths)


def other_path(kernel, data, key, start, new):
    """The path comes from another run than the evidence."""
    first, second = jax.random.split(key)
    other = kernel.at(data, first, new.position)
    return kernel.decide(second, start, new._replace(paths=other.paths))[0]


def without_prior(kernel, data, key, start, new):
    return kernel.decide(key, start, new._replace(log_density=start.log_density))[0]


TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 1e-6


def test_a_step_leaves_the_extended_law_invariant():
    distance, bias = after_one_step(right)
    assert distance < TOLERANCE and abs(bias) < 10 * TOLERANCE


@pytest.mark.parametrize(
    "mutant", slow_unless([old_path], [estimated_anew, old_path, other_path, without_prior])
)
def test_wrong_steps_are_found_out(mutant):
    assert after_one_step(mutant)[0] > 1e-3


@pytest.mark.slow
def test_keys_are_fresh():
    """Two steps in a row, given the random walk's noise; and the same with the first step's key once more."""
    plan, kernel = tiny_plan()
    start = jax.tree.map(lambda x: x[0], as_initial_points(plan.model.marginal, None, 1, jax.random.key(0)))
    blank = jax.eval_shape(lambda k: kernel.init(plan.data, k, start), jax.random.key(0))
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), blank)
    u = {"code": jnp.int32(0), "learned": True}

    def run(key, same):
        first, second, third = jax.random.split(key, 3)
        state = blank._replace(point=kernel.at(plan.data, first, jnp.zeros(1)))
        state, _ = kernel.step(plan.data, second, state, u)
        state, _ = kernel.step(plan.data, second if same else third, state, u)
        return state.point.log_evidence

    enumerate_outcomes(lambda k: run(k, False), jax.random.key(0), allow_other_draws=True)
    with pytest.raises(KeyReuse):
        enumerate_outcomes(lambda k: run(k, True), jax.random.key(0), allow_other_draws=True)
