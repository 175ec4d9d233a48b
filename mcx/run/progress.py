"""What a user sees while a run goes on: a bar in terminals and notebooks, lines elsewhere, or nothing."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from mcx.ops.validation import boolean, either, one_of, such_that, validated


class Progress(Protocol):
    """A display of a run, which the driver calls on the host between chunks."""

    def compiling(self) -> None:
        """XLA is compiling."""

    def started(self) -> None:
        """Compilation is over; steps begin."""

    def update(self, done: int, phase: str, report: Mapping[str, object]) -> None:
        """``done`` steps are finished; ``report`` is what the kernel reports of them."""

    def close(self, complete: bool) -> None:
        """The run is over."""


class _Silent:
    def compiling(self, *args: object, **named: object) -> None: ...

    started = update = close = compiling


class _Bar:
    """A tqdm bar; tqdm.auto picks the notebook widget where there is a notebook."""

    def __init__(self, total: int | None, title: str) -> None:
        from tqdm.auto import tqdm

        self._title = title
        # a terminal that does not know its width (some containers) would show no bar
        known = shutil.get_terminal_size(fallback=(0, 0)).columns > 0
        size: dict[str, Any] = {"dynamic_ncols": True} if known else {"ncols": 100, "nrows": 24}
        self._bar = tqdm(total=total, desc=title, unit="step", leave=True, **size)

    def compiling(self) -> None:
        self._bar.set_description(f"{self._title}: compiling")

    def started(self) -> None:
        self._bar.unpause()  # the time left is estimated from here on
        self._bar.start_t = self._bar.last_print_t

    def update(self, done: int, phase: str, report: Mapping[str, object]) -> None:
        self._bar.set_description(f"{self._title}: {phase}", refresh=False)
        self._bar.set_postfix_str(format_report(report), refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self, complete: bool) -> None:
        state = "done" if complete else "stopped"
        self._bar.set_description(f"{self._title}: {state}")
        self._bar.close()


class _Lines:
    """One line now and then, for logs."""

    def __init__(self, total: int | None, title: str, every: float = 10.0) -> None:
        self._total, self._title, self._every = total, title, every
        self._begun = self._last = time.monotonic()
        self._phase = ""
        self._done, self._report = 0, ""

    def compiling(self) -> None:
        self._print("compiling")

    def started(self) -> None:
        now = time.monotonic()
        self._print(f"compiled in {now - self._begun:.1f} s")
        self._begun = self._last = now

    def update(self, done: int, phase: str, report: Mapping[str, object]) -> None:
        now = time.monotonic()
        self._done, self._report = done, format_report(report)
        if phase != self._phase or now - self._last >= self._every:
            known = self._total is not None and done
            left = ((self._total or 0) - done) * (now - self._begun) / done if known else math.nan
            eta = f", about {left:.0f} s left" if left >= 1 else ""
            self._print(f"{phase} {self._count()}{eta}{', ' if self._report else ''}{self._report}")
            self._last, self._phase = now, phase

    def close(self, complete: bool) -> None:
        state = "done" if complete else "stopped"
        seconds = time.monotonic() - self._begun
        tail = f", {self._report}" if self._report else ""
        self._print(f"{state}, {self._count()} steps in {seconds:.1f} s{tail}")

    def _count(self) -> str:
        return str(self._done) if self._total is None else f"{self._done}/{self._total}"

    def _print(self, text: str) -> None:
        print(f"{self._title}: {text}", file=sys.stderr, flush=True)


def format_report(report: Mapping[str, object]) -> str:
    """``name=value`` pairs with short numbers."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in report.items())


def _is_display(value: Any) -> bool:
    verbs = ("compiling", "started", "update", "close")
    return not isinstance(value, type) and all(callable(getattr(value, verb, None)) for verb in verbs)


_RULE = either(
    boolean(),
    one_of("bar", "lines"),
    such_that(_is_display, "a display"),
    expected='True, False, "bar", "lines", or an object with the methods of mcx.run.progress.Progress',
)


def make_progress(progress: bool | str | Progress, total: int | None, title: str) -> Progress:
    """The display that ``progress=`` asks for; True is a bar in terminals and notebooks, else lines.

    The kernel decides when to stop if the ``total`` of steps is None.
    """
    progress = validated("run", "progress", progress, _RULE)
    if not isinstance(progress, bool | str):
        return progress
    if progress is True:
        progress = "bar" if sys.stderr.isatty() or _in_notebook() else "lines"
    if progress is False:
        return _Silent()
    return _Bar(total, title) if progress == "bar" else _Lines(total, title)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    instance = shell.get_ipython() if shell is not None else None
    return type(instance).__name__ == "ZMQInteractiveShell"
