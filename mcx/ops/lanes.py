"""One batched draw for all particles, where a key of its own for every particle would be slow.

Particle code is written for one particle and vectorised by ``vmap``. A :class:`Lane` stands for "this step's
key, and which particle I am". Under ``vmap`` over the particles' indices :func:`draw` sees all of them at
once and draws the whole batch from one key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from numpyro.distributions.batch_util import promote_batch_shape

__all__ = ["Lane", "draw", "lanes", "of_site"]

_PROBE = 7919  # an axis length that no model has by accident: shapes that depend on it are the batch's


class Lane(NamedTuple):
    """Randomness of one particle in one step.

    key: the step's key, the same for all particles.
    index: the particle's number, int32. Two particles of one step must not share it.
    """

    key: Any
    index: Any


def lanes(key: Any, num: int, first: Any = 0) -> Lane:
    """Lanes of ``num`` particles from number ``first`` on; vectorise with ``in_axes=Lane(None, 0)``."""
    return Lane(key, first + jnp.arange(num, dtype=jnp.int32))


def of_site(lane: Lane, site: int) -> Lane:
    """The randomness of one of several draws of a step."""
    return Lane(jax.random.fold_in(lane.key, site), lane.index)


def draw(lane: Lane, distribution: Any) -> Any:
    """Draw from a distribution, independently for every particle.

    Args:
        lane: which particle, in which step.
        distribution: a NumPyro distribution; its parameters may differ between particles.

    Returns:
        One draw, of the distribution's shape. Under ``vmap`` over ``lane.index`` the batch comes from
        ``fold_in(key, index[0])``, so two parts of one population do not repeat each other. Distributions
        that cannot be batched so draw from a key of their own each, which gives the same law.
    """
    leaves, treedef = jax.tree_util.tree_flatten(distribution)

    def one(key: Any, index: Any, *leaves: Any) -> Any:
        return jax.tree_util.tree_unflatten(treedef, leaves).sample(jax.random.fold_in(key, index))

    batched_one = custom_vmap(one)

    @batched_one.def_vmap
    def rule(size: int, batched: Any, key: Any, index: Any, *leaves: Any) -> Any:
        fits = batched[1] and not batched[0] and _batches(treedef, leaves, batched[2:])
        if not fits:
            axes = [0 if b else None for b in jax.tree_util.tree_leaves(batched)]
            return jax.vmap(one, axes, axis_size=size)(key, index, *leaves), True
        return _draw_batch(jax.random.fold_in(key, index[0]), treedef, leaves, batched[2:], size), True

    return batched_one(lane.key, lane.index, *leaves)


def _draw_batch(key: Any, treedef: Any, leaves: Any, batched: Any, size: int) -> Any:
    fn = jax.tree_util.tree_unflatten(treedef, leaves)
    if not any(batched):
        return fn.sample(key, (size,))
    return promote_batch_shape(fn).sample(key)


def _batches(treedef: Any, leaves: Any, batched: Any) -> bool:
    """Whether a distribution whose batched leaves carry a new first axis draws values with that axis."""
    fn = jax.tree_util.tree_unflatten(
        treedef, [x[0] if b else x for x, b in zip(leaves, batched, strict=True)]
    )
    expected = (_PROBE, *fn.shape())
    probes = [
        jax.ShapeDtypeStruct((_PROBE, *x.shape[1:]) if b else jnp.shape(x), jnp.result_type(x))
        for x, b in zip(leaves, batched, strict=True)
    ]
    try:
        shape = jax.eval_shape(
            lambda key, *xs: _draw_batch(key, treedef, xs, batched, _PROBE), jax.random.key(0), *probes
        ).shape
    except (TypeError, ValueError, NotImplementedError, AttributeError, IndexError):
        return False
    return tuple(shape) == expected
