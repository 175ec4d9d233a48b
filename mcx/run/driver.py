"""The one host loop that runs every algorithm, in jitted chunks of steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from mcx.errors import DeviceMemoryError, MethodError
from mcx.ops.keys import as_key
from mcx.ops.tracing import is_traced
from mcx.ops.validation import function, integer, optional, refuse, validated
from mcx.run.checkpoint import Checkpoint, Recorder, recording
from mcx.run.devices import CHAINS, REPLICATED, Devices, as_mesh, place
from mcx.run.draws import Draws
from mcx.run.hosts import Hosts, hosts_of
from mcx.run.kernel import Kernel, as_kernel
from mcx.run.memory import explained
from mcx.run.programs import Programs, chain_keys, prepare
from mcx.run.progress import Progress, make_progress
from mcx.types import KeyLike, Keys, PyTree

_SECONDS_PER_CHUNK = 0.4


@dataclass
class Run:
    """What a run leaves behind.

    Attributes:
        draws: kept draws, a pytree of numpy arrays, chain x draw x event.
        stats: statistics of every step, by name, chain x step (discarded steps first).
        state: the last states, on the device, one a chain.
        num_steps: number of steps taken, of which the first ``num_discard`` are not among the draws.
        complete: False where the run was stopped before its end.
        compile_time, run_time: seconds.
        num_nonfinite: kept draws with a NaN or an infinity.
        interrupted: whether Ctrl-C ended it.
    """

    draws: PyTree
    stats: dict[str, np.ndarray]
    state: PyTree
    num_steps: int
    num_discard: int
    complete: bool
    compile_time: float
    run_time: float
    num_nonfinite: int = 0
    interrupted: bool = False


def run(
    kernel: Any,
    data: PyTree = None,
    *,
    key: KeyLike,
    num_steps: int,
    num_chains: int = 4,
    num_discard: int = 0,
    init: PyTree = None,
    inputs: PyTree = None,
    collect: Callable[[PyTree, PyTree], PyTree] | None = None,
    chunk_size: int | None = None,
    capacity: int | None = None,
    progress: bool | str | Progress = True,
    title: str = "mcx",
    on_start: Callable[[PyTree], None] | None = None,
    while_compiling: Callable[[], None] | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
    batch_size: int | None = None,
) -> Run:
    """Run an algorithm: ``num_steps`` steps of ``num_chains`` chains.

    Args:
        kernel: a :class:`~mcx.run.kernel.Kernel`, or any object with ``init(key)`` (or ``init(position)``,
            see ``init``) and ``step(key, state) -> (state, info)``, such as a BlackJAX sampling algorithm.
        data: passed to the kernel's functions; new data of the same shapes compile nothing.
        key: a typed JAX key or an int.
        num_steps: number of steps of each chain, discarded ones included; 0 only starts the chains.
        num_chains: number of independent chains, which are vectorised.
        num_discard: leading steps whose draws are dropped (warm-up); their statistics are kept.
        init: initial points, a pytree with a leading chain axis.
        inputs: a pytree with a leading axis of ``num_steps``; step t sees its t-th entry.
        collect: for a plain ``init``/``step`` object, ``(state, info) -> draw``.
        chunk_size: number of steps after which the host takes over each time; by default as many as take
            about 0.4 s. The results do not depend on it.
        capacity: largest number of steps whose draws the device holds; by default as many as take about
            64 MiB.
        progress: see :func:`~mcx.run.progress.make_progress`.
        title: name that the progress display shows.
        on_start: called with the states at step 0; may raise to refuse the run.
        while_compiling: called while XLA compiles, to do some work on the host.
        checkpoint: a directory to write draws and states to, or a
            :class:`~mcx.run.checkpoint.Checkpoint`. An unfinished run of the same data and key that it holds
            is resumed: the result has the same bits as that of an uninterrupted run on the same machine with
            the same versions.
        devices: the devices that share the chains evenly: a number of them, "all", some of ``jax.devices()``,
            or a mesh; None for the default device. Chains have the same law on any device. A single chain of
            a kernel with a ``size``, such as the particles of a filter, is itself shared. Where the devices
            belong to several processes, all of them make the same call and get the same result.
        batch_size: number of chains of a device that move at once while the others wait, which bounds the
            memory for intermediate values. None is all of them.

    Returns:
        A :class:`Run`. Ctrl-C finishes the chunk under way and returns what there is, with
        ``complete=False``; a second Ctrl-C raises.

    Raises:
        MethodError: if a count is out of range.
        CheckpointError: if the checkpoint cannot be written, or is in use, damaged, or of another run.
        DeviceMemoryError: if the device has not enough memory; what was drawn before is in ``.result``.
    """
    num_steps = validated("run", "num_steps", num_steps, integer(0))
    num_chains = validated("run", "num_chains", num_chains, integer(1))
    num_discard = validated("run", "num_discard", num_discard, integer(0))
    chunk_size = validated("run", "chunk_size", chunk_size, optional(integer(1)))
    capacity = validated("run", "capacity", capacity, optional(integer(1)))
    batch_size = validated("run", "batch_size", batch_size, optional(integer(1)))
    collect = validated("run", "collect", collect, optional(function("a function (state, info) -> draw")))
    init = _leading("run", "init", init, num_chains, "chains")
    inputs = _leading("run", "inputs", inputs, num_steps, "steps")
    if num_discard > num_steps:
        raise MethodError("more steps are discarded than taken", found=f"{num_discard} of {num_steps}")
    if is_traced(data, key, init, inputs):
        raise MethodError(
            "a run was started within a function that JAX traces (jit, vmap, grad)",
            expected="concrete arrays and keys",
            remedy="run it outside; mcx.program gives pure functions",
        )
    kernel = as_kernel(kernel, collect)
    if batch_size is not None and kernel.pooled:
        raise MethodError(
            "these chains move together, so they cannot be moved in batches",
            found=f"batch_size={batch_size}",
            remedy="leave batch_size= out: take fewer chains, or spread them over devices",
        )
    key = as_key(key)
    mesh = as_mesh(devices, num_chains, kernel.size)
    if mesh is not None and num_chains == 1 and mesh.size > 1:
        kernel = kernel.over_mesh(mesh)
    start_keys, keys = place(chain_keys(key, num_chains), mesh, CHAINS)
    hosts = hosts_of(mesh)
    display = make_progress(
        progress if hosts.leads else False, None if kernel.open_ended else num_steps, title
    )
    complete = False
    about = {
        "chains": num_chains,
        "devices": 1 if mesh is None else mesh.size,
        "steps": num_steps,
        "discarded steps": num_discard,
    }
    facts: dict[str, Any] = {}
    with recording(checkpoint, about, key, (data, init, inputs), hosts) as recorder:
        try:
            display.compiling()
            with explained(num_chains, batch_size, facts):
                data, init = place(data, mesh, REPLICATED), place(init, mesh, CHAINS)
                programs, compile_time = prepare(
                    kernel, data, keys, init, inputs, while_compiling, capacity, mesh, batch_size
                )
                facts["programs"] = programs
                display.started()
                begun = time.perf_counter()
                state = facts["state"] = programs.start(data, start_keys, init)
            if on_start is not None:
                on_start(hosts.fetch(state))
            counts = (num_steps, num_discard, chunk_size)
            loop = _Loop(kernel, programs, data, keys, inputs, *counts, state, recorder, hosts)
            try:
                with _deferred_interrupt() as interrupted, explained(num_chains, batch_size, facts):
                    complete = loop.go(display, interrupted)
            except BaseException as error:
                loop.save()
                if isinstance(error, DeviceMemoryError):
                    error.result = loop.result(False, compile_time, time.perf_counter() - begun)
                raise
            result = loop.result(complete, compile_time, time.perf_counter() - begun)
        finally:
            display.close(complete)
    return result


def _leading(owner: str, name: str, tree: PyTree, size: int, what: str) -> PyTree:
    """Arrays with a leading axis; raises MethodError, by the name of the argument, if they are none."""
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        where = name + jax.tree_util.keystr(path)
        shape = getattr(leaf, "shape", None)
        if shape is None:
            refuse(owner, where, leaf, f"arrays with a leading axis of {size} {what}")
        if shape[:1] != (size,):
            raise MethodError(
                f"{owner}({where}=...) has the wrong shape",
                expected=f"a leading axis of {size} {what}",
                found=f"shape {shape}",
            )
    return tree


@dataclass
class _Loop:
    """A run between its chunks: what was taken so far, and how to go on."""

    kernel: Kernel
    programs: Programs
    data: PyTree
    keys: Keys
    inputs: PyTree
    total: int
    discard: int
    chunk_size: int | None
    state: PyTree
    recorder: Recorder | None
    hosts: Hosts

    def __post_init__(self) -> None:
        self.done, self.ended, self.interrupted = 0, False, False
        self.stats: list[PyTree] = []
        self._seconds_per_step: float | None = None
        recorder, programs, discard = self.recorder, self.programs, self.discard
        if recorder is not None:
            self.done, self.state = recorder.resume(programs, self.state, self.keys.shape[0])
        folder = None if recorder is None else recorder.folder
        self.draws = Draws(programs.emitted, self.total - discard, folder, self.hosts.index)
        if recorder is not None:
            for count, stats, draws in recorder.chunks(programs, discard):
                self.stats.append(stats)
                if draws is not None:
                    self.draws.add(draws, count)

    def go(self, display: Progress, interrupted: threading.Event) -> bool:
        self.ended = bool(self.stats and self.kernel.stop(self.stats[-1]))  # of a run that was resumed
        while not (self.ended or self.done == self.total):
            count = self.hosts.lead(self._count())
            begun = time.perf_counter()
            state, draws, stats = self.programs.chunk(
                self.data, self.keys, np.int32(self.done), np.int32(count), self.state, self._inputs(count)
            )
            stats = jax.tree.map(lambda x, n=count: np.asarray(x)[:n], self.hosts.fetch(stats))
            # without what follows, which costs the same for few steps as for many
            self._seconds_per_step = (time.perf_counter() - begun) / count
            self._keep(state, draws, stats, count)
            phase = "warm-up" if self.done <= self.discard else "sampling"
            display.update(self.done, phase, self.kernel.report(stats))
            self.ended = bool(self.kernel.stop(stats))
            stopped = self.hosts.any(interrupted.is_set())
            over = self.ended or stopped or self.done == self.total
            if self.recorder is not None:
                self.recorder.save(self._complete(), now=over)
            if stopped:
                self.interrupted = True
                break
        return self._complete()

    def _complete(self) -> bool:
        return self.done == self.total or (self.ended and self.kernel.open_ended)

    def save(self) -> None:
        """Save what there is when an error ends the run."""
        if self.recorder is not None and self.hosts.count == 1:  # other processes may be gone
            self.recorder.save(False, now=True)

    def _count(self) -> int:
        """Steps of the next chunk, which takes about 0.4 s and never crosses the end of warm-up."""
        left = (self.discard if self.done < self.discard else self.total) - self.done
        if self.chunk_size is not None:
            return min(self.chunk_size, self.programs.capacity, left)
        if self._seconds_per_step is None:
            # the speed is not known yet, and what a kill may lose should be little; but what a kernel emits
            # is computed for a whole buffer at a time
            alone = self.done < self.discard or type(self.kernel).emit is Kernel.emit
            return 1 if alone else min(16, left, self.programs.capacity)
        affordable = int(_SECONDS_PER_CHUNK / max(self._seconds_per_step, 1e-9))
        return max(1, min(affordable, self.programs.capacity, left))

    def _inputs(self, count: int) -> PyTree:
        def cut(x: np.ndarray) -> np.ndarray:
            part = np.asarray(x[self.done : self.done + count])
            pad = [(0, self.programs.capacity - count)] + [(0, 0)] * (part.ndim - 1)
            return np.pad(part, pad)

        return jax.tree.map(cut, self.inputs)

    def _keep(self, state: PyTree, draws: PyTree, stats: PyTree, count: int) -> None:
        kept = None
        if self.done >= self.discard:
            # XLA may round the last entries of a buffer otherwise than the others: a draw has the same place
            # in it whatever the chunk, so that its bits do not depend on how fast the run goes
            capacity = self.programs.capacity
            shift = (self.done - self.discard) % capacity
            emitted = self.hosts.fetch(self.programs.emit(self.data, draws, np.int32(shift)))
            own = (shift + np.arange(count)) % capacity
            kept = jax.tree.map(lambda x: np.asarray(x)[own], jax.device_get(emitted))
        if self.recorder is not None:
            self.recorder.add((count, self.keys.shape[0]), state, stats, kept)
        if kept is not None:
            self.draws.add(kept, count)
        self.stats.append(stats)
        self.state = state
        self.done += count

    def result(self, complete: bool, compile_time: float, run_time: float) -> Run:
        def join(*chunks: np.ndarray) -> np.ndarray:
            """Chunks of step x chain x ..., as an array of chain x step x ..."""
            return np.ascontiguousarray(np.swapaxes(np.concatenate(chunks), 0, 1))

        return Run(
            draws=self.draws.result(),
            stats=jax.tree.map(join, *self.stats) if self.stats else {},
            state=self.hosts.fetch(self.state),
            num_steps=self.done,
            num_discard=self.discard,
            complete=complete,
            compile_time=compile_time,
            run_time=run_time,
            num_nonfinite=self.draws.num_nonfinite,
            interrupted=self.interrupted,
        )


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that the chunk under way is not lost; the second one raises."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals belong to the main thread
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(signum: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
