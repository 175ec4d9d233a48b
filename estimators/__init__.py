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
    from mcx.estimators.adaptive_importance import AdaptiveImportance, expectations
    from mcx.estimators.given_controls import EstimatedMeans, KnownMeans
    from mcx.estimators.pareto import pareto_khat, psis
    from mcx.estimators.posterior_controls import SteinControls
    from mcx.estimators.proposals import Elliptical, Mixture, as_mixture
    from mcx.estimators.regression import regress
    from mcx.estimators.sliced import (
        SlicedTarget,
        energy_sliced_wasserstein,
        max_sliced_wasserstein,
        sliced_wasserstein,
        two_sample_test,
        wasserstein_1d,
    )
    from mcx.estimators.sobol import sobol_indices
    from mcx.estimators.stein import stein_controls
    from mcx.estimators.training import train_proposal

# name -> module that defines it, imported on first use
_LAZY = {
    "AdaptiveImportance": "adaptive_importance",
    "Elliptical": "proposals",
    "EstimatedMeans": "given_controls",
    "KnownMeans": "given_controls",
    "Mixture": "proposals",
    "SlicedTarget": "sliced",
    "SteinControls": "posterior_controls",
    "as_mixture": "proposals",
    "energy_sliced_wasserstein": "sliced",
    "expectations": "adaptive_importance",
    "max_sliced_wasserstein": "sliced",
    "pareto_khat": "pareto",
    "psis": "pareto",
    "regress": "regression",
    "sliced_wasserstein": "sliced",
    "sobol_indices": "sobol",
    "stein_controls": "stein",
    "train_proposal": "training",
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
