"""Advice about Markov transitions: divergences, deep trees, energies that vary too little."""

from __future__ import annotations

import numpy as np

from mcx.results.advice import Advice
from mcx.results.posterior import Posterior

_BFMI = 0.3  # Betancourt (2016), Diagnosing suboptimal cotangent disintegrations


def transition_advice(posterior: Posterior, target_accept: float) -> list[Advice]:
    """Findings about the transitions of Hamiltonian methods, worst first."""
    return [*_divergences(posterior, target_accept), *_deep_trees(posterior), *_energy(posterior)]


def _divergences(posterior: Posterior, target_accept: float) -> list[Advice]:
    divergent = int(np.sum(posterior.stats["diverging"])) if "diverging" in posterior.stats else 0
    if not divergent:
        return []
    share = divergent / max(1, posterior.num_chains * posterior.num_draws)
    higher = 0.95 if target_accept < 0.95 else 1 - (1 - target_accept) / 4
    text = (
        f"{divergent} divergent transitions ({share:.2%}): parts of the posterior may be missed. "
        f"Raise target_accept to {higher:.3g}, or reparametrise (non-centred scales, tighter priors)"
    )
    return [Advice("MCX-W003", text)]


def _deep_trees(posterior: Posterior) -> list[Advice]:
    deep = int(np.sum(posterior.stats.get("reached_max_treedepth", 0)))
    if not deep:
        return []
    text = (
        f"{deep} transitions hit the maximum tree depth: correct but slow. Rescale parameters, "
        "use dense_mass=True, or raise max_tree_depth"
    )
    return [Advice("MCX-W004", text)]


def _energy(posterior: Posterior) -> list[Advice]:
    from arviz_stats.base import array_stats

    if "energy" not in posterior.stats or posterior.num_draws < 4:
        return []
    energy = np.asarray(posterior.stats["energy"], float)
    energy = energy[np.ptp(energy, axis=1) > 0]  # the others never moved, or rounding hides it
    if not len(energy):
        return []
    bfmi = np.asarray(array_stats.bfmi(energy))
    low = int(np.sum(bfmi < _BFMI))
    if not low:
        return []
    text = (
        f"energy varies too little between draws in {low} chains (E-BFMI {np.min(bfmi):.2f} < {_BFMI}): "
        "heavy tails are explored slowly. Reparametrise"
    )
    return [Advice("MCX-W007", text)]
