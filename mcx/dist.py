"""Probability distributions: NumPyro's, under a short name (``import mcx.dist as dist``)."""

from typing import TYPE_CHECKING, Any

from numpyro.distributions import *  # noqa: F403
from numpyro.distributions import biject_to, constraints, kl, transforms  # noqa: F401

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # NumPyro ships no types: let checkers believe every name
