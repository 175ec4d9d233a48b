"""Shared fixtures."""

import hypothesis
import matplotlib
import pytest

import mcx.testing.strategies  # noqa: F401  (registers the profile)
from mcx.testing import key_for

matplotlib.use("Agg")
hypothesis.settings.load_profile("mcx")


@pytest.fixture
def key(request):
    """A random key that is a function of the test's name: nobody picks seeds."""
    return key_for(request.node.nodeid)
