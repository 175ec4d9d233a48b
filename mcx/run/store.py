"""A directory of chunks on disk: what a run has drawn so far, and the state to go on from.

Chunks are ``.npy`` files of plain records, steps x chains. Each is written to a temporary file, synced, and
renamed; only then does the manifest, written the same way, list it with its length and SHA-256: so whatever
it lists is whole, whenever the process is killed. Each process writes its own chains, and process 0 the
manifest. Nothing that is read is executed: there are no pickles, names of files follow a pattern, and sizes
are checked before memory is allocated. Nothing is written out of the directory (:mod:`mcx.run.directory`).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mcx.errors import CheckpointCorrupt, CheckpointError, CheckpointInUse
from mcx.run.directory import Directory
from mcx.run.hosts import ALONE, Hosts
from mcx.run.manifest import Entry, File, Manifest, file_name

MANIFEST, LOCK, _PROBE = "manifest.json", "lock", "probe"
_MAX_MANIFEST, _MAX_HEADER = 64 * 2**20, 2**20


class Store:
    """A directory, open for one run, of all of its processes, or for reading."""

    def __init__(self, path: str | Path, hosts: Hosts = ALONE) -> None:
        self.path, self.hosts = Path(path), hosts
        self.directory = Directory(self.path)
        self.manifest: Manifest | None = None

    # reading -------------------------------------------------------------------------------------

    def read(self) -> Manifest | None:
        """The manifest, or None where there is none yet; raises CheckpointCorrupt if it cannot be used."""
        try:
            there = self.directory.has(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be opened as a directory",
                found=error.strerror or str(error),
                remedy="give checkpoint= a directory",
            ) from None
        self.manifest = None
        if there:
            raw = self._bytes(MANIFEST, _MAX_MANIFEST)
            self.manifest = Manifest.of_json(raw, self.path / MANIFEST)
        return self.manifest

    def load(
        self, entry: Entry, dtype: np.dtype[Any] | None = None, columns: int | None = None
    ) -> np.ndarray:
        """The records of an entry's files, verified, of the required type and number of chains."""
        parts = [self._records(file, dtype) for file in entry.files]
        steps = () if entry.files[0].file.startswith("state") else (entry.count,)
        name, axis = entry.files[0].file, len(steps)
        if any(p.ndim != axis + 1 or p.shape[:axis] != steps or p.dtype != parts[0].dtype for p in parts):
            raise self.corrupt(name, "holds no chunk", f"shapes {', '.join(str(p.shape) for p in parts)}")
        found = sum(part.shape[axis] for part in parts)
        if not found:
            raise self.corrupt(name, "holds no chunk", "no chains")
        if columns not in (None, found):
            raise self.corrupt(name, "holds no chunk", f"{found} chains, not {columns}")
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)

    def _records(self, file: File, dtype: np.dtype[Any] | None) -> np.ndarray:
        raw = self._bytes(file.file, file.size)
        if len(raw) != file.size or hashlib.sha256(raw).hexdigest() != file.sha256:
            found = f"{len(raw)} bytes, where {file.size} were written" if len(raw) != file.size else None
            raise self.corrupt(file.file, "is not what was written", found or "another SHA-256")
        try:
            stream = io.BytesIO(raw)
            if np.lib.format.read_magic(stream) != (2, 0):
                raise ValueError("another version of the format")
            shape, fortran, found_dtype = np.lib.format.read_array_header_2_0(stream, _MAX_HEADER)
            if fortran or not _plain(found_dtype):
                raise ValueError("no plain records")
            size = int(np.prod(shape, dtype=object)) * found_dtype.itemsize
            if min(shape, default=0) < 0 or size != len(raw) - stream.tell():
                raise ValueError("a shape that does not fit the file's length")
            if dtype is not None and found_dtype != dtype:
                raise ValueError(f"records of {found_dtype}, not of {dtype}")
        except Exception as error:  # hostile input makes the parser raise errors of many kinds
            raise self.corrupt(file.file, "holds no chunk", str(error)) from None
        return np.frombuffer(raw, found_dtype, offset=stream.tell()).reshape(shape)

    def _bytes(self, name: str, limit: int) -> bytes:
        """Content of a regular file; links are not followed."""
        try:
            content = self.directory.read(name, limit)
        except OSError as error:
            raise self.corrupt(name, "cannot be read", error.strerror or str(error)) from None
        if content is None:
            raise self.corrupt(name, "is larger than it may be", f"more than {limit} bytes")
        return content

    def corrupt(self, name: str, what: str, found: str) -> CheckpointCorrupt:
        """The error about a file that is not what it should be."""
        return CheckpointCorrupt(
            f"{self.path / name} {what}",
            found=found,
            remedy="restore the directory from a copy, or delete it and run again",
        )

    # writing -------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory, made if need be, for one run; the lock ends with the process."""
        refusal: CheckpointError | None = None
        descriptor = None
        if self.hosts.leads:
            try:
                descriptor = self._lock()
            except CheckpointError as error:
                refusal = error
        try:
            if self.hosts.any(refusal is not None):
                raise refusal or CheckpointError(
                    f"process 0 cannot use the directory {self.path}", remedy="see what it says"
                )
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _lock(self) -> int:
        try:
            self.directory.make()
            descriptor = self.directory.lock(LOCK)
        except OSError as error:
            raise self._unwritable(error) from None
        if descriptor is None:
            raise CheckpointInUse(
                f"another run writes to the directory {self.path}",
                remedy="wait for it to end, or give checkpoint= another directory",
            )
        try:
            self.directory.write(_PROBE, b"")
            self.directory.remove(_PROBE)
            self.directory.remove_leftovers()
        except OSError as error:
            os.close(descriptor)
            raise self._unwritable(error) from None
        return descriptor

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"nothing can be written to the directory {self.path}",
            found=error.strerror or str(error),
            remedy="give checkpoint= a directory that can be written to",
        )

    def begin(self, identity: Mapping[str, str]) -> None:
        """Begin a run with an empty manifest; raises CheckpointError if it cannot be written."""
        try:
            self._replace(Manifest(dict(identity)))
        except OSError as error:
            raise self._unwritable(error) from None

    def append(self, chunks: list[np.ndarray], state: np.ndarray, complete: bool) -> None:
        """Add chunks of records, (steps, chains) each, and the state after them; each process has its share.

        If they cannot be written, what was there before stays as it was.
        """
        old = self.manifest
        assert old is not None
        if not chunks:
            self._replace(Manifest(old.identity, old.chunks, old.state, old.steps, complete))
            return
        number, steps = len(old.chunks), old.steps
        parts = {
            f"chunk-{number + i:06d}": records[:, self.hosts.share(records.shape[1])]
            for i, records in enumerate(chunks)
        }
        # a new name, because the present manifest lists the old file
        parts[f"state-{number + len(chunks):06d}"] = state[self.hosts.share(len(state))]
        *files, saved = self._save(parts)
        entries = list(old.chunks)
        for records, own in zip(chunks, files, strict=True):
            entries.append(Entry(steps, len(records), own))
            steps += len(records)
        self._replace(Manifest(old.identity, entries, Entry(steps, 0, saved), steps, complete))
        if old.state is not None and self.hosts.leads:
            for file in old.state.files:
                self.directory.remove(file.file)

    def _replace(self, manifest: Manifest) -> None:
        """Replace the manifest. Process 0 does so for all."""
        failure: OSError | None = None
        if self.hosts.leads:
            try:
                self.directory.write(MANIFEST, manifest.to_json())
            except OSError as error:
                failure = error
        self._agree(failure)
        self.manifest = manifest

    def _save(self, parts: Mapping[str, np.ndarray]) -> list[tuple[File, ...]]:
        """Write this process's arrays of records; gives the files of all processes for each array."""
        failure: OSError | None = None
        facts = np.zeros((len(parts), 40), np.uint8)  # SHA-256 and size
        for own, (name, records) in zip(facts, parts.items(), strict=True):
            pieces = _npy(records)
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
            own[:32] = np.frombuffer(digest.digest(), np.uint8)
            own[32:] = np.frombuffer(sum(map(len, pieces)).to_bytes(8, "big"), np.uint8)
            try:
                self.directory.write(file_name(name, self.hosts.index, self.hosts.count), *pieces)
            except OSError as error:
                failure = error
                break
        self._agree(failure)
        every = self.hosts.gather(facts)
        return [
            tuple(
                File(
                    file_name(name, host, self.hosts.count),
                    facts[:32].tobytes().hex(),
                    int.from_bytes(facts[32:].tobytes()),
                )
                for host, facts in enumerate(every[:, i])
            )
            for i, name in enumerate(parts)
        ]

    def _agree(self, failure: OSError | None) -> None:
        """Raise if writing failed in any process."""
        if self.hosts.any(failure is not None):
            raise failure or OSError("another process could not write")


def _plain(dtype: np.dtype[Any]) -> bool:
    """Whether records hold nothing but numbers."""
    fields = [dtype[name].base for name in dtype.names or ()]
    return dtype.itemsize > 0 and bool(fields) and all(f.names is None and f.kind in "biufc" for f in fields)


def _npy(records: np.ndarray) -> tuple[bytes, memoryview]:
    """The content of a ``.npy`` file: its header, and the records, which are not copied."""
    records = np.ascontiguousarray(records)
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, np.lib.format.header_data_from_array_1_0(records))
    return stream.getvalue(), memoryview(records.reshape(-1).view(np.uint8))
