"""Statistics of particles that are carried forward in time: the recursion behind PaRIS and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.smc.backward import backward_weights, parents
from mcx.inference.smc.engine import (
    SMCInfo,
    SMCSettings,
    SMCState,
    first_and_rest,
    initialize,
    move,
    prepended,
)
from mcx.inference.smc.resampling import Resampling
from mcx.inference.smoothing.additive import Summand
from mcx.ops.logspace import weighted_sum
from mcx.target import FeynmanKac
from mcx.types import Array, Index, Int, Key, PyTree


class Smoothing(NamedTuple):
    """Settings of the filter, and how parents are drawn; static.

    See :func:`~mcx.inference.smc.backward.parents`; "all" takes the expectation over all of them instead.
    """

    system: SMCSettings
    backward: str
    num_backward: int
    num_mh_steps: int


class Trail(NamedTuple):
    """A particle system with a statistic for each particle, a pytree of (N, ...).

    It is the expectation of the functional up to now, given that the path ends here.
    """

    system: SMCState
    statistic: PyTree


def value(trail: Trail) -> PyTree:
    """The functional's expectation given the observations so far; NaN after a collapse."""
    system = trail.system
    w = jnp.where(system.collapsed, jnp.nan, jnp.exp(system.log_w))
    return jax.tree.map(partial(weighted_sum, w), trail.statistic)


class Recursion(NamedTuple):
    """What carries statistics from one time to the next; ``extra`` is what ``summand.extra_context`` gave."""

    fk: FeynmanKac
    ctx: PyTree
    extra: PyTree
    summand: Summand
    smoothing: Smoothing

    def start(self, system: SMCState, u: PyTree) -> Trail:
        """Statistics of the system at time 0."""
        initial = partial(self.summand.initial, self.fk, self.ctx, self.extra)
        terms = jax.vmap(lambda x: initial(x, u))(system.particles)
        if self.summand.by_time:
            terms = jax.tree.map(
                lambda h: jnp.zeros((h.shape[0], self.fk.num_times, *h.shape[1:]), h.dtype).at[:, 0].set(h),
                terms,
            )
        return Trail(system, terms)

    def advance(
        self, key: Key, old: Trail, new: SMCState, u: PyTree, t: Int[Array, ""]
    ) -> tuple[Trail, Index]:
        """Carry the statistics over to a system at the next time t; also the first parent drawn for each."""
        before, smoothing = (old.system.particles, old.system.log_w), self.smoothing

        def terms(chosen: tuple[PyTree, PyTree], x: PyTree) -> PyTree:
            return jax.vmap(lambda a, s: self._term(s, (a, x), u, t))(*chosen)

        if smoothing.backward == "all":

            def expected(x: PyTree) -> PyTree:
                w = jnp.exp(backward_weights(self.fk, self.ctx, before, x, u))
                every = terms((before[0], old.statistic), x)
                return jax.tree.map(lambda h: jnp.tensordot(w, h, 1, precision="highest"), every)

            return Trail(new, jax.lax.map(expected, new.particles)), new.ancestors

        _, kind, num_draws, num_mh_steps = smoothing
        draw = partial(parents, num_draws=num_draws, kind=kind, num_mh_steps=num_mh_steps)
        drawn = draw(key, self.fk, self.ctx, before, (new.particles, new.ancestors), u)

        def average(index: Int[Array, " M"], x: PyTree) -> PyTree:
            chosen = jax.tree.map(lambda a: a[index], (before[0], old.statistic))
            return jax.tree.map(lambda h: jnp.mean(h, 0), terms(chosen, x))

        return Trail(new, jax.vmap(average)(drawn, new.particles)), drawn[:, 0]

    def _term(self, so_far: PyTree, pair: tuple[PyTree, PyTree], u: PyTree, t: Int[Array, ""]) -> PyTree:
        term = self.summand.step(self.fk, self.ctx, self.extra, pair, u, t)
        if self.summand.by_time:
            return jax.tree.map(lambda s, h: s.at[t].set(h), so_far, term)
        return jax.tree.map(jnp.add, so_far, term)


def forward(
    key: Key,
    recursion: Recursion,
    *,
    system_of: FeynmanKac | None = None,
    scheme: Callable[[SMCState, PyTree], Resampling] | None = None,
    keep: Callable[[SMCState, Index], PyTree] | None = None,
) -> tuple[Trail, SMCInfo, PyTree]:
    """Run the recursion over all times: the last statistics, what happened at each time, and what was kept.

    Particles may follow ``system_of``, a model of the same kernels and potentials with inputs of its own, and
    a ``scheme`` of resampling that depends on the system. Costs O(T N M) by Metropolis-Hastings.
    """
    fk, settings = recursion.fk, recursion.smoothing.system
    model = fk if system_of is None else system_of
    key_start, key_run = jax.random.split(key)
    at_start, later = first_and_rest((fk.inputs, model.inputs))
    system = initialize(key_start, model, recursion.ctx, at_start[1], settings)

    def kept(system: SMCState, drawn: Index) -> tuple[SMCInfo, PyTree]:
        return system.info, None if keep is None else keep(system, drawn)

    def step(trail: Trail, x: PyTree) -> tuple[Trail, PyTree]:
        key, t, (u, u_system) = x
        key_move, key_back = jax.random.split(key)
        own = settings if scheme is None else replace(settings, resampling=scheme(trail.system, u_system))
        new = move(key_move, model, recursion.ctx, trail.system, u_system, own)
        trail, drawn = recursion.advance(key_back, trail, new, u, t)
        return trail, kept(new, drawn)

    keys = jax.random.split(key_run, fk.num_times - 1)
    start = kept(system, system.ancestors)
    trail = recursion.start(system, at_start[0])
    trail, rest = jax.lax.scan(step, trail, (keys, jnp.arange(1, fk.num_times), later))
    return trail, *prepended(start, rest)
