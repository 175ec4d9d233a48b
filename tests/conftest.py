"""Shared fixtures."""

import gc
from pathlib import Path

import hypothesis
import jax
import matplotlib
import pytest

import mcx.testing.strategies  # noqa: F401  (registers the profile)
from mcx.testing import key_for

matplotlib.use("Agg")
jax.config.update("jax_num_cpu_devices", 4)  # for the tests of runs over several devices; the others use one
hypothesis.settings.load_profile("mcx")


@pytest.fixture
def key(request):
    """A random key that is a function of the test's name: nobody picks seeds."""
    return key_for(request.node.nodeid)


@pytest.fixture(autouse=True)
def few_programs():
    """Forget compiled programs before there are too many.

    Every program takes some memory maps. Linux gives a process 65530 of them, after which XLA aborts it.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
        gc.collect()
