"""Pick-freeze designs: pairs of independent points, random or from Sobol' sequences."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.estimators.polynomials.independent_inputs import Inputs
from mcx.ops.sobol_sequence import MOST_DIMENSIONS, scrambled, sobol_bits, uniforms
from mcx.types import Array, Float, Key

DESIGNS = ("sobol", "random")
_REPLICATES = 8  # at least; less than twice as many


class Pairs(NamedTuple):
    """Pairs of points; the two of each pair are independent draws of the inputs.

    a, b: (n, d).
    num_groups: the pairs are this many independent groups, one after the other; None: all are independent.
    notes: where the design differs from the one asked for.
    """

    a: Float[Array, "n d"]
    b: Float[Array, "n d"]
    num_groups: int | None
    notes: tuple[str, ...] = ()


def draw_pairs(key: Key, inputs: Inputs, most: int, kind: str) -> Pairs:
    """Draw at most ``most`` pairs, at least 16 for Sobol' points: "random", or "sobol".

    That is 8 to 15 sequences in 2 d dimensions, of a power of two of points each, scrambled independently: as
    long as they can be with enough of them for a standard error. Inputs without a quantile function are drawn
    at random.

    Source: Saltelli and others (2010) for pairs from one sequence of 2 d dimensions; Owen (1997), Monte Carlo
    variance of scrambled net quadrature, for errors from independent scramblings.
    """
    d = inputs.dim
    usable = inputs.invertible() if kind == "sobol" and 2 * d <= MOST_DIMENSIONS else None
    if usable is None or not usable.any():
        notes = () if kind == "random" else ("no input has a quantile function, or they are too many for "
            "Sobol' points: points are random",)  # fmt: skip
        a, b = (inputs.sample(k, most) for k in jax.random.split(key))
        return Pairs(a, b, None, notes)
    size = 1 << ((most // _REPLICATES).bit_length() - 1)
    groups = most // size
    key_random, key = jax.random.split(key)
    bits = jnp.asarray(sobol_bits(size, 2 * d))
    mixed = jax.vmap(lambda k: scrambled(k, bits))(jax.random.split(key, groups))
    u = uniforms(mixed.reshape(groups * size, 2 * d), jnp.result_type(float))
    a, b = inputs.quantiles(u[:, :d]), inputs.quantiles(u[:, d:])
    if usable.all():
        return Pairs(a, b, groups)
    drawn = (inputs.sample(k, groups * size) for k in jax.random.split(key_random))
    a, b = (jnp.where(usable, even, x) for even, x in zip((a, b), drawn, strict=True))
    which = ", ".join(str(i) for i in (~usable).nonzero()[0][:8])
    return Pairs(a, b, groups, (f"inputs without quantile function are drawn at random: {which}",))
