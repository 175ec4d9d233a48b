"""Particle systems given one of their paths: what conditional SMC is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import SMCState
from mcx.ops.batched_draws import ParticleKey
from mcx.ops.random import choose
from mcx.target import FeynmanKac

__all__ = ["conditional", "pinned"]


def conditional(fk: FeynmanKac, path: Any) -> FeynmanKac:
    """The Feynman-Kac model whose particle 0 is nailed to a path.

    Args:
        fk: the model.
        path: pytree of states with a leading axis of T.

    Returns:
        A model with inputs ``(u, x)``. With ancestors that keep slot 0 to itself (or to an ancestor drawn for
        it) its particle system is conditional SMC.
    """

    def nailed(particle_key: ParticleKey, drawn: Any, ref: Any) -> Any:
        first = particle_key.index == 0
        return jax.tree_util.tree_map(lambda x, r: jnp.where(first, r, x), drawn, ref)

    def randomness(particle_key: ParticleKey) -> Any:
        return particle_key if fk.batched_draws else jax.random.fold_in(particle_key.key, particle_key.index)

    def initial(particle_key: ParticleKey, ctx: Any, u: Any) -> Any:
        return nailed(particle_key, fk.initial(randomness(particle_key), ctx, u[0]), u[1])

    def transition(particle_key: ParticleKey, ctx: Any, x_prev: Any, u: Any) -> Any:
        return nailed(particle_key, fk.transition(randomness(particle_key), ctx, x_prev, u[0]), u[1])

    def log_potential(ctx: Any, x_prev: Any, x: Any, u: Any) -> Any:
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


def pinned(nailed: FeynmanKac, ctx: Any, state: SMCState, u: Any, draw_ancestor: bool) -> Any:
    """Independent ancestors, but for slot 0: itself, or drawn by how well it leads to the given path."""

    def scheme(key: Any, log_w: Any, num: int) -> Any:
        key_all, key_first = jax.random.split(key)
        ancestors = choose(key_all, log_w, (num,))
        if not draw_ancestor:
            return ancestors.at[0].set(0)
        density = nailed.log_transition
        assert density is not None

        def leads_to(x_prev: Any) -> Any:
            return density(ctx, x_prev, u[1], u) + nailed.log_potential(ctx, x_prev, u[1], u)

        # the filter's own weights, also where a look-ahead has others resample by more than these
        weights = state.log_w + jax.vmap(leads_to)(state.particles)
        return ancestors.at[0].set(choose(key_first, weights))

    return scheme
