"""Advice about runs of SMC^2."""

from __future__ import annotations

import numpy as np

from mcx.inference.pmmh.advice import noise_advice
from mcx.inference.tempering.advice import moves_advice, survivors_advice
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior

_OTHER_PATHS = 0.01


def smc2_advice(posterior: Posterior) -> list[Advice]:
    """Findings about a run of SMC^2, worst first."""
    settings = posterior.info.settings
    stats = {name: np.asarray(x, float) for name, x in posterior.smc_stats.items()}
    found = []
    if "log_evidence_sd" in settings:
        found += noise_advice(float(settings["log_evidence_sd"]), int(settings["num_particles"]))
    if not posterior.complete:
        seen = int(np.isfinite(stats["log_evidence"]).all(0).sum())
        text = (
            f"the run was stopped after {seen} of {stats['log_evidence'].shape[1]} observations: "
            "parameters and evidence are those given these observations, and there are no paths"
        )
        found.append(Advice("MCX-W010", text))
    share = float(settings.get("paths_that_differ", 0.0))
    if share > _OTHER_PATHS:
        text = (
            f"{share:.1%} of the filters came out differently when they were run again for their "
            "paths: those paths are from filters that were not weighted, with an error of order "
            "1 / num_particles"
        )
        found.append(Advice("MCX-W014", text))
    survivors = float(np.nanmin(stats["unique_ancestors"]) / posterior.num_draws)
    return [*found, *moves_advice(stats), *survivors_advice(survivors)]
