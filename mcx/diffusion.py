"""Diffusion models: noise schedules, scores, and weights that correct what a score alone gets wrong."""

from mcx.inference.diffusion import (
    Composition,
    Corrected,
    GaussianMixture,
    Schedule,
    Score,
    anneal,
    corrector,
    edm,
    geometric,
    levels,
    product,
    rectified_flow,
    ve,
    vp,
    vp_cosine,
)

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
