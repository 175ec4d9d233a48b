"""Diffusion models: noise schedules, scores, and weights that correct what a score alone gets wrong."""

from mcx.inference.diffusion.composition import Composition, anneal, geometric, product
from mcx.inference.diffusion.correctors import Corrected, corrector
from mcx.inference.diffusion.schedules import Schedule, edm, levels, rectified_flow, ve, vp, vp_cosine
from mcx.inference.diffusion.scores import GaussianMixture, Score

__all__ = [
    "Composition",
    "Corrected",
    "GaussianMixture",
    "Schedule",
    "Score",
    "anneal",
    "corrector",
    "edm",
    "geometric",
    "levels",
    "product",
    "rectified_flow",
    "ve",
    "vp",
    "vp_cosine",
]
