"""Noise schedules: how fast data turn into noise, and the coordinates in which they all agree.

A schedule says ``x_t = alpha(t) x_0 + sigma(t) noise``. In the coordinates ``y = x / alpha`` and
``rho = sigma / alpha`` every schedule gives the same process, ``y = x_0 + rho noise``. All computations are
done in these coordinates; schedules only translate to and from them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import MethodError
from mcx.inference.diffusion.models.arguments import Level
from mcx.ops.arrays import array_argument
from mcx.ops.validation import Rule, Settings, function, instance, integer, number, optional, validated
from mcx.types import Scalar


@dataclass(frozen=True)
class Schedule(Settings):
    """``x_t = alpha(t) x_0 + sigma(t) noise`` for times from ``t_min`` to ``t_max``; hashable.

    Attributes:
        alpha, sigma: functions of t, made of JAX operations.
        time: ``rho -> t``, the inverse of ``sigma / alpha``, which has to grow with t.
        t_min, t_max: the range of times; data are near ``t_min``.
        name: what messages call it.
    """

    alpha: Callable[[Level], Level]
    sigma: Callable[[Level], Level]
    time: Callable[[Level], Level]
    t_min: float
    t_max: float
    name: str = "schedule"

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {
            "alpha": function("a function of t"),
            "sigma": function("a function of t"),
            "time": function("a function of rho"),
            "t_min": number(),
            "t_max": number(),
            "name": instance(str, "a string"),
        }

    def check(self) -> None:
        """Times have to form an interval."""
        if self.t_max <= self.t_min:
            self.refuse("t_max", f"a number > t_min = {self.t_min:g}")

    def rho(self, t: Level) -> Level:
        """The noise level ``sigma / alpha`` at a time."""
        return self.sigma(t) / self.alpha(t)

    @property
    def rho_range(self) -> tuple[float, float]:
        """The smallest and the largest rho."""
        return float(self.rho(self.t_min)), float(self.rho(self.t_max))


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
    """Variance preserving with linear rate: ``alpha^2 = exp(-integral of beta)``, ``sigma^2 = 1 - alpha^2``.

    Args:
        beta_min: the rate at time 0, positive.
        beta_max: the rate at time 1, larger.
        t_min: the smallest time, from 0 to 1.

    Source: Song et al. (2021), Score-based generative modeling through SDEs.
    """
    beta_min = validated("vp", "beta_min", beta_min, number(above=0))
    beta_max = validated("vp", "beta_max", beta_max, number(above=beta_min))
    t_min = validated("vp", "t_min", t_min, number(0, below=1))
    slope = beta_max - beta_min

    def integral(t: Level) -> Level:
        return beta_min * t + 0.5 * slope * t**2

    def time(rho: Level) -> Scalar:
        total = jnp.log1p(jnp.square(rho))  # the integral of beta up to t; this root does not cancel
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
    """Variance preserving with ``alpha = cos(pi t / 2)``, for times between 0 and 1.

    Args:
        t_min: the smallest time, above 0.
        t_max: the largest time, below 1, where only noise is left.

    Source: Nichol and Dhariwal (2021), Improved denoising diffusion probabilistic models, without the offset.
    """
    t_min, t_max = _times("vp_cosine", t_min, t_max)
    return Schedule(
        lambda t: jnp.cos(0.5 * math.pi * t),
        lambda t: jnp.sin(0.5 * math.pi * t),
        lambda rho: 2 / math.pi * jnp.arctan(rho),
        t_min,
        t_max,
        "vp_cosine",
    )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """Variance exploding: ``alpha = 1``, and sigma is geometric in t from 0 to 1.

    Args:
        sigma_min: the smallest standard deviation of the noise, positive, at time 0.
        sigma_max: the largest, at time 1.

    Source: Song et al. (2021), Score-based generative modeling through SDEs.
    """
    sigma_min, sigma_max = _range("ve", "sigma_min", sigma_min, "sigma_max", sigma_max)
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
    """``alpha = 1`` and ``sigma = t``.

    Args:
        sigma_min: the smallest standard deviation of the noise, positive; also the smallest time.
        sigma_max: the largest; also the largest time.

    Source: Karras et al. (2022), Elucidating the design space of diffusion-based generative models.
    """
    sigma_min, sigma_max = _range("edm", "sigma_min", sigma_min, "sigma_max", sigma_max)
    return Schedule(jnp.ones_like, lambda t: t, lambda rho: rho, sigma_min, sigma_max, "edm")


def rectified_flow(t_min: float = 1e-3, t_max: float = 0.99) -> Schedule:
    """``alpha = 1 - t`` and ``sigma = t``; the end t = 1, pure noise, has no finite rho and is left out.

    Args:
        t_min: the smallest time, above 0.
        t_max: the largest time, below 1.

    Source: Liu, Gong and Liu (2022), Flow straight and fast; Lipman et al. (2022), Flow matching for
    generative modeling.
    """
    t_min, t_max = _times("rectified_flow", t_min, t_max)
    return Schedule(
        lambda t: 1.0 - t, lambda t: t, lambda rho: rho / (1.0 + rho), t_min, t_max, "rectified_flow"
    )


def discrete(alphas_cumprod: ArrayLike) -> Schedule:
    """The schedule of a model that was trained at T discrete steps, as DDPM's are.

    ``alpha^2`` is ``alphas_cumprod[k]`` and ``sigma^2 = 1 - alpha^2`` at time k. Times are indices from 0 to
    T - 1 and may be fractions: the log of rho is linear between indices, and extrapolated linearly beyond the
    ends. A network that takes only whole steps has to round its times itself.

    Args:
        alphas_cumprod: (T,), T >= 2, between 0 and 1, strictly falling; in float64 if possible, because
            float32 has only three digits of ``1 - alpha^2`` where that is 1e-4.

    Returns:
        A schedule; equal numbers give the same object, so that nothing is compiled again.

    Raises:
        MethodError, DataError: if the numbers do not form a schedule. A last 0 (pure noise) has no finite
            rho: leave it out.

    Source: Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models, for such models.
    """
    found = np.asarray(array_argument("discrete", "alphas_cumprod", alphas_cumprod), float)
    proper = found.ndim == 1 and len(found) >= 2 and (np.diff(found) < 0).all() and 0 < found[-1]
    if not proper or not found[0] < 1:
        raise MethodError(
            "discrete(alphas_cumprod) is no schedule",
            expected="a vector of two or more numbers between 0 and 1, strictly falling",
            found=f"shape {found.shape}"
            + (f", from {found[0]} to {found[-1]}" if found.ndim * found.size else ""),
            remedy="pass the cumulative products of 1 - beta, without steps that are pure noise or no noise",
        )
    return _discrete(found.tobytes())


@functools.lru_cache(maxsize=64)
def _discrete(numbers: bytes) -> Schedule:
    alpha2 = np.frombuffer(numbers)
    index = np.arange(len(alpha2), dtype=float)
    log_rho = 0.5 * (np.log1p(-alpha2) - np.log(alpha2))

    def at(t: Level) -> Scalar:
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
    """Noise levels from the largest to the smallest, in float64.

    Args:
        rho_max: the first level.
        rho_min: the last level, positive.
        num_steps: number of steps between them.
        power: None for geometric levels; otherwise ``rho^(1 / power)`` is equally spaced (EDM uses 7).
        to_zero: whether level 0 follows at the end, which makes one step more.

    Returns:
        (num_steps + 1,), or (num_steps + 2,) with 0 at the end, strictly falling.

    Raises:
        MethodError: if an argument is out of range.
    """
    rho_min, rho_max = _range("levels", "rho_min", rho_min, "rho_max", rho_max)
    num_steps = validated("levels", "num_steps", num_steps, integer(1))
    power = validated("levels", "power", power, optional(number(above=0), "for geometric levels"))
    if power is None:
        found = np.geomspace(rho_max, rho_min, num_steps + 1)
    else:
        found = np.linspace(rho_max ** (1 / power), rho_min ** (1 / power), num_steps + 1) ** power
    return np.append(found, 0.0) if to_zero else found


def _range(owner: str, low_name: str, low: float, high_name: str, high: float) -> tuple[float, float]:
    """The ends of a range of positive numbers, checked."""
    low = validated(owner, low_name, low, number(above=0))
    return low, validated(owner, high_name, high, number(above=low))


def _times(owner: str, t_min: float, t_max: float) -> tuple[float, float]:
    """The ends of a range of times between 0 and 1, checked."""
    t_max = validated(owner, "t_max", t_max, number(above=0, below=1))
    return validated(owner, "t_min", t_min, number(above=0, below=t_max)), t_max
