"""Runs for the tests of checkpoints: their bits, and ways to end them early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcx
from mcx import dist

STEPS = 300


class Walk:
    """A random walk that carries a random key and several types."""

    def init(self, key):
        return {"x": jnp.zeros(3), "key": key, "count": jnp.int32(0)}

    def step(self, key, state):
        x = state["x"] + jax.random.normal(key, (3,)) + jax.random.uniform(state["key"])
        new = {"x": x, "key": jax.random.fold_in(state["key"], 1), "count": state["count"] + 1}
        return new, {"far": jnp.sum(x**2) > 9}

    def __eq__(self, other):
        return type(other) is type(self)

    def __hash__(self):
        return 0


def collect(state, info):
    return {"x": state["x"], "count": state["count"].astype(jnp.bfloat16), **info}


def walk(path, steps=STEPS, key=3, interval=0.0, in_memory=True, **options):
    options = {"chunk_size": 20, "num_discard": 50, "num_chains": 2, "progress": False, **options}
    checkpoint = None if path is None else mcx.Checkpoint(path, interval, in_memory)
    return mcx.run(WALK, key=key, num_steps=steps, collect=collect, checkpoint=checkpoint, **options)


WALK = Walk()


def same(a, b):
    leaves = [
        jax.tree.leaves((r.draws, r.stats, r.state["x"], jax.random.key_data(r.state["key"]))) for r in (a, b)
    ]
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(*leaves, strict=True))


class Stopped(Exception):
    pass


def interrupted(path, chunks, **options):
    """A run that ends by an error after some chunks."""
    seen = []

    def report(stats):
        seen.append(1)
        if len(seen) > chunks:
            raise Stopped
        return {}

    from mcx.run.kernel import as_kernel

    kernel = as_kernel(WALK, collect)
    original = type(kernel).report
    type(kernel).report = lambda self, stats: report(stats)
    try:
        with pytest.raises(Stopped):
            walk(path, **options)
    finally:
        type(kernel).report = original


@mcx.model
def normal(y):
    mu = mcx.sample("mu", dist.Normal(0, 5))
    mcx.sample("y", dist.Normal(mu, 1.0), obs=y)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
