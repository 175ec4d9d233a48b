"""Checks of arguments that several modules make."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["is_count"]


def is_count(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number of at least ``least``, of an integer type."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)
