"""Users' functions at many points: compiled once, some thousand points at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError, NonFiniteError
from mcx.ops.batches import map_in_batches

__all__ = ["at_points", "leaves_at", "refuse_nothing"]

_AT_ONCE = 4096

# Functions do not live longer for being known here: their programs refer to them weakly.
_PROGRAMS: weakref.WeakKeyDictionary[Any, Callable[[Any], Any]] = weakref.WeakKeyDictionary()


def at_points(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A compiled program that evaluates a function of one point at many.

    The same function object has the same program for as long as it lives: a second call with points of the
    same shape traces nothing. What a function reads from outside counts as it was at the first call, as under
    ``jax.jit``. One that cannot be hashed is traced anew by every call of this function.

    Args:
        function: of one point, a pytree of arrays.

    Returns:
        A function of points with a leading axis (n, ...), whose values have it, too. Memory is needed for
        4096 points at once, and for all values. The caller has to keep ``function``.
    """
    try:
        found = _PROGRAMS.get(function)
        if found is None:
            found = _PROGRAMS[function] = _program(weakref.ref(function))
    except TypeError:  # it has no hash, or no weak references
        found = _program(lambda: function)
    return found


def _program(get: Callable[[], Any]) -> Callable[[Any], Any]:
    @jax.jit
    def program(points: Any) -> Any:
        return map_in_batches(get(), points, _AT_ONCE)

    return program


def refuse_nothing(leaves: list[Any], name: str = "the function") -> None:
    """Raise where a function's values hold no number: leaves have a leading axis of points.

    Raises:
        DataError: naming the function.
    """
    if not sum(int(np.prod(leaf.shape[1:])) for leaf in leaves):
        raise DataError(
            f"{name} returns no number",
            expected="a number, an array or a pytree of them",
            found=f"{len(leaves)} arrays, none with an entry" if leaves else "no array",
        )


def leaves_at(
    name: str, function: Callable[[Any], Any], draws: Mapping[str, Any], counts: Any = None
) -> tuple[list[Any], Any]:
    """Values of a function of the sites' values at draws, and their tree.

    Args:
        name: of the function, for errors.
        function: of a dictionary.
        draws: by name, (n, ...).
        counts: (n,), whether a draw counts; None where all do.

    Returns:
        Leaves (n, ...), and the tree that puts values together.

    Raises:
        DataError: if the function returns no number.
        NonFiniteError: if a value that counts is NaN or infinite.
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
def _not_finite(leaves: list[Any], counts: Any) -> Any:
    n = leaves[0].shape[0]
    finite = [jnp.all(jnp.isfinite(leaf.reshape(n, -1)), 1) for leaf in leaves if leaf.size]
    bad = ~jnp.all(jnp.stack(finite), 0)
    return bad if counts is None else bad & counts
