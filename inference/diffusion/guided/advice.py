"""What to worry about after guided particles: where most were lost, and paths that hardly move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mcx.results.advice import Advice
from mcx.types import Float

_SURVIVORS = 0.05  # least share of the particles that survive a step, or from which draws descend
_UPDATE_RATE = 0.1  # least share of the sweeps in which a path is renewed at a level

type _ByLevel = Mapping[str, Float[np.ndarray, "chain level"]]


def survivors_advice(stats: _ByLevel, num_draws: int) -> Iterator[Advice]:
    """Whether most of a replicate's particles were lost in one step."""
    survivors = np.asarray(stats["unique_ancestors"], float) / num_draws
    worst = np.unravel_index(np.nanargmin(survivors), survivors.shape)
    if survivors[worst] < _SURVIVORS:
        yield Advice(
            "MCX-W013",
            f"at noise level {stats['rho'][worst]:.3g} only {survivors[worst]:.1%} of the particles "
            "survived: they are led to where the observations do not want them. Take more particles, "
            "more steps, or another guidance=",
        )


def lineage_advice(stats: _ByLevel, num_draws: int, half: int) -> Iterator[Advice]:
    """Whether draws descend from few particles at level ``half``, which decides half of their variance."""
    least = int(np.min(stats["lineages"][:, half]))
    if least < _SURVIVORS * num_draws:
        yield Advice(
            "MCX-W015",
            f"the {num_draws} draws of a replicate descend from {least} particles "
            f"at noise level {stats['rho'][0, half]:.3g}, which decides on half of their variance: they "
            "are much alike. Take more particles, more replicates (num_chains), or another guidance=",
        )


def level_advice(site: str, rates: Float[np.ndarray, "chain level"], num_particles: int) -> Iterator[Advice]:
    """Whether conditional SMC hardly ever renews a site's path at some level."""
    mean = np.mean(rates, 0)
    slow = mean < _UPDATE_RATE
    if slow.any():
        yield Advice(
            "MCX-W008",
            f"'{site}' hardly moves at {int(slow.sum())} of {len(mean)} levels of noise: its path is "
            f"renewed in {mean.min():.1%} of the sweeps at one. Take more particles (now {num_particles}), "
            "or more steps",
        )
