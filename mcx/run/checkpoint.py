"""Runs that survive: what the driver writes to disk as it goes, and how it goes on from there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro

from mcx._version import __version__
from mcx.errors import CheckpointMismatch, InferenceWarning
from mcx.ops.fingerprint import of_arrays, of_code, without_addresses
from mcx.run.devices import CHAINS, place
from mcx.run.hosts import ALONE, Hosts
from mcx.run.memory import give_back
from mcx.run.programs import Programs
from mcx.run.records import from_records, record_type, to_records
from mcx.run.store import Store

__all__ = ["Checkpoint", "Recorder", "identified", "recording"]


# what names in the identity cannot tell apart: functions given to a model or a method
_CODE = "compiled functions"


# bytes: fast runs with large draws are saved more often than asked for, so that little is left to write at
# their end, once the last write is done; and wait for the disk where it is slower than they are
_WORTH_WRITING, _MOST_PENDING = 4 * 2**20, 64 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often to save a run.

    Attributes:
        path: a directory; made if it is not there.
        interval: seconds between two saves, at least: what may be lost.
        in_memory: whether the draws are kept in memory too. If not, they go to files in the directory, and
            the results are arrays mapped from these: memory does not grow with the number of draws. Room on
            disk is taken before the run, for twice the size of the draws at its end.
        identity: what else the run is, by name: a checkpoint with other values is refused.
    """

    path: str | Path
    interval: float = 5.0
    in_memory: bool = True
    identity: Mapping[str, str] = field(default_factory=dict)

    def part(self, name: str) -> Checkpoint:
        """A directory within, for a run that is part of the whole."""
        return replace(self, path=Path(self.path) / name)


@contextmanager
def recording(
    checkpoint: str | Path | Checkpoint | None,
    about: Mapping[str, Any],
    key: Any,
    given: Any,
    hosts: Hosts = ALONE,
) -> Iterator[Recorder | None]:
    """Hold a checkpoint's directory during a run.

    Args:
        checkpoint: as the user gave it.
        about: further parts of the run's identity.
        key: of the run.
        given: arrays that the run depends on.
        hosts: the processes of the run.

    Yields:
        What saves the run; None without a checkpoint.

    Raises:
        CheckpointError: if the directory cannot be used, or holds another run.
    """
    if checkpoint is None:
        yield None
        return
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    identity = {
        **checkpoint.identity,
        **{name: str(value) for name, value in about.items()},
        "key": f"{jax.random.key_impl(key)}:{np.asarray(jax.random.key_data(key)).tolist()}",
        "data and starting points": of_arrays(given),
        "versions": f"mcx {__version__}, jax {jax.__version__}, numpyro {numpyro.__version__}",
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "device": str(jax.devices()[0].device_kind),
    }
    store = Store(checkpoint.path, hosts)
    with store.locked():
        found = store.read()
        if found is not None:
            _refuse_other(store.path, {k: v for k, v in found.identity.items() if k != _CODE}, identity)
        folder = None if checkpoint.in_memory else store.path
        recorder = Recorder(store, checkpoint.interval, identity, folder)
        try:
            yield recorder
        finally:
            recorder.close()


def identified(checkpoint: str | Path | Checkpoint | None, **identity: Any) -> Checkpoint | None:
    """A checkpoint with further parts of the run's identity, by name; None stays None."""
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    texts = {name.replace("_", " "): without_addresses(str(value)) for name, value in identity.items()}
    return replace(checkpoint, identity={**texts, **checkpoint.identity})


