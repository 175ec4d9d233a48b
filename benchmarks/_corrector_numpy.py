"""A Feynman-Kac corrector that anneals a mixture, as a plain NumPy loop: the peer of `corrector_speed.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["anneal_by_loop"]


def anneal_by_loop(
    rng: np.random.Generator,
    means: np.ndarray,
    variance: float,
    power: float,
    rho: np.ndarray,
    num: int,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, float]:
    """Particles of the power of a mixture of equal Gaussians, (num, d), and the log of its integral.

    Langevin noise of gain ``power``, Euler's steps, systematic resampling after each. The start is the power
    of a Gaussian with the mixture's moments, weighted by what that gets wrong.

    Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion, annealed densities.
    """
    count, dim = means.shape
    start = means.mean(0), (means.var(0) + variance + rho[0] ** 2) / power
    noise = rng.standard_normal((num, dim))
    y = (start[0] + np.sqrt(start[1]) * noise).astype(dtype)
    means = means.astype(dtype)
    lengths = (means**2).sum(1)

    def exponents(y: np.ndarray, total: float) -> np.ndarray:
        """Logs of the Gaussians at noised variance, without constants, (num, count)."""
        squares = (y**2).sum(1)[:, None] - 2 * (y @ means.T) + lengths
        return squares * dtype(-0.5 / total)

    total = variance + rho[0] ** 2
    log_p = exponents(y, total)
    top = log_p.max(1)
    density = top + np.log(np.exp(log_p - top[:, None]).mean(1)) - 0.5 * dim * np.log(2 * np.pi * total)
    log_start = -0.5 * (noise**2 + np.log(2 * np.pi * start[1])).sum(1)
    log_w = power * density - log_start
    log_z = 0.0
    for now, after in zip(rho, rho[1:], strict=False):
        y, log_z = resampled(rng, y, log_w, log_z)
        total, delta = variance + now**2, now**2 - after**2
        log_p = exponents(y, total)
        w = np.exp(log_p - log_p.max(1, keepdims=True))
        score = ((w @ means) / w.sum(1, keepdims=True) - y) / dtype(total)
        log_w = dtype(0.5 * delta * power * (power - 1)) * (score**2).sum(1)
        y = y + dtype(0.5 * delta * power * (1 + power)) * score
        y += dtype(np.sqrt(power * delta)) * rng.standard_normal(y.shape, dtype)
    return resampled(rng, y, log_w, log_z)


def resampled(
    rng: np.random.Generator, y: np.ndarray, log_w: np.ndarray, log_z: float
) -> tuple[np.ndarray, float]:
    """Systematic resampling; the mean weight goes into the integral."""
    num, top = len(y), float(log_w.max())
    ends = np.cumsum(np.exp(log_w - top), dtype=float)
    places = (np.arange(num) + rng.random()) * (ends[-1] / num)
    picked = np.minimum(np.searchsorted(ends, places, side="right"), num - 1)
    return y[picked], log_z + top + float(np.log(ends[-1] / num))
