"""The draws of a run, gathered in the host's memory or in files that are mapped into it."""

from __future__ import annotations

import errno
import io
import math
import os
import shutil
from typing import Any

import jax
import numpy as np

from mcx.errors import CheckpointError
from mcx.run.directory import Directory
from mcx.run.memory import refuse_size
from mcx.types import PyTree


class Draws:
    """Arrays of chain x draw x event, filled chunk by chunk.

    Each chain keeps at most ``num_draws``; ``like`` has shapes and dtypes of a chunk, step x chain x event.
    Files are called ``draws-....npy``, and their ``folder`` may be shared by processes; None is memory.

    Raises:
        CheckpointError: if there is no room for the files. It is reserved at once, because a mapped file on
            a disk that fills up would end the process.
    """

    def __init__(self, like: PyTree, num_draws: int, folder: Directory | None = None, host: int = 0) -> None:
        leaves, self._structure = jax.tree.flatten(like)
        self._dtypes = [np.dtype(x.dtype) for x in leaves]
        shapes = [(x.shape[1], num_draws, *x.shape[2:]) for x in leaves]
        # types that numpy does not know are stored as integers of the same bits
        plain = [np.dtype(f"u{d.itemsize}") if d.kind == "V" else d for d in self._dtypes]
        need = sum(math.prod(s) * d.itemsize for s, d in zip(shapes, plain, strict=True))
        if folder is None or num_draws == 0:
            refuse_size(need, "all draws")
            self._arrays = [np.empty(shape, dtype) for shape, dtype in zip(shapes, plain, strict=True)]
        else:
            self._arrays = [
                _mapped(folder, f"draws-{host:04d}-{i:03d}.npy", shape, dtype, need)
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


def _mapped(
    folder: Directory, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], need: int
) -> np.ndarray:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        header,
        {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
    )
    start = header.tell()
    size = start + math.prod(shape) * dtype.itemsize
    try:
        folder.remove(name)
        with os.fdopen(folder.create(name, os.O_RDWR), "r+b") as file:
            file.write(header.getvalue())
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(folder.path).free < size:
                raise OSError(errno.ENOSPC, "No space left on device")
            else:
                file.truncate(size)
            return np.memmap(file, dtype, "r+", start, shape)
    except OSError as error:
        raise CheckpointError(
            f"the draws have no room in {folder.path}",
            expected=f"{need / 2**20:.1f} MiB for all of them",
            found=error.strerror or str(error),
            remedy="free some space, keep fewer draws, or give checkpoint= another directory",
        ) from None