def _refuse_other(path: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    names = [n for n in {**stored, **wanted} if stored.get(n) != wanted.get(n)]
    if not names:
        return

    def values(identity: Mapping[str, str]) -> str:
        shown = (f"{n} {identity.get(n, 'unknown')}" for n in names)
        return "; ".join(text if len(text) < 120 else text[:117] + "..." for text in shown)

    raise CheckpointMismatch(
        f"the checkpoint in {path} is of another run: another " + ", ".join(names),
        expected=values(stored),
        found=values(wanted),
        remedy="repeat the call that began it, or give checkpoint= another directory",
    )


@dataclass(frozen=True)
class _Chunk:
    """Statistics and draws of some steps, on the host; ``shape`` is (steps, chains)."""

    shape: tuple[int, int]
    tree: Any

    @property
    def size(self) -> int:
        """Bytes that it keeps from being freed: views keep the whole buffer."""
        leaves = jax.tree_util.tree_leaves(self.tree)
        return sum((x.base if isinstance(x.base, np.ndarray) else x).nbytes for x in leaves)


class Recorder:
    """Saves a run's chunks as they come, every few seconds, while the device goes on.

    Args:
        store: the directory, locked, whose manifest is that of this run.
        interval: seconds between two saves.
        identity: of this run, as far as it is known before it is traced.
        folder: for the draws, where they do not stay in memory.
    """

    def __init__(
        self, store: Store, interval: float, identity: Mapping[str, str], folder: Path | None
    ) -> None:
        self.store, self.interval, self.identity, self.folder = store, interval, identity, folder
        self._pending: list[_Chunk] = []
        self._taken: list[_Chunk] = []  # by the write under way
        self._writing: Future[None] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._state: Any = None
        self._saved = time.monotonic()
        self._failed = False

    def resume(self, programs: Programs, state: Any) -> tuple[int, Any]:
        """How far the run came before: steps taken, and the state after them.

        Args:
            programs: of the run.
            state: at step 0, with a leading chain axis.

        Raises:
            CheckpointCorrupt: if a file is damaged.
            CheckpointMismatch: if the run was another.
        """
        identity = {**self.identity, _CODE: of_code(programs.code)}
        if self.store.manifest is None:
            self.store.begin(identity)
        manifest = self.store.manifest
        assert manifest is not None
        _refuse_other(self.store.path, manifest.identity, identity)
        self._state = state
        if manifest.state is not None:
            self._chains = jax.tree_util.tree_leaves(state)[0].shape[0]
            saved = self.store.load(manifest.state, record_type(state, 1), self._chains)
            self._state = place(_on_device(from_records(saved, state)), programs.mesh, CHAINS)
        return manifest.steps, self._state

    def chunks(self, programs: Programs, discard: int) -> Iterator[tuple[int, Any, Any]]:
        """Steps, statistics and draws that were saved before; None for the draws of discarded steps.

        Raises:
            CheckpointCorrupt: if a file is damaged.
        """
        manifest = self.store.manifest
        for entry in manifest.chunks if manifest is not None else ():
            like: Any = (programs.stats,) if entry.first < discard else (programs.stats, programs.emitted)
            records = self.store.load(entry, record_type(like, 2), self._chains)
            stats, *draws = from_records(records, like)
            yield entry.count, stats, draws[0] if draws else None

    def add(self, shape: tuple[int, int], state: Any, stats: Any, draws: Any | None) -> None:
        """Take a chunk of ``shape`` (steps, chains), and the state after it; draws unless discarded."""
        self._pending.append(_Chunk(shape, (stats,) if draws is None else (stats, draws)))
        self._state = state

    def save(self, complete: bool, *, now: bool) -> None:
        """Have what was taken written, if it is time, or ``now``: that waits until it is.

        A disk that is full stops nothing: the run goes on in memory, and the next save tries again. A disk
        that is slow stops nothing either, until much is pending.
        """
        pending = sum(chunk.size for chunk in self._pending)
        much = pending >= _MOST_PENDING
        due = now or pending >= _WORTH_WRITING or time.monotonic() - self._saved >= self.interval
        if not self.store.hosts.any(due):
            return
        if self._writing is not None and not (now or much or self._writing.done()):
            return
        self._settle(now)
        state = self.store.hosts.fetch(self._state)
        chains = jax.tree_util.tree_leaves(state)[0].shape[:1]
        records = to_records(state, chains)  # a copy: the next steps take the state's place on the device
        self._taken, self._pending = self._pending, []
        self._writing = self._start(self._write, self._taken, records, complete)
        self._saved = time.monotonic()
        if now:
            self._settle(now)

    def close(self) -> None:
        """Wait for what is being written."""
        if self._threads is not None:
            self._threads.shutdown()

    def _start(self, function: Any, *args: Any) -> Future[None]:
        if self.store.hosts.count == 1:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, "mcx checkpoint")
            return self._threads.submit(function, *args)
        done: Future[None] = Future()  # processes agree as they write: all in the same order
        try:
            done.set_result(function(*args))
        except OSError as error:
            done.set_exception(error)
        return done

    def _write(self, chunks: list[_Chunk], state: np.ndarray, complete: bool) -> None:
        records = [to_records(chunk.tree, chunk.shape) for chunk in chunks]
        self.store.append(_joined(records), state, complete)
        if self.folder is not None:
            del records
            give_back()

    def _settle(self, now: bool) -> None:
        """Wait for the last write, and take back what it could not write."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            self._pending = self._taken + self._pending
            if not self._failed or now:
                warnings.warn(
                    f"{self.store.path} could not be written ({error.strerror or error}): the run goes on "
                    "in memory, and what was written before can be resumed",
                    InferenceWarning,
                    stacklevel=2,
                )
            self._failed = True
        else:
            self._failed = False
        self._taken = []


def _on_device(tree: Any) -> Any:
    return jax.tree_util.tree_map(jax.numpy.asarray, tree)


def _joined(chunks: list[np.ndarray]) -> list[np.ndarray]:
    """Neighbours of the same records as one."""
    joined: list[list[np.ndarray]] = []
    for chunk in chunks:
        if joined and joined[-1][0].dtype == chunk.dtype:
            joined[-1].append(chunk)
        else:
            joined.append([chunk])
    return [np.concatenate(part) for part in joined]
