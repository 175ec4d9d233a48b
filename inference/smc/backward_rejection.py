"""Backward draws by rejection, with exact ones for those that would take too long."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mcx.ops.random import accept, choose
from mcx.types import Array, Bool, Float, Int, Key, LogWeights, PyTree

_ROWS = 32  # drawn exactly at once


def by_rejection(
    key: Key,
    log_w: LogWeights,
    log_ratio: Callable[[Int[Array, "n M"]], Float[Array, "n M"]],
    exactly: Callable[[Key, PyTree], Int[Array, " M"]],
    rows: tuple[Key, PyTree],
    num_draws: int,
) -> Int[Array, "n M"]:
    """Indices with probability in proportion to weight times density, ``log_ratio`` over its bound.

    Rounds of proposals from the weights, for all draws at once, go on as long as the last one spared more
    evaluations of the density than it took. Then those that are left are drawn ``exactly``: the time that
    rejection takes alone may have an infinite mean. Whether and when a draw is accepted says nothing about
    its value, so the law is the same however many rounds there are. Source: Dau and Chopin (2023); by
    rejection alone: Douc, Garivier, Moulines and Olsson (2011).
    """
    num, size = rows[0].shape[0], log_w.shape[0]
    shape = (num, num_draws)

    def propose(carry: PyTree) -> PyTree:
        round_, drawn, open_, _ = carry
        key_propose, key_accept = jax.random.split(jax.random.fold_in(key, round_))
        proposed = choose(key_propose, log_w, shape)
        taken = open_ & accept(key_accept, log_ratio(proposed))
        return round_ + 1, jnp.where(taken, proposed, drawn), open_ & ~taken, jnp.sum(taken)

    def pays(carry: PyTree) -> Bool[Array, ""]:
        _, _, open_, last = carry
        return jnp.any(open_) & (last * size >= num * num_draws)

    start = (jnp.int32(0), jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), jnp.int32(num * num_draws))
    _, drawn, open_, _ = jax.lax.while_loop(pays, propose, start)

    batch = min(_ROWS, num)
    left = jnp.any(open_, 1)
    order = jnp.argsort(~left, stable=True)
    count = jnp.sum(left)

    def draw_rows(carry: PyTree) -> PyTree:
        done, drawn = carry
        here = order[jnp.minimum(done + jnp.arange(batch), num - 1)]
        keys, particles = jax.tree.map(lambda a: a[here], rows)
        exact = jax.vmap(exactly)(keys, particles)
        return done + batch, drawn.at[here].set(jnp.where(open_[here], exact, drawn[here]))

    return jax.lax.while_loop(lambda c: c[0] < count, draw_rows, (jnp.int32(0), drawn))[1]
