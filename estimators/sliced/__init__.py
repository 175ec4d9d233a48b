"""Sliced Wasserstein distances: estimates with standard errors, variants, and a test of two samples."""

from mcx.estimators.sliced.sliced import sliced_wasserstein as sliced_wasserstein
from mcx.estimators.sliced.target import SlicedTarget as SlicedTarget
from mcx.estimators.sliced.two_sample import TwoSampleTest as TwoSampleTest
from mcx.estimators.sliced.two_sample import two_sample_test as two_sample_test
from mcx.estimators.sliced.variants import MaxSliced as MaxSliced
from mcx.estimators.sliced.variants import energy_sliced_wasserstein as energy_sliced_wasserstein
from mcx.estimators.sliced.variants import max_sliced_wasserstein as max_sliced_wasserstein
from mcx.estimators.sliced.wasserstein_1d import wasserstein_1d as wasserstein_1d
