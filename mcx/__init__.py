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
from mcx.infer import infer, program
from mcx.model import BoundModel, Model, model
from mcx.model.markov import markov
from mcx.model.primitives import deterministic, factor, plate, sample
from mcx.results import Posterior, Predictions, predict
from mcx.run import Kernel, Run, run
from mcx.run.checkpoint import Checkpoint
from mcx.series import filter, maximize, smooth
from mcx.target import FeynmanKac, Target

if TYPE_CHECKING:
    from mcx import testing
    from mcx.cache import enable_compilation_cache
    from mcx.inference.mcmc.chees import ChEES
    from mcx.inference.mcmc.hmc import HMC
    from mcx.inference.mcmc.mala import MALA
    from mcx.inference.mcmc.nuts import NUTS
    from mcx.inference.mcmc.random_walk import RandomWalk
    from mcx.inference.particle_gibbs.conditional_smc import ConditionalSMC
    from mcx.inference.particle_gibbs.gibbs import ParticleGibbs
    from mcx.inference.particle_gibbs.numpyro_block import PathGibbs
    from mcx.inference.smc.online import OnlineFilter
    from mcx.inference.smc.particle_filter import ParticleFilter
    from mcx.inference.smc.smc import smc
    from mcx.results.saved import load

# name -> module that defines it, imported on first use
_LAZY = {
    "AdditiveFunctional": "mcx.inference.particle_gibbs.additive",
    "ChEES": "mcx.inference.mcmc.chees",
    "ConditionalSMC": "mcx.inference.particle_gibbs.conditional_smc",
    "Estimate": "mcx.results.estimate",
    "FFBS": "mcx.inference.particle_gibbs.ffbs",
    "HMC": "mcx.inference.mcmc.hmc",
    "MALA": "mcx.inference.mcmc.mala",
    "NUTS": "mcx.inference.mcmc.nuts",
    "OnlineFilter": "mcx.inference.smc.online",
    "OnlineSmoother": "mcx.inference.particle_gibbs.online",
    "PPG": "mcx.inference.particle_gibbs.ppg",
    "PaRIS": "mcx.inference.particle_gibbs.paris",
    "ParticleFilter": "mcx.inference.smc.particle_filter",
    "ParticleGibbs": "mcx.inference.particle_gibbs.gibbs",
    "PathGibbs": "mcx.inference.particle_gibbs.numpyro_block",
    "RandomWalk": "mcx.inference.mcmc.random_walk",
    "ScoreAscent": "mcx.inference.particle_gibbs.score_ascent",
    "ScoreClimbing": "mcx.inference.particle_gibbs.score_climbing",
    "enable_compilation_cache": "mcx.cache",
    "load": "mcx.results.saved",
    "smc": "mcx.inference.smc.smc",
}
_LAZY_MODULES = ("testing", "functionals", "inference", "estimators")

__all__ = [
    "FFBS",
    "HMC",
    "MALA",
    "NUTS",
    "PPG",
    "AdditiveFunctional",
    "BoundModel",
    "ChEES",
    "Checkpoint",
    "ConditionalSMC",
    "Estimate",
    "FeynmanKac",
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
    "Target",
    "__version__",
    "deterministic",
    "dist",
    "enable_compilation_cache",
    "errors",
    "factor",
    "filter",
    "functionals",
    "infer",
    "load",
    "markov",
    "maximize",
    "model",
    "plate",
    "predict",
    "program",
    "run",
    "sample",
    "smc",
    "smooth",
    "testing",
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
