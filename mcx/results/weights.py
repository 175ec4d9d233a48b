"""Draws that are weighted: their shares, and errors of averages over replicates."""

from __future__ import annotations

import math

import numpy as np
from jax.typing import ArrayLike

from mcx.errors import PosteriorShapeError, WeightCollapse


def draw_weights(log_w: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Normalise log weights of draws, chain x draw, where there are some; NaN counts as zero.

    Raises PosteriorShapeError if there is not one for each draw, WeightCollapse if none is positive.
    """
    if log_w is None:
        return None
    log_w = np.asarray(log_w, np.float64)
    if log_w.shape != shape:
        raise PosteriorShapeError(
            "weights and draws do not fit each other",
            expected=f"a log weight for each draw, {shape}",
            found=repr(log_w.shape),
        )
    log_w = np.where(np.isnan(log_w), -np.inf, log_w)
    if log_w.max() == -np.inf:
        raise WeightCollapse("no draw has a positive weight", remedy="look at the weights of the posterior")
    w = np.exp(log_w - log_w.max())
    return np.asarray(w / w.sum())


def error_over_replicates(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Standard error of the weighted mean of (chain, draw, ...) from replicates alone; NaN of a single one.

    The particles of one cloud depend on each other. The estimate is the jackknife, which leaves out one
    replicate at a time: where one has nearly all of the weight, the error is its distance from the others.
    """
    chains, draws = x.shape[:2]
    if chains < 2:
        return np.full(x.shape[2:], math.nan)
    w = np.full((chains, draws), 1 / (chains * draws)) if weights is None else weights
    share = w.sum(1)
    sums = np.einsum("cd,cd...->c...", w, x)
    mean = sums.sum(0)
    others = np.maximum(1 - share, np.finfo(np.float64).eps)
    # S_c (m_c - m) / (1 - S_c), without the mean of a replicate that has no weight
    shift = (sums - np.multiply.outer(share, mean)).T / others
    return np.sqrt((chains - 1) / chains * (shift**2).sum(-1)).T
