"""Feynman-Kac correctors: a composition of diffusion models as a Feynman-Kac model on the one SMC loop."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.models.arguments import noise_levels
from mcx.inference.diffusion.models.composition import Composition
from mcx.ops.arrays import array_argument
from mcx.ops.random import accept
from mcx.target import FeynmanKac
from mcx.types import Array, Float, Key, PyTree, Scalar

type Point = Float[Array, "..."]


class Corrected(NamedTuple):
    """A particle.

    position: y, at the noise level of the step.
    increment: log weight of the step that led there.
    accepted: whether its refreshment was accepted, 0 or 1; 1 without refreshment.
    """

    position: Point
    increment: Scalar
    accepted: Scalar


class _Context(NamedTuple):
    """The composition, and the Gaussian that particles start from, times its integral."""

    composition: Composition
    mean: Point
    variance: Point
    log_z: Scalar


class _Step(NamedTuple):
    """Levels before and after, and the noise gain."""

    rho: Float[Array, "..."]
    after: Float[Array, "..."]
    gain: Float[Array, "..."]


def corrector(
    composition: Composition,
    like: ArrayLike,
    rho: ArrayLike,
    *,
    noise_gain: ArrayLike | None = None,
    refresh: bool = False,
) -> FeynmanKac:
    """The reverse process of a composition, weighted so that it samples the composition.

    Particles start from a Gaussian at the largest level and go down by half the composition's transport, with
    Langevin noise of any strength added and a log weight that depends on the transport alone. Every noise
    gain gives the right final law and evidence as steps become short; more noise makes weights more equal, up
    to where steps are too long for it.

    Args:
        composition: what to sample, of :func:`~mcx.diffusion.anneal`, ``geometric``, ``product``, or
            products, powers and tilts of those.
        like: an array of a point's shape and dtype.
        rho: noise levels, strictly falling, (K + 1,); see :func:`~mcx.diffusion.levels`. The first
            has to be so large that the models are Gaussian there, the last so small that it does not matter.
        noise_gain: b >= 0, squared diffusion in units of the noising process', a number or one per step,
            (K,). By default the sum of the powers, at least 1.
        refresh: whether to add the noise by a Metropolis-adjusted Langevin step after the transport, which
            removes the bias of long steps. Needs densities.

    Returns:
        A model for :func:`mcx.smc`, of particles :class:`Corrected` and K + 1 times. Its evidence is the
        integral of the composition at the last level if the models' densities are normalised. Costs one call
        of each model per step; with ``refresh`` four calls and two densities.

    Raises:
        MethodError: if levels do not fall, or gains are negative.
        CapabilityError: for ``refresh`` without densities.

    Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion; their two variants are gains of 1 and
    of 1 / beta. The gain is free because weights do not depend on the Langevin part, which leaves the law at
    every level invariant.
    """
    rho = noise_levels("corrector", "rho", rho)
    if noise_gain is None:
        noise_gain = max(1.0, float(np.sum([float(p) for p in composition.powers])))
    gain = np.asarray(array_argument("corrector", "noise_gain", noise_gain), float)
    if gain.shape not in ((), (len(rho) - 1,)) or not (gain >= 0).all():
        raise MethodError(
            "corrector(noise_gain=...) is out of range",
            expected="a number >= 0, or one per step",
            found=repr(noise_gain),
        )
    gain = np.broadcast_to(gain, len(rho) - 1)
    if refresh and not composition.has_density:
        raise CapabilityError(
            "corrector(refresh=True) accepts by densities, and a model of this composition is a score alone",
            expected="GaussianMixture, or Score(..., kind='energy')",
            remedy="leave refresh out, and take short steps",
        )
    like = jnp.zeros_like(jnp.asarray(like, float))
    before, gains = np.concatenate([rho[:1], rho[:-1]]), np.concatenate([[0.0], gain])
    steps = _Step(*(jnp.asarray(x, like.dtype) for x in (before, rho, gains)))
    return FeynmanKac(
        _initial,
        _refreshed if refresh else _langevin,
        _log_potential,
        len(rho),
        inputs=steps,
        prepare=jax.tree_util.Partial(_prepare, composition, like, steps.rho[0]),
    )


def _prepare(composition: Composition, like: Point, rho: Scalar, params: PyTree = None) -> _Context:
    return _Context(composition, *composition.initial_law(rho, like))


def _initial(key: Key, ctx: _Context, u: _Step) -> Corrected:
    noise = jax.random.normal(key, ctx.mean.shape, ctx.mean.dtype)
    y = ctx.mean + jnp.sqrt(ctx.variance) * noise
    increment = ctx.log_z
    if ctx.composition.has_density:
        # the Gaussian's error is known
        log_start = -0.5 * jnp.sum(noise**2 + jnp.log(2 * jnp.pi * ctx.variance))
        increment = ctx.composition.log_density(y, u.rho) - log_start
    elif ctx.composition.reward is not None:
        increment = increment + ctx.composition.strength_at(u.rho) * ctx.composition.reward(y)
    return Corrected(y, increment, jnp.ones((), y.dtype))


def _langevin(key: Key, ctx: _Context, x: Corrected, u: _Step) -> Corrected:
    """A step of Euler-Maruyama: transport and noise at once, with the weight of its beginning."""
    composition, y = ctx.composition, x.position
    delta = u.rho**2 - u.after**2
    now = composition.at(y, u.rho)
    noise = jax.random.normal(key, y.shape, y.dtype)
    moved = y + 0.5 * delta * (now.transport + u.gain * now.score) + jnp.sqrt(u.gain * delta) * noise
    rise = composition.strength_at(u.after) - composition.strength_at(u.rho)
    return Corrected(moved, 0.5 * delta * now.rate + rise * now.reward, x.accepted)


def _refreshed(key: Key, ctx: _Context, x: Corrected, u: _Step) -> Corrected:
    """Heun's method carries particles and weights; a Metropolis-adjusted Langevin step refreshes them."""
    composition, y = ctx.composition, x.position
    delta = u.rho**2 - u.after**2
    now = composition.at(y, u.rho)
    ahead = composition.at(y + 0.5 * delta * now.transport, u.after)
    moved = y + 0.25 * delta * (now.transport + ahead.transport)
    arrived = composition.at(moved, u.after)
    rise = composition.strength_at(u.after) - composition.strength_at(u.rho)
    increment = 0.25 * delta * (now.rate + arrived.rate) + 0.5 * rise * (now.reward + arrived.reward)

    key_noise, key_accept = jax.random.split(key)
    variance = u.gain * delta
    noise = jax.random.normal(key_noise, y.shape, y.dtype)
    proposal = moved + 0.5 * variance * arrived.score + jnp.sqrt(variance) * noise
    there = composition.at(proposal, u.after)
    back = moved - proposal - 0.5 * variance * there.score
    log_ratio = composition.log_density(proposal, u.after) - composition.log_density(moved, u.after)
    log_ratio += 0.5 * jnp.sum(noise**2) - 0.5 * jnp.sum(back**2) / variance
    accepted = accept(key_accept, log_ratio) & (variance > 0)
    return Corrected(jnp.where(accepted, proposal, moved), increment, accepted.astype(y.dtype))


def _log_potential(ctx: _Context, before: Corrected | None, x: Corrected, u: _Step) -> Scalar:
    return x.increment
