"""A NumPyro program together with its arguments: pure data, a pytree."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.tree_util import PyTreeDef
from numpyro import handlers

from mcx.ops.arrays import NotNumbers, as_numbers, numbers_of


class _Static:
    """A static argument that caches can compare: by type and value, or by identity if unhashable."""

    __slots__ = ("_key", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            hash(value)
            # floats by their text: 0.0 == -0.0, and nan equals nothing
            self._key = (type(value), repr(value) if isinstance(value, float | complex) else value)
        except TypeError:
            self._key = (type(value), id(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _as_data(leaf: Any, path: tuple[Any, ...] = ()) -> Any | None:
    """The array in an argument, or None if the argument is static."""
    if isinstance(leaf, np.ma.MaskedArray):
        where = jax.tree_util.keystr(path[1:])
        return numbers_of(leaf, f"argument {where} of the model is masked, which JAX does not know")
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        structured = getattr(leaf.dtype, "names", None) is not None
        return leaf if getattr(leaf.dtype, "kind", "V") not in "OUSMm" and not structured else None
    # columns of data frames and labelled arrays carry one dtype; tables do not and stay static
    if hasattr(leaf, "__array__") and getattr(getattr(leaf, "dtype", None), "kind", "O") in "biufc":
        try:
            return as_numbers(leaf)
        except NotNumbers:  # a column with missing entries: the site that uses it says so
            return None
    return None


@jax.tree_util.register_pytree_node_class
class BoundProgram:
    """A NumPyro program with its arguments, a pytree: array arguments are leaves, the rest is static."""

    def __init__(
        self, fn: Callable[..., Any], treedef: PyTreeDef, slots: tuple[Any, ...], data: tuple[Any, ...]
    ):
        self.fn, self._treedef, self._slots, self.data = fn, treedef, slots, data

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> Self:
        """Bind ``fn`` to arguments and to conditioned values."""
        given = (args, dict(kwargs or {}), dict(conditions or {}))
        paths, treedef = jax.tree_util.tree_flatten_with_path(given)
        leaves = [leaf for _, leaf in paths]
        arrays = [_as_data(leaf, path) for path, leaf in paths]
        slots = (_Static(leaf) if a is None else None for leaf, a in zip(leaves, arrays, strict=True))
        return cls(fn, treedef, tuple(slots), tuple(a for a in arrays if a is not None))

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """The data, and all that is static."""
        return self.data, (self.fn, self._treedef, self._slots)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Self:
        """Inverse of :meth:`tree_flatten`."""
        fn, treedef, slots = aux
        return cls(fn, treedef, slots, tuple(children))

    @property
    def structure(self) -> tuple[Any, ...]:
        """Hashable identity of everything but the data's values: what compiled programs are cached on."""
        avals = tuple((np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype).name) for x in self.data)
        return (self.fn, self._treedef, self._slots, avals, bool(jax.config.jax_enable_x64))

    @property
    def name(self) -> str:
        """Name of the model function."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def _unpack(self) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        data = iter(self.data)
        leaves = [next(data) if slot is None else slot.value for slot in self._slots]
        args, kwargs, conditions = jax.tree_util.tree_unflatten(self._treedef, leaves)
        return args, kwargs, conditions

    def arguments(self) -> dict[str, Any]:
        """Arguments by name, defaults included."""
        args, kwargs, _ = self._unpack()
        try:
            bound = inspect.signature(self.fn).bind(*args, **kwargs)
        except ValueError:
            return {f"arg{i}": a for i, a in enumerate(args)} | kwargs
        bound.apply_defaults()
        return dict(bound.arguments)

    def conditions(self) -> dict[str, Any]:
        """Values of the sites that the program is conditioned on, by site."""
        return self._unpack()[2]

    def observing(self, values: Mapping[str, Any]) -> Self:
        """The same program, conditioned on further values by site; nothing is checked."""
        args, kwargs, conditions = self._unpack()
        return type(self).of(self.fn, args, kwargs, {**conditions, **values})

    def run(self) -> Any:
        """Run the program under the active effect handlers and return what it returns."""
        args, kwargs, conditions = self._unpack()
        if conditions:
            with handlers.condition(data=conditions):
                return self.fn(*args, **kwargs)
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}={_brief(v)}" for k, v in self.arguments().items())
        conditioned = ", ".join(self.conditions())
        return f"<{self.name}({shapes}){' | ' + conditioned if conditioned else ''}>"


def _brief(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."
