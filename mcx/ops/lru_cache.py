"""A cache of the values that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import cast

_NOTHING = object()


class LRUCache[T]:
    """Values by key, at most ``size`` of them; the least recently used one is dropped first."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value kept for a key; where there is none, ``make`` makes it. Errors keep nothing."""
        found = self._kept.get(key, _NOTHING)
        value = make() if found is _NOTHING else cast(T, found)
        with self._lock:  # threads may drop each other's entries
            self._kept[key] = value
            self._kept.move_to_end(key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
