"""Tools for testing models and samplers: oracles, statistical checks, Hypothesis strategies.

Nothing here depends on pytest; :mod:`mcx.testing.strategies` needs the ``testing`` extra (Hypothesis).
"""

from mcx.testing.check import StatisticalFailure, check_mean, key_for
from mcx.testing.conjugate import CONJUGATE_PAIRS, ConjugatePair
from mcx.testing.enumeration import Enumeration, UnscriptedDraw, enumerate_outcomes
from mcx.testing.expand import KeyReuse, TooManyOutcomes
from mcx.testing.hmm import HMMResult, PathLaw, forward_backward, path_law
from mcx.testing.kalman import DenseGaussian, KalmanResult, dense_gaussian, kalman, sample_paths
from mcx.testing.oracles import Moments, enumerate_discrete, quadrature
from mcx.testing.resampling import check_resampling
from mcx.testing.unroll import EnumerationError

__all__ = [
    "CONJUGATE_PAIRS",
    "ConjugatePair",
    "DenseGaussian",
    "Enumeration",
    "EnumerationError",
    "HMMResult",
    "KalmanResult",
    "KeyReuse",
    "Moments",
    "PathLaw",
    "StatisticalFailure",
    "TooManyOutcomes",
    "UnscriptedDraw",
    "check_mean",
    "check_resampling",
    "dense_gaussian",
    "enumerate_discrete",
    "enumerate_outcomes",
    "forward_backward",
    "kalman",
    "key_for",
    "path_law",
    "quadrature",
    "sample_paths",
]
