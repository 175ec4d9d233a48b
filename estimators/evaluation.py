"""Users' functions at many points: compiled once, some thousand points at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from mcx.errors import DataError, NonFiniteError
from mcx.ops.arrays import numbers_of
from mcx.ops.batches import map_in_batches
from mcx.ops.tracing import refuse_tracing
from mcx.types import Array, Bool, Float, PyTree, SiteValues

_AT_ONCE = 4096

# Programs refer to functions weakly, so that this cache does not keep functions alive.
_PROGRAMS: weakref.WeakKeyDictionary[Callable[..., Any], Callable[[PyTree], PyTree]] = (
    weakref.WeakKeyDictionary()
)


def at_points(function: Callable[[Any], PyTree]) -> Callable[[PyTree], PyTree]:
    """A compiled program that evaluates a function of one point, a pytree, at many: 4096 at a time.

    The same function object has the same program for as long as it lives (the caller has to keep it alive),
    so that a second call with points of the same shape traces nothing. Values that it reads from outside are
    those of the first call, as under ``jax.jit``. A function that cannot be hashed is traced again by every
    call.
    """
    try:
        found = _PROGRAMS.get(function)
        if found is None:
            found = _PROGRAMS[function] = _program(weakref.ref(function))
    except TypeError:  # it has no hash, or no weak references
        found = _program(lambda: function)
    return found


def _program(get: Callable[[], Callable[[Any], PyTree] | None]) -> Callable[[PyTree], PyTree]:
    def arrays(point: Any) -> PyTree:
        function = get()
        assert function is not None  # the caller keeps it
        return jax.tree.map(_number, function(point))

    @jax.jit
    def program(points: PyTree) -> PyTree:
        return map_in_batches(arrays, points, _AT_ONCE)

    return program


def _number(value: Any) -> Any:
    """A value that a user's function returned, as an array."""
    expected = "a number, an array or a pytree of them"
    return numbers_of(value, "the function returns no number", expected=expected)


def refuse_nothing(leaves: list[Array], name: str = "the function") -> None:
    """Raise DataError where a function's values hold no number; leaves have a leading axis of points."""
    if not sum(int(np.prod(leaf.shape[1:])) for leaf in leaves):
        raise DataError(
            f"{name} returns no number",
            expected="a number, an array or a pytree of them",
            found=f"{len(leaves)} arrays, none with an entry" if leaves else "no array",
        )


@dataclass(frozen=True)
class Values:
    """A function of points, evaluated at many of them, its J values in one row.

    Attributes:
        program: the function of many points; see :func:`at_points`.
        structure: tree and shapes of what the function returns, to give results its shape.
    """

    function: Callable[[Array], PyTree]
    program: Callable[[Array], PyTree]
    structure: tuple[PyTreeDef, list[tuple[int, ...]]]
    size: int
    name: str

    @classmethod
    def of(
        cls, function: Callable[[Array], PyTree], event: tuple[int, ...], name: str = "the function"
    ) -> Values:
        """Describe a function of a point of shape ``event``; raises DataError if it returns no number."""
        program = at_points(function)
        like = jax.eval_shape(program, jax.ShapeDtypeStruct((1, *event), jnp.result_type(float)))
        leaves, tree = jax.tree_util.tree_flatten(like)
        refuse_nothing(leaves, name)
        shapes = [leaf.shape[1:] for leaf in leaves]
        return cls(function, program, (tree, shapes), sum(int(np.prod(s)) for s in shapes), name)

    def __call__(
        self, x: Float[Array, "n d"], counts: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n J"]:
        """The function at points, (n, J); 0 where they do not count, (n,). None: all count.

        Raises NonFiniteError if a value that counts is not finite, MethodError if JAX traces the values.
        """
        found, bad = _rows(jax.tree_util.tree_leaves(self.program(x)), x)
        refuse_tracing("estimators", "call it outside of jit, vmap and grad", found)
        bad = np.asarray(bad)
        if counts is not None:
            found, bad = jnp.where(counts[:, None], found, 0.0), bad & np.asarray(counts)
        if count := int(bad.sum()):
            row = int(bad.argmax())
            raise NonFiniteError(
                f"{self.name} is not finite at {count} of {found.shape[0]} points",
                found=f"{np.asarray(found[row])} at x = {np.asarray(x[row])}",
                remedy="give it a value wherever the law has mass",
            )
        return found

    def shaped(self, flat: np.ndarray) -> PyTree:
        """Numbers (..., J) in the structure of the function's values, whose leaves keep the leading axes."""
        tree, shapes = self.structure
        flat = np.asarray(flat)
        sizes = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
        parts = np.split(flat, sizes, axis=-1)
        leaves = [p.reshape((*flat.shape[:-1], *s)) for p, s in zip(parts, shapes, strict=True)]
        return jax.tree_util.tree_unflatten(tree, leaves)


@jax.jit
def _rows(leaves: list[Array], x: Array) -> tuple[Array, Array]:
    """Values in one row a point (n, J), and where one is not finite (n,)."""
    found = jnp.concatenate([leaf.reshape(x.shape[0], -1) for leaf in leaves], 1).astype(x.dtype)
    return found, ~jnp.all(jnp.isfinite(found), 1)


def leaves_at(
    name: str,
    function: Callable[[SiteValues], PyTree],
    draws: Mapping[str, Array | np.ndarray],
    counts: Bool[Array, " n"] | np.ndarray | None = None,
) -> tuple[list[Array], PyTreeDef]:
    """Values (n, ...) of a function of the sites' values at draws, and the tree that puts values together.

    Raises DataError if there is no number, NonFiniteError if a value that counts is NaN or infinite.
    """
    leaves, tree = jax.tree_util.tree_flatten(at_points(function)(dict(draws)))
    refuse_nothing(leaves, f"function {name!r}")
    bad = np.asarray(_not_finite(leaves, counts))
    if count := int(bad.sum()):
        row = int(bad.argmax())
        at = {
            site: np.asarray(x[row]).tolist() for site, x in list(draws.items())[:4] if np.size(x[row]) <= 4
        }
        raise NonFiniteError(
            f"function {name!r} is not finite at {count} of {len(bad)} draws",
            found=f"{[np.asarray(leaf[row]).tolist() for leaf in leaves][:4]} at {at}",
            remedy="give it a value wherever the posterior has mass",
        )
    return leaves, tree


@jax.jit
def _not_finite(leaves: list[Array], counts: Array | None) -> Array:
    n = leaves[0].shape[0]
    finite = [jnp.all(jnp.isfinite(leaf.reshape(n, -1)), 1) for leaf in leaves if leaf.size]
    bad = ~jnp.all(jnp.stack(finite), 0)
    return bad if counts is None else bad & counts
