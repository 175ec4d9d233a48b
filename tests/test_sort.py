"""Sorts: the same answers on the host and in XLA, in every transformation."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mcx.errors import MethodError
from mcx.ops.sort import argsort, merge_order, sort

INF, NAN = np.inf, np.nan
ODD = np.array([3.0, NAN, -INF, 0.0, -0.0, INF, -NAN, -2.5, 3.0], np.float32)


@pytest.fixture(params=["xla", "host"])
def where(request, monkeypatch):
    """Both ways to sort, whatever the size."""
    monkeypatch.setenv("MCX_SORT", request.param)
    return request.param


def numbers(key, shape, dtype):
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.random.randint(key, shape, 0 if "u" in str(dtype) else -1000, 1000).astype(dtype)
    return jax.random.normal(key, shape).round(1).astype(dtype)  # with ties


@pytest.mark.parametrize("dtype", ["float32", "uint32", "bfloat16"])
def test_against_numpy(where, key, dtype):
    x = numbers(key, (3, 50), jnp.dtype(dtype))
    exact = np.sort(np.asarray(x, np.float64), -1)
    np.testing.assert_array_equal(np.asarray(sort(x), np.float64), exact)
    order = np.asarray(argsort(x))
    assert order.dtype == np.int32 and sort(x).dtype == x.dtype
    np.testing.assert_array_equal(np.sort(order, -1), np.broadcast_to(np.arange(50), (3, 50)))
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(x, np.float64), order, -1), exact)


@pytest.mark.x64
def test_float64(where, key):
    x = jax.random.normal(key, (3, 50))
    assert x.dtype == jnp.float64
    np.testing.assert_array_equal(sort(x), np.sort(x))
    np.testing.assert_array_equal(argsort(x), np.argsort(x))
    np.testing.assert_array_equal(jax.grad(lambda x: sort(x)[0, 7])(x) != 0, x == np.sort(x)[0, 7])


def test_infinities_zeros_and_nan(where):
    found = np.asarray(sort(ODD))
    np.testing.assert_array_equal(found, np.sort(ODD))
    assert np.isnan(found[-2:]).all() and np.isnan(ODD[np.asarray(argsort(ODD))[-2:]]).all()


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (0, 3), (3, 1)])
def test_small_shapes(where, shape):
    x = jnp.ones(shape)
    assert sort(x).shape == argsort(x).shape == shape
    np.testing.assert_array_equal(sort(x), x)


@pytest.mark.slow
def test_transformations(where, key):
    x = jax.random.normal(key, (4, 50))
    exact, ranks = np.sort(x), np.argsort(np.argsort(x))
    scale = jnp.arange(50.0)

    def fresh(x):  # jit remembers what a function was traced to
        return sort(x)

    for fn in (sort, jax.jit(fresh), jax.vmap(sort), jax.jit(jax.vmap(fresh)), lambda x: sort(x.T, 0).T):
        np.testing.assert_array_equal(fn(x), exact)
        np.testing.assert_array_equal(jax.grad(lambda x, fn=fn: (fn(x) * scale).sum())(x), ranks)
    np.testing.assert_array_equal(jax.vmap(argsort)(x), np.argsort(x))
    value, slope = jax.jvp(sort, (x,), (2 * x,))
    np.testing.assert_array_equal(slope, 2 * value)
    total, _ = jax.lax.scan(lambda c, row: (c + sort(row), None), jnp.zeros(50), x)
    np.testing.assert_allclose(total, exact.sum(0), rtol=1e-5, atol=1e-5)
    again = jax.grad(lambda x: (jax.checkpoint(fresh)(x) * scale).sum())(x)
    np.testing.assert_array_equal(again, ranks)
    curvature = jax.hessian(lambda x: (sort(x) ** 3).sum())(x[0])
    np.testing.assert_allclose(curvature, np.diag(6 * x[0]), rtol=1e-6)


def test_merging(where, key):
    a = np.sort(jax.random.normal(key, (3, 20)).round(1))
    b = np.sort(jax.random.normal(jax.random.fold_in(key, 1), (3, 31)).round(1))
    both = np.concatenate([a, b], -1)
    expected = np.argsort(both + 0.0, -1, kind="stable")
    np.testing.assert_array_equal(merge_order(a, b), expected)
    np.testing.assert_array_equal(jax.vmap(merge_order)(a, b), expected)
    np.testing.assert_array_equal(merge_order(np.array([0.0, -0.0]), np.array([-0.0, 0.0])), np.arange(4))


def test_large_arrays_go_to_the_host(key, monkeypatch):
    monkeypatch.delenv("MCX_SORT", raising=False)

    def calls(n):
        return "pure_callback" in str(jax.make_jaxpr(lambda x: sort(x))(jnp.zeros(n)))

    assert calls(1 << 15) and not calls((1 << 15) - 1)
    x = jax.random.normal(key, (8, 1 << 16))  # in threads, too
    np.testing.assert_array_equal(jax.jit(lambda x: sort(x))(x), np.sort(x))
    order = np.asarray(jax.jit(lambda x: argsort(x))(x))
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(x), order, -1), np.sort(x))
    monkeypatch.setenv("MCX_SORT", "xla")
    assert not calls(1 << 15)
    monkeypatch.setenv("MCX_SORT", "fast")
    with pytest.raises(MethodError, match="MCX_SORT"):
        sort(x)


def test_calls_to_the_host_do_not_block_each_other(key, monkeypatch):
    """Callbacks in scans and lanes, from several threads, and on several devices at once."""
    monkeypatch.setenv("MCX_SORT", "auto")
    x = jax.random.normal(key, (4, 3, 1 << 16))

    @jax.jit
    def minima(x):
        return jax.lax.map(lambda row: (sort(row)[..., 0], sort(-row)[..., 0]), x)

    expected = np.asarray(x).min(-1)
    np.testing.assert_array_equal(minima(x)[0], expected)
    lanes = jax.jit(jax.vmap(minima))(jnp.stack([x, -x]))
    np.testing.assert_array_equal(lanes[0][0], expected)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(np.asarray(minima(x)[0])), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 4
    np.testing.assert_array_equal(found[0], expected)

    mesh = Mesh(np.array(jax.devices()), ("device",))
    spec = PartitionSpec("device")
    sharded = jax.shard_map(sort, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    np.testing.assert_array_equal(jax.jit(sharded)(x), np.sort(x))


def test_a_forked_process_sorts(key):
    """Threads do not survive a fork; those of the child are its own."""
    code = (
        "import os, numpy as np; from mcx.ops import sort as s\n"
        "x = np.random.default_rng(0).normal(size=(8, 1 << 17)).astype('f4')\n"
        "assert (s._host_sort(x) == np.sort(x)).all()\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if (s._host_sort(x) == np.sort(x)).all() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr
