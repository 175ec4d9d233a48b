"""Backward sampling: paths drawn from the last time back, among all particles of a finished filter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mcx.ops.random import choose
from mcx.target import FeynmanKac

__all__ = ["backward_path"]


def backward_path(key: Any, fk: FeynmanKac, ctx: Any, particles: Any, log_w: Any) -> tuple[Any, Any]:
    """Draw one path from a filter's history.

    Args:
        key: a typed key.
        fk: the model, with a transition density.
        ctx: what ``fk.prepare`` gave.
        particles: pytree of (T, N, ...).
        log_w: (T, N) log weights of the filter.

    Returns:
        The path, a pytree of (T, ...), and its indices (T,). Given the history, paths with different keys are
        independent. Costs O(T N).

    Source: Godsill, Doucet and West (2004), algorithm 1.
    """
    density = fk.log_transition
    assert density is not None
    key_last, key_run = jax.random.split(key)
    last = choose(key_last, log_w[-1])
    end = jax.tree_util.tree_map(lambda x: x[-1, last], particles)
    before = jax.tree_util.tree_map(lambda x: x[:-1], particles)
    inputs = jax.tree_util.tree_map(lambda x: jnp.asarray(x)[1:], fk.inputs)
    keys = jax.random.split(key_run, fk.num_steps - 1)

    def back(x_next: Any, at: Any) -> tuple[Any, Any]:
        key, x, log_w, u = at

        def leads_to(x_prev: Any) -> Any:
            return density(ctx, x_prev, x_next, u) + fk.log_potential(ctx, x_prev, x_next, u)

        index = choose(key, log_w + jax.vmap(leads_to)(x))
        chosen = jax.tree_util.tree_map(lambda x: x[index], x)
        return chosen, (chosen, index)

    _, (earlier, indices) = jax.lax.scan(back, end, (keys, before, log_w[:-1], inputs), reverse=True)
    path = jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, end)
    return path, jnp.concatenate([indices, last[None]])
