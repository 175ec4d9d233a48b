"""Probability distributions: NumPyro's, under a short name (``import mcx.dist as dist``)."""

from typing import Any

from numpyro.distributions import *  # noqa: F403
from numpyro.distributions import biject_to, constraints, kl, transforms  # noqa: F401


def __getattr__(name: str) -> Any: ...  # NumPyro ships no types: let checkers believe every name
