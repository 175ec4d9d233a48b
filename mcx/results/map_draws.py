"""Evaluation of a function at every draw, a block of draws at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.ops.lru_cache import LRUCache
from mcx.types import PyTree

_BLOCK_BYTES = 64 * 2**20
_CACHE: LRUCache[Any] = LRUCache()


def map_draws(fn: Callable[[Any, Any], Any], data: PyTree, draws: PyTree, identity: Hashable) -> PyTree:
    """Evaluate ``fn(data, draw)`` at every draw of chain x draw; results leave the device in blocks.

    Equal identities mean equal ``fn``, so that the compiled program is reused.
    """
    leading = np.shape(jax.tree_util.tree_leaves(draws)[0])[:2]
    total = math.prod(leading)
    flat = jax.tree_util.tree_map(lambda x: jnp.reshape(jnp.asarray(x), (total, *jnp.shape(x)[2:])), draws)
    out = jax.eval_shape(fn, data, jax.tree_util.tree_map(lambda x: x[0], flat))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree_util.tree_leaves(out))
    block = max(1, min(total, 1024, _BLOCK_BYTES // max(size, 1)))
    program = _CACHE.get(identity, lambda: jax.jit(jax.vmap(fn, (None, 0))))
    parts = []
    for begin in range(0, total, block):
        # the last block is moved back to full length, so that one program serves all blocks
        first = max(0, min(begin, total - block))
        result = program(data, jax.tree_util.tree_map(lambda x, f=first: x[f : f + block], flat))
        parts.append(jax.tree_util.tree_map(lambda x, s=begin - first: np.asarray(x)[s:], result))
    joined = jax.tree_util.tree_map(lambda *xs: np.concatenate(xs), *parts)
    return jax.tree_util.tree_map(lambda x: x.reshape(*leading, *x.shape[1:]), joined)
