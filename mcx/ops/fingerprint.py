"""Hashes of arrays and of traced functions, the same in every process."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jax
import numpy as np

from mcx.types import PyTree


def of_arrays(tree: PyTree) -> str:
    """SHA-256 of a pytree's arrays, random keys among them."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def of_code(traced: Any) -> str:
    """SHA-256 of the result of ``jax.make_jaxpr``: operations and constants."""
    return of_text(f"{without_addresses(str(traced.jaxpr))} {of_arrays(list(traced.consts))}")


def of_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def without_addresses(text: str) -> str:
    """A text without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}", "", text)
