"""Tools for testing models and samplers: oracles, statistical checks, Hypothesis strategies.

Nothing here depends on pytest; strategies need the ``testing`` extra (Hypothesis).
"""

from mcx.testing.check import StatisticalFailure, check_mean, key_for
from mcx.testing.conjugate import CONJUGATE_PAIRS, ConjugatePair
from mcx.testing.oracles import Moments, enumerate_discrete, quadrature

__all__ = [
    "CONJUGATE_PAIRS",
    "ConjugatePair",
    "Moments",
    "StatisticalFailure",
    "check_mean",
    "enumerate_discrete",
    "key_for",
    "quadrature",
]
