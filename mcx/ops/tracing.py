"""Whether code is being traced by JAX."""

from __future__ import annotations

import jax

from mcx.errors import MethodError
from mcx.ops.fork import refuse_fork
from mcx.types import PyTree


def is_traced(*trees: PyTree) -> bool:
    """Whether any array is a tracer, or operations on concrete arrays give tracers, as under ``jit``."""
    leaves = [*jax.tree.leaves(trees), jax.lax.full((), 0.0)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def refuse_tracing(verb: str, remedy: str, *arguments: PyTree) -> None:
    """Raise within ``jit``, ``vmap`` or ``grad``, because runs compile programs and look at their results."""
    refuse_fork()
    if is_traced(arguments):
        raise MethodError(
            f"mcx.{verb} was called within a function that JAX traces (jit, vmap, grad)",
            expected="concrete arrays and keys",
            remedy=remedy,
        )
