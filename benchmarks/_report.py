"""What benchmarks print in the end, and append to RESULTS.md where they are asked to."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
from datetime import date
from pathlib import Path

import jax

import mcx

HERE = Path(__file__).resolve().parent


def machine() -> str:
    """The machine and the versions."""
    return (
        f"{os.cpu_count()} shared {platform.machine()} cores, no GPU; Python {platform.python_version()}, "
        f"mcx {mcx.__version__}, jax {jax.__version__}"
    )


def command() -> str:
    """What was typed to run this."""
    return " ".join(
        ["python benchmarks/" + Path(sys.argv[0]).name, *(a for a in sys.argv[1:] if a != "--record")]
    )


def report(title: str, how: str, lines: list[str], *, record: bool) -> None:
    """A section: its title, today's date, how it was measured, and tables."""
    head = textwrap.wrap(how, 118, break_on_hyphens=False)
    text = "\n".join([f"## {date.today().isoformat()}: {title}", "", *head, "", *lines]) + "\n"
    print("\n" + text)
    if record:
        with (HERE / "RESULTS.md").open("a") as results:
            results.write("\n" + text)
