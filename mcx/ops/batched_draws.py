"""Batched draws: one draw for all particles, because a key for each particle would be slow.

Particle code is written for one particle and vectorised by ``vmap`` over particles' numbers: :func:`draw`
then sees all of them at once, and draws the whole batch from one key.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, ExpandedDistribution
from numpyro.distributions.batch_util import promote_batch_shape

from mcx.types import Key, PyTree

_PROBE = 7919  # an axis length that no model has by accident: shapes that depend on it are the batch's


class ParticleKey(NamedTuple):
    """Randomness of one particle in one step.

    key: the step's key, the same for all particles.
    index: the particle's number, int32. Two particles of one step must not share it.
    """

    key: PyTree
    index: PyTree


def particle_keys(key: Key, num: int, first: ArrayLike = 0) -> ParticleKey:
    """Keys of ``num`` particles from number ``first`` on; vectorise with ``in_axes=ParticleKey(None, 0)``."""
    return ParticleKey(key, first + jnp.arange(num, dtype=jnp.int32))


def of_site(particle_key: ParticleKey, site: int) -> ParticleKey:
    """The randomness of one of several draws of a step."""
    return ParticleKey(jax.random.fold_in(particle_key.key, site), particle_key.index)


def draw(particle_key: ParticleKey, distribution: Distribution) -> Array:
    """Draw from a NumPyro distribution, independently for every particle; parameters may differ between them.

    Under ``vmap`` over ``particle_key.index`` the batch comes from ``fold_in(key, index[0])``, so that two
    parts of one population do not repeat each other. For distributions that cannot be batched in this way,
    each particle draws from a key of its own, which gives the same law.
    """
    leaves, treedef = jax.tree.flatten(distribution)

    def one(key: Key, index: Array, *leaves: PyTree) -> Array:
        return jax.tree.unflatten(treedef, leaves).sample(jax.random.fold_in(key, index))

    batched_one = custom_vmap(one)

    @batched_one.def_vmap
    def rule(size: int, batched: PyTree, key: Key, index: Array, *leaves: PyTree) -> tuple[Array, bool]:
        many = _sampler(treedef, leaves, batched[2:]) if batched[1] and not batched[0] else None
        if many is None:
            axes = [0 if b else None for b in jax.tree.leaves(batched)]
            return jax.vmap(one, axes, axis_size=size)(key, index, *leaves), True
        return many(jax.random.fold_in(key, index[0]), size, *leaves), True

    return batched_one(particle_key.key, particle_key.index, *leaves)


_Sampler = Callable[..., Any]  # (key, size, *leaves) -> (size, *shape)


def _sampler(treedef: jax.tree_util.PyTreeDef, leaves: PyTree, batched: PyTree) -> _Sampler | None:
    """The fastest correct way to draw all batch entries from one key, or None if there is none.

    A distribution that is made of others (LogNormal, mixtures, ...) may draw parts of it once for all entries
    when only its own parameters are batched, which the draw's shape does not show. So a way is correct if,
    source by source, it draws as many random numbers for the batch as single draws of all entries take.
    """

    def make(leaves: PyTree) -> Distribution:
        return jax.tree.unflatten(treedef, leaves)

    def promoted(key: Key, size: int, *leaves: PyTree) -> Array:
        return promote_batch_shape(make(leaves)).sample(key)

    def widened(key: Key, size: int, *leaves: PyTree) -> Array:
        wide = [
            x if b else jnp.broadcast_to(x, (size, *jnp.shape(x)))
            for x, b in zip(leaves, batched, strict=True)
        ]
        return _widen(make(wide), size).sample(key)

    if not any(batched):
        return lambda key, size, *leaves: make(leaves).sample(key, (size,))
    if any(isinstance(part, ExpandedDistribution) for part in _parts(make(leaves))):
        return None  # it lays the copies out before the batch entries, and so would mix the entries up
    lone = [
        jax.ShapeDtypeStruct(jnp.shape(x)[b:], jnp.result_type(x))
        for x, b in zip(leaves, batched, strict=True)
    ]
    probes = [
        jax.ShapeDtypeStruct((_PROBE, *x.shape) if b else x.shape, x.dtype)
        for x, b in zip(lone, batched, strict=True)
    ]
    try:
        dtype, shape, numbers = _trace(lambda key, *xs: make(xs).sample(key), lone)
    except Exception:
        return None  # the error is raised again where batch entries are drawn one by one
    for sampler in (promoted, widened):
        try:
            found = _trace(lambda key, *xs, sampler=sampler: sampler(key, _PROBE, *xs), probes)
        except Exception:
            continue
        if found == (dtype, (_PROBE, *shape), [_PROBE * n for n in numbers]):
            return sampler
    return None


def _parts(d: Distribution) -> Iterator[Any]:
    """A distribution and those that it is made of."""
    yield d
    for value in vars(d).values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Distribution):
                yield from _parts(part)


def _widen(d: Distribution, size: int) -> Distribution:
    """A distribution all of whose leaves have got a new first axis, with its batch shapes updated."""
    wide = copy.copy(d)
    for name, value in vars(d).items():
        if isinstance(value, Distribution):
            setattr(wide, name, _widen(value, size))
        elif isinstance(value, list | tuple) and any(isinstance(part, Distribution) for part in value):
            setattr(wide, name, type(value)(_widen(part, size) for part in value))
    wide._batch_shape = (size, *d.batch_shape)
    return wide


def _trace(fn: Callable[..., Any], leaves: PyTree) -> tuple[Any, tuple[int, ...], list[int]]:
    """Dtype and shape of a draw, and the number of random numbers from each of its sources."""
    traced = jax.make_jaxpr(fn)(jax.eval_shape(lambda: jax.random.key(0)), *leaves)
    (out,) = traced.out_avals
    return out.dtype, tuple(out.shape), list(_random_numbers(traced.jaxpr, 1))


def _random_numbers(jaxpr: Any, times: int) -> Iterator[int]:
    for eqn in jaxpr.eqns:
        inner = list(_inner(eqn.params))
        for sub in inner:
            yield from _random_numbers(sub, times * eqn.params.get("length", 1))
        takes_keys = any(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in eqn.invars)
        if takes_keys and not inner:
            for v in eqn.outvars:
                if not jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key):
                    yield times * v.aval.size


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part
