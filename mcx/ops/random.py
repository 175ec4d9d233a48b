"""The two functions by which particle methods make discrete draws.

Each is a jitted function of a known name, whose call stays visible in a traced program:
:mod:`mcx.testing.enumeration` finds these calls and tries every outcome of the algorithm that is shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from mcx.ops.cdf import invert_cdf, monotone_cdf
from mcx.ops.logspace import relative_weights
from mcx.types import Key

CHOOSE = "mcx_choose"  # (keys (*batch), log_w (*batch, n)) -> indices (*batch, *shape)
ACCEPT = "mcx_accept"  # (keys (*batch), log_p (*batch, *shape)) -> booleans (*batch, *shape)


def choose(key: Key, log_w: Array, shape: tuple[int, ...] = ()) -> Array:
    """Draw indices of ``shape`` independently, with probabilities in proportion to ``exp(log_w)``.

    Entries of -inf and NaN are never drawn. If all are, the draws are uniform; callers that care have to look
    at the weights. Costs O(n + m log n) for m draws; ``jax.random.categorical`` costs O(n m).
    """
    return _chooser(tuple(shape))(key, jax.lax.stop_gradient(log_w))


def accept(key: Key, log_p: ArrayLike) -> Array:
    """Draw independent booleans, True with probability ``min(1, exp(log_p))``; NaN counts as -inf."""
    log_p = jnp.asarray(log_p)
    return _accepter(log_p.ndim)(key, jax.lax.stop_gradient(log_p))


def _choose_one(key: Key, log_w: Array, shape: tuple[int, ...]) -> Array:
    u = jax.random.uniform(key, shape, log_w.dtype)
    return invert_cdf(monotone_cdf(relative_weights(log_w)), u)


def _accept_one(key: Key, log_p: Array) -> Array:
    # 1 - u lies in (0, 1], so log_p = -inf is never accepted and log_p = 0 always is
    u = 1.0 - jax.random.uniform(key, log_p.shape, log_p.dtype)
    return u <= jnp.exp(log_p)


@lru_cache(maxsize=256)
def _chooser(shape: tuple[int, ...]) -> Callable[[Any, Any], Any]:
    return _marked(CHOOSE, lambda key, log_w: _choose_one(key, log_w, shape), 1)


@lru_cache(maxsize=64)
def _accepter(ndim: int) -> Callable[[Any, Any], Any]:
    return _marked(ACCEPT, _accept_one, ndim)


def _marked(name: str, one: Callable[[Any, Any], Any], ndim: int) -> Callable[[Any, Any], Any]:
    """``one``, called as a jitted function called ``name`` whose batch axes all come first."""

    def body(keys: Key, values: Array) -> Array:
        fn = one
        for _ in range(keys.ndim):
            fn = jax.vmap(fn)
        return fn(keys, values)

    body.__name__ = body.__qualname__ = name
    marked = jax.jit(body)

    @custom_vmap
    def call(keys: Key, values: Array) -> Array:
        batch = keys.shape if values.ndim == ndim else values.shape[: values.ndim - ndim]
        keys = jnp.broadcast_to(keys, batch)
        return marked(keys, jnp.broadcast_to(values, (*batch, *values.shape[values.ndim - ndim :])))

    @call.def_vmap
    def rule(size: int, batched: tuple[bool, bool], keys: Key, values: Array) -> tuple[Array, bool]:
        keys = keys if batched[0] else jnp.broadcast_to(keys, (size, *keys.shape))
        values = values if batched[1] else jnp.broadcast_to(values, (size, *values.shape))
        # an axis of either argument comes first, so that of the other has to come there, too
        deep = max(keys.ndim, values.ndim - ndim)
        keys = keys.reshape(keys.shape[:1] + (1,) * (deep - keys.ndim) + keys.shape[1:])
        lead = values.ndim - ndim
        values = values.reshape(values.shape[:1] + (1,) * (deep - lead) + values.shape[1:])
        batch = jnp.broadcast_shapes(keys.shape, values.shape[:deep])
        return call(
            jnp.broadcast_to(keys, batch), jnp.broadcast_to(values, (*batch, *values.shape[deep:]))
        ), True

    return call
