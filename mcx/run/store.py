"""A directory of chunks on disk: what a run has drawn so far, and the state to go on from.

Chunks are ``.npy`` files of plain records, one row a step and one column a chain. Each is written to a
temporary file, synced, and renamed; only then the manifest, a JSON file written the same way, lists it with
its length and SHA-256. So whatever the manifest lists is whole, whenever the process is killed. Nothing that
is read is executed: no pickles, names of files follow a pattern, sizes are checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one directory are not found out
    fcntl = None  # type: ignore[assignment]

from mcx.errors import CheckpointCorrupt, CheckpointError, CheckpointInUse

__all__ = ["Entry", "Manifest", "Store"]

MANIFEST, LOCK = "manifest.json", "lock"
_FORMAT, _VERSION = "mcx checkpoint", 1
_NAME = re.compile(r"(chunk|state)-[0-9]{6}\.npy")
_SHA = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST, _MAX_HEADER, _MAX_FILE = 64 * 2**20, 2**20, 2**36


@dataclass(frozen=True)
class Entry:
    """A file that the manifest lists. ``first`` and ``count`` are the steps of a chunk."""

    file: str
    sha256: str
    size: int
    first: int
    count: int


@dataclass
class Manifest:
    """What a directory holds.

    Attributes:
        identity: what the run is, by name; text.
        chunks: in the order of their steps.
        state: after the last of them; None before the first.
        steps: taken so far.
        complete: whether the run came to its end.
    """

    identity: dict[str, str]
    chunks: list[Entry] = field(default_factory=list)
    state: Entry | None = None
    steps: int = 0
    complete: bool = False

    def to_json(self) -> bytes:
        """As a file."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": self.identity,
            "steps": self.steps,
            "complete": self.complete,
            "state": None if self.state is None else vars(self.state),
            "chunks": [vars(chunk) for chunk in self.chunks],
        }
        return json.dumps(content, indent=1).encode()

    @classmethod
    def of_json(cls, raw: bytes, where: Path) -> Manifest:
        """Read and check a file.

        Raises:
            CheckpointCorrupt: if it is no manifest, or one of another version.
        """
        try:
            content = json.loads(raw)
            _expect(isinstance(content, dict) and content.get("format") == _FORMAT, "the format")
            _expect(content.get("version") == _VERSION, f"version {_VERSION}")
            identity, chunks = content["identity"], content["chunks"]
            _expect(
                isinstance(identity, dict) and all(isinstance(v, str) for v in identity.values()), "identity"
            )
            _expect(isinstance(chunks, list) and isinstance(content["complete"], bool), "chunks")
            entries = [_entry(c, "chunk") for c in chunks]
            state = None if content["state"] is None else _entry(content["state"], "state")
            end = 0
            for entry in entries:
                _expect(entry.first == end, "chunks that follow each other")
                end += entry.count
            _expect(_is_int(content["steps"]) and content["steps"] == end, "as many steps as the chunks have")
            _expect((state is None) == (end == 0), "a state after the last chunk")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointCorrupt(
                f"{where} is no manifest of a checkpoint",
                found=str(error),
                remedy="restore the directory, or give checkpoint= another one",
            ) from None
        return cls(identity, entries, state, end, content["complete"])


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**62


def _entry(raw: Any, kind: str) -> Entry:
    _expect(isinstance(raw, dict) and set(raw) == {"file", "sha256", "size", "first", "count"}, "an entry")
    name, sha256 = raw["file"], raw["sha256"]
    _expect(isinstance(name, str) and _NAME.fullmatch(name) is not None, "the name of a chunk")
    _expect(name.startswith(kind), f"a {kind}")
    _expect(isinstance(sha256, str) and _SHA.fullmatch(sha256) is not None, "a SHA-256")
    _expect(_is_int(raw["first"]) and _is_int(raw["count"]), "counts")
    _expect(_is_int(raw["size"]) and raw["size"] <= _MAX_FILE, "a size")
    return Entry(**raw)


