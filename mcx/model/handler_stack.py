"""The effect handlers that are active, on NumPyro's one stack."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpyro
from numpyro import primitives

# NumPyro has one stack of effect handlers for all threads: one program runs at a time
_ALONE = threading.RLock()
_runner: int | None = None  # the thread whose program runs


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads from running programs."""
    global _runner
    with _ALONE:
        before, _runner = _runner, threading.get_ident()
        try:
            yield
        finally:
            _runner = before


def inside_model() -> bool:
    """Whether an effect handler is active in this thread, which means that a model is running."""
    return bool(primitives._PYRO_STACK) and _runner in (None, threading.get_ident())


# handlers that change a program and do not run it: no keys, no records
_CHANGES = tuple(
    getattr(numpyro.handlers, name)
    for name in (
        "block",
        "collapse",
        "condition",
        "do",
        "infer_config",
        "lift",
        "mask",
        "reparam",
        "scale",
        "scope",
        "substitute",
        "uncondition",
    )
)


def handlers_without_run() -> list[primitives.Messenger] | None:
    """The active handlers, outermost first, if nothing runs a model; None if something does."""
    stack = list(primitives._PYRO_STACK)
    return stack if all(type(h) in _CHANGES for h in stack) else None


def active_plates() -> tuple[tuple[str, int, int], ...]:
    """``(name, dim, size)`` of the plates now entered, outermost first."""
    return tuple(
        (h.name, h.dim, h.subsample_size) for h in primitives._PYRO_STACK if isinstance(h, primitives.plate)
    )


def scope_prefix() -> str:
    """The prefix that the active scopes put before the name of a site."""
    scopes = (h for h in primitives._PYRO_STACK if isinstance(h, numpyro.handlers.scope))
    return "".join(f"{h.prefix}{h.divider}" for h in scopes)
