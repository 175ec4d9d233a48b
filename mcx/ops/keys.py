"""Random keys: what users give becomes a typed key, and the parts of a run get streams of their own."""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import KeyTypeError
from mcx.ops.fork import refuse_fork
from mcx.types import Key


class Stream(IntEnum):
    """The streams of random numbers that parts of a run draw from, by what they are for.

    The numbers are folded into the run's key; changing one changes draws. Two names with the same number
    belong to methods of which none uses both.
    """

    INITIAL_STATES = 0  # of the chains, see mcx.run.programs.chain_keys
    STEPS = 1
    PILOT = 2
    RESAMPLED_PARTICLES = 2
    FIT_QUALITY = 2
    GROWING_PARTS = 2
    EVIDENCE_ERROR = 3
    GUIDED_DRAWS = 3
    GUIDED_INITIAL_POINTS = 4
    NESTED_DRAWS = 4
    INITIAL_POINTS = 5
    CORRECTED_DRAWS = 5
    PARTICLE_ORDER = 5
    NESTED_PATHS = 5
    OBSERVED_INFORMATION = 5
    GROWING_NOISE = 5
    GROWTH = 6


def stream(key: Key, name: Stream) -> Key:
    """The key of one of a run's streams."""
    return jax.random.fold_in(key, int(name))


def as_key(key: Any) -> jax.Array:
    """Turn what a user passes as ``key=``, a typed key or an int, into a typed JAX key.

    Raises:
        KeyTypeError: if the key is missing or is neither. Legacy uint32 keys are wrapped with a warning.
    """
    refuse_fork()
    if key is None:
        raise KeyTypeError(
            "a random key is required", expected="key=jax.random.key(0), or an int", found="None"
        )
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return jax.random.key(int(key))
    dtype = key.dtype if isinstance(key, jax.Array | np.ndarray) else None
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise KeyTypeError(
                "one key is needed, not a batch of keys",
                expected="a key of shape ()",
                found=f"shape {key.shape}",
                remedy="pass one of them; mcx derives the keys of chains itself",
            )
        return key
    if dtype == jnp.uint32 and getattr(key, "ndim", 0) == 1:
        warnings.warn(
            "legacy uint32 keys (jax.random.PRNGKey) escape JAX's key-reuse checks; use jax.random.key(seed)",
            DeprecationWarning,
            stacklevel=3,
        )
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise KeyTypeError(
        "not a random key",
        expected="a typed JAX key such as jax.random.key(0), or an int",
        found=type(key).__name__,
    )
