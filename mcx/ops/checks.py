"""Checks of arguments that several modules make."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcx.errors import MethodError

__all__ = ["check_fields", "is_count"]


def check_fields(settings: Any, *rows: tuple[str, bool, str]) -> None:
    """Raise for the first field of settings that is out of range.

    Args:
        settings: a dataclass.
        rows: field, whether its value is fine, and what was expected.
    """
    for name, fine, expected in rows:
        if not fine:
            raise MethodError(
                f"{type(settings).__name__}({name}=...) is out of range",
                expected=expected,
                found=repr(getattr(settings, name)),
            )


def is_count(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number of at least ``least``, of an integer type."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
