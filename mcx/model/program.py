"""A NumPyro program together with its arguments: pure data, a pytree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.tree_util import PyTreeDef
from numpyro import handlers

from mcx.model.callables import Static, bind_arguments, is_tree, name_of, runnable, state_of
from mcx.ops.arrays import NotNumbers, as_numbers, numbers_of


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
    """A NumPyro program with its arguments, a pytree: array arguments are leaves, the rest is static.

    A program that is a pytree itself, such as a network, has its arrays among the leaves.
    """

    def __init__(
        self, code: Static | None, treedef: PyTreeDef, slots: tuple[Any, ...], data: tuple[Any, ...]
    ):
        self._code, self._treedef, self._slots, self.data = code, treedef, slots, data

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> Self:
        """Bind ``fn`` to arguments and to conditioned values."""
        tree = is_tree(fn)
        given = (args, dict(kwargs or {}), dict(conditions or {}), fn if tree else None)
        paths, treedef = jax.tree_util.tree_flatten_with_path(given)
        leaves = [leaf for _, leaf in paths]
        arrays = [_as_data(leaf, path) for path, leaf in paths]
        slots = (Static(leaf) if a is None else None for leaf, a in zip(leaves, arrays, strict=True))
        code = None if tree else Static(fn)
        return cls(code, treedef, tuple(slots), tuple(a for a in arrays if a is not None))

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """The data, and all that is static."""
        return self.data, (self._code, self._treedef, self._slots)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Self:
        """Inverse of :meth:`tree_flatten`."""
        code, treedef, slots = aux
        return cls(code, treedef, slots, tuple(children))

    @property
    def fn(self) -> Callable[..., Any]:
        """The user's callable."""
        found: Callable[..., Any] = self._leaves()[3] if self._code is None else self._code.value
        return found

    @property
    def structure(self) -> tuple[Any, ...]:
        """Hashable identity of everything but the data's values: what compiled programs are cached on."""
        avals = tuple((np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype).name) for x in self.data)
        state = None if self._code is None else state_of(self._code.value)
        return (self._code, state, self._treedef, self._slots, avals, bool(jax.config.jax_enable_x64))

    @property
    def name(self) -> str:
        """Name of the model function."""
        return name_of(self.fn)

    def _leaves(self) -> Any:
        data = iter(self.data)
        leaves = [next(data) if slot is None else slot.value for slot in self._slots]
        return jax.tree_util.tree_unflatten(self._treedef, leaves)

    def _unpack(self) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        args, kwargs, conditions, _ = self._leaves()
        return args, kwargs, conditions

    def arguments(self) -> dict[str, Any]:
        """Arguments by name, defaults included."""
        args, kwargs, _ = self._unpack()
        bound = bind_arguments(self.fn, args, kwargs)
        if bound is None:
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
        fn = runnable(self.fn)
        if conditions:
            with handlers.condition(data=conditions):
                return fn(*args, **kwargs)
        return fn(*args, **kwargs)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}={_brief(v)}" for k, v in self.arguments().items())
        conditioned = ", ".join(self.conditions())
        return f"<{self.name}({shapes}){' | ' + conditioned if conditioned else ''}>"


def _brief(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."
