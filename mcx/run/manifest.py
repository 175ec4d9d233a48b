"""The list of what a checkpoint holds: JSON that is not trusted when it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcx.errors import CheckpointCorrupt

_FORMAT, _VERSION = "mcx checkpoint", 1
_SHA = re.compile(r"[0-9a-f]{64}")
_MAX_FILE = 2**36


@dataclass(frozen=True)
class File:
    """A file that the manifest lists."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A chunk of ``count`` steps from step ``first`` on, or a state; its files hold chain after chain."""

    first: int
    count: int
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, object]:
        """The entry as JSON has it."""
        return {"first": self.first, "count": self.count, "files": [vars(file) for file in self.files]}


@dataclass
class Manifest:
    """What a directory holds: the run's identity, chunks in the order of their steps, the state after them.

    There is no state before the first chunk; ``complete`` says whether the run came to its end.
    """

    identity: dict[str, str]
    chunks: list[Entry] = field(default_factory=list)
    state: Entry | None = None
    steps: int = 0
    complete: bool = False

    def to_json(self) -> bytes:
        """The content of the manifest's file."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": self.identity,
            "steps": self.steps,
            "complete": self.complete,
            "state": None if self.state is None else self.state.to_dict(),
            "chunks": [chunk.to_dict() for chunk in self.chunks],
        }
        return json.dumps(content, indent=1).encode()

    @classmethod
    def of_json(cls, raw: bytes, where: Path) -> Manifest:
        """Read and check the content of a file; raises CheckpointCorrupt."""
        try:
            content = json.loads(raw)
            _expect(isinstance(content, dict) and content.get("format") == _FORMAT, "the format")
            _expect(content.get("version") == _VERSION, f"version {_VERSION}")
            identity, chunks = content["identity"], content["chunks"]
            _expect(
                isinstance(identity, dict) and all(isinstance(v, str) for v in identity.values()), "identity"
            )
            _expect(isinstance(chunks, list) and isinstance(content["complete"], bool), "chunks")
            entries = [_entry(c, f"chunk-{i:06d}") for i, c in enumerate(chunks)]
            state = None if content["state"] is None else _entry(content["state"], f"state-{len(chunks):06d}")
            end = 0
            for entry in entries:
                _expect(entry.first == end and entry.count > 0, "chunks that follow each other")
                end += entry.count
            _expect(_is_int(content["steps"]) and content["steps"] == end, "as many steps as the chunks have")
            _expect((state is None) == (end == 0), "a state after the last chunk")
            _expect(state is None or (state.first, state.count) == (end, 0), "the state after the last chunk")
            steps, discarded = _number(identity, "steps", 2**62), _number(identity, "discarded steps", 0)
            _expect(max(end, discarded) <= steps, "no more steps than the run has")
            whole = all(e.first >= discarded or e.first + e.count <= discarded for e in entries)
            _expect(whole, "chunks that are discarded, or kept, as a whole")
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


def _number(identity: Mapping[str, str], name: str, default: int) -> int:
    """A number of the identity, where it has one of this name."""
    if name not in identity:
        return default
    _expect(re.fullmatch("[0-9]{1,18}", identity[name]) is not None, f"a number for {name!r}")
    return int(identity[name])


def _is_int(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**62


def _entry(raw: Any, name: str) -> Entry:
    _expect(isinstance(raw, dict) and set(raw) == {"first", "count", "files"}, "an entry")
    _expect(_is_int(raw["first"]) and _is_int(raw["count"]), "counts")
    files = raw["files"]
    _expect(isinstance(files, list) and len(files) > 0, "files")
    return Entry(
        raw["first"],
        raw["count"],
        tuple(_file(f, file_name(name, host, len(files))) for host, f in enumerate(files)),
    )


def file_name(name: str, host: int, num_hosts: int) -> str:
    """The name of a process's file of a chunk or a state; there is no other that it could have."""
    return f"{name}.npy" if num_hosts == 1 else f"{name}-{host:04d}.npy"


def _file(raw: Any, name: str) -> File:
    _expect(isinstance(raw, dict) and set(raw) == {"file", "sha256", "size"}, "a file")
    _expect(raw["file"] == name, f"the file {name}")
    _expect(isinstance(raw["sha256"], str) and _SHA.fullmatch(raw["sha256"]) is not None, "a SHA-256")
    _expect(_is_int(raw["size"]) and raw["size"] <= _MAX_FILE, "a size")
    return File(**raw)