class Store:
    """A directory, open for one run or for reading.

    Args:
        path: of the directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest | None = None

    # reading -------------------------------------------------------------------------------------

    def read(self) -> Manifest | None:
        """The manifest; None where there is none yet.

        Raises:
            CheckpointCorrupt: if it cannot be used.
        """
        if not os.path.lexists(self.path / MANIFEST):
            self.manifest = None
        else:
            raw = self._bytes(MANIFEST, _MAX_MANIFEST)
            self.manifest = Manifest.of_json(raw, self.path / MANIFEST)
        return self.manifest

    def load(
        self, entry: Entry, dtype: np.dtype[Any] | None = None, columns: int | None = None
    ) -> np.ndarray:
        """The records of a file, verified.

        Args:
            entry: of the manifest.
            dtype: that the records must have.
            columns: number of chains that they must have.

        Raises:
            CheckpointCorrupt: if the file is not what the manifest says, or holds something else.
        """
        raw = self._bytes(entry.file, entry.size)
        if len(raw) != entry.size or hashlib.sha256(raw).hexdigest() != entry.sha256:
            found = f"{len(raw)} bytes, where {entry.size} were written" if len(raw) != entry.size else None
            raise self._corrupt(entry.file, "is not what was written", found or "another SHA-256")
        try:
            stream = io.BytesIO(raw)
            if np.lib.format.read_magic(stream) != (2, 0):
                raise ValueError("another version of the format")
            shape, fortran, found_dtype = np.lib.format.read_array_header_2_0(stream, _MAX_HEADER)
            if fortran or found_dtype.hasobject or found_dtype.names is None:
                raise ValueError("no plain records")
            size = int(np.prod(shape, dtype=object)) * found_dtype.itemsize
            if size != len(raw) - stream.tell():
                raise ValueError("a shape that does not fit the file's length")
            if dtype is not None and found_dtype != dtype:
                raise ValueError(f"records of {found_dtype}, not of {dtype}")
            expected = (entry.count, columns) if entry.file.startswith("chunk") else (columns,)
            if columns is not None and shape != expected:
                raise ValueError(f"shape {shape}, not {expected}")
        except Exception as error:  # a parser's, on hostile input: of many kinds
            raise self._corrupt(entry.file, "holds no chunk", str(error)) from None
        return np.frombuffer(raw, found_dtype, offset=stream.tell()).reshape(shape)

    def _bytes(self, name: str, limit: int) -> bytes:
        """Content of a regular file, never of what a link points to."""
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise self._corrupt(name, "cannot be read", error.strerror or str(error)) from None
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise self._corrupt(name, "is no regular file", stat.filemode(facts.st_mode))
            if facts.st_size > limit:
                raise self._corrupt(name, "is larger than it may be", f"{facts.st_size} bytes")
            return file.read()

    def _corrupt(self, name: str, what: str, found: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(
            f"{self.path / name} {what}",
            found=found,
            remedy="restore the directory from a copy, or delete it and run again",
        )

    # writing -------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory, made if need be, for one run; the kernel lets go of it if the process dies.

        Raises:
            CheckpointInUse: if another run holds it.
            CheckpointError: if nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self._write(".probe", b"")
            os.unlink(self.path / ".probe")
        except OSError as error:
            raise CheckpointError(
                f"nothing can be written to the directory {self.path}",
                found=error.strerror or str(error),
                remedy="give checkpoint= a directory that can be written to",
            ) from None
        try:
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CheckpointInUse(
                    f"another run writes to the directory {self.path}",
                    remedy="wait for it to end, or give checkpoint= another directory",
                ) from None
            yield
        finally:
            os.close(descriptor)

    def begin(self, identity: Mapping[str, str]) -> None:
        """Start anew with an empty manifest."""
        self.manifest = Manifest(dict(identity))
        self._write(MANIFEST, self.manifest.to_json())

    def append(self, chunks: list[np.ndarray], state: np.ndarray, complete: bool) -> None:
        """Add chunks of records, (steps, chains) each, and the state after them, (chains,).

        Raises:
            OSError: if it cannot be written; what was there before stays as it was.
        """
        old = self.manifest
        assert old is not None
        entries, steps = list(old.chunks), old.steps
        for records in chunks:
            entries.append(self._save(f"chunk-{len(entries):06d}.npy", records, steps, len(records)))
            steps += len(records)
        # never over the file that the present manifest lists
        saved = self._save(f"state-{len(entries):06d}.npy", state, steps, 0) if chunks else old.state
        manifest = Manifest(old.identity, entries, saved, steps, complete)
        self._write(MANIFEST, manifest.to_json())
        self.manifest = manifest
        if old.state is not None and old.state is not saved:
            with suppress(OSError):
                os.unlink(self.path / old.state.file)

    def _save(self, name: str, records: np.ndarray, first: int, count: int) -> Entry:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(records), (2, 0), allow_pickle=False)
        raw = stream.getvalue()
        self._write(name, raw)
        return Entry(name, hashlib.sha256(raw).hexdigest(), len(raw), first, count)

    def _write(self, name: str, raw: bytes) -> None:
        """Write a file so that it is there as a whole or not at all."""
        temporary = self.path / f"{name}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
            directory = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
