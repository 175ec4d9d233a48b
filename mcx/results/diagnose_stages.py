"""What to worry about after an SMC sampler: its end, its moves, its levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mcx.results.advice import Advice

if TYPE_CHECKING:
    from mcx.results.posterior import Posterior

__all__ = ["diagnose_stages"]

_CORRELATION, _STUCK = 0.5, 0.8  # of the mean over replicates; of a single one
_SURVIVORS = 0.05
_OTHER_PATHS = 0.01


def diagnose_stages(posterior: Posterior) -> list[Advice]:
    """Findings about the stages of a sampler whose draws are clouds of particles."""
    if not posterior.info.cloud or not posterior.smc_stats:
        return []
    stats = {name: np.asarray(x, float) for name, x in posterior.smc_stats.items()}
    found = []
    reached = float(np.nanmax(stats["level"], 1).min()) if "level" in stats else 1.0
    if reached < 1:
        found.append(
            Advice(
                "MCX-W010",
                f"the path came to level {reached:.3g} of 1: draws and evidence are those of a law between "
                "start and posterior. Raise max_stages, or go on from a checkpoint",
            )
        )
    if "lineages" in stats:
        return found + _of_guided(posterior, stats)
    found += _of_smc2(posterior, stats)
    left = np.fmax(stats["correlation"], stats["correlation_density"])
    left = left[:, np.isfinite(left).any(0)]  # stages that moved
    worst = np.nanmax(left, 0)
    # of many replicates one or another is a little above by chance
    slow = (np.nanmean(left, 0) > _CORRELATION) | (worst > _STUCK)
    move = ", or another move=" if "move" in posterior.info.settings else ""
    if slow.any():
        found.append(
            Advice(
                "MCX-W011",
                f"moves did not forget where particles were at {int(slow.sum())} of {len(slow)} stages "
                f"(correlation up to {worst.max():.2f}): the evidence may be off by more than its "
                "standard error, even if replicates agree. Take more particles, or a larger max_moves"
                f"{move}. With modes that are apart this is to be expected, and their shares rest on the "
                "number of particles",
            )
        )
    forced = np.sum(stats["forced"] == 1, 1).max() if "forced" in stats else 0
    if forced:
        found.append(
            Advice(
                "MCX-W012",
                f"{int(forced)} stages went further than the weights allow, by the least step there is: look "
                "for a likelihood that is near infinite, or take a start= nearer to the posterior",
            )
        )
    survivors = np.nanmin(stats["unique_ancestors"]) * _chain_length(posterior) / posterior.num_draws
    if survivors < _SURVIVORS:
        found.append(
            Advice(
                "MCX-W013",
                f"at one stage only {survivors:.1%} of the particles survived: much of the start has no "
                "likelihood. Take more particles, or a start= that has more mass where the likelihood is",
            )
        )
    return found


def _of_guided(posterior: Posterior, stats: dict[str, np.ndarray]) -> list[Advice]:
    """Particles that were led down the levels of noise: where most of them were lost."""
    found = []
    survivors = stats["unique_ancestors"] / posterior.num_draws
    worst = np.unravel_index(np.nanargmin(survivors), survivors.shape)
    if survivors[worst] < _SURVIVORS:
        found.append(
            Advice(
                "MCX-W013",
                f"at noise level {stats['rho'][worst]:.3g} only {survivors[worst]:.1%} of the particles "
                "survived: they are led to where the observations do not want them. Take more particles, "
                "more steps, or another guidance=",
            )
        )
    half = int(posterior.info.settings["half"])
    lines = stats["lineages"][:, half]
    if lines.min() < _SURVIVORS * posterior.num_draws:
        found.append(
            Advice(
                "MCX-W015",
                f"the {posterior.num_draws} draws of a replicate descend from {int(lines.min())} particles "
                f"at noise level {stats['rho'][0, half]:.3g}, which decides on half of their variance: they "
                "are much alike. Take more particles, more replicates (num_chains), or another guidance=",
            )
        )
    return found


def _of_smc2(posterior: Posterior, stats: dict[str, np.ndarray]) -> list[Advice]:
    found = []
    if not posterior.complete and "level" not in stats:
        seen = int(np.isfinite(stats["log_evidence"]).all(0).sum())
        found.append(
            Advice(
                "MCX-W010",
                f"the run was stopped after {seen} of {stats['log_evidence'].shape[1]} observations: "
                "parameters and evidence are those given these, and there are no paths",
            )
        )
    share = float(posterior.info.settings.get("paths_that_differ", 0.0))
    if share > _OTHER_PATHS:
        found.append(
            Advice(
                "MCX-W014",
                f"{share:.1%} of the filters came out otherwise when they were run once more for their "
                "paths: those paths are of filters that were not weighted, off by order 1 / num_particles",
            )
        )
    return found


def _chain_length(posterior: Posterior) -> int:
    return int(posterior.info.settings.get("chain_length", 1))
