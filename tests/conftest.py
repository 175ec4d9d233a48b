"""Shared fixtures."""

import hypothesis
import jax
import matplotlib
import pytest
from problems import forget_programs

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
    """Forget compiled programs before there are too many."""
    yield
    forget_programs()
