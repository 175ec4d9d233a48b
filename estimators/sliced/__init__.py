"""Sliced Wasserstein distances: estimates with standard errors, variants, and a test of two samples."""

from mcx.estimators.sliced.sliced import sliced_wasserstein
from mcx.estimators.sliced.target import SlicedTarget
from mcx.estimators.sliced.two_sample import TwoSampleTest, two_sample_test
from mcx.estimators.sliced.variants import MaxSliced, energy_sliced_wasserstein, max_sliced_wasserstein
from mcx.estimators.sliced.wasserstein_1d import wasserstein_1d

__all__ = [
    "MaxSliced",
    "SlicedTarget",
    "TwoSampleTest",
    "energy_sliced_wasserstein",
    "max_sliced_wasserstein",
    "sliced_wasserstein",
    "two_sample_test",
    "wasserstein_1d",
]
