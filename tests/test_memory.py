"""Runs within bounds of memory: draws in files, batches, and what is said where it was not enough."""

import errno
import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_problems import WALK, collect, interrupted, same, walk

import mcx
from mcx.errors import CheckpointError, DeviceMemoryError, MethodError
from mcx.run.kernel import _PlainKernel
from mcx.run.programs import run_steps, start_chains


def streamed(path):
    return walk(path, in_memory=False)


def test_draws_in_files_are_the_same_draws(tmp_path):
    whole = walk(None)
    found = streamed(tmp_path / "a")
    assert same(whole, found)
    assert isinstance(found.draws["x"], np.memmap)
    assert found.draws["count"].dtype == whole.draws["count"].dtype  # one that numpy does not know
    interrupted(tmp_path / "b", 6)
    assert same(whole, streamed(tmp_path / "b"))


def test_draws_that_have_no_room_are_told_before_the_run(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"no room(.|\n)*MiB(.|\n)*No space left"):
        streamed(tmp_path)


def test_device_memory_does_not_grow_with_draws():
    """What lives on the device during a run, at some of its chunks: always the same."""
    chunks, sizes = [], []

    class Watched:
        @staticmethod
        def init(key):
            return jnp.zeros(1000)

        @staticmethod
        def step(key, state):
            return state + jax.random.normal(key, (1000,)), {}

    class Kernel(_PlainKernel):
        def report(self, stats):
            chunks.append(stats)
            if len(chunks) % 20:  # looking takes time where much was traced before
                return {}
            gc.collect()
            sizes.append(sum(x.nbytes for x in jax.live_arrays()))
            return {}

    kernel = Kernel(Watched(), lambda state, info: state)
    mcx.run(kernel, key=0, num_steps=3000, num_chains=2, capacity=50, chunk_size=50, progress=False)
    assert len(chunks) == 60
    assert len(sizes) == 3 and max(sizes) == min(sizes)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_of_chains_give_the_same_chains(batch_size):
    """Up to rounding; the last batch may be smaller."""
    whole, found = (
        mcx.run(WALK, key=3, num_steps=60, num_chains=7, collect=collect, progress=False, batch_size=batch)
        for batch in (None, batch_size)
    )
    np.testing.assert_allclose(found.draws["x"], whole.draws["x"], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found.draws["count"], whole.draws["count"])
    keys = [jax.random.key_data(run.state["key"]) for run in (found, whole)]
    np.testing.assert_array_equal(*keys)


class Wide(mcx.Kernel):
    """A kernel whose step needs much more memory than its state."""

    def init(self, data, key, start):
        return jnp.zeros(())

    def step(self, data, key, state, u):
        return state + jnp.sort(jax.random.normal(key, (100_000,)))[0], None

    def collect(self, state, info):
        return state, {}


def test_batches_bound_memory():
    """XLA's own account of intermediate values, of 64 chains at once and of 4."""
    keys = jax.random.split(jax.random.key(0), 64)
    kernel = Wide()

    def temporaries(batch_size):
        def program(keys):
            state = start_chains(kernel, None, keys, None)
            return run_steps(kernel, None, keys, 0, 1, state, None, 1, batch_size=batch_size)

        return jax.jit(program).lower(keys).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4) < temporaries(None) / 8


def test_too_much_memory_says_what_to_lower():
    class Huge(Wide):
        def step(self, data, key, state, u):
            return state + jnp.sort(jax.random.normal(key, (10**11,)))[0], None

    with pytest.raises(DeviceMemoryError) as caught:
        mcx.run(Huge(), key=0, num_steps=3, num_chains=2, progress=False)
    text = str(caught.value)
    for part in ("states of 2 chains", "intermediate values of a step", "TiB", "batch_size", "num_particles"):
        assert part in text


def test_what_was_drawn_before_survives(tmp_path, monkeypatch):
    """An error of the device in the middle of a run: draws are in the error, and on disk."""
    from mcx.run.driver import _Loop

    count, original = [], _Loop._count

    def limited(self):
        count.append(1)
        if len(count) > 6:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return original(self)

    monkeypatch.setattr(_Loop, "_count", limited)
    with pytest.raises(DeviceMemoryError) as caught:
        walk(tmp_path, interval=1e6)
    monkeypatch.undo()
    whole = walk(None)
    part = caught.value.result
    assert part.num_steps == 110 and not part.complete
    np.testing.assert_array_equal(part.draws["x"], whole.draws["x"][:, :60])
    assert mcx.load(tmp_path).num_steps == 110
    assert same(whole, walk(tmp_path))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "4"])
def test_batch_sizes_that_make_no_sense(batch_size):
    with pytest.raises(MethodError, match="batch_size"):
        walk(None, batch_size=batch_size)
