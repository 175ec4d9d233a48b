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
    from mcx.estimators.control_variates.posterior_controls import SteinControls
    from mcx.estimators.control_variates.regression import regress
    from mcx.estimators.control_variates.stein import stein_controls
    from mcx.estimators.importance.adaptive_importance import AdaptiveImportance
    from mcx.estimators.importance.expectations import expectations
    from mcx.estimators.importance.known_means import EstimatedMeans, KnownMeans
    from mcx.estimators.importance.proposals import Elliptical, Mixture, as_mixture
    from mcx.estimators.importance.training import train_proposal
    from mcx.estimators.pareto import pareto_khat, psis
    from mcx.estimators.sensitivity.sobol_indices import sobol_indices
    from mcx.estimators.sliced import (
        SlicedTarget,
        energy_sliced_wasserstein,
        max_sliced_wasserstein,
        sliced_wasserstein,
        two_sample_test,
        wasserstein_1d,
    )

# name -> module that defines it, imported on first use
_LAZY = {
    "AdaptiveImportance": "importance.adaptive_importance",
    "Elliptical": "importance.proposals",
    "EstimatedMeans": "importance.known_means",
    "KnownMeans": "importance.known_means",
    "Mixture": "importance.proposals",
    "SlicedTarget": "sliced",
    "SteinControls": "control_variates.posterior_controls",
    "as_mixture": "importance.proposals",
    "energy_sliced_wasserstein": "sliced",
    "expectations": "importance.expectations",
    "max_sliced_wasserstein": "sliced",
    "pareto_khat": "pareto",
    "psis": "pareto",
    "regress": "control_variates.regression",
    "sliced_wasserstein": "sliced",
    "sobol_indices": "sensitivity.sobol_indices",
    "stein_controls": "control_variates.stein",
    "train_proposal": "importance.training",
    "two_sample_test": "sliced",
    "wasserstein_1d": "sliced",
}

__all__ = [
    "AdaptiveImportance",
    "Elliptical",
    "EstimatedMeans",
    "KnownMeans",
    "Mixture",
    "SlicedTarget",
    "SteinControls",
    "as_mixture",
    "energy_sliced_wasserstein",
    "expectations",
    "max_sliced_wasserstein",
    "pareto_khat",
    "psis",
    "regress",
    "sliced_wasserstein",
    "sobol_indices",
    "stein_controls",
    "train_proposal",
    "two_sample_test",
    "wasserstein_1d",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mcx.estimators' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mcx.estimators.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
