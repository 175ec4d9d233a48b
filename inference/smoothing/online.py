"""Smoothing as data arrive: one observation a call."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax

from mcx.errors import MethodError
from mcx.inference.filtering.online import OnlineFilter, OnlineState, advance, start
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.smc.backward import check_backward
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smoothing.additive import (
    AdditiveFunctional,
    Functional,
    Summand,
    as_functional,
    summand_of,
)
from mcx.inference.smoothing.paris import PaRIS
from mcx.inference.smoothing.recursion import Recursion, Smoothing, Trail, value
from mcx.model.bound import BoundModel
from mcx.ops.keys import as_key
from mcx.ops.validation import instance, validated
from mcx.target import FeynmanKac
from mcx.types import Key, KeyLike, PyTree, Scalar, SiteValues


class OnlineSmoothing(NamedTuple):
    """A particle system on its way, with the functional's statistic of every particle, (N, ...). A pytree."""

    filtered: OnlineState
    statistic: PyTree

    @property
    def value(self) -> PyTree:
        """The functional's expectation given the observations so far."""
        return value(Trail(self.filtered.system, self.statistic))

    @property
    def log_evidence(self) -> Scalar:
        """Log of the estimated evidence of the observations so far."""
        return self.filtered.log_evidence


class OnlineSmoother:
    """PaRIS that takes one observation at a time, with memory O(N) however long it runs.

    Args:
        bound: a model with a Markov block, bound to data of any length of at least 1: it tells shapes only.
        functional: see :func:`mcx.smooth`; summed over time.
        params: constrained values of every other latent site.
        method: :class:`mcx.PaRIS` by default.
        name: of the Markov block, where the model has several.

    Raises:
        MethodError: for a functional with ``by_time=True``, which has no end here.
        The errors of :func:`mcx.smooth`.

    Source: Olsson and Westerborn (2017).
    """

    def __init__(
        self,
        bound: BoundModel,
        functional: Functional,
        *,
        params: SiteValues | None = None,
        method: PaRIS | None = None,
        name: str | None = None,
    ) -> None:
        method = PaRIS() if method is None else method
        rule = instance(PaRIS, "mcx.PaRIS(...)")
        self.method: PaRIS = validated("OnlineSmoother", "method", method, rule)
        self.functional = as_functional(functional)
        if isinstance(self.functional, AdditiveFunctional) and self.functional.by_time:
            raise MethodError(
                "the functional keeps its terms apart, and there is no end to them",
                expected="by_time=False",
                remedy="mcx.smooth takes it; or use mcx.OnlineFilter for moments of the current state",
            )
        smoothing = self.method.smoothing
        self.filter = OnlineFilter(
            bound,
            params=params,
            num_particles=smoothing.system.num_particles,
            method=ParticleFilter(threshold=smoothing.system.threshold),
            name=name,
        )
        space = self.filter.space
        check_backward("OnlineSmoother", space.feynman_kac, smoothing.backward, space.no_density)
        summand = summand_of(self.functional, space.feynman_kac, space.view)
        self._static = (self.filter.functions, self.filter.settings, summand, smoothing)
        self._contexts = (self.filter.context, summand.extra_context(space.feynman_kac, self.filter.params))

    def init(
        self, key: KeyLike, y: PyTree, *, inputs: PyTree = None, missing: PyTree = None
    ) -> OnlineSmoothing:
        """Take the first observation; see :meth:`mcx.OnlineFilter.init`."""
        u = self.filter.input(y, inputs, missing)
        state = _first(self._static, as_key(key), self._contexts, u)
        self.filter.refuse_faults(state.filtered, state)
        return state

    def step(
        self,
        key: KeyLike,
        state: OnlineSmoothing,
        y: PyTree,
        *,
        inputs: PyTree = None,
        missing: PyTree = None,
    ) -> OnlineSmoothing:
        """Take the next observation. Costs O(N M). Use a new key every time."""
        u = self.filter.input(y, inputs, missing)
        state = _next(self._static, as_key(key), self._contexts, state, u)
        self.filter.refuse_faults(state.filtered, state)
        return state


type _Static = tuple[FeynmanKac, SMCSettings, Summand, Smoothing]


@partial(jax.jit, static_argnums=0)
def _first(static: _Static, key: Key, contexts: tuple[PyTree, PyTree], u: PyTree) -> OnlineSmoothing:
    fk, settings, summand, smoothing = static
    filtered = start(fk, settings, key, contexts[0], u)
    trail = Recursion(fk, *contexts, summand, smoothing).start(filtered.system, u)
    return OnlineSmoothing(filtered, trail.statistic)


@partial(jax.jit, static_argnums=0)
def _next(
    static: _Static, key: Key, contexts: tuple[PyTree, PyTree], state: OnlineSmoothing, u: PyTree
) -> OnlineSmoothing:
    fk, settings, summand, smoothing = static
    key_move, key_back = jax.random.split(key)
    filtered = advance(fk, settings, key_move, contexts[0], state.filtered, u)
    old = Trail(state.filtered.system, state.statistic)
    trail, _ = Recursion(fk, *contexts, summand, smoothing).advance(
        key_back, old, filtered.system, u, filtered.time
    )
    return OnlineSmoothing(filtered, trail.statistic)
