"""Random keys from users: converted once, to typed keys."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import KeyTypeError

__all__ = ["as_key"]


def as_key(key: Any) -> jax.Array:
    """Turn what a user passes as ``key=`` into a typed JAX key.

    Args:
        key: a typed key (``jax.random.key(0)``), or an int. Legacy uint32 keys are wrapped with a warning.

    Raises:
        KeyTypeError: if the key is missing or is neither.
    """
    if key is None:
        raise KeyTypeError(
            "a random key is required", expected="key=jax.random.key(0), or an int", found="None"
        )
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return jax.random.key(int(key))
    dtype = getattr(key, "dtype", None)
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
