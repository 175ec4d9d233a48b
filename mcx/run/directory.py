"""A directory that may come from somebody else: held open, and never followed out of.

Everything goes through one handle, so that a directory that is swapped for another, or for a link, while a
run goes on is not written to. Files are made anew under random names, and renamed when they are whole: what
lies there already, be it a link, a hard link or a pipe, is neither opened for writing nor followed.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one directory go unnoticed
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRESENT = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotRegular(OSError):
    """A file that is no regular one: a link, a pipe, a device, a directory."""


class Directory:
    """A directory by its path, opened when it is first used; OSError says what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def handle(self) -> int:
        """The descriptor of the open directory."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._handle)
        return self._handle

    def make(self) -> None:
        """Make it, and its parents, where it is not there."""
        if self._handle is None:
            self.path.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether there is anything of this name, a broken link included."""
        try:
            os.stat(name, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str, limit: int) -> bytes | None:
        """Content of a regular file; None if it has more than ``limit`` bytes."""
        with os.fdopen(self._opened(name, os.O_RDONLY), "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                return None
            content = file.read(limit + 1)
        return content if len(content) <= limit else None

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file so that it exists as a whole or not at all, and replace what has its name."""
        temporary = f".{name}.{secrets.token_hex(8)}"
        descriptor = self.create(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=self.handle, dst_dir_fd=self.handle)
            os.fsync(self.handle)
        except BaseException:
            self.remove(temporary)
            raise

    def create(self, name: str, mode: int = os.O_WRONLY) -> int:
        """A descriptor of a new file; FileExistsError if there is anything of this name."""
        return os.open(name, mode | _NEW, 0o644, dir_fd=self.handle)

    def remove(self, name: str) -> None:
        """Remove a file, or a link itself, if it is there and can be removed."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self.handle)

    def remove_leftovers(self) -> None:
        """Remove what writers that were killed left behind; only the holder of the lock may."""
        for name in os.listdir(self.handle):
            if _TEMPORARY.fullmatch(name):
                self.remove(name)

    def lock(self, name: str) -> int | None:
        """A descriptor that holds the lock of this directory as long as it is open; None if another has it.

        The file is neither written to nor truncated.
        """
        try:
            descriptor = self.create(name, os.O_RDWR)
        except FileExistsError:
            descriptor = self._opened(name, os.O_RDWR)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _opened(self, name: str, mode: int) -> int:
        descriptor = os.open(name, mode | _PRESENT, dir_fd=self.handle)
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            os.close(descriptor)
            raise NotRegular(0, f"no regular file, but {stat.filemode(kind)}")
        return descriptor
