"""mcx: one Python model, every Monte Carlo inference.

Write a NumPyro program, decorate it with :func:`model`, call it with data, and give it to :func:`infer`
with any method. Heavy parts (BlackJAX, ArviZ, plotting) load on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

for _part in ("inference", "estimators"):
    if not os.path.isdir(os.path.join(os.path.dirname(__file__), _part)):
        raise ImportError(
            f"mcx/{_part} is missing or is no folder: in a source checkout it is a symbolic link to "
            f"../{_part}. Run `make setup`, or "
            "clone with symbolic links enabled (git config core.symlinks true), or install the wheel."
        )

import numpyro

# Where ArviZ was imported first it has left a lazy module, whose submodules have to be imported after itself:
# otherwise numpyro.distributions loses its own.
_ = numpyro.__version__

from mcx import dist, errors
from mcx._version import __version__
from mcx.model import BoundModel, Model, model
from mcx.model.primitives import deterministic, factor, plate, sample
from mcx.model.series.markov import markov
from mcx.results import Posterior, Predictions, predict
from mcx.run import Kernel, Run, run
from mcx.run.checkpoint import Checkpoint
from mcx.target import FeynmanKac, Target
from mcx.verbs.expect import expect
from mcx.verbs.infer import infer, program
from mcx.verbs.state_space import filter, forecast, maximize, smooth

if TYPE_CHECKING:
    from mcx import combinators, diffusion, methods, testing
    from mcx.cache import enable_compilation_cache
    from mcx.estimators.control_variates.posterior_controls import SteinControls
    from mcx.estimators.importance.adaptive_importance import AdaptiveImportance
    from mcx.estimators.sliced.sliced import sliced_wasserstein
    from mcx.estimators.sliced.target import SlicedTarget
    from mcx.estimators.sliced.two_sample import two_sample_test
    from mcx.estimators.sliced.variants import energy_sliced_wasserstein, max_sliced_wasserstein
    from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC
    from mcx.inference.diffusion.guided.guided_diffusion import GuidedDiffusion
    from mcx.inference.diffusion.guided.guided_gibbs import GuidedGibbs
    from mcx.inference.diffusion.models.prior import ScorePrior
    from mcx.inference.filtering.online import OnlineFilter
    from mcx.inference.filtering.particle_filter import ParticleFilter
    from mcx.inference.mcmc.chees import ChEES
    from mcx.inference.mcmc.hmc import HMC
    from mcx.inference.mcmc.mala import MALA
    from mcx.inference.mcmc.nuts import NUTS
    from mcx.inference.mcmc.random_walk import RandomWalk
    from mcx.inference.particle_gibbs.numpyro_block import PathGibbs
    from mcx.inference.particle_gibbs.particle_gibbs import ParticleGibbs
    from mcx.inference.pmmh.pmmh import PMMH
    from mcx.inference.smc.smc import smc
    from mcx.inference.smc2.smc2 import SMC2
    from mcx.inference.tempering.samplers import DataAnnealedSMC, TemperedSMC
    from mcx.results.saved import load

# name -> module that defines it, imported on first use
_LAZY = {
    "AdaptiveImportance": "mcx.estimators.importance.adaptive_importance",
    "AdditiveFunctional": "mcx.inference.smoothing.additive",
    "ChEES": "mcx.inference.mcmc.chees",
    "ConditionalSMC": "mcx.inference.conditional_smc.conditional_smc",
    "Estimate": "mcx.results.estimate",
    "FFBS": "mcx.inference.smoothing.ffbs",
    "GuidedDiffusion": "mcx.inference.diffusion.guided.guided_diffusion",
    "GuidedGibbs": "mcx.inference.diffusion.guided.guided_gibbs",
    "HMC": "mcx.inference.mcmc.hmc",
    "MALA": "mcx.inference.mcmc.mala",
    "NUTS": "mcx.inference.mcmc.nuts",
    "OnlineFilter": "mcx.inference.filtering.online",
    "OnlineSmoother": "mcx.inference.smoothing.online",
    "PMMH": "mcx.inference.pmmh.pmmh",
    "PPG": "mcx.inference.smoothing.ppg",
    "PaRIS": "mcx.inference.smoothing.paris",
    "ParticleFilter": "mcx.inference.filtering.particle_filter",
    "ParticleGibbs": "mcx.inference.particle_gibbs.particle_gibbs",
    "PathGibbs": "mcx.inference.particle_gibbs.numpyro_block",
    "RandomWalk": "mcx.inference.mcmc.random_walk",
    "SMC2": "mcx.inference.smc2.smc2",
    "ScoreAscent": "mcx.inference.maximize.score_ascent",
    "ScoreClimbing": "mcx.inference.maximize.score_climbing",
    "ScorePrior": "mcx.inference.diffusion.models.prior",
    "TemperedSMC": "mcx.inference.tempering.samplers",
    "DataAnnealedSMC": "mcx.inference.tempering.samplers",
    "SlicedTarget": "mcx.estimators.sliced.target",
    "SteinControls": "mcx.estimators.control_variates.posterior_controls",
    "enable_compilation_cache": "mcx.cache",
    "energy_sliced_wasserstein": "mcx.estimators.sliced.variants",
    "load": "mcx.results.saved",
    "max_sliced_wasserstein": "mcx.estimators.sliced.variants",
    "sliced_wasserstein": "mcx.estimators.sliced.sliced",
    "smc": "mcx.inference.smc.smc",
    "two_sample_test": "mcx.estimators.sliced.two_sample",
}
_LAZY_MODULES = ("combinators", "diffusion", "estimators", "functionals", "inference", "methods", "testing")

__all__ = [
    "FFBS",
    "HMC",
    "MALA",
    "NUTS",
    "PMMH",
    "PPG",
    "SMC2",
    "AdaptiveImportance",
    "AdditiveFunctional",
    "BoundModel",
    "ChEES",
    "Checkpoint",
    "ConditionalSMC",
    "DataAnnealedSMC",
    "Estimate",
    "FeynmanKac",
    "GuidedDiffusion",
    "GuidedGibbs",
    "Kernel",
    "Model",
    "OnlineFilter",
    "OnlineSmoother",
    "PaRIS",
    "ParticleFilter",
    "ParticleGibbs",
    "PathGibbs",
    "Posterior",
    "Predictions",
    "RandomWalk",
    "Run",
    "ScoreAscent",
    "ScoreClimbing",
    "ScorePrior",
    "SlicedTarget",
    "SteinControls",
    "Target",
    "TemperedSMC",
    "__version__",
    "combinators",
    "deterministic",
    "diffusion",
    "dist",
    "enable_compilation_cache",
    "energy_sliced_wasserstein",
    "errors",
    "expect",
    "factor",
    "filter",
    "forecast",
    "functionals",
    "infer",
    "load",
    "markov",
    "max_sliced_wasserstein",
    "maximize",
    "methods",
    "model",
    "plate",
    "predict",
    "program",
    "run",
    "sample",
    "sliced_wasserstein",
    "smc",
    "smooth",
    "testing",
    "two_sample_test",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"mcx.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'mcx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
