"""Processes forked from one in which JAX was running: there JAX waits for threads that do not exist."""

from __future__ import annotations

import os
import sys

from mcx.errors import MethodError

_forked_from: int | None = None


def _mark() -> None:
    """Remember, in a process that was just forked, whether JAX was running in its parent."""
    global _forked_from
    backends = getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None)
    if backends:
        _forked_from = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark)


def refuse_fork() -> None:
    """Raise MethodError in a process that was forked while JAX was running; it would wait forever."""
    if _forked_from is not None:
        raise MethodError(
            f"this process was forked from process {_forked_from}, in which JAX was running already: its "
            "threads were not copied, so that JAX would wait for them forever",
            expected="a process that starts by itself",
            remedy="multiprocessing.get_context('spawn').Pool(...), or fork before JAX computes anything",
        )
