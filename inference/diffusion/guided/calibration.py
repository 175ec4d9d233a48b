"""How well a diffusion model denoises at each level of noise, and how much weight a guess therefore deserves.

A pilot run measures the denoiser's error: points drawn from the model are noised to each level and denoised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.guided.observation import LinearObservation, linearize, log_likelihood
from mcx.inference.diffusion.models.reverse_process import ReverseProcess, StepLevels
from mcx.target import TargetFunctions
from mcx.types import Array, Bool, Float, Int, Key, PyTree, Scalar, SiteValues

type Points = Float[Array, "num ..."]
type Coordinates = Float[Array, "..."]


@dataclass(frozen=True)
class Guidance:
    """How particles are guided to the observations; static.

    Attributes:
        functions: of the target.
        name: of the site with the diffusion prior.
        kind: "twisted", "linear_gaussian" or "soft_value".
        num_children: proposals per particle, of "soft_value".
        noised: of "linear_gaussian", whether the observation is compared with the noisy point rather than
            with the denoised one.
        curved: whether the likelihood has second derivatives.
        fade: ``rho -> exponent`` of the likelihood at a level; None has the pilot run find it.
        num_pilot: points of the pilot run.
    """

    functions: TargetFunctions
    name: str
    kind: str
    num_children: int = 1
    noised: bool = False
    curved: bool = True
    fade: Callable[[Scalar], Scalar] | None = None
    num_pilot: int = 256


class Levels(NamedTuple):
    """What the pilot run found at every level; leading axis K + 1, from the noisiest.

    last: whether the level is the smallest, where a point is the site's value.
    offset, gain: regression of the data on the denoised point D, ``offset + gain D``, by coordinate, or along
        the directions of a linear observation; 0 and 1 for a denoiser that is right.
    power: exponent of the likelihood of that point.
    error: mean square error of that point along the directions of a linear observation, or None.
    share: how much of a change of y that point follows along the directions, or None.
    """

    steps: StepLevels
    last: Bool[Array, " level"]
    offset: Coordinates
    gain: Coordinates
    power: Float[Array, " level"]
    error: Float[Array, "level r"] | None
    share: Float[Array, "level r"] | None


class GuidedData(NamedTuple):
    """The data of guided particles; arrays.

    model, chain: data of the target, and the reverse process.
    linear: the observation, of "linear_gaussian".
    floor: log likelihood of the least likely point of the pilot run, for points with a likelihood of zero.
    half: number of the first level at which less than half of the data's variance is undecided.
    given: constrained values of the other latent sites.
    """

    # checkpoints know the data by these names
    model: PyTree
    chain: ReverseProcess
    levels: Levels
    linear: LinearObservation | None
    floor: Scalar
    half: Int[Array, ""]
    given: SiteValues


@partial(jax.jit, static_argnames=("guidance",))
def calibrate(
    guidance: Guidance, model: PyTree, process: ReverseProcess, key: Key, others: SiteValues | None = None
) -> GuidedData:
    """Look at a diffusion model and a likelihood at points that the model draws, with a key of its own.

    Where the likelihood is Gaussian with variance s^2 and the denoiser's error is e^2, its exponent is ``s^2
    / (s^2 + e^2)``; in general the curvature of the log likelihood along the error takes the place of ``e^2 /
    s^2``. Costs ``num_pilot`` draws from the process, and as many calls of the model per level.
    """
    others = dict(others or {})
    key_draw, key_noise, key_probe = jax.random.split(key, 3)
    x = process.draws(key_draw, guidance.num_pilot)
    noise = jax.random.normal(key_noise, x.shape, x.dtype)
    like = partial(log_likelihood, guidance.functions, guidance.name, model, others=others)
    linear = None
    if guidance.kind == "linear_gaussian":
        linear = linearize(guidance.functions, guidance.name, model, x[0])
    bends = guidance.curved and linear is None and guidance.fade is None

    def curvature(direction: Points) -> Points:
        return jax.vmap(lambda v, d: -jax.jvp(jax.grad(like), (v,), (d,))[1])(x, direction)

    def coordinates(v: Points) -> Points:
        return v if linear is None else v.reshape(len(v), -1) @ linear.directions.T

    def at(rho: Scalar) -> tuple[Scalar, Coordinates, Coordinates, Float[Array, " r"] | None, Scalar]:
        denoised = jax.vmap(lambda v: process.denoise(v, rho))(x + rho * noise)
        offset, gain = _regression(coordinates(denoised), coordinates(x))
        error = coordinates(x) - offset - gain * coordinates(denoised)
        along = None if linear is None else jnp.mean(error**2, 0)
        bend = _mean(error * curvature(error)) if bends else jnp.zeros(())
        return jnp.mean((x - denoised) ** 2), offset, gain, along, bend

    error, offset, gain, along, bend = jax.lax.map(at, process.rho)
    if guidance.noised:
        offset, gain = jnp.zeros_like(offset), jnp.ones_like(gain)
    last = jnp.arange(process.num_steps + 1) == process.num_steps
    power = jnp.ones_like(process.rho)
    if guidance.fade is not None:
        power = jax.vmap(guidance.fade)(process.rho).astype(process.rho.dtype)
    elif bends:
        probe = jax.random.rademacher(key_probe, x.shape, x.dtype)
        bent = curvature(probe)
        trace, square = _mean(probe * bent), _mean(bent**2)
        rank = jnp.maximum(trace, 0.0) ** 2 / jnp.where(square > 0, square, 1.0)
        power = 1 / (1 + jnp.where(rank > 0, jnp.maximum(bend, 0.0) / jnp.where(rank > 0, rank, 1.0), 0.0))
    power = jnp.where(last, 1.0, power)
    share = None
    if along is not None:
        share = jnp.minimum(along / process.rho[:, None] ** 2, 1.0)
        if guidance.noised:
            along, share = jnp.broadcast_to(process.rho[:, None] ** 2, along.shape), jnp.ones_like(along)
        along = jnp.where(last[:, None], 0.0, along)
        share = jnp.where(last[:, None], 1.0, share)
    known = process if process.composed else replace(process, error=error)
    values = jax.vmap(like)(x)
    worst = jnp.min(jnp.where(jnp.isfinite(values), values, jnp.inf))
    floor = jnp.where(jnp.isfinite(worst), worst, 0.0)
    half = jnp.argmax(error <= 0.5 * jnp.var(x, 0).mean())
    levels = Levels(known.step_levels(), last, offset, gain, power, along, share)
    return GuidedData(model, known, levels, linear, floor, half, others)


def _regression(x: Points, y: Points) -> tuple[Coordinates, Coordinates]:
    """Offset and gain of the regression of y on x, by coordinate, from points (n, ...)."""
    centre_x, centre_y = jnp.mean(x, 0), jnp.mean(y, 0)
    variance = jnp.mean((x - centre_x) ** 2, 0)
    slope = jnp.mean((x - centre_x) * (y - centre_y), 0) / jnp.where(variance > 0, variance, 1.0)
    gain = jnp.clip(slope, 0.0, 2.0)
    return centre_y - gain * centre_x, gain


def _mean(x: Points) -> Scalar:
    """Mean over points of the sum over coordinates, without the points that are not finite."""
    sums = jnp.sum(x.reshape(len(x), -1), -1)
    fine = jnp.isfinite(sums)
    return jnp.sum(jnp.where(fine, sums, 0.0)) / jnp.maximum(jnp.sum(fine), 1)
