"""Particle filtering as data arrive: one observation a call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.smc.engine import SMCSettings, SMCState, end_block, initialize, move
from mcx.inference.smc.faults import FILTER_ADVICE, fault_stats
from mcx.inference.smc.history import HistorySettings, Record, record
from mcx.inference.smc.variance import log_evidence_variance
from mcx.model.bound import BoundModel
from mcx.model.series.state_space import check_params
from mcx.ops.keys import as_key
from mcx.ops.validation import instance, integer, validated
from mcx.results.faults import raise_faults
from mcx.target import FeynmanKac
from mcx.types import Array, Int, Key, KeyLike, PyTree, Scalar, SiteValues


class OnlineState(NamedTuple):
    """A particle system on its way, and the number of the last observation, from 0 on. A pytree."""

    system: SMCState
    time: Int[Array, ""]

    @property
    def log_evidence(self) -> Scalar:
        """Log of the estimated evidence of the observations so far."""
        return self.system.log_evidence

    @property
    def log_evidence_se(self) -> Scalar | float:
        """Its standard error; NaN unless resampling is multinomial."""
        if self.system.origins is None:
            return np.nan
        return jnp.sqrt(jnp.maximum(log_evidence_variance(self.system.origins, self.system.log_w), 0.0))

    @property
    def ess(self) -> Scalar:
        """Effective sample size."""
        return self.system.info.ess


class OnlineFilter:
    """A particle filter that takes one observation at a time.

    Args:
        bound: a model with a Markov block, bound to data of any length of at least 1: it tells shapes only.
        params: constrained values of every other latent site.
        num_particles: N.
        method: :class:`mcx.ParticleFilter` by default.
        name: of the Markov block, where the model has several.

    Raises:
        The errors of :func:`mcx.filter`.

    Source: Gordon, Salmond and Smith (1993); see :class:`mcx.ParticleFilter`.
    """

    def __init__(
        self,
        bound: BoundModel,
        *,
        params: SiteValues | None = None,
        num_particles: int = 1000,
        method: ParticleFilter | None = None,
        name: str | None = None,
    ) -> None:
        bound = validated(
            "OnlineFilter", "bound", bound, instance(BoundModel, "a model with its data, model(data)")
        )
        num_particles = validated("OnlineFilter", "num_particles", num_particles, integer(1))
        method = ParticleFilter() if method is None else method
        rule = instance(ParticleFilter, "mcx.ParticleFilter(...)")
        self.method: ParticleFilter = validated("OnlineFilter", "method", method, rule)
        self.space = self.method.state_space(bound, name)
        self.params = check_params(bound, self.space, params)
        self.context = self.space.feynman_kac.prepare(self.params)
        self.settings = self.method.settings(num_particles)
        self.functions = self.space.feynman_kac.functions_only()
        self._keep = HistorySettings("moments", (), self.space.states)

    def init(self, key: KeyLike, y: PyTree, *, inputs: PyTree = None, missing: PyTree = None) -> OnlineState:
        """Take the first observation.

        Args:
            key: a typed JAX key or an int.
            y: the observation of time 0: an array, or a dictionary where the model's ``obs`` is one; NaN
                where missing.
            inputs: the Markov block's input of this time, if it has any.
            missing: mask, where the model has ``missing=``.

        Raises:
            DataError: if the observation does not have the model's shapes.
            WeightCollapse, NonFiniteError: if the weights say nothing any more.
        """
        u = self.input(y, inputs, missing)
        state = start(self.functions, self.settings, as_key(key), self.context, u)
        self.refuse_faults(state)
        return state

    def step(
        self, key: KeyLike, state: OnlineState, y: PyTree, *, inputs: PyTree = None, missing: PyTree = None
    ) -> OnlineState:
        """Take the next observation; see :meth:`init`. Costs O(N). Use a new key every time."""
        u = self.input(y, inputs, missing)
        state = advance(self.functions, self.settings, as_key(key), self.context, state, u)
        self.refuse_faults(state)
        return state

    def moments(self, state: OnlineState) -> tuple[dict[str, Array], dict[str, Array]]:
        """Mean and sd of the state given the observations so far, by site. Costs O(N)."""
        kept = _moments(self._keep, state.system)
        return kept.mean, kept.sd

    def input(self, y: PyTree, inputs: PyTree, missing: PyTree) -> PyTree:
        """What the model's functions see of one time; see :meth:`init`."""
        template = jax.tree.map(lambda x: x[0], self.space.feynman_kac.inputs)
        seen = {"u": inputs, "y": _by_key(y), "missing": _by_key(missing) if missing is not None else {}}

        def cast(path: PyTree, like: Array, value: Array) -> Array:
            if jnp.shape(value) != jnp.shape(like):
                raise DataError(
                    f"an observation or input of the wrong shape: {jax.tree_util.keystr(path)}",
                    site=self.space.name,
                    expected=str(jnp.shape(like)),
                    found=str(jnp.shape(value)),
                )
            return jnp.asarray(value, jnp.result_type(like))

        wanted, found = (jax.tree.structure(tree) for tree in (template, seen))
        if str(wanted) != str(found):
            raise DataError(
                "the observation does not have the structure of the model's",
                site=self.space.name,
                expected=str(wanted),
                found=str(found),
                remedy="y is an array, or a dictionary where the model's obs= is one; inputs and missing as "
                "they are there",
            )
        return jax.tree.map_with_path(cast, template, seen)

    def refuse_faults(self, state: OnlineState, result: object = None) -> None:
        """Raise where the weights say nothing any more; the error has ``result``, by default the state."""
        stats, tolerance = fault_stats(state.system.info), self.method.max_nonfinite
        result, first = state if result is None else result, int(state.time)
        num = self.settings.num_particles
        raise_faults(stats, num, tolerance, FILTER_ADVICE, result=result, first=first)


def _by_key(values: PyTree) -> dict[str, PyTree]:
    return dict(values) if isinstance(values, Mapping) else {"": values}


@partial(jax.jit, static_argnums=(0, 1))
def start(fk: FeynmanKac, settings: SMCSettings, key: Key, ctx: PyTree, u: PyTree) -> OnlineState:
    """The system at time 0."""
    return OnlineState(initialize(key, fk, ctx, u, settings), jnp.int32(0))


@partial(jax.jit, static_argnums=(0, 1))
def advance(
    fk: FeynmanKac, settings: SMCSettings, key: Key, ctx: PyTree, state: OnlineState, u: PyTree
) -> OnlineState:
    """The system one time on."""
    system = move(key, fk, ctx, state.system, u, settings)
    time = state.time + 1
    if settings.lag is not None:
        system = jax.lax.cond(time % settings.lag == 0, end_block, lambda system: system, system)
    return OnlineState(system, time)


@partial(jax.jit, static_argnums=0)
def _moments(keep: HistorySettings, system: SMCState) -> Record:
    return record(system, keep)
