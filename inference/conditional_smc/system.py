"""Particle systems one of whose particles follows a path: what conditional SMC is made of."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.resampling import Resampling
from mcx.ops.batched_draws import ParticleKey
from mcx.ops.random import choose
from mcx.target import FeynmanKac
from mcx.types import Index, Key, LogWeights, PyTree, Scalar


def conditional(fk: FeynmanKac, path: PyTree) -> FeynmanKac:
    """The Feynman-Kac model whose particle 0 follows a path.

    The path is a pytree of states with a leading axis of T, and the model has inputs ``(u, x)``. With
    ancestors that keep particle 0 to itself (or to an ancestor drawn for it, see :func:`pinned`) its particle
    system is conditional SMC.
    """

    def follow(particle_key: ParticleKey, drawn: PyTree, x: PyTree) -> PyTree:
        first = particle_key.index == 0
        return jax.tree.map(lambda new, own: jnp.where(first, own, new), drawn, x)

    def randomness(particle_key: ParticleKey) -> Key | ParticleKey:
        return particle_key if fk.batched_draws else jax.random.fold_in(particle_key.key, particle_key.index)

    def initial(particle_key: ParticleKey, ctx: PyTree, u: PyTree) -> PyTree:
        return follow(particle_key, fk.initial(randomness(particle_key), ctx, u[0]), u[1])

    def transition(particle_key: ParticleKey, ctx: PyTree, x_prev: PyTree, u: PyTree) -> PyTree:
        return follow(particle_key, fk.transition(randomness(particle_key), ctx, x_prev, u[0]), u[1])

    def log_potential(ctx: PyTree, x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
        return fk.log_potential(ctx, x_prev, x, u[0])

    density, look = fk.log_transition, fk.log_lookahead
    return replace(
        fk,
        initial=initial,
        transition=transition,
        log_potential=log_potential,
        inputs=(fk.inputs, path),
        log_transition=None if density is None else lambda ctx, a, x, u: density(ctx, a, x, u[0]),
        log_lookahead=None if look is None else lambda ctx, x, u: look(ctx, x, u[0]),
        batched_draws=True,
    )


def pinned(model: FeynmanKac, ctx: PyTree, state: SMCState, u: PyTree, draw_ancestor: bool) -> Resampling:
    """The resampling scheme of conditional SMC for a step with input ``u``: multinomial but for particle 0.

    The ancestor of that particle is itself; or drawn by how well it leads to the path (ancestor sampling).
    """

    def scheme(key: Key, log_w: LogWeights, num: int) -> Index:
        key_all, key_first = jax.random.split(key)
        if not draw_ancestor:
            return keep_first(key_all, log_w, num)
        ancestors = choose(key_all, log_w, (num,))
        density = model.log_transition
        assert density is not None

        def leads_to(x_prev: PyTree) -> Scalar:
            return density(ctx, x_prev, u[1], u) + model.log_potential(ctx, x_prev, u[1], u)

        # the filter's own weights, also where a look-ahead has others resample by more than these
        weights = state.log_w + jax.vmap(leads_to)(state.particles)
        return ancestors.at[0].set(choose(key_first, weights))

    return scheme


def keep_first(key: Key, log_w: LogWeights, num: int) -> Index:
    """Resampling of a conditional system: particle 0 is its own ancestor, the others are drawn independently.

    It gives int32 indices (num,), as the schemes of :mod:`mcx.inference.smc.resampling` do, but is only for
    systems one of whose particles follows a path.
    """
    return choose(key, log_w, (num,)).at[0].set(0)
