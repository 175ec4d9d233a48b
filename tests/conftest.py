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


LONG = ("test_docs.py", "test_examples.py", "test_sp500.py")


def pytest_collection_modifyitems(items):
    """Long tests go first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def own_name(request):
    """Class, function and parameters of the test, not its file: one that moves keeps its random numbers."""
    return request.node.nodeid.split("::", 1)[1]


@pytest.fixture
def key(own_name):
    """A random key that is a function of the test's name: nobody picks seeds."""
    return key_for(own_name)


@pytest.fixture(autouse=True)
def few_programs():
    """Forget compiled programs before there are too many."""
    yield
    forget_programs()
