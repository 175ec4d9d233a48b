"""Particle systems whose particles are parameters, each with particle systems of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.pmmh.marginal import MarginalModel
from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.tempering.paths import LawPath, LawPathData, tempered
from mcx.target import FeynmanKac, StateSpace
from mcx.types import Array, Bool, Flags, Int, IntLike, Key, Keys, PyTree, Scalar, SiteValues, UInt32, Vector


class NestedFilterData(NamedTuple):
    """Data of the law of the parameters, and state-space models by name, of the same number of times.

    The state-space models are independent given the parameters.
    """

    path: LawPathData
    spaces: dict[str, StateSpace]

    @property
    def num_times(self) -> int:
        """T."""
        return next(iter(self.spaces.values())).feynman_kac.num_times


class Times(NamedTuple):
    """Input of a step: its time, and whether this is the end.

    At the end no observation comes in, and equally weighted particles at time t are needed.
    """

    t: Int[Array, "*step"] | np.ndarray
    last: Bool[Array, "*step"] | np.ndarray


def times(num_times: int) -> Times:
    """The inputs of T observations, without the end."""
    return Times(np.arange(num_times), np.zeros(num_times, bool))


class Stage(NamedTuple):
    """The moves before the last step, the same for all particles; without meaning if none ``moved``.

    The fields are those of :class:`~mcx.inference.tempering.moves.Moved`.
    """

    moved: Flags
    acceptance: Scalar
    num_moves: Int[Array, ""]
    places: Scalar
    densities: Scalar


class HeldPaths(NamedTuple):
    """Paths that systems were conditioned on when they grew; see :mod:`mcx.inference.smc2.nested_paths`.

    paths: by system, with a leading axis of the times up to then.
    on: whether the systems are still those; False once a move has replaced them.
    """

    paths: dict[str, PyTree]
    on: Flags


class Nested(NamedTuple):
    """A particle: parameters, and the particle systems that run with them.

    position: unconstrained parameters, (d,).
    base: log density of the position under the law that positions are drawn from.
    other: log likelihood of what does not belong to the state-space models, and log of prior over base.
    keys: data of the keys of the systems' steps, (T, ...), so that the systems can be run again.
    systems: by name.
    stage: see :class:`Stage`.
    held: what the systems depend on besides their keys; None if no systems have grown.
    """

    position: Vector
    base: Scalar
    other: Scalar
    keys: UInt32[Array, "T ..."]
    systems: dict[str, SMCState]
    stage: Stage
    held: HeldPaths | None = None

    @property
    def log_target(self) -> Scalar:
        """Log density of the extended law of parameters and particle systems."""
        found = self.base + self.other + self.log_evidence
        return jnp.where(jnp.isnan(found) | (found == jnp.inf), -jnp.inf, found)

    @property
    def log_evidence(self) -> Scalar:
        """Estimated log evidence of the observations so far."""
        found: PyTree = sum(s.log_evidence for s in self.systems.values())
        return found


@dataclass(frozen=True)
class NestedFilters:
    """The law of the parameters, and settings of the inner systems; hashable.

    Parameters are drawn from the start of ``path`` and weighted by all of its terms at time 0.
    """

    path: LawPath
    settings: SMCSettings


def nested_filters(
    model: MarginalModel,
    num_particles: int,
    filter: ParticleFilter | None = None,
    initial_law: Distribution | float | None = None,
) -> tuple[NestedFilters, NestedFilterData]:
    """The law of a model's parameters, with particle filters of its Markov blocks nested in it.

    Args:
        model: the model, split into parameters and Markov blocks.
        num_particles: of a filter.
        filter: any particle filter with its resampling; by default a bootstrap filter.
        initial_law: as for :func:`~mcx.inference.tempering.paths.tempered`, in the prior's place.
    """
    path, data = tempered(model.marginal, initial_law)
    # no lag, because the error of the evidence within a filter is not needed
    settings = replace((filter or ParticleFilter()).settings(num_particles), lag=None)
    return NestedFilters(path, settings), NestedFilterData(data, model.data.spaces)


class Context(NamedTuple):
    """Data, and what moves are adapted to; see :mod:`mcx.inference.smc2.nested_moves`."""

    data: NestedFilterData
    due: PyTree = None
    centre: PyTree = None
    covariance: PyTree = None


def nest(nesting: NestedFilters, data: NestedFilterData) -> FeynmanKac:
    """A population as one particle: the Feynman-Kac model of parameters with their particle filters.

    A particle is drawn from the law of the parameters. A step is a step of its filters, and the potential is
    the increment of their estimated evidence. As this estimate is unbiased, the model's evidence is that of
    all observations, and weighted parameters follow their posterior given y_0, ..., y_t, for any number of
    inner particles.

    Returns:
        A model for :func:`mcx.inference.smc.smc.smc`, in which parameters never move;
        :func:`~mcx.inference.smc2.nested_moves.with_pmmh` adds moves, which makes it SMC^2.

    Source: Chopin, Jacob and Papaspiliopoulos (2013), SMC^2, section 3.1.
    """
    return replace(
        _functions(nesting),
        num_times=data.num_times,
        inputs=times(data.num_times),
        prepare=jax.tree_util.Partial(_context, data),
    )


def _context(data: NestedFilterData, params: PyTree = None) -> Context:
    return Context(data)


@lru_cache(maxsize=64)
def _functions(nesting: NestedFilters) -> FeynmanKac:
    """The functions, which are the same objects for equal settings: compiled programs are found by them."""

    def initial(key: Key, ctx: Context, u: Times) -> Nested:
        key_position, key_run = jax.random.split(key)
        position = nesting.path.initial(ctx.data.path, key_position)
        return populate(nesting, ctx.data, key_run, position, 0)

    def transition(key: Key, ctx: Context, particle: Nested, u: Times) -> Nested:
        values = values_at(nesting.path, ctx.data, particle.position)
        systems = {}
        for i, (name, space) in enumerate(sorted(ctx.data.spaces.items())):
            fk, own, key_own = space.feynman_kac, prepared(space, values), jax.random.fold_in(key, i)
            y = jax.tree.map(lambda x: jnp.asarray(x)[u.t], fk.inputs)
            systems[name] = move(key_own, fk, own, particle.systems[name], y, nesting.settings)
        keys = particle.keys.at[u.t].set(jax.random.key_data(key))
        return particle._replace(keys=keys, systems=systems)

    def log_potential(ctx: Context, before: Nested | None, particle: Nested, u: Times) -> Scalar:
        found: PyTree = sum(s.info.log_increment for s in particle.systems.values())
        return found + particle.other if before is None else jnp.where(u.last, 0.0, found)

    return FeynmanKac(initial, transition, log_potential, 1)


def populate(
    nesting: NestedFilters, data: NestedFilterData, key: Key, position: Vector, t: IntLike
) -> Nested:
    """A particle with these parameters and new systems, run from time 0 to t. Costs O(t N); memory O(N)."""
    base, terms = nesting.path.parts(data.path, position)
    values = values_at(nesting.path, data, position)
    times = jnp.arange(data.num_times, dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, times)
    systems = {}
    for i, (name, space) in enumerate(sorted(data.spaces.items())):
        fk, own = space.feynman_kac, prepared(space, values)
        systems[name] = _run(fk, own, keys, i, t, nesting.settings)
    zero = jnp.zeros_like(base)
    stage = Stage(jnp.asarray(False), zero, jnp.int32(0), zero, zero)
    return Nested(position, base, terms[0], jax.random.key_data(keys), systems, stage)


def _run(fk: FeynmanKac, ctx: PyTree, keys: Keys, number: int, t: IntLike, settings: SMCSettings) -> SMCState:
    """The system of this number after its steps up to time t."""
    inputs = jax.tree.map(jnp.asarray, fk.inputs)

    def step(s: Int[Array, ""], state: SMCState) -> SMCState:
        u = jax.tree.map(lambda x: x[s], inputs)
        return move(jax.random.fold_in(keys[s], number), fk, ctx, state, u, settings)

    u0 = jax.tree.map(lambda x: x[0], inputs)
    first = initialize(jax.random.fold_in(keys[0], number), fk, ctx, u0, settings)
    return jax.lax.fori_loop(1, t + 1, step, first) if not isinstance(t, int) or t > 0 else first


# Values and contexts are computed again at every time: the contexts of all parameters may take more memory
# than their particles, while the work of the model's own code is small beside that for N particles.
def values_at(path: LawPath, data: NestedFilterData, position: Vector) -> dict[str, Array]:
    """Parameters by site at an unconstrained point (d,)."""
    target = path.target(data.path)
    return target.constrain(target.unravel(position))


def prepared(space: StateSpace, values: SiteValues) -> PyTree:
    """The context of a state-space model at these parameters."""
    return space.feynman_kac.prepare({k: values[k] for k in space.params})
