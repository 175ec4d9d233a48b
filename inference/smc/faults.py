"""Faults of filters: what is looked at, and what is advised."""

from __future__ import annotations

import numpy as np

from mcx.inference.smc.engine import SMCInfo
from mcx.results.faults import FaultAdvice
from mcx.types import Shaped

FILTER_ADVICE = FaultAdvice(
    "take more particles, check that observation and the emission's support, or propose with the "
    "observation in view (proposal=)",
    "the emission",
)


def fault_stats(info: SMCInfo) -> dict[str, Shaped[np.ndarray, "*replicate time"]]:
    """The statistics that :func:`mcx.results.faults.raise_faults` takes, from what happened in each step."""
    return {
        "ess": np.atleast_1d(info.ess),
        "log_evidence_increment": np.atleast_1d(info.log_increment),
        "nonfinite": np.atleast_1d(info.num_nonfinite),
        "max_log_weight": np.atleast_1d(info.max_log_weight),
    }
