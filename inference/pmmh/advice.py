"""Advice where filters estimate a likelihood: noise that keeps a chain from moving."""

from __future__ import annotations

import numpy as np

from mcx.results.advice import Advice

_MOST_SD = 1.8  # beyond it more particles pay at any cost, Sherlock et al. (2015)


def noise_advice(sd: float, num_particles: int) -> list[Advice]:
    """Whether the log evidence, of this sd at the posterior mean, keeps chains where it was overestimated."""
    if sd <= _MOST_SD:
        return []
    more = f"about {num_particles * (sd / 1.2) ** 2:.2g}" if np.isfinite(sd) else "more"
    text = (
        f"the log evidence is estimated with a standard deviation of {sd:.2g} near the posterior mean; "
        f"beyond {_MOST_SD} chains get stuck where it was overestimated. Take {more} particles (now "
        f"{num_particles}), a proposal for mcx.markov that looks at the observation, or "
        "mcx.ParticleGibbs()"
    )
    return [Advice("MCX-W009", text)]
