"""SMC^2 with filters that get more particles where noise in their evidence makes moves fail."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from mcx.inference.pmmh.num_particles import BEST_SD, MOST_SD, nearest_to_mean, replicates, sd_of
from mcx.inference.smc.engine import SMCState
from mcx.inference.smc2.kernel import SMC2Kernel, inputs, lost
from mcx.inference.smc2.nested import NestedFilterData, NestedFilters, populate
from mcx.inference.smc2.nested_paths import grow
from mcx.ops.keys import Stream, stream
from mcx.run.checkpoint import Checkpoint
from mcx.run.driver import Run, run
from mcx.types import Array, Float, IntLike, Key, Scalar, Vector

_MOST_PARTICLES = 2**14
_MAX_FACTOR = 4  # the first estimate is unreliable where noise is large


def run_growing(
    kernel: SMC2Kernel,
    data: NestedFilterData,
    *,
    key: Key,
    title: str,
    checkpoint: Checkpoint | None,
    **options: Any,
) -> tuple[NestedFilters, Run]:
    """Run SMC^2 in parts, each with at least as many inner particles as the one before; gives all as one run.

    A part ends where moves of a replicate are accepted less often than the kernel's ``least_acceptance``.
    Filters of all replicates then grow if the log evidence at a central parameter has a standard deviation
    above the best one for PMMH; if it has not, more particles would not help. The last moves, from which the
    draws come, are a part of their own, before which filters grow if that standard deviation is above 1.8.
    """
    state, done, total = None, 0, data.num_times
    parts: list[Run] = []
    while True:
        number, part = kernel.nesting.settings.num_particles, len(parts)
        end = total if done >= total - 1 else total - 1
        result = run(
            kernel,
            data,
            key=key if part == 0 else _part_key(key, Stream.GROWING_PARTS, part),
            num_steps=end - done,
            init=state,
            inputs=jax.tree.map(lambda x, begin=done, end=end: x[begin:end], inputs(total)),
            title=f"{title}, {number} particles",
            chunk_size=1,  # so that the kernel may stop after any move
            capacity=1,
            checkpoint=None if checkpoint is None else checkpoint.part(f"part-{part + 1}"),
            **options,
        )
        options.pop("on_start", None)  # they belong to the start
        options.pop("while_compiling", None)
        parts.append(result)
        done += result.num_steps
        if done == total or result.interrupted or lost(result.stats):
            return kernel.nesting, _as_one(parts)
        state, seen = result.state, done + 1
        sd = _noise(kernel.nesting, data, _part_key(key, Stream.GROWING_NOISE, part), state, seen)
        refused = kernel.stop(result.stats)
        most = min(number * _factor(sd), _MOST_PARTICLES)
        if most > number and (refused or sd > MOST_SD):
            settings = replace(kernel.nesting.settings, num_particles=most)
            wider = replace(kernel.nesting, settings=settings)
            particles = grow(
                kernel.nesting, wider, data, _part_key(key, Stream.GROWTH, part), state.particles, seen
            )
            state = state._replace(particles=particles)
            kernel = replace(kernel, nesting=wider)
        elif number == _MOST_PARTICLES:
            kernel = replace(kernel, least_acceptance=0.0)


def _part_key(key: Key, name: Stream, part: int) -> Key:
    return jax.random.fold_in(stream(key, name), part)


def _factor(sd: float) -> int:
    """Factor of the number of particles, a power of two; the variance falls as 1 / N once it is moderate."""
    if sd <= BEST_SD:
        return 1
    return 2 ** math.ceil(math.log2(min((sd / BEST_SD) ** 2, _MAX_FACTOR)))


def _noise(nesting: NestedFilters, data: NestedFilterData, key: Key, state: SMCState, seen: int) -> float:
    """Standard deviation of the log evidence of the observations so far, at a central parameter."""
    position, log_w = np.asarray(state.particles.position), np.asarray(state.log_w)
    central = nearest_to_mean(position[log_w > -np.inf][None])
    return sd_of(_log_evidences(nesting, data, key, central, seen - 1))


@partial(jax.jit, static_argnums=0)
def _log_evidences(
    nesting: NestedFilters, data: NestedFilterData, key: Key, position: Vector, t: IntLike
) -> Float[Array, " replicate"]:
    def one(key: Key) -> Scalar:
        return populate(nesting, data, key, position, t).log_evidence

    return replicates(one, key, nesting.settings)


def _as_one(parts: list[Run]) -> Run:
    stats = {
        name: np.concatenate([part.stats[name] for part in parts if part.stats], 1) for name in parts[0].stats
    }
    return replace(
        parts[-1],
        stats=stats,
        num_steps=sum(part.num_steps for part in parts),
        compile_time=sum(part.compile_time for part in parts),
        run_time=sum(part.run_time for part in parts),
    )
