"""The one validator of settings and arguments.

A rule says what a value has to be, and gives it in a plain form: NumPy's and JAX's integers become ``int``,
so that settings are hashable, print alike, and find the same compiled programs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import jax
import numpy as np

from mcx.errors import MethodError
from mcx.ops.unknown_arguments import refuse_unknown

_ON_THE_VERB = {
    name: f"it is an argument of the verb: mcx.infer(bound, method, {name}=...)"
    for name in ("key", "num_chains", "progress", "init", "devices", "checkpoint", "batch_size", "coords")
}
_LARGEST = 2**31 - 1  # programs count in 32 bits


class Rule(NamedTuple):
    """What a value has to be.

    Attributes:
        expected: in words, for the error.
        plain: gives the value in its plain form; raises ValueError where it breaks the rule, with other words
            than ``expected`` where these would not tell.
    """

    expected: str
    plain: Callable[[Any], Any]


class _SignatureOfInit:
    """What ``inspect.signature`` and ``help`` show of a class that has a ``__new__``: its ``__init__``."""

    def __get__(self, _: object, cls: type) -> inspect.Signature:
        whole = inspect.signature(cls.__init__)  # type: ignore[misc]
        return whole.replace(parameters=list(whole.parameters.values())[1:])


class Settings:
    """Base of frozen dataclasses of settings, whose fields are checked when an object is made.

    Attributes:
        former: what fields were called when checkpoints of older versions were written, by present name.
    """

    former: ClassVar[Mapping[str, str]] = {}
    __signature__ = _SignatureOfInit()

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Refuse arguments that there are not, before ``__init__`` does so in Python's words."""
        owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
        if "__dataclass_params__" in vars(owner):  # other classes have an __init__ of their own
            _refuse_arguments(cls, args, kwargs)
        return super().__new__(cls)

    @property
    def name(self) -> str:
        """Name of the class, under which results and progress show it."""
        return type(self).__name__

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields, in the order in which they are checked."""
        return {}

    def __post_init__(self) -> None:
        for name, rule in self.rules().items():
            value = validated(type(self).__name__, name, getattr(self, name), rule)
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raise on fields that do not fit each other; each keeps its own rule by then."""

    def identifiers(self) -> dict[str, Any]:
        """Fields by name, in names, values and order of the version that wrote the first checkpoints."""
        names = (f.name for f in fields(self))  # type: ignore[arg-type]
        return {self.former.get(name, name): getattr(self, name) for name in names}

    def identity(self) -> str:
        """The settings as text, the same in all versions: what a checkpoint compares."""
        shown = (f"{name}={_identity(value)}" for name, value in self.identifiers().items())
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def refuse(self, name: str, expected: str, remedy: str | None = None) -> NoReturn:
        """Raise for a field that does not fit the others."""
        refuse(type(self).__name__, name, getattr(self, name), expected, remedy)


