"""Projection determinantal point processes: m points with density ``det(phi_i(x_j))^2 / m!``.

The points repel each other: two whose features are alike rarely occur together. They are drawn one after the
other: the first has density k_m / m, and conditional on some of them the density of the next one is the
squared distance of phi(x) to the span of their features, over the number still to come. That is Gram-Schmidt
orthogonalisation at random.

Source: Hough, Krishnapur, Peres & Virag (2006), Determinantal processes and independence.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mcx.ops.random import accept, choose
from mcx.types import Array, Float, Index, Key, PyTree


def dpp_on_grid(key: Key, features: Float[Array, "M m"]) -> Index:
    """Draw a projection DPP on finitely many candidates.

    Args:
        key: a typed key.
        features: (M, m) with orthonormal columns; for a weighted grid, phi times the root of the weights.

    Returns:
        int32 indices (m,), all different, in the order in which they were drawn: a set S has probability
        ``det(features[S])^2``, and its orders are equally likely. Costs O(M m^2) time, and no memory beyond
        the features'.
    """
    m = features.shape[1]

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        chosen, distance, directions = carry
        i = choose(jax.random.fold_in(key, j), jnp.log(distance))
        direction = _orthogonal(features[i], directions)
        # no cancellation to fear: the distances that matter are of the order of their sum, m - j
        distance = jnp.maximum(distance - (features @ direction) ** 2, 0.0).at[i].set(0.0)
        return chosen.at[j].set(i), distance, directions.at[j].set(direction)

    start = (jnp.zeros(m, jnp.int32), jnp.sum(features**2, 1), jnp.zeros((m, m), features.dtype))
    return jax.lax.fori_loop(0, m, step, start)[0]


def dpp_by_rejection(
    key: Key, propose: Callable[[Key, int], Array], features: Callable[[Array], Array], size: int
) -> Float[Array, "m d"]:
    """Draw a projection DPP with respect to any measure, exactly.

    The next point is proposed from k_m / m. It is accepted with a probability that is the squared distance of
    its features to the span of those before it, relative to k_m. The j-th from the last takes m / j proposals
    on average.

    Args:
        key: a typed key.
        propose: ``(key, n)``, returns n independent draws (n, d) of density k_m / m.
        features: takes points (n, d) to the orthonormal functions' values (n, m).
        size: m.

    Returns:
        Points (m, d), in the order in which they were drawn; NaN where features are NaN, so that nothing can
        be accepted. Costs O(m log m) proposals on average, of O(m^2) flops each.
    """
    block = min(size, 16)  # at once, of which the first that is accepted counts
    limit = 100 * size  # a proposal is accepted with probability 1 / m at least: e^-100 that none of 100 m is
    point = jax.eval_shape(lambda k: propose(k, 1), key)

    def attempt(directions: Array, state: PyTree) -> PyTree:
        k, tries, _, _, _ = state
        k, key_propose, key_accept = jax.random.split(k, 3)
        x = propose(key_propose, block)
        phi = features(x)
        left = phi - (phi @ directions.T) @ directions
        ok = accept(key_accept, jnp.log(jnp.sum(left**2, 1) / jnp.sum(phi**2, 1)))
        first = jnp.argmax(ok)
        return k, tries + block, jnp.any(ok), x[first], phi[first]

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        points, directions = carry
        start = (jax.random.fold_in(key, j), 0, jnp.asarray(False), points[0], directions[0])
        _, _, ok, x, phi = jax.lax.while_loop(
            lambda s: ~s[2] & (s[1] < limit), lambda s: attempt(directions, s), start
        )
        return points.at[j].set(jnp.where(ok, x, jnp.nan)), directions.at[j].set(_orthogonal(phi, directions))

    dtype = jax.eval_shape(features, point).dtype
    start = (jnp.zeros((size, *point.shape[1:]), point.dtype), jnp.zeros((size, size), dtype))
    return jax.lax.fori_loop(0, size, step, start)[0]


def _orthogonal(v: Array, directions: Array) -> Array:
    """Unit vector along the part of ``v`` that is orthogonal to orthonormal rows (or zero ones)."""
    for _ in range(2):  # once leaves rounding errors relative to v, not to what is left of it
        v = v - (directions @ v) @ directions
        v = v / jnp.linalg.norm(v)
    return v
