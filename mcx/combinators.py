"""Combinators: functions that take models and give Feynman-Kac models, of which algorithms are composed.

=============================== ==============================================================
``smc``                         runs any :class:`FeynmanKac`
``target``                      the posterior of a bound model
``tempered``, ``annealed_data`` a path of laws from the prior to a posterior
``with_moves``                  the SMC sampler of such a path
``marginal_model``              parameters apart from the Markov blocks
``nested_filters``, ``nest``    parameters whose particles carry particle filters
``with_pmmh``                   the same with moves of the parameters, which is SMC^2
``grow``                        the same parameters with wider filters
``conditional``, ``keep_first`` a particle system in which one particle follows a path
``conditional_smc``             a new path by such a system
``corrector``                   the reverse process of composed diffusion models
``draw_path``, ``trace_paths``  paths from a genealogy
=============================== ==============================================================

mcx's own methods are built from these. ``docs/samplers.md`` composes SMC^2, particle marginal
Metropolis-Hastings and particle Gibbs of them in a few lines each.
"""

from __future__ import annotations

from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC
from mcx.inference.conditional_smc.conditional_smc import sweep as conditional_smc
from mcx.inference.conditional_smc.system import conditional, keep_first
from mcx.inference.diffusion.correctors.corrector import corrector
from mcx.inference.pmmh.marginal import MarginalModel, marginal_model
from mcx.inference.smc import resampling
from mcx.inference.smc.genealogy import draw_path, trace_paths
from mcx.inference.smc.smc import SMCResult, smc
from mcx.inference.smc2.nested import NestedFilterData, NestedFilters, nest, nested_filters
from mcx.inference.smc2.nested_moves import PMMHMoves, with_pmmh
from mcx.inference.smc2.nested_paths import grow
from mcx.inference.tempering.annealing import Annealing, with_moves
from mcx.inference.tempering.moves import CloudMoves
from mcx.inference.tempering.paths import LawPath, LawPathData, annealed_data, tempered
from mcx.model.compile import compile_model as target
from mcx.target import FeynmanKac, Target

__all__ = [
    "Annealing",
    "CloudMoves",
    "ConditionalSMC",
    "FeynmanKac",
    "LawPath",
    "LawPathData",
    "MarginalModel",
    "NestedFilterData",
    "NestedFilters",
    "PMMHMoves",
    "SMCResult",
    "Target",
    "annealed_data",
    "conditional",
    "conditional_smc",
    "corrector",
    "draw_path",
    "grow",
    "keep_first",
    "marginal_model",
    "nest",
    "nested_filters",
    "resampling",
    "smc",
    "target",
    "tempered",
    "trace_paths",
    "with_moves",
    "with_pmmh",
]
