"""What to worry about after particle Gibbs: paths that are hardly ever renewed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior

UPDATE_RATE = 0.1  # least share of the sweeps that change a path at a time: a draw in ten is new


def path_advice(posterior: Posterior, states: ConditionalSMC | Mapping[str, ConditionalSMC]) -> list[Advice]:
    """Findings about the paths of all Markov blocks; ``states`` says how they were drawn."""
    found = []
    for name, by_time in posterior.smc_stats.items():
        block, _, statistic = name.rpartition(".")
        if statistic != "update_rate":
            continue
        rates = np.mean(np.asarray(by_time), 0)
        slow = rates < UPDATE_RATE
        if not slow.any():
            continue
        method = states if isinstance(states, ConditionalSMC) else states[block]
        remedy = "more particles" if method.backward == "exact" else 'backward="exact" or more particles'
        text = (
            f"the path of '{block}' hardly moves at {int(slow.sum())} of {len(rates)} times: it is "
            f"renewed at time {int(rates.argmin())} in {rates.min():.1%} of the sweeps. Use {remedy} in "
            f"ConditionalSMC (now {method.num_particles}, backward={method.backward!r}), or give "
            "mcx.markov a proposal that looks at the observation"
        )
        found.append(Advice("MCX-W008", text))
    return found