def _refuse_arguments(cls: type, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Raise on arguments that a dataclass does not take."""
    made = [f for f in fields(cls) if f.init]
    known = [f.name for f in made]
    refuse_unknown(cls.__name__, [name for name in kwargs if name not in known], known, _ON_THE_VERB)
    taken = sum(not f.kw_only for f in made)
    if len(args) > taken:
        raise MethodError(
            f"{cls.__name__} takes its settings by name",
            expected=f"{cls.__name__}({', '.join(f'{name}=...' for name in known[:3])})",
            found=f"{args[taken]!r} without a name",
        )


def _identity(value: Any) -> str:
    """As ``repr``, with the identities of settings within."""
    if isinstance(value, Settings):
        return value.identity()
    if type(value) is tuple:
        inside = ", ".join(map(_identity, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) is dict:
        return "{" + ", ".join(f"{k!r}: {_identity(v)}" for k, v in value.items()) + "}"
    return repr(value)


def validated(owner: str, name: str, value: Any, rule: Rule) -> Any:
    """The plain form of an argument of a function or class ``owner``, named as the user wrote both.

    Raises:
        MethodError: if it breaks the rule.
    """
    try:
        return rule.plain(value)
    except ValueError as broken:
        refuse(owner, name, value, str(broken) or rule.expected)


def refuse(owner: str, name: str, value: Any, expected: str, remedy: str | None = None) -> NoReturn:
    """Raise for an argument that is out of range."""
    plain = isinstance(value, int) and not isinstance(value, bool)
    found = repr(value) if plain else f"{value!r} of type {type(value).__name__}"
    raise MethodError(f"{owner}({name}=...) is out of range", expected=expected, found=found, remedy=remedy)


# --- rules -------------------------------------------------------------------------------------------


def integer(least: int | None = None, most: int | None = None) -> Rule:
    """Any integer type: Python's, NumPy's, a scalar of JAX's; not ``True``, ``64.0`` or ``"64"``."""
    words = "an int"
    if least is not None and most is not None:
        words = f"an int between {least} and {most}"
    elif least is not None:
        words = f"an int >= {least}"

    def plain(value: Any) -> int:
        if _scalar_kind(value) not in ("i", "u"):
            raise ValueError
        found = int(value)
        if (least is not None and found < least) or (most is not None and found > most):
            raise ValueError
        if found > _LARGEST:
            raise ValueError(f"{words}, and below 2**31: no machine has room for so many")
        return found

    return Rule(words, plain)


def number(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """A finite real number: at least ``least`` and at most ``most``, above ``above`` and below ``below``."""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">=", least), (">", above), ("<=", most), ("<", below))
        if math.isfinite(bound)
    ]

    def plain(value: Any) -> float:
        if _scalar_kind(value) not in ("i", "u", "f"):
            raise ValueError
        found: float = value if isinstance(value, int | float) else np.asarray(value).item()
        if not (math.isfinite(found) and least <= found <= most and above < found < below):
            raise ValueError
        return found

    return Rule("a number " + " and ".join(bounds) if bounds else "a finite number", plain)


def fraction() -> Rule:
    """A number between 0 and 1, both included."""
    return number(0, 1)._replace(expected="a fraction between 0 and 1")


def boolean() -> Rule:
    """True or False, of Python or NumPy; 0 and 1 are numbers."""

    def plain(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ValueError
        return bool(value)

    return Rule("True or False", plain)


def one_of(*values: Any) -> Rule:
    """One of several values, of the same type: ``1`` is not ``True``."""

    def plain(value: Any) -> Any:
        for known in values:
            if type(value) is type(known) and value == known:
                return known
        raise ValueError

    return Rule("one of " + ", ".join(map(repr, values)), plain)


def such_that(holds: Callable[[Any], bool], expected: str) -> Rule:
    """An object of which something ``holds``, given as it is."""

    def plain(value: Any) -> Any:
        if not holds(value):
            raise ValueError
        return value

    return Rule(expected, plain)


def instance(kinds: type | tuple[type, ...], expected: str) -> Rule:
    """An object of one of several classes."""
    return such_that(lambda value: isinstance(value, kinds), expected)


def function(expected: str = "a function") -> Rule:
    """Anything that can be called, but for a class: that is as a rule an instance without its brackets."""
    return such_that(lambda value: callable(value) and not isinstance(value, type), expected)


def either(*rules: Rule, expected: str | None = None) -> Rule:
    """A value that keeps one of several rules."""

    def plain(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.plain(value)
            except ValueError:
                continue
        raise ValueError

    return Rule(expected or ", or ".join(rule.expected for rule in rules), plain)


def optional(rule: Rule, meaning: str = "") -> Rule:
    """None, or a value that keeps a rule; ``meaning`` is that of None, such as "to have it chosen"."""

    def plain(value: Any) -> Any:
        return None if value is None else rule.plain(value)

    return Rule(f"{rule.expected}, or None" + (f" {meaning}" if meaning else ""), plain)


def tuple_of(rule: Rule, expected: str, *, least: int = 0) -> Rule:
    """A sequence of at least ``least`` values that keep a rule, as a tuple; a single value is none."""

    def plain(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__") or np.ndim(value) == 0:
            raise ValueError
        found = tuple(rule.plain(x) for x in value)
        if len(found) < least:
            raise ValueError
        return found

    return Rule(expected, plain)


def _scalar_kind(value: Any) -> str:
    """The kind of a number, as NumPy's dtypes have it; empty for what is no concrete number."""
    if isinstance(value, bool | np.bool_):
        return "b"
    if isinstance(value, int):
        return "i"
    if isinstance(value, float):
        return "f"
    known = isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    if not known or np.ndim(value) != 0:
        return ""
    dtype = np.asarray(value).dtype
    if dtype.names is not None:
        return ""
    return "f" if dtype.kind == "V" else str(dtype.kind)  # bfloat16 and relatives
