"""Noise schedules: how fast data turn into noise, and the one coordinate that they all share.

A schedule says ``x_t = alpha(t) x_0 + sigma(t) noise``. In the coordinates ``y = x / alpha`` and
``rho = sigma / alpha`` all of them are the same: ``y = x_0 + rho noise``. What is computed, is computed
there; schedules only translate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError

__all__ = ["Schedule", "discrete", "edm", "levels", "rectified_flow", "ve", "vp", "vp_cosine"]


@dataclass(frozen=True)
class Schedule:
    """``x_t = alpha(t) x_0 + sigma(t) noise`` for times from ``t_min`` to ``t_max``; hashable.

    Attributes:
        alpha, sigma: functions of t, of JAX operations.
        time: ``rho -> t``, the inverse of ``sigma / alpha``, which grows with t.
        t_min, t_max: range of times; data are near ``t_min``.
        name: for messages.
    """

    alpha: Callable[[Any], Any]
    sigma: Callable[[Any], Any]
    time: Callable[[Any], Any]
    t_min: float
    t_max: float
    name: str = "schedule"

    def rho(self, t: Any) -> Any:
        """Noise level over signal, ``sigma / alpha``."""
        return self.sigma(t) / self.alpha(t)

    @property
    def rho_range(self) -> tuple[float, float]:
        """Smallest and largest rho."""
        return float(self.rho(self.t_min)), float(self.rho(self.t_max))


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
    """Variance preserving with linear rate: ``alpha^2 = exp(-integral of beta)``, ``sigma^2 = 1 - alpha^2``.

    Source: Song et al. (2021), Score-based generative modeling through SDEs.
    """
    _check("beta_min", beta_min, 0 < beta_min < beta_max, "0 < beta_min < beta_max")
    slope = beta_max - beta_min

    def integral(t: Any) -> Any:
        return beta_min * t + 0.5 * slope * t**2

    def time(rho: Any) -> Any:
        total = jnp.log1p(jnp.square(rho))  # of beta up to t; the root without cancellation
        return 2 * total / (beta_min + jnp.sqrt(beta_min**2 + 2 * slope * total))

    return Schedule(
        lambda t: jnp.exp(-0.5 * integral(t)),
        lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        time,
        t_min,
        1.0,
        f"vp({beta_min}, {beta_max})",
    )


def vp_cosine(t_min: float = 1e-3, t_max: float = 0.9946) -> Schedule:
    """Variance preserving, ``alpha = cos(pi t / 2)``.

    Source: Nichol and Dhariwal (2021), without their offset.
    """
    _check("t_max", t_max, 0 < t_min < t_max < 1, "0 < t_min < t_max < 1")
    return Schedule(
        lambda t: jnp.cos(0.5 * math.pi * t),
        lambda t: jnp.sin(0.5 * math.pi * t),
        lambda rho: 2 / math.pi * jnp.arctan(rho),
        t_min,
        t_max,
        "vp_cosine",
    )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """Variance exploding: ``alpha = 1``, sigma geometric in t on (0, 1).

    Source: Song et al. (2021).
    """
    _check("sigma_min", sigma_min, 0 < sigma_min < sigma_max, "0 < sigma_min < sigma_max")
    ratio = math.log(sigma_max / sigma_min)
    return Schedule(
        jnp.ones_like,
        lambda t: sigma_min * jnp.exp(ratio * t),
        lambda rho: jnp.log(rho / sigma_min) / ratio,
        0.0,
        1.0,
        f"ve({sigma_min}, {sigma_max})",
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """``alpha = 1`` and ``sigma = t``. Source: Karras et al. (2022)."""
    _check("sigma_min", sigma_min, 0 < sigma_min < sigma_max, "0 < sigma_min < sigma_max")
    return Schedule(jnp.ones_like, lambda t: t, lambda rho: rho, sigma_min, sigma_max, "edm")


def rectified_flow(t_min: float = 1e-3, t_max: float = 0.99) -> Schedule:
    """``alpha = 1 - t`` and ``sigma = t``; noise alone, at t = 1, has no rho and is left out.

    Source: Liu, Gong and Liu (2022); Lipman et al. (2022).
    """
    _check("t_max", t_max, 0 < t_min < t_max < 1, "0 < t_min < t_max < 1")
    return Schedule(
        lambda t: 1.0 - t, lambda t: t, lambda rho: rho / (1.0 + rho), t_min, t_max, "rectified_flow"
    )


def discrete(alphas_cumprod: Any) -> Schedule:
    """The schedule of a model trained at T discrete steps, as those of DDPM are.

    ``alpha^2`` is ``alphas_cumprod[k]`` and ``sigma^2 = 1 - alpha^2`` at time k. Time is that index, from 0
    to T - 1, with fractions: log signal to noise is linear between indices, and goes on as at the ends beyond
    them. Networks that take whole steps alone have to round their times themselves.

    Args:
        alphas_cumprod: (T,), T >= 2, between 0 and 1, strictly falling, in float64 if possible: float32 has
            ``1 - alpha^2`` to three digits where that is 1e-4.

    Returns:
        A schedule, the same object for the same numbers, so that nothing is compiled anew.

    Raises:
        MethodError: if the numbers are none of a schedule. A last 0 (noise alone) has no rho; leave it out.

    Source: Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models, has the models.
    """
    found = np.asarray(alphas_cumprod, float)
    fine = found.ndim == 1 and len(found) >= 2 and (np.diff(found) < 0).all() and 0 < found[-1]
    if not fine or not found[0] < 1:
        raise MethodError(
            "discrete(alphas_cumprod) is no schedule",
            expected="a vector of two or more numbers between 0 and 1, strictly falling",
            found=f"shape {found.shape}"
            + (f", from {found[0]} to {found[-1]}" if found.ndim * found.size else ""),
            remedy="give the cumulative products of 1 - beta, without steps that are noise alone or none",
        )
    return _discrete(found.tobytes())


@functools.lru_cache(maxsize=64)
def _discrete(numbers: bytes) -> Schedule:
    alpha2 = np.frombuffer(numbers)
    index = np.arange(len(alpha2), dtype=float)
    log_rho = 0.5 * (np.log1p(-alpha2) - np.log(alpha2))

    def at(t: Any) -> Any:
        return jnp.interp(t, index, log_rho, left="extrapolate", right="extrapolate")

    return Schedule(
        lambda t: jnp.exp(0.5 * jax.nn.log_sigmoid(-2 * at(t))),
        lambda t: jnp.exp(0.5 * jax.nn.log_sigmoid(2 * at(t))),
        lambda rho: jnp.interp(jnp.log(rho), log_rho, index, left="extrapolate", right="extrapolate"),
        0.0,
        len(alpha2) - 1.0,
        f"discrete({len(alpha2)} steps)",
    )


def levels(
    rho_max: float, rho_min: float, num_steps: int, power: float | None = None, *, to_zero: bool = False
) -> np.ndarray:
    """Noise levels from the largest to the smallest, float64.

    Args:
        rho_max: the first.
        rho_min: the last, positive.
        num_steps: steps between them.
        power: None for geometric levels; otherwise ``rho^(1 / power)`` is equally spaced (EDM takes 7).

        to_zero: whether the level 0 follows, one step more, which integrators may take.

    Returns:
        (num_steps + 1,), or (num_steps + 2,) with 0 at the end, strictly falling.
    """
    _check("num_steps", num_steps, num_steps >= 1, "an int >= 1")
    _check("rho_min", rho_min, 0 < rho_min < rho_max, "0 < rho_min < rho_max")
    if power is None:
        found = np.geomspace(rho_max, rho_min, num_steps + 1)
    else:
        found = np.linspace(rho_max ** (1 / power), rho_min ** (1 / power), num_steps + 1) ** power
    return np.append(found, 0.0) if to_zero else found


def _check(name: str, value: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise MethodError(f"{name} is out of range", expected=expected, found=repr(value))
