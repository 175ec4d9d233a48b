"""Peers in environments of their own, and workers in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["PEERS", "ROOT", "environment", "install", "last_line", "peak_memory"]

ROOT = Path(__file__).resolve().parent.parent
PEERS = {
    "cuthbert": ("cuthbert",),
    "smcx": ("smcx",),
    "particles": ("particles", "numpy<2"),
    "ot": ("POT",),
    "ott": ("ott-jax",),
    "SALib": ("SALib",),
    "openturns": ("openturns", "numpy"),
}


def environment() -> dict[str, str]:
    """What a worker sees: no settings of JAX but these, no persistent compilation cache."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return {**env, "JAX_ENABLE_COMPILATION_CACHE": "false"}


def install(peer: str) -> tuple[Path | None, str]:
    """The interpreter of a peer's environment, made where there is none; or why there is none."""
    folder = ROOT / ".cache" / "bench" / peer
    python = folder / "bin" / "python"
    steps = [] if python.exists() else [[sys.executable, "-m", "venv", str(folder)]]
    if steps or subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode:
        steps.append([str(python), "-m", "pip", "install", "--quiet", *PEERS[peer]])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            return None, "could not be installed: " + last_line(done.stderr)
    return python, ""


def last_line(text: str) -> str:
    """The last line of an error message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def peak_memory(call: Callable[[], Any]) -> float:
    """Peak resident memory of this process during a call, above what it held before, in MiB. Linux alone."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        pass
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")
