"""The persistent compilation cache: compile once a machine, not once a process."""

from __future__ import annotations

import os
from pathlib import Path

import jax

__all__ = ["enable_compilation_cache"]


def enable_compilation_cache(path: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk, for this process and those after it.

    Call it once, before the first run. Programs are reused by later processes with the same model, method,
    shapes and versions; nothing is shared between machines of different kinds.

    Args:
        path: folder; by default ``$XDG_CACHE_HOME/mcx/jax``, or ``~/.cache/mcx/jax``.

    Returns:
        The folder.
    """
    if path is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(root) / "mcx" / "jax"
    folder = Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # small programs count too: a model's first call is made of several
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
