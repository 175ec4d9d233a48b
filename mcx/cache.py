"""The persistent compilation cache: programs are compiled once on a machine, not once in each process."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache(path: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled programs on disk for this process and later ones.

    Call it once, before the first run. Later processes with the same model, method, shapes and versions reuse
    the programs; machines of different kinds share nothing.

    Args:
        path: the folder; by default ``$XDG_CACHE_HOME/mcx/jax``, or ``~/.cache/mcx/jax``.

    Returns:
        The folder.
    """
    if path is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(root) / "mcx" / "jax"
    folder = Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # small programs are kept too, because a model's first call compiles several
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
