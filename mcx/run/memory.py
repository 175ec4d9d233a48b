"""Memory of a run: an error that explains where a device ran out of it, and freed memory of the host."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from mcx.errors import DeviceMemoryError, MethodError
from mcx.types import PyTree

_SIGNS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "OUT_OF_MEMORY")


@contextmanager
def explained(num_chains: int, batch_size: int | None, facts: dict[str, Any]) -> Iterator[None]:
    """Turn a device's "out of memory" into an error that says what takes how much memory, and what to lower.

    ``facts`` are filled as they become known: ``state`` (shapes of all chains' states) and ``programs``.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in _SIGNS):
            raise
        sizes = _sizes(num_chains, facts)
        device = jax.devices()[0]
        limit = (device.memory_stats() or {}).get("bytes_limit")
        raise DeviceMemoryError(
            f"{device.device_kind} has not enough memory for this run",
            expected="" if limit is None else f"at most {_text(limit)}",
            found=("; ".join(sizes) or "no sizes are known yet") + f" ({text.splitlines()[0][:200]})",
            remedy="fewer chains or particles at once: lower num_chains or num_particles, or set batch_size= "
            + ("" if batch_size is None else f"below {batch_size} ")
            + "(the same result in less memory for intermediate values); or spread the run: devices=",
        ) from error


def _sizes(num_chains: int, facts: dict[str, Any]) -> list[str]:
    sizes = []
    if "state" in facts:
        size = _bytes(facts["state"])
        sizes.append(f"states of {num_chains} chains {_text(size)}")
    programs = facts.get("programs")
    if programs is not None:
        sizes.append(
            f"buffers for {programs.capacity} steps {_text(_bytes((programs.stats, programs.emitted)))}"
        )
        analysis = getattr(programs.chunk, "memory_analysis", lambda: None)()
        if analysis is not None:
            sizes.append(f"intermediate values of a step {_text(analysis.temp_size_in_bytes)}")
    return sizes


def _bytes(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 8) for x in leaves)


def _text(size: int) -> str:
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def refuse_size(need: int, what: str) -> None:
    """Raise MethodError if arrays would need more memory than this machine has in all."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    if need > memory:
        raise MethodError(
            f"{what} need more memory than there is",
            expected=f"at most {_text(memory)}",
            found=_text(need),
            remedy="keep fewer draws, or keep them in files: mcx.Checkpoint(path, in_memory=False)",
        )


def give_back() -> None:
    """Return freed memory to the system where the C library would keep it for later.

    After some allocations glibc keeps buffers of up to 32 MiB, so a run that streams its draws to disk would
    seem to grow with their number.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
