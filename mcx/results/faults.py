"""Faults of particle systems: steps at which all weights are zero, or potentials are NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mcx.errors import NonFiniteError, WeightCollapse
from mcx.types import Float, Int


class FaultAdvice(NamedTuple):
    """What a method advises for a collapse, and where potentials may be NaN, such as "the emission"."""

    collapse: str
    look_at: str


def raise_faults(
    stats: Mapping[str, Float[np.ndarray, "*replicate time"] | Int[np.ndarray, "*replicate time"]],
    num_particles: int,
    max_nonfinite: float,
    advice: FaultAdvice,
    *,
    result: object = None,
    first: int = 0,
) -> None:
    """Raise if a step of a replicate went wrong, with ``result``, what there is nevertheless, attached.

    ``stats`` are those of consecutive steps, the ``first`` of this number, time last: ``ess``,
    ``log_evidence_increment``, ``nonfinite``, ``max_log_weight``. Raises NonFiniteError if more than the
    share ``max_nonfinite`` of a step's potentials are NaN or +inf, WeightCollapse if all its weights are
    zero.
    """
    too_many = np.asarray(stats["nonfinite"]) > max_nonfinite * num_particles
    collapsed = np.asarray(stats["log_evidence_increment"]) == -np.inf
    wrong = too_many | collapsed
    if not wrong.any():
        return
    replicate = np.unravel_index(int(np.argmax(wrong.any(-1))), wrong.shape[:-1]) if wrong.ndim > 1 else ()
    at = int(np.argmax(wrong[replicate]))
    error: NonFiniteError
    if too_many[replicate][at]:
        error = NonFiniteError(
            f"step {first + at}: the log potential is NaN or +inf for "
            f"{int(stats['nonfinite'][replicate][at])} of {num_particles} particles",
            expected=f"at most {max_nonfinite:.0%} of them",
            remedy="look for divisions by zero, logs and square roots of negative numbers in "
            f"{advice.look_at}; a potential of zero is -inf, which is fine",
        )
    else:
        before = f", {float(stats['ess'][replicate][at - 1]):.1f} at the step before" if at else ""
        error = WeightCollapse(
            f"step {first + at}: all {num_particles} particles have weight zero (largest log weight "
            f"{float(stats['max_log_weight'][replicate][at])}; effective sample size 0{before})",
            expected="a particle that can explain the observation",
            remedy=advice.collapse,
        )
    error.step = first + at
    error.result = result
    raise error
