"""Arrays of numbers out of what users have: lists, tables, columns, masked arrays."""

from __future__ import annotations

import numbers
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError, ModelError


class NotNumbers(ValueError):
    """A value that is no array of real numbers: what was found, and how to mend it."""

    def __init__(self, found: str, remedy: str | None = None) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


def as_numbers(value: Any) -> jax.Array | np.ndarray:
    """Real numbers or truth values as an array; JAX arrays, traced ones too, stay as they are.

    Lists and tuples (of traced values, too), tables and columns of pandas, and masked arrays in which nothing
    is masked are numbers where their entries are.

    Raises:
        NotNumbers: for anything else; it says what there is.
    """
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool:
            return _real(value)
        raise NotNumbers(f"an array of {value.dtype}")
    if isinstance(value, np.ma.MaskedArray):
        return _real(_unmasked(value))
    sized = np.isscalar(value) or hasattr(value, "__len__") or isinstance(value, numbers.Number)
    if isinstance(value, set | frozenset | dict) or not sized:
        raise NotNumbers(f"a {type(value).__name__}", "an array, or a list of numbers")
    if isinstance(value, list | tuple) and any(isinstance(x, jax.Array) for x in jax.tree.leaves(value)):
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise NotNumbers(str(error).splitlines()[0]) from None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise NotNumbers(
            "rows of different lengths", "give them one length, NaN or zeros being the rest"
        ) from None
    if array.dtype.kind == "O":
        array = _of_objects(array)
    if array.dtype.kind not in "biufc" and not jnp.issubdtype(array.dtype, jnp.number):
        raise NotNumbers(*_OTHER.get(array.dtype.kind, (f"an array of {array.dtype}", None)))
    return _real(array)


_OTHER = {
    "U": ("text", "code categories as integers: numpy.unique(values, return_inverse=True)[1]"),
    "S": ("bytes", "code categories as integers: numpy.unique(values, return_inverse=True)[1]"),
    "M": ("dates", "count time from a start: (dates - dates[0]) / numpy.timedelta64(1, 'D')"),
    "m": ("spans of time", "count them in a unit: spans / numpy.timedelta64(1, 'D')"),
    "V": ("a structured array", "take its columns one by one: values['name']"),
}


def _unmasked(value: np.ma.MaskedArray[Any, Any]) -> np.ndarray:
    """The array of a masked array in which nothing is masked; raises NotNumbers if something is."""
    count = int(np.ma.count_masked(value))
    if count:
        raise NotNumbers(
            f"a masked array with {count} masked entries",
            "value.filled(numpy.nan) for missing observations of mcx.markov; for other sites fill in any "
            "supported value and write dist.Normal(...).mask(~value.mask)",
        )
    return np.asarray(value.data)


def _of_objects(array: np.ndarray) -> np.ndarray:
    """An array of Python's numbers with a type of its own."""
    for entry in array.flat:
        if not isinstance(entry, numbers.Number | Decimal | np.generic) or isinstance(
            entry, np.str_ | np.bytes_
        ):
            shown = repr(entry)
            raise NotNumbers(
                f"objects, {shown if len(shown) < 60 else type(entry).__name__} among them",
                "leave out what is no number, or columns of text; missing observations of mcx.markov are NaN",
            )
    whole = all(isinstance(entry, int | np.integer) for entry in array.flat)
    try:
        return array.astype(int if whole and array.size else float)
    except (TypeError, ValueError, OverflowError) as error:
        raise NotNumbers(str(error)) from None


def _real[A: (jax.Array, np.ndarray)](array: A) -> A:
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise NotNumbers("complex numbers", "give real and imaginary parts their own sites")
    return array


def numbers_of(
    value: Any,
    what: str,
    *,
    expected: str = "an array, or what makes one",
    site: str | None = None,
    error: type[ModelError] = DataError,
) -> jax.Array | np.ndarray:
    """A user's value as an array of numbers; raises ``error``, which says ``what`` is wrong, otherwise."""
    try:
        return as_numbers(value)
    except NotNumbers as broken:
        raise error(what, site=site, expected=expected, found=broken.found, remedy=broken.remedy) from None


def array_argument(owner: str, name: str, value: Any) -> jax.Array | np.ndarray:
    """An argument as an array of numbers; raises DataError that names it as the user wrote it."""
    return numbers_of(value, f"{owner}({name}=...) is no array of numbers")
