"""Draws have the same bits however a run was cut into chunks, for sites of every support."""

import jax.numpy as jnp
import numpy as np
import pytest

import mcx
from mcx import dist
from mcx.run import driver, programs
from mcx.run.progress import Progress

PRIORS = {
    "real": dist.Normal(0.0, 1.0),
    "positive": dist.HalfNormal(1.0),
    "heavy": dist.HalfCauchy(1.0),
    "unit": dist.Beta(2.0, 3.0),
    "interval": dist.Uniform(-1.0, 2.0),
    "above": dist.Pareto(2.0, 1.5),
    "below": dist.TruncatedNormal(0.0, 1.0, high=0.5),
    "simplex": dist.Dirichlet(jnp.ones(3)),
    "ordered": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    ),
    "cholesky": dist.LKJCholesky(3, 2.0),
    "covariance": dist.Wishart(5.0, jnp.eye(2)),
    "vector": dist.HalfNormal(1.0).expand([5]),
}


@mcx.model
def supports():
    for name, prior in PRIORS.items():
        mcx.sample(name, prior)


METHOD = mcx.RandomWalk(num_warmup=60, num_samples=700)


@pytest.mark.slow  # which are compiled with vector instructions
def test_chunks_do_not_show(monkeypatch):
    """Chunks of a step, of some, and of as many as the buffer holds; 499 of them fill no vector register."""
    monkeypatch.setattr(programs, "_MAX_CAPACITY", 499)

    def drawn(seconds):
        monkeypatch.setattr(driver, "_SECONDS_PER_CHUNK", seconds)
        found = mcx.infer(supports(), METHOD, key=5, num_chains=4, progress=False, warnings="ignore")
        return {name: np.asarray(found[name]) for name in PRIORS}

    whole = drawn(1e9)
    for seconds in (0.0, 1e-3, 3e-3):
        for name, x in drawn(seconds).items():
            assert x.tobytes() == whole[name].tobytes(), name


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_first_chunk_is_a_single_step(monkeypatch, seconds):
    """A run of few and long steps is saved after each of them, as soon as these are known to be long."""
    monkeypatch.setattr(driver, "_SECONDS_PER_CHUNK", seconds)
    counts = []

    class Long:
        def init(self, key):
            return jnp.zeros(())

        def step(self, key, state):
            return state + 1, {"n": state}

    class Counting(Progress):
        def update(self, done, phase, facts):
            counts.append(done)

    mcx.run(Long(), key=0, num_steps=12, num_discard=2, num_chains=2, progress=Counting())
    assert counts == ([*range(1, 13)] if seconds == 0 else [1, 2, 12])
