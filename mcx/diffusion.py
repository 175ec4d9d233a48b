"""Diffusion models: schedules, scores, integrators, and weights that correct what scores get wrong."""

from mcx.inference.diffusion.correctors.correct import Corrections, correct
from mcx.inference.diffusion.correctors.corrector import Corrected, corrector
from mcx.inference.diffusion.denoising_mcmc.denoising_mcmc import Denoised, DenoisingMCMC
from mcx.inference.diffusion.denoising_mcmc.level_laws import (
    LevelsFromClassifier,
    LevelsFromDensity,
    LevelsFromScore,
)
from mcx.inference.diffusion.integrators.adaptive import RungeKutta45
from mcx.inference.diffusion.integrators.base import Integrator
from mcx.inference.diffusion.integrators.integrate import integrate
from mcx.inference.diffusion.integrators.langevin import PredictorCorrector
from mcx.inference.diffusion.integrators.likelihood import log_likelihood
from mcx.inference.diffusion.integrators.linear import DDIM, DEIS, DPMSolver, EulerMaruyama, SDEDPMSolver
from mcx.inference.diffusion.integrators.sampling import sample
from mcx.inference.diffusion.integrators.stages import DPMSolver2S, Heun
from mcx.inference.diffusion.integrators.unipc import UniPC
from mcx.inference.diffusion.models.composition import Composition, anneal, geometric, product
from mcx.inference.diffusion.models.schedules import (
    Schedule,
    discrete,
    edm,
    levels,
    rectified_flow,
    ve,
    vp,
    vp_cosine,
)
from mcx.inference.diffusion.models.scores import GaussianMixture, Score
from mcx.inference.diffusion.models.teleport import Teleport

__all__ = [
    "DDIM",
    "DEIS",
    "Composition",
    "Corrected",
    "Corrections",
    "DPMSolver",
    "Denoised",
    "DenoisingMCMC",
    "LevelsFromClassifier",
    "LevelsFromDensity",
    "LevelsFromScore",
    "DPMSolver2S",
    "EulerMaruyama",
    "GaussianMixture",
    "Heun",
    "Integrator",
    "PredictorCorrector",
    "RungeKutta45",
    "SDEDPMSolver",
    "Schedule",
    "Score",
    "Teleport",
    "UniPC",
    "anneal",
    "correct",
    "corrector",
    "discrete",
    "edm",
    "geometric",
    "integrate",
    "levels",
    "log_likelihood",
    "product",
    "rectified_flow",
    "sample",
    "ve",
    "vp",
    "vp_cosine",
]
