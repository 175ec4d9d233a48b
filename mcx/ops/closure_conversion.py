"""Closure conversion: functions with the arrays that they close over as arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.types import PyTree


class ConvertedClosure(NamedTuple):
    """A traced function without the values it closes over. It compares, and hashes, by identity.

    ``call(consts, *args)`` runs it; ``avals`` are the shapes and dtypes of its constants.
    """

    jaxpr: Any
    out_tree: jax.tree_util.PyTreeDef
    avals: tuple[Any, ...]

    def __call__(self, consts: PyTree, *args: PyTree) -> PyTree:
        """Run the code with these values of its constants."""
        flat = [
            jnp.asarray(x, v.aval.dtype) if not jnp.issubdtype(v.aval.dtype, jax.dtypes.extended) else x
            for x, v in zip(jax.tree.leaves(args), self.jaxpr.invars, strict=True)
        ]
        return jax.tree.unflatten(self.out_tree, jax.core.eval_jaxpr(self.jaxpr, consts, *flat))

    def __hash__(self) -> int:
        return id(self.jaxpr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConvertedClosure) and self.jaxpr is other.jaxpr


def convert_closure(fn: Callable[..., Any], *args: PyTree) -> tuple[ConvertedClosure, tuple[Any, ...]]:
    """Trace a function, and take out the arrays that it closes over, traced ones among them.

    Tracing the same program again gives the same constants in the same order, with their new values.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    consts = tuple(closed.consts)
    avals = tuple((tuple(jnp.shape(c)), jnp.result_type(c).name) for c in consts)
    return ConvertedClosure(closed.jaxpr, jax.tree.structure(shapes), avals), consts
