"""Models and bound models: a NumPyro program, and the same program with its data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro import handlers

from mcx.errors import ModelError
from mcx.model.capture import inside_model

if TYPE_CHECKING:
    from mcx.model.check import Report
    from mcx.model.sites import SiteTable

__all__ = ["BoundModel", "Model", "model"]


class Model:
    """A NumPyro program that can be bound to data and given to any inference method.

    Called outside of a running model it binds its arguments (nothing runs); called inside one, which is
    how NumPyro's own algorithms and other models call it, it runs there.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise ModelError("mcx.model needs a function", expected="a callable", found=type(fn).__name__)
        self.fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run inside a model; bind outside of one."""
        return self.fn(*args, **kwargs) if inside_model() else self.bind(*args, **kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> BoundModel:
        """Bind arguments; nothing runs.

        Array arguments become data (leaves of the returned pytree); Python numbers, strings and
        functions stay static.

        Raises:
            ModelError: if the arguments do not fit the function's signature.
        """
        try:
            bound = inspect.signature(self.fn).bind(*args, **kwargs)
        except TypeError as error:
            name = getattr(self.fn, "__name__", "model")
            raise ModelError(
                f"{name}: {error}", expected=f"{name}{inspect.signature(self.fn)}", remedy="fix the arguments"
            ) from None
        except ValueError:  # callables without a signature take what they are given
            return BoundModel.of(self.fn, args, kwargs)
        return BoundModel.of(self.fn, bound.args, bound.kwargs)

    def __repr__(self) -> str:
        try:
            signature = str(inspect.signature(self.fn))
        except ValueError:
            signature = "(...)"
        return f"<mcx model {getattr(self.fn, '__name__', self.fn)}{signature}>"


def model(fn: Callable[..., Any]) -> Model:
    """Make a model of a NumPyro program (a function with ``sample`` statements).

    Args:
        fn: the function; any NumPyro model serves, unchanged.

    Returns:
        A :class:`Model`: call it with data, outside of any model, to get a :class:`BoundModel`.
    """
    return fn if isinstance(fn, Model) else Model(fn)


class _Static:
    """A static argument, comparable for caches: by type and value, or by identity if unhashable."""

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


def _as_data(leaf: Any) -> Any | None:
    """The array in an argument, or None if the argument is static."""
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return leaf if getattr(leaf.dtype, "kind", "V") not in "OUSMm" else None
    # columns of data frames and labelled arrays carry one dtype; tables do not and stay static
    if hasattr(leaf, "__array__") and getattr(getattr(leaf, "dtype", None), "kind", "O") in "biufc":
        return np.asarray(leaf)
    return None


@jax.tree_util.register_pytree_node_class
class BoundModel:
    """A model together with its data. A pytree: array arguments are leaves, the rest is static.

    Made by :meth:`Model.bind`, or by calling a model outside of any running model.
    """

    def __init__(self, fn: Callable[..., Any], treedef: Any, slots: tuple[Any, ...], data: tuple[Any, ...]):
        self.fn, self._treedef, self._slots, self.data = fn, treedef, slots, data

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> BoundModel:
        """Bind ``fn`` to arguments and to conditioned values."""
        leaves, treedef = jax.tree_util.tree_flatten((args, dict(kwargs or {}), dict(conditions or {})))
        slots: list[_Static | None] = []
        data: list[Any] = []
        for leaf in leaves:
            array = _as_data(leaf)
            if array is None:
                slots.append(_Static(leaf))
            else:
                slots.append(None)
                data.append(array)
        return cls(fn, treedef, tuple(slots), tuple(data))

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """The data, and all that is static."""
        return self.data, (self.fn, self._treedef, self._slots)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> BoundModel:
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
        """Values given through :meth:`condition`, by site."""
        return self._unpack()[2]

    def run(self) -> Any:
        """Run the program under the active effect handlers and return what it returns."""
        args, kwargs, conditions = self._unpack()
        if conditions:
            with handlers.condition(data=conditions):
                return self.fn(*args, **kwargs)
        return self.fn(*args, **kwargs)

    # The verbs below delegate: each lives with what it needs, and loads it on first use.

    def condition(self, data: Mapping[str, Any]) -> BoundModel:
        """Observe further sites.

        Args:
            data: values by site name, of the sites' shapes.

        Returns:
            A new bound model in which these sites are observed.

        Raises:
            ModelError: if a name is no sample site of the model, or a value has the wrong shape.
        """
        from mcx.model.compile import model_sites

        known = model_sites(self)
        for name in data:
            if name not in known or known[name].kind not in ("latent", "discrete", "observed"):
                raise ModelError(
                    "cannot condition on what is no sample site",
                    site=name,
                    expected="one of " + ", ".join(s.name for s in known if s.kind in ("latent", "discrete")),
                    remedy="see .sites() for the model's sites",
                )
        args, kwargs, conditions = self._unpack()
        values = {k: v if hasattr(v, "dtype") else np.asarray(v) for k, v in data.items()}
        for name, value in values.items():
            site = known[name]
            whole = np.broadcast_shapes(site.shape, site.batch_shape + site.event_shape)
            if not _broadcasts(np.shape(value), whole):
                raise ModelError(
                    "the value does not have the shape of the site",
                    site=name,
                    expected=f"shape {whole}",
                    found=f"shape {np.shape(value)}",
                )
        return BoundModel.of(self.fn, args, kwargs, {**conditions, **values})

    def simulate(self, key: Any) -> dict[str, jax.Array]:
        """Draw every site from the prior, observed sites included.

        Args:
            key: a typed JAX key or an int.

        Returns:
            Values by site name: latent, deterministic and (drawn afresh) observed sites.
        """
        from mcx.model.compile import simulate
        from mcx.ops.keys import as_key

        return simulate(self, as_key(key))

    def log_density(self, values: Mapping[str, Any]) -> jax.Array:
        """Log joint density at constrained values, without Jacobians.

        Args:
            values: constrained values of every latent site (discrete sites too).

        Returns:
            A scalar: log prior + log likelihood.
        """
        from mcx.model.compile import log_density

        return log_density(self, values)

    def sites(self) -> SiteTable:
        """Table of the model's sites; prints one line a site."""
        from mcx.model.compile import model_sites

        return model_sites(self)

    def check(self, key: Any = 0) -> Report:
        """Look for mistakes in the model and its data; nothing is raised.

        Args:
            key: seeds the trial starting points.

        Returns:
            A printable report; ``report.ok`` says whether ``infer`` would start.
        """
        from mcx.model.check import check
        from mcx.ops.keys import as_key

        return check(self, as_key(key))

    def render(self, format: str = "mermaid") -> str:
        """Picture of the model as text.

        Args:
            format: "mermaid" (Markdown viewers draw it) or "dot" (Graphviz).

        Returns:
            The text of the diagram: an edge for every direct dependence, a box for every plate.
        """
        from mcx.model.render import render

        return render(self, format)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}={_brief(v)}" for k, v in self.arguments().items())
        conditioned = ", ".join(self.conditions())
        return f"<{self.name}({shapes}){' | ' + conditioned if conditioned else ''}>"


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, whole) == whole
    except ValueError:
        return False


def _brief(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    text = repr(value)
    return text if len(text) <= 30 else text[:27] + "..."
