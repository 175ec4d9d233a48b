"""What the driver runs: one chain of an algorithm, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["Kernel", "as_kernel"]


@runtime_checkable
class Kernel(Protocol):
    """One chain of an algorithm.

    A kernel is hashable and compares by value: compiled programs are cached on it. Whatever may change
    between runs (data, starting points) comes in as an argument. A kernel with an attribute ``block_size``
    has its ``end_block(state) -> state`` called after every step whose number is a multiple of it; one with a
    method ``stop(stats) -> bool`` may end the run after a chunk, by that chunk's statistics; where it is
    ``open_ended`` that is the run's proper end, and the number of steps only a bound. One with a
    ``size`` has states with leading axes of so many entries; ``over_mesh(mesh)`` gives the same kernel, which
    keeps them spread over devices. One that pools over chains (:mod:`mcx.ops.collectives`) says so by
    ``pooled``.
    """

    def init(self, data: Any, key: Any, start: Any) -> Any:
        """State at step 0 from a key and an optional starting point."""
        ...

    def step(self, data: Any, key: Any, state: Any, u: Any) -> tuple[Any, Any]:
        """One step: ``(state, info)``; ``u`` is this step's input, None where there are none."""
        ...

    def collect(self, state: Any, info: Any) -> tuple[Any, Mapping[str, Any]]:
        """What to keep of a step: a draw (any pytree) and its statistics (scalars by name)."""
        ...

    def emit(self, data: Any, draw: Any) -> Any:
        """What leaves the device for a kept draw; runs outside of the loop."""
        ...

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the progress bar shows, from the statistics of a chunk (numpy, steps x chains)."""
        ...


class _PlainKernel:
    """Any object with ``init(key)`` and ``step(key, state) -> (state, info)``, made a :class:`Kernel`.

    A BlackJAX ``SamplingAlgorithm`` fits: its ``init`` takes a position, which is then the run's ``start``.
    """

    def __init__(self, algorithm: Any, collect: Callable[[Any, Any], Any] | None = None) -> None:
        self.algorithm = algorithm
        self._collect = collect

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _PlainKernel)
            and self.algorithm is other.algorithm
            and self._collect is other._collect
        )

    def __hash__(self) -> int:
        return hash((id(self.algorithm), id(self._collect)))

    def init(self, data: Any, key: Any, start: Any) -> Any:
        return self.algorithm.init(key if start is None else start)

    def step(self, data: Any, key: Any, state: Any, u: Any) -> tuple[Any, Any]:
        result: tuple[Any, Any] = (
            self.algorithm.step(key, state) if u is None else self.algorithm.step(key, state, u)
        )
        return result

    def collect(self, state: Any, info: Any) -> tuple[Any, Mapping[str, Any]]:
        if self._collect is not None:
            return self._collect(state, info), {}
        return {"state": state, "info": info}, {}

    def emit(self, data: Any, draw: Any) -> Any:
        return draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}


def as_kernel(kernel: Any, collect: Callable[[Any, Any], Any] | None = None) -> Kernel:
    """A :class:`Kernel` as it is, or any ``init``/``step`` object made one."""
    return kernel if isinstance(kernel, Kernel) else _PlainKernel(kernel, collect)
