"""Diffusion models: schedules, scores, integrators, and weights that correct what scores get wrong."""

from mcx.inference.diffusion.correctors.correct import Corrections as Corrections
from mcx.inference.diffusion.correctors.correct import correct as correct
from mcx.inference.diffusion.correctors.corrector import Corrected as Corrected
from mcx.inference.diffusion.correctors.corrector import corrector as corrector
from mcx.inference.diffusion.denoising_mcmc.denoising_mcmc import Denoised as Denoised
from mcx.inference.diffusion.denoising_mcmc.denoising_mcmc import DenoisingMCMC as DenoisingMCMC
from mcx.inference.diffusion.denoising_mcmc.level_laws import LevelsFromClassifier as LevelsFromClassifier
from mcx.inference.diffusion.denoising_mcmc.level_laws import LevelsFromDensity as LevelsFromDensity
from mcx.inference.diffusion.denoising_mcmc.level_laws import LevelsFromScore as LevelsFromScore
from mcx.inference.diffusion.integrators.adaptive import RungeKutta45 as RungeKutta45
from mcx.inference.diffusion.integrators.base import Integrator as Integrator
from mcx.inference.diffusion.integrators.integrate import integrate as integrate
from mcx.inference.diffusion.integrators.langevin import PredictorCorrector as PredictorCorrector
from mcx.inference.diffusion.integrators.likelihood import log_likelihood as log_likelihood
from mcx.inference.diffusion.integrators.linear import DDIM as DDIM
from mcx.inference.diffusion.integrators.linear import DEIS as DEIS
from mcx.inference.diffusion.integrators.linear import DPMSolver as DPMSolver
from mcx.inference.diffusion.integrators.linear import EulerMaruyama as EulerMaruyama
from mcx.inference.diffusion.integrators.linear import SDEDPMSolver as SDEDPMSolver
from mcx.inference.diffusion.integrators.sampling import sample as sample
from mcx.inference.diffusion.integrators.stages import DPMSolver2S as DPMSolver2S
from mcx.inference.diffusion.integrators.stages import Heun as Heun
from mcx.inference.diffusion.integrators.unipc import UniPC as UniPC
from mcx.inference.diffusion.models.composition import Composition as Composition
from mcx.inference.diffusion.models.composition import anneal as anneal
from mcx.inference.diffusion.models.composition import geometric as geometric
from mcx.inference.diffusion.models.composition import product as product
from mcx.inference.diffusion.models.schedules import Schedule as Schedule
from mcx.inference.diffusion.models.schedules import discrete as discrete
from mcx.inference.diffusion.models.schedules import edm as edm
from mcx.inference.diffusion.models.schedules import levels as levels
from mcx.inference.diffusion.models.schedules import rectified_flow as rectified_flow
from mcx.inference.diffusion.models.schedules import ve as ve
from mcx.inference.diffusion.models.schedules import vp as vp
from mcx.inference.diffusion.models.schedules import vp_cosine as vp_cosine
from mcx.inference.diffusion.models.scores import GaussianMixture as GaussianMixture
from mcx.inference.diffusion.models.scores import Score as Score
from mcx.inference.diffusion.models.teleport import Teleport as Teleport

__all__ = [name for name in dir() if not name.startswith("_")]
