"""Whether code is being traced by JAX."""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["is_traced"]


def is_traced(*trees: Any) -> bool:
    """Whether any array is a tracer, or operations on concrete arrays give tracers, as under ``jit``."""
    leaves = [*jax.tree_util.tree_leaves(trees), jax.lax.full((), 0.0)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
