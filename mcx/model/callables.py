"""What users hand over as a model: functions, methods, handlers, partials, objects, jitted functions."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np
from numpyro.primitives import Messenger

from mcx.errors import ModelError

_Jitted = type(jax.jit(lambda: None))


class Static:
    """A static value that caches can compare: by type and value, or by identity if unhashable."""

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
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def checked(fn: object) -> Callable[..., Any]:
    """A user's callable; raises ModelError if it is none, or a handler without a function."""
    if not callable(fn):
        raise ModelError("mcx.model needs a function", expected="a callable", found=type(fn).__name__)
    if isinstance(fn, Messenger) and fn.fn is None:
        raise ModelError(
            "mcx.model needs a function, and this handler has none",
            expected="a handler around a function",
            found=f"handlers.{type(fn).__name__}(...)",
            remedy=f"mcx.model(handlers.{type(fn).__name__}(f, ...))",
        )
    return fn


def name_of(fn: Callable[..., Any]) -> str:
    """The name of a callable: its own, that of the function within, or that of its type."""
    own = getattr(fn, "__name__", None)
    if isinstance(own, str):
        return own
    inner = fn.func if isinstance(fn, functools.partial) else getattr(fn, "__wrapped__", None)
    return type(fn).__name__ if inner is None else name_of(inner)


def signature_of(fn: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a callable, or None where Python knows none."""
    try:
        return inspect.signature(fn)
    except (ValueError, TypeError):
        return None


def bind_arguments(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments | None:
    """Arguments by the names of a signature; None where there is none.

    A decorator shows the signature of what it decorates, but may take other arguments: its own counts, too.

    Raises:
        ModelError: if the arguments do not fit.
    """
    signature = signature_of(fn)
    if signature is None:
        return None
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        if hasattr(fn, "__wrapped__") and not isinstance(fn, Messenger | _Jitted):
            try:
                return inspect.signature(fn, follow_wrapped=False).bind(*args, **kwargs)
            except (TypeError, ValueError):
                pass
        name = name_of(fn)
        raise ModelError(
            f"{name}: {error}", expected=f"{name}{signature}", remedy="fix the arguments"
        ) from None


def is_tree(fn: object) -> bool:
    """Whether a callable is a pytree of arrays (an Equinox module, a ``jax.tree_util.Partial``)."""
    return not jax.tree_util.all_leaves([fn])


def runnable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A callable as it is run: handlers as copies, which keep nothing of a run; functions without ``jit``.

    Sites within a jitted function would be seen when it is traced, and never again.
    """
    if isinstance(fn, _Jitted):
        return runnable(inspect.unwrap(fn, stop=lambda g: not isinstance(g, _Jitted)))
    if isinstance(fn, Messenger) and fn.fn is not None:
        return around(fn, runnable(fn.fn))
    if type(fn) is functools.partial:
        return functools.partial(runnable(fn.func), *fn.args, **fn.keywords)
    return fn


def around(handler: Messenger, fn: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of an effect handler, around another function."""
    made = copy.copy(handler)
    made.fn = fn
    functools.update_wrapper(made, fn, updated=())
    return made


def state_of(fn: Callable[..., Any]) -> Hashable:
    """What a callable depends on besides its code, as far as one sees it: attributes, arguments of partials.

    Objects may change between two runs; programs are compiled for what they were.
    """
    if isinstance(fn, functools.partial):
        return (state_of(fn.func), _contents(fn.args), _contents(fn.keywords))
    if isinstance(fn, Messenger):
        own = {k: v for k, v in vars(fn).items() if k not in ("fn", "__wrapped__")}
        return (_contents(own), None if fn.fn is None else state_of(fn.fn))
    owner = fn.__self__ if inspect.ismethod(fn) else fn
    if inspect.isfunction(fn) or inspect.isclass(owner) or isinstance(fn, _Jitted) or is_tree(owner):
        return None
    return _contents(getattr(owner, "__dict__", None))


def _contents(value: Any) -> Hashable:
    """A hashable copy of containers and arrays; anything else stands for itself."""
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        if array.dtype.kind != "O":
            return (array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).hexdigest())
    if isinstance(value, Mapping):
        return tuple((Static(k), _contents(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return (type(value), *map(_contents, value))
    return Static(value)
