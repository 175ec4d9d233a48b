"""Several threads use mcx at once: models are traced one at a time, and bound, not run, meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mcx
import mcx.dist as dist
from mcx.model.bound import BoundModel


def fresh(i):
    """A model that no thread has seen before."""

    @mcx.model
    def model(y):
        inner = mcx.sample("inner", submodel.bind())
        with mcx.plate("p", i + 2):
            x = mcx.sample("x", dist.Normal(inner, 1.0 + i))
        mcx.sample("y", dist.Normal(x.sum(), 1.0), obs=y)

    return model


@mcx.model
def submodel():
    return mcx.sample("m", dist.Normal(0.0, 1.0))


def density(i):
    bound = fresh(i)(np.float32(i))
    assert isinstance(bound, BoundModel)
    return float(bound.log_density({"inner.m": 0.5, "x": np.zeros(i + 2)}))


def test_models_are_traced_by_many_threads_at_once():
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(density, range(24)))
    np.testing.assert_array_equal(together, [density(i) for i in range(24)])


def test_a_model_is_bound_while_another_thread_runs_one():
    """Calling it would otherwise run it within the other program."""
    running, go_on = threading.Event(), threading.Event()

    @mcx.model
    def slow():
        mcx.sample("a", dist.Normal(0.0, 1.0))
        running.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        sites = pool.submit(lambda: slow().sites())
        assert running.wait(60)
        try:
            bound = submodel()
            with pytest.raises(mcx.errors.ModelError, match="outside of a model"):
                mcx.sample("b", dist.Normal(0.0, 1.0))
        finally:
            go_on.set()
        assert isinstance(bound, BoundModel)
        assert [site.name for site in sites.result(60)] == ["a"]


def test_runs_by_threads():
    """First calls of one model, at once: the bits of runs one by one."""
    bound = fresh(1)(np.float32(0.3))
    method = mcx.RandomWalk(num_warmup=20, num_samples=50)

    def run(key):
        return mcx.infer(bound, method, key=key, progress=False, warnings="ignore")["x"]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for key, found in enumerate(together):
        np.testing.assert_array_equal(found, run(key))
