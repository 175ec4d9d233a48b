"""What to worry about where filters estimate a likelihood: noise that holds a chain where it is."""

from __future__ import annotations

import numpy as np

from mcx.results.advice import Advice

__all__ = ["noise_advice"]

_MOST_SD = 1.8  # from here on more particles pay whatever they cost: Sherlock et al. (2015)


def noise_advice(sd: float, num_particles: int) -> list[Advice]:
    """Whether the log evidence is so noisy that moves get stuck where it came out too large.

    Args:
        sd: its standard deviation near the posterior mean.
        num_particles: of a filter.
    """
    if sd <= _MOST_SD:
        return []
    more = f"about {num_particles * (sd / 1.2) ** 2:.2g}" if np.isfinite(sd) else "more"
    return [
        Advice(
            "MCX-W009",
            f"the log evidence is estimated with a standard deviation of {sd:.2g} near the posterior mean; "
            f"beyond {_MOST_SD} moves get stuck where it came out too large. Take {more} particles (now "
            f"{num_particles}), a proposal for mcx.markov that looks at the observation, or "
            "mcx.ParticleGibbs()",
        )
    ]
