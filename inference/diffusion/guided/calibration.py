"""How much of the data a diffusion model knows at each level of noise, and what that means for a likelihood.

Guidance looks at the likelihood of the denoised point, which is off by the denoiser's error. A pilot run
finds that error: points drawn from the model are noised to each level and denoised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.guided.observation import Linear, linearize, log_likelihood
from mcx.inference.diffusion.models.reverse_process import ReverseProcess, StepLevels
from mcx.target import TargetFunctions

__all__ = ["GuidedData", "Guiding", "Levels", "calibrate"]


@dataclass(frozen=True)
class Guiding:
    """How particles are led to the observations; static.

    Attributes:
        functions: of the target.
        name: of the site with the diffusion prior.
        kind: "twisted", "linear_gaussian" or "soft_value".
        num_children: proposals a particle, of "soft_value".
        noised: of "linear_gaussian", whether the observation is compared with the noisy point, not with the
            denoised one.
        curved: whether the likelihood has second derivatives to look at.
        fade: ``rho -> exponent`` of the likelihood at a level; None finds it.
        num_pilot: points of the pilot run.
    """

    functions: TargetFunctions
    name: str
    kind: str
    num_children: int = 1
    noised: bool = False
    curved: bool = True
    fade: Callable[[Any], Any] | None = None
    num_pilot: int = 256


class Levels(NamedTuple):
    """What is known of a level, leading axis K + 1 from the noisiest.

    steps: of the reverse chain.
    last: whether it is the smallest, where a point is the site's value.
    offset, gain: what the data are like on average where the denoised point is D: ``offset + gain D``, by
        coordinate, or along the directions of a linear observation. 0 and 1 of a denoiser that is right; a
        network's noise, which it has at large noise above all, makes for a smaller gain.
    power: exponent of the likelihood of that point.
    error: mean square error of that point along the directions of a linear observation, or None.
    share: how much of a change of y it follows along them, or None.
    """

    steps: StepLevels
    last: Any
    offset: Any
    gain: Any
    power: Any
    error: Any
    share: Any


class GuidedData(NamedTuple):
    """What guided particles are given; arrays.

    model: data of the target.
    chain: the reverse process.
    levels: see :class:`Levels`.
    linear: the observation, of "linear_gaussian".
    floor: log likelihood of the least likely point of the pilot run: where a denoised point has none.
    half: number of the level from which on less than half of the data's variance is open.
    given: constrained values of other latent sites.
    """

    model: Any
    chain: ReverseProcess
    levels: Levels
    linear: Linear | None
    floor: Any
    half: Any
    given: Mapping[str, Any]


@partial(jax.jit, static_argnames=("how",))
def calibrate(
    how: Guiding, model: Any, chain: ReverseProcess, key: Any, given: Mapping[str, Any] | None = None
) -> GuidedData:
    """Look at a diffusion model and a likelihood at points that the model draws.

    Args:
        how: the guidance.
        model: data of the target.
        chain: the reverse process.
        key: of the pilot run, whose draws nothing else may use.
        given: values of other latent sites.

    Returns:
        The data of :func:`~.guided_steps.code`. Where the likelihood is Gaussian of variance s^2, and the
        denoiser's error e^2, the exponent is ``s^2 / (s^2 + e^2)``; in general the likelihood's curvature
        along the error takes the place of ``e^2 / s^2``. Costs ``num_pilot`` draws from the chain, and as
        many calls a level.
    """
    given = dict(given or {})
    key_draw, key_noise, key_probe = jax.random.split(key, 3)
    x = chain.draws(key_draw, how.num_pilot)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    like = partial(log_likelihood, how.functions, how.name, model, given=given)
    linear = linearize(how.functions, how.name, model, x[0]) if how.kind == "linear_gaussian" else None

    def curvature(e: Any) -> Any:
        return jax.vmap(lambda v, d: -jax.jvp(jax.grad(like), (v,), (d,))[1])(x, e)

    bends = how.curved and how.kind != "linear_gaussian" and how.fade is None

    def coordinates(v: Any) -> Any:
        return v if linear is None else v.reshape(len(v), -1) @ linear.directions.T

    def at(rho: Any) -> tuple[Any, Any, Any, Any, Any]:
        denoised = jax.vmap(lambda v: chain.denoise(v, rho))(x + rho * noise)
        offset, gain = _regression(coordinates(denoised), coordinates(x))
        error = coordinates(x) - offset - gain * coordinates(denoised)
        along = None if linear is None else jnp.mean(error**2, 0)
        bend = _mean(error * curvature(error)) if bends else jnp.zeros(())
        return jnp.mean((x - denoised) ** 2), offset, gain, along, bend

    error, offset, gain, along, bend = jax.lax.map(at, chain.rho)
    if how.noised:
        offset, gain = jnp.zeros_like(offset), jnp.ones_like(gain)
    last = jnp.arange(chain.num_steps + 1) == chain.num_steps
    power = jnp.ones_like(chain.rho)
    if how.fade is not None:
        power = jax.vmap(how.fade)(chain.rho).astype(chain.rho.dtype)
    elif bends:
        probe = jax.random.rademacher(key_probe, x.shape, x.dtype)
        bent = curvature(probe)
        trace, square = _mean(probe * bent), _mean(bent**2)
        rank = jnp.maximum(trace, 0.0) ** 2 / jnp.where(square > 0, square, 1.0)
        power = 1 / (1 + jnp.where(rank > 0, jnp.maximum(bend, 0.0) / jnp.where(rank > 0, rank, 1.0), 0.0))
    power = jnp.where(last, 1.0, power)
    share = None
    if along is not None:
        share = jnp.minimum(along / chain.rho[:, None] ** 2, 1.0)
        if how.noised:
            along, share = jnp.broadcast_to(chain.rho[:, None] ** 2, along.shape), jnp.ones_like(along)
        along = jnp.where(last[:, None], 0.0, along)
        share = jnp.where(last[:, None], 1.0, share)
    known = chain if chain.composed else replace(chain, error=error)
    values = jax.vmap(like)(x)
    worst = jnp.min(jnp.where(jnp.isfinite(values), values, jnp.inf))
    floor = jnp.where(jnp.isfinite(worst), worst, 0.0)
    half = jnp.argmax(error <= 0.5 * jnp.var(x, 0).mean())
    levels = Levels(known.step_levels(), last, offset, gain, power, along, share)
    return GuidedData(model, known, levels, linear, floor, half, given)


def _regression(x: Any, y: Any) -> tuple[Any, Any]:
    """Offset and gain of y given x, by coordinate, from points (n, ...)."""
    centre_x, centre_y = jnp.mean(x, 0), jnp.mean(y, 0)
    variance = jnp.mean((x - centre_x) ** 2, 0)
    slope = jnp.mean((x - centre_x) * (y - centre_y), 0) / jnp.where(variance > 0, variance, 1.0)
    gain = jnp.clip(slope, 0.0, 2.0)
    return centre_y - gain * centre_x, gain


def _mean(x: Any) -> Any:
    """Mean over points of the sum over coordinates, points that are not finite left out."""
    sums = jnp.sum(x.reshape(len(x), -1), -1)
    fine = jnp.isfinite(sums)
    return jnp.sum(jnp.where(fine, sums, 0.0)) / jnp.maximum(jnp.sum(fine), 1)
