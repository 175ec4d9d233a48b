"""What findings about a run look like."""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """One finding: a stable code, what was seen, what to do."""

    code: str
    text: str
