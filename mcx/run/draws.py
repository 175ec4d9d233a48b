"""The draws of a run, gathered in the host's memory or in files that are mapped into it."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mcx.errors import CheckpointError
from mcx.types import PyTree


class Draws:
    """Arrays of chain x draw x event, filled chunk by chunk.

    Each chain keeps at most ``num_draws``; ``like`` has shapes and dtypes of a chunk, step x chain x event.
    Files are called ``draws-....npy``, and their ``folder`` may be shared by processes; None is memory.

    Raises:
        CheckpointError: if there is no room for the files. It is reserved at once, because a mapped file on
            a disk that fills up would end the process.
    """

    def __init__(self, like: PyTree, num_draws: int, folder: Path | None = None, host: int = 0) -> None:
        leaves, self._structure = jax.tree.flatten(like)
        self._dtypes = [np.dtype(x.dtype) for x in leaves]
        shapes = [(x.shape[1], num_draws, *x.shape[2:]) for x in leaves]
        # types that numpy does not know are stored as integers of the same bits
        plain = [np.dtype(f"u{d.itemsize}") if d.kind == "V" else d for d in self._dtypes]
        if folder is None or num_draws == 0:
            self._arrays = [np.empty(shape, dtype) for shape, dtype in zip(shapes, plain, strict=True)]
        else:
            need = sum(math.prod(s) * d.itemsize for s, d in zip(shapes, plain, strict=True))
            self._arrays = [
                _mapped(folder / f"draws-{host:04d}-{i:03d}.npy", shape, dtype, need)
                for i, (shape, dtype) in enumerate(zip(shapes, plain, strict=True))
            ]
        self._num = num_draws
        self._bad = np.zeros(len(leaves), int)
        self.count = 0

    def add(self, chunk: PyTree, count: int) -> None:
        """Take the first ``count`` draws of a chunk, step x chain x event."""
        end = self.count + count
        for i, leaf in enumerate(jax.tree.leaves(chunk)):
            part = np.asarray(leaf)[:count]
            if np.issubdtype(part.dtype, np.floating):
                self._bad[i] += int((~np.isfinite(part)).reshape(*part.shape[:2], -1).any(-1).sum())
            self._arrays[i][:, self.count : end] = np.swapaxes(part, 0, 1).view(self._arrays[i].dtype)
        self.count = end

    @property
    def num_nonfinite(self) -> int:
        """Number of draws with a NaN or an infinity."""
        return int(self._bad.max(initial=0))

    def result(self) -> PyTree:
        """The pytree of arrays, chain x draw x event; None where nothing was drawn."""
        if self.count == 0:
            return None
        arrays = [
            (x if self.count == self._num else x[:, : self.count]).view(dtype)
            for x, dtype in zip(self._arrays, self._dtypes, strict=True)
        ]
        return jax.tree.unflatten(self._structure, arrays)


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], need: int) -> np.ndarray:
    try:
        if path.is_symlink() or path.exists():
            path.unlink()
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(path.parent).free < size:
                raise OSError(28, "No space left on device")
    except OSError as error:
        raise CheckpointError(
            f"the draws have no room in {path.parent}",
            expected=f"{need / 2**20:.1f} MiB for all of them",
            found=error.strerror or str(error),
            remedy="free some space, keep fewer draws, or give checkpoint= another directory",
        ) from None
    return array
