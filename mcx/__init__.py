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
    from mcx import combinators as combinators
    from mcx import diffusion as diffusion
    from mcx import functionals as functionals
    from mcx import methods as methods
    from mcx import testing as testing
    from mcx.cache import enable_compilation_cache as enable_compilation_cache
    from mcx.estimators.control_variates.posterior_controls import SteinControls as SteinControls
    from mcx.estimators.importance.adaptive_importance import AdaptiveImportance as AdaptiveImportance
    from mcx.estimators.sliced.sliced import sliced_wasserstein as sliced_wasserstein
    from mcx.estimators.sliced.target import SlicedTarget as SlicedTarget
    from mcx.estimators.sliced.two_sample import two_sample_test as two_sample_test
    from mcx.estimators.sliced.variants import energy_sliced_wasserstein as energy_sliced_wasserstein
    from mcx.estimators.sliced.variants import max_sliced_wasserstein as max_sliced_wasserstein
    from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC as ConditionalSMC
    from mcx.inference.diffusion.guided.guided_diffusion import GuidedDiffusion as GuidedDiffusion
    from mcx.inference.diffusion.guided.guided_gibbs import GuidedGibbs as GuidedGibbs
    from mcx.inference.diffusion.models.prior import ScorePrior as ScorePrior
    from mcx.inference.filtering.online import OnlineFilter as OnlineFilter
    from mcx.inference.filtering.particle_filter import ParticleFilter as ParticleFilter
    from mcx.inference.maximize.score_ascent import ScoreAscent as ScoreAscent
    from mcx.inference.maximize.score_climbing import ScoreClimbing as ScoreClimbing
    from mcx.inference.mcmc.chees import ChEES as ChEES
    from mcx.inference.mcmc.hmc import HMC as HMC
    from mcx.inference.mcmc.mala import MALA as MALA
    from mcx.inference.mcmc.nuts import NUTS as NUTS
    from mcx.inference.mcmc.random_walk import RandomWalk as RandomWalk
    from mcx.inference.particle_gibbs.numpyro_block import PathGibbs as PathGibbs
    from mcx.inference.particle_gibbs.particle_gibbs import ParticleGibbs as ParticleGibbs
    from mcx.inference.pmmh.pmmh import PMMH as PMMH
    from mcx.inference.smc.smc import smc as smc
    from mcx.inference.smc2.smc2 import SMC2 as SMC2
    from mcx.inference.smoothing.additive import AdditiveFunctional as AdditiveFunctional
    from mcx.inference.smoothing.ffbs import FFBS as FFBS
    from mcx.inference.smoothing.online import OnlineSmoother as OnlineSmoother
    from mcx.inference.smoothing.paris import PaRIS as PaRIS
    from mcx.inference.smoothing.ppg import PPG as PPG
    from mcx.inference.tempering.samplers import DataAnnealedSMC as DataAnnealedSMC
    from mcx.inference.tempering.samplers import TemperedSMC as TemperedSMC
    from mcx.results.estimate import Estimate as Estimate
    from mcx.results.saved import load as load

# name -> module that defines it, imported on first use
_LAZY = {
    "AdaptiveImportance": "mcx.estimators.importance.adaptive_importance",
    "AdditiveFunctional": "mcx.inference.smoothing.additive",
    "ChEES": "mcx.inference.mcmc.chees",
    "ConditionalSMC": "mcx.inference.conditional_smc.conditional_smc",
    "DataAnnealedSMC": "mcx.inference.tempering.samplers",
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
    "SlicedTarget": "mcx.estimators.sliced.target",
    "SteinControls": "mcx.estimators.control_variates.posterior_controls",
    "TemperedSMC": "mcx.inference.tempering.samplers",
    "enable_compilation_cache": "mcx.cache",
    "energy_sliced_wasserstein": "mcx.estimators.sliced.variants",
    "load": "mcx.results.saved",
    "max_sliced_wasserstein": "mcx.estimators.sliced.variants",
    "sliced_wasserstein": "mcx.estimators.sliced.sliced",
    "smc": "mcx.inference.smc.smc",
    "two_sample_test": "mcx.estimators.sliced.two_sample",
}
_LAZY_MODULES = ("combinators", "diffusion", "functionals", "methods", "testing")

__all__ = [
    "BoundModel",
    "Checkpoint",
    "FeynmanKac",
    "Kernel",
    "Model",
    "Posterior",
    "Predictions",
    "Run",
    "Target",
    "__version__",
    "deterministic",
    "dist",
    "errors",
    "expect",
    "factor",
    "filter",
    "forecast",
    "infer",
    "markov",
    "maximize",
    "model",
    "plate",
    "predict",
    "program",
    "run",
    "sample",
    "smooth",
]
__all__ += [*_LAZY_MODULES, *_LAZY]


def __getattr__(name: str) -> Any:
    if name in (*_LAZY_MODULES, "estimators", "inference"):
        return importlib.import_module(f"mcx.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'mcx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
