"""Draws from the clouds of replicates: equally weighted, and in no order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mcx.inference.smc.resampling import systematic
from mcx.types import Array, Float, Int, Key


def orders(key: Key, chains: int, num: int) -> Int[Array, "replicate draw"]:
    """A random order of every replicate's particles, whose neighbours often are copies after resampling."""
    return jax.vmap(lambda k: jax.random.permutation(k, num))(jax.random.split(key, chains))


def equal_draws(key: Key, log_w: Float[Array, "replicate N"]) -> Int[Array, "replicate N"]:
    """Indices (replicate, N) of equally weighted draws from every replicate's particles, in no order."""
    chains, num = log_w.shape
    key_draw, key_order = jax.random.split(key)
    chosen = jax.vmap(lambda k, w: systematic(k, w, num))(jax.random.split(key_draw, chains), log_w)
    return jnp.take_along_axis(chosen, orders(key_order, chains, num), 1)
