"""Checkpoints: what the driver writes to disk as a run goes on, and how a later run resumes from it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro

from mcx._version import __version__
from mcx.errors import CheckpointMismatch, InferenceWarning
from mcx.ops.fingerprint import of_arrays, of_code, without_addresses
from mcx.ops.validation import boolean, number, such_that, validated
from mcx.run.devices import CHAINS, place
from mcx.run.directory import Directory
from mcx.run.hosts import ALONE, Hosts
from mcx.run.memory import give_back
from mcx.run.programs import Programs
from mcx.run.records import from_records, record_type, to_records
from mcx.run.store import Store
from mcx.types import Key, PyTree

# tells apart what has the same name in the identity: functions given to a model or a method
_CODE = "compiled functions"
# Bytes. Fast runs with large draws are saved more often than asked for, so that little is left to write at
# their end; they wait for the disk where it is slower than they are.
_WORTH_WRITING, _MOST_PENDING = 4 * 2**20, 64 * 2**20


DIRECTORY_PATH = such_that(
    lambda path: isinstance(path, str | os.PathLike) and os.fspath(path) not in ("", b""),
    "the path of a directory",
)
"""The rule of checkpoints' paths: an empty one would be the working directory."""


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often to save a run.

    Attributes:
        path: a directory; made if it is not there.
        interval: least number of seconds between two saves, which is what may be lost.
        in_memory: whether the draws are kept in memory too. If not, they go to files in the directory, and
            the results are arrays mapped from these, so that memory does not grow with the number of draws.
            Disk space for twice the size of all draws is reserved before the run.
        identity: what else identifies the run, by name; a checkpoint with other values is refused.
    """

    path: str | Path
    interval: float = 5.0
    in_memory: bool = True
    identity: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = {
            "path": DIRECTORY_PATH,
            "interval": number(0),
            "in_memory": boolean(),
        }
        for name, rule in rules.items():
            object.__setattr__(self, name, validated("Checkpoint", name, getattr(self, name), rule))

    def part(self, name: str) -> Checkpoint:
        """A directory within this one, for a run that is a part of the whole."""
        return replace(self, path=Path(self.path) / name)


@contextmanager
def recording(
    checkpoint: str | Path | Checkpoint | None,
    about: Mapping[str, object],
    key: Key,
    arrays: PyTree,
    hosts: Hosts = ALONE,
) -> Iterator[Recorder | None]:
    """Hold a checkpoint's directory during a run, and yield the recorder that saves it; None without one.

    ``about`` and ``arrays`` are what the run depends on.

    Raises:
        CheckpointError: if the directory cannot be used, or holds another run.
    """
    checkpoint = identified(checkpoint)
    if checkpoint is None:
        yield None
        return
    identity = {
        **checkpoint.identity,
        **{name: str(value) for name, value in about.items()},
        "key": f"{jax.random.key_impl(key)}:{np.asarray(jax.random.key_data(key)).tolist()}",
        "data and starting points": of_arrays(arrays),
        "versions": f"mcx {__version__}, jax {jax.__version__}, numpyro {numpyro.__version__}",
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "device": str(jax.devices()[0].device_kind),
    }
    store = Store(checkpoint.path, hosts)
    # nothing is written to a directory that holds anything else than this run, or all of it
    with nullcontext() if _holds(store, identity) else store.locked():
        _holds(store, identity)
        folder = None if checkpoint.in_memory else store.directory
        recorder = Recorder(store, checkpoint.interval, identity, folder)
        try:
            yield recorder
        finally:
            recorder.close()


def _holds(store: Store, identity: Mapping[str, str]) -> bool:
    """Read what a directory holds; whether that is this run to its end. Raises if it is another run."""
    found = store.read()
    if found is None:
        return False
    _refuse_other(store.path, {k: v for k, v in found.identity.items() if k != _CODE}, identity)
    return found.complete


def identified(checkpoint: str | Path | Checkpoint | None, **identity: object) -> Checkpoint | None:
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
    tree: PyTree

    @property
    def size(self) -> int:
        """Bytes that it keeps from being freed; a view keeps its whole buffer."""
        leaves = jax.tree.leaves(self.tree)
        return sum((x.base if isinstance(x.base, np.ndarray) else x).nbytes for x in leaves)


class Recorder:
    """Saves a run's chunks to a locked directory every few seconds, while the device goes on computing.

    The identity is that known before tracing; draws stay in memory unless there is a ``folder`` for them.
    """

    def __init__(
        self, store: Store, interval: float, identity: Mapping[str, str], folder: Directory | None
    ) -> None:
        self.store, self.interval, self.identity, self.folder = store, interval, identity, folder
        self._pending: list[_Chunk] = []
        self._taken: list[_Chunk] = []  # by the write that is under way
        self._writing: Future[None] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._state: PyTree = None
        self._saved = time.monotonic()
        self._warned = False
        self._chains = 0

    def resume(self, programs: Programs, state: PyTree, num_chains: int) -> tuple[int, PyTree]:
        """How many steps the run took before, and the state after them; ``state`` is that at step 0."""
        identity = {**self.identity, _CODE: of_code(programs.code)}
        if self.store.manifest is None:
            self.store.begin(identity)
        manifest = self.store.manifest
        assert manifest is not None
        _refuse_other(self.store.path, manifest.identity, identity)
        self._state, self._chains = state, num_chains
        if manifest.state is not None:
            saved = self.store.load(manifest.state, record_type(state, 1), self._chains)
            self._state = place(
                jax.tree.map(jax.numpy.asarray, from_records(saved, state)), programs.mesh, CHAINS
            )
        return manifest.steps, self._state

    def chunks(self, programs: Programs, discard: int) -> Iterator[tuple[int, PyTree, PyTree]]:
        """Saved chunks: numbers of steps, statistics, and draws, which are None for discarded steps."""
        manifest = self.store.manifest
        for entry in manifest.chunks if manifest is not None else ():
            like: PyTree = (programs.stats,) if entry.first < discard else (programs.stats, programs.emitted)
            records = self.store.load(entry, record_type(like, 2), self._chains)
            stats, *draws = from_records(records, like)
            yield entry.count, stats, draws[0] if draws else None

    def add(self, shape: tuple[int, int], state: PyTree, stats: PyTree, draws: PyTree) -> None:
        """Take a chunk of ``shape`` (steps, chains) and the state after it; discarded draws are None."""
        self._pending.append(_Chunk(shape, (stats,) if draws is None else (stats, draws)))
        self._state = state

    def save(self, complete: bool, *, now: bool) -> None:
        """Start to write what was taken if it is time to, or write it all ``now`` and wait for that.

        A full disk does not stop the run: the next save tries again. A slow one does not either, until much
        is pending.
        """
        pending = sum(chunk.size for chunk in self._pending)
        much = pending >= _MOST_PENDING
        due = now or pending >= _WORTH_WRITING or time.monotonic() - self._saved >= self.interval
        if not self.store.hosts.any(due):
            return
        if self._writing is not None and not (now or much or self._writing.done()):
            return
        self._settle(now)
        # a copy: the next steps overwrite the state on the device
        records = to_records(self.store.hosts.fetch(self._state), (self._chains,))
        self._taken, self._pending = self._pending, []
        self._writing = self._start(self._write, self._taken, records, complete)
        self._saved = time.monotonic()
        if now:
            self._settle(now)

    def close(self) -> None:
        """Wait until everything is written."""
        if self._threads is not None:
            self._threads.shutdown()

    def _start(self, function: Callable[..., None], *args: Any) -> Future[None]:
        if self.store.hosts.count == 1:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, "mcx checkpoint")
            return self._threads.submit(function, *args)
        done: Future[None] = Future()  # processes agree as they write, so all write in the same order
        try:
            function(*args)
            done.set_result(None)
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
        """Wait for the last write; what it could not write is pending again."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            self._pending = self._taken + self._pending
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.store.path} could not be written ({error.strerror or error}): the run goes on "
                    "in memory, and what was written before can be resumed",
                    InferenceWarning,
                    stacklevel=2,
                )
        self._taken = []


def _joined(chunks: list[np.ndarray]) -> list[np.ndarray]:
    """Neighbouring chunks with the same type of records, joined."""
    joined: list[list[np.ndarray]] = []
    for chunk in chunks:
        if joined and joined[-1][0].dtype == chunk.dtype:
            joined[-1].append(chunk)
        else:
            joined.append([chunk])
    return [np.concatenate(part) for part in joined]
