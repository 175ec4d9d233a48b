"""Advice about the stages of an SMC sampler: weighting, resampling and moving."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mcx.results.advice import Advice
from mcx.types import Float

_CORRELATION, _STUCK = 0.5, 0.8  # largest correlation: of the mean over replicates, and of a single one
SURVIVORS = 0.05  # least share of particles that have offspring


def level_advice(stats: Mapping[str, Float[np.ndarray, "chain stage"]]) -> list[Advice]:
    """Whether the path of laws reached its end in all replicates."""
    reached = float(np.nanmax(stats["level"], 1).min())
    if reached >= 1:
        return []
    text = (
        f"the path of laws reached level {reached:.3g} of 1: draws and evidence are those of a law "
        "between its start and the posterior. Raise max_stages, or resume from a checkpoint"
    )
    return [Advice("MCX-W010", text)]


def moves_advice(stats: Mapping[str, Float[np.ndarray, "chain stage"]], remedy: str = "") -> list[Advice]:
    """Whether moves made particles independent of where they were; ``remedy`` is a further one."""
    left = np.fmax(stats["correlation"], stats["correlation_density"])
    left = left[:, np.isfinite(left).any(0)]  # stages that moved
    worst = np.nanmax(left, 0)
    # some of many replicates exceed the limit a little by chance
    slow = (np.nanmean(left, 0) > _CORRELATION) | (worst > _STUCK)
    if not slow.any():
        return []
    text = (
        f"moves left particles close to where they were at {int(slow.sum())} of {len(slow)} stages "
        f"(correlation up to {worst.max():.2f}): the evidence may be off by more than its "
        "standard error, even if replicates agree. Take more particles, or a larger max_moves"
        f"{remedy}. With modes that are apart this is to be expected, and their shares rest on the "
        "number of particles"
    )
    return [Advice("MCX-W011", text)]


def forced_advice(stats: Mapping[str, Float[np.ndarray, "chain stage"]]) -> list[Advice]:
    """Whether the level was raised by the least step although the weights asked for less."""
    forced = int(np.sum(stats["forced"] == 1, 1).max())
    if not forced:
        return []
    text = (
        f"{forced} stages went further than the weights allow, by the least possible step: look "
        "for a likelihood that is nearly infinite, or take an initial_law= nearer to the posterior"
    )
    return [Advice("MCX-W012", text)]


def survivors_advice(share: float) -> list[Advice]:
    """Whether most particles were lost at one stage, by the share that had offspring at the worst one."""
    if share >= SURVIVORS:
        return []
    text = (
        f"at one stage only {share:.1%} of the particles survived: most of the law before it has no "
        "likelihood. Take more particles, or an initial_law= that has more mass where the likelihood is"
    )
    return [Advice("MCX-W013", text)]
