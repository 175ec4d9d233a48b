"""What the driver runs: one chain of an algorithm, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from jax.sharding import Mesh

from mcx.errors import MethodError
from mcx.types import Key, PyTree, Stats


class Kernel:
    """One chain of an algorithm: a state, and pure functions that start it and move it.

    A subclass has to have :meth:`init` and :meth:`step`; everything else has a default. It is hashable and
    compares by value, as a frozen dataclass does, because compiled programs are cached by it. Whatever may
    change between runs (data, initial points) comes in as an argument. States, draws and data are pytrees.
    """

    def init(self, data: PyTree, key: Key, start: PyTree) -> PyTree:
        """The state at step 0.

        Args:
            data: the model's data, or whatever else the kernel needs that may change between runs.
            key: of this chain.
            start: the initial point of this chain, or None.
        """
        raise NotImplementedError

    def step(self, data: PyTree, key: Key, state: PyTree, u: PyTree) -> tuple[PyTree, PyTree]:
        """One step: the new state, and what :meth:`collect` needs to know of the step.

        Args:
            data: as for :meth:`init`.
            key: of this chain and step.
            state: before the step.
            u: this step's input, or None where the run has no inputs.
        """
        raise NotImplementedError

    def collect(self, state: PyTree, info: PyTree) -> tuple[PyTree, Mapping[str, PyTree]]:
        """A draw and statistics by name from a step's state and info. The default keeps both as the draw."""
        return {"state": state, "info": info}, {}

    def emit(self, data: PyTree, draw: PyTree) -> PyTree:
        """What is returned for a kept draw, computed outside of the loop; by default the draw itself."""
        return draw

    def report(self, stats: Stats) -> Mapping[str, float]:
        """What the progress bar shows, from the statistics of a chunk (steps x chains, on the host)."""
        return {}

    def stop(self, stats: Stats) -> bool:
        """Whether the run ends here, decided by the statistics of the chunk that was just run."""
        return False

    @property
    def open_ended(self) -> bool:
        """Whether the run ends properly by :meth:`stop`, so that its number of steps is only a bound."""
        return False

    def finished(self, state: PyTree) -> PyTree:
        """Whether a state has come to its end, a truth value; for kernels that are open-ended."""
        raise NotImplementedError

    @property
    def block_size(self) -> int | None:
        """Number of steps after which :meth:`end_block` is called each time; None is never."""
        return None

    def end_block(self, state: PyTree) -> PyTree:
        """The state after a block of steps, computed outside of the inner loop."""
        return state

    @property
    def pooled(self) -> bool:
        """Whether chains compute averages over all chains of the run (:mod:`mcx.ops.collectives`)."""
        return False

    @property
    def size(self) -> int | None:
        """Length of those leading axes of a state that several devices may share; None if there are none."""
        return None

    def over_mesh(self, mesh: Mesh) -> Self:
        """The same kernel with states spread over the devices of a mesh; for kernels with a ``size``."""
        raise MethodError(f"one chain of {type(self).__name__} cannot be spread over several devices")


class _PlainKernel(Kernel):
    """A :class:`Kernel` made of any object with ``init(key)`` and ``step(key, state) -> (state, info)``.

    A BlackJAX ``SamplingAlgorithm`` is one: its ``init`` takes a position, the run's initial point.
    """

    def __init__(self, algorithm: Any, collect: Callable[[PyTree, PyTree], PyTree] | None = None) -> None:
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

    def init(self, data: PyTree, key: Key, start: PyTree) -> PyTree:
        return self.algorithm.init(key if start is None else start)

    def step(self, data: PyTree, key: Key, state: PyTree, u: PyTree) -> tuple[PyTree, PyTree]:
        return self.algorithm.step(key, state) if u is None else self.algorithm.step(key, state, u)

    def collect(self, state: PyTree, info: PyTree) -> tuple[PyTree, Mapping[str, PyTree]]:
        return super().collect(state, info) if self._collect is None else (self._collect(state, info), {})


def as_kernel(kernel: Any, collect: Callable[[PyTree, PyTree], PyTree] | None = None) -> Kernel:
    """A :class:`Kernel` as it is, or one made of any object with ``init`` and ``step``."""
    if isinstance(kernel, Kernel):
        return kernel
    if not (callable(getattr(kernel, "init", None)) and callable(getattr(kernel, "step", None))):
        raise MethodError(
            "the first argument of mcx.run is no kernel",
            expected="a subclass of mcx.Kernel, or an object with init(key) and step(key, state)",
            found=type(kernel).__name__,
        )
    if hasattr(kernel, "emit") and hasattr(kernel, "collect"):
        raise MethodError(
            "the first argument of mcx.run has a kernel's methods, but does not derive from mcx.Kernel",
            expected=f"class {type(kernel).__name__}(mcx.Kernel)",
            found=type(kernel).__name__,
        )
    return _PlainKernel(kernel, collect)
