"""Sobol' points and their randomisation: each point is uniform, together they are evenly spread."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from mcx.errors import MethodError
from mcx.types import Key

BITS = 30
MOST_DIMENSIONS = 21201  # for which SciPy has direction numbers
_FLOAT32_BITS = 23


def sobol_bits(num: int, d: int) -> np.ndarray:
    """The first Sobol' points as 30-bit integers, (num, d) uint32; at most 21,201 dimensions."""
    from scipy.stats import qmc

    if d > MOST_DIMENSIONS:
        raise MethodError(
            "there are no Sobol' points of so many dimensions",
            expected=f"at most {MOST_DIMENSIONS}",
            found=str(d),
            remedy="use random points",
        )
    rounded_up = 1 << max(0, (num - 1).bit_length())
    points = qmc.Sobol(d, scramble=False, bits=BITS).random(rounded_up)[:num]
    return np.asarray((points * 2.0**BITS).astype(np.uint32))


def shifted(key: Key, bits: Array) -> Array:
    """Points (n, d) moved by a random digital shift, which makes each of them uniform."""
    return bits ^ (jax.random.bits(key, (bits.shape[1],), jnp.uint32) >> (32 - BITS))


def scrambled(key: Key, bits: Array) -> Array:
    """Points (n, d) scrambled: random triangular matrices mix their digits, and a random shift follows.

    Each point is uniform; the first 2^m of a Sobol' sequence are as evenly spread as they were. Costs O(30 n
    d). Source: Matousek (1998), On the L2-discrepancy for anchored boxes.
    """
    key_rows, key_shift = jax.random.split(key)
    # row i has a one for digit i, and random ones for those before it, which count more
    place = jnp.uint32(1) << jnp.arange(BITS - 1, -1, -1, dtype=jnp.uint32)
    above = jnp.uint32(2**BITS) - 2 * place
    random = jax.random.bits(key_rows, (BITS, bits.shape[1]), jnp.uint32)
    rows = (random & above[:, None]) | place[:, None]

    def mix(found: Array, row: tuple[Array, Array]) -> tuple[Any, None]:
        mask, at = row
        return found | (jax.lax.population_count(bits & mask) & 1) * at, None

    mixed, _ = jax.lax.scan(mix, jnp.zeros_like(bits), (rows, place))
    return shifted(key_shift, mixed)


def uniforms(bits: Array, dtype: DTypeLike) -> Array:
    """Numbers strictly between 0 and 1 from 30-bit integers; float32 takes their first 23 digits."""
    kept = BITS if dtype == jnp.float64 else _FLOAT32_BITS
    return ((bits >> (BITS - kept)).astype(dtype) + 0.5) / 2.0**kept  # the half, too, is held exactly
