"""Estimators: importance sampling, control variates, sliced Wasserstein and others, one a file.

What is listed here loads on first use; what belongs to one estimator is in its module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if not __name__.startswith("mcx."):
    raise ImportError(
        f"This package is mcx.estimators, but it was imported as {__name__!r}: that loads a second copy. "
        "Write `import mcx.estimators` or `from mcx import estimators`."
    )

if TYPE_CHECKING:
    from mcx.estimators.control_variates.posterior_controls import SteinControls as SteinControls
    from mcx.estimators.control_variates.regression import regress as regress
    from mcx.estimators.control_variates.stein import stein_controls as stein_controls
    from mcx.estimators.importance.adaptive_importance import AdaptiveImportance as AdaptiveImportance
    from mcx.estimators.importance.expectations import expectations as expectations
    from mcx.estimators.importance.known_means import EstimatedMeans as EstimatedMeans
    from mcx.estimators.importance.known_means import KnownMeans as KnownMeans
    from mcx.estimators.importance.proposals import Elliptical as Elliptical
    from mcx.estimators.importance.proposals import Mixture as Mixture
    from mcx.estimators.importance.proposals import as_mixture as as_mixture
    from mcx.estimators.importance.training import train_proposal as train_proposal
    from mcx.estimators.pareto import pareto_khat as pareto_khat
    from mcx.estimators.pareto import psis as psis
    from mcx.estimators.sensitivity.sobol_indices import sobol_indices as sobol_indices
    from mcx.estimators.sliced import SlicedTarget as SlicedTarget
    from mcx.estimators.sliced import energy_sliced_wasserstein as energy_sliced_wasserstein
    from mcx.estimators.sliced import max_sliced_wasserstein as max_sliced_wasserstein
    from mcx.estimators.sliced import sliced_wasserstein as sliced_wasserstein
    from mcx.estimators.sliced import two_sample_test as two_sample_test
    from mcx.estimators.sliced import wasserstein_1d as wasserstein_1d

# names by the module that defines them, which is imported on first use
_MODULES = {
    "control_variates.posterior_controls": ("SteinControls",),
    "control_variates.regression": ("regress",),
    "control_variates.stein": ("stein_controls",),
    "importance.adaptive_importance": ("AdaptiveImportance",),
    "importance.expectations": ("expectations",),
    "importance.known_means": ("EstimatedMeans", "KnownMeans"),
    "importance.proposals": ("Elliptical", "Mixture", "as_mixture"),
    "importance.training": ("train_proposal",),
    "pareto": ("pareto_khat", "psis"),
    "sensitivity.sobol_indices": ("sobol_indices",),
    "sliced": ("SlicedTarget", "energy_sliced_wasserstein", "max_sliced_wasserstein", "sliced_wasserstein"),
    "sliced.two_sample": ("two_sample_test",),
    "sliced.wasserstein_1d": ("wasserstein_1d",),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mcx.estimators' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mcx.estimators.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
