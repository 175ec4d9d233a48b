"""Shared fixtures."""

import matplotlib
import pytest

from mcx.testing import key_for

matplotlib.use("Agg")


@pytest.fixture
def key(request):
    """A random key that is a function of the test's name: nobody picks seeds."""
    return key_for(request.node.nodeid)
