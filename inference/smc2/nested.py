"""Particle systems whose particles are parameters with particle systems of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.tempering.paths import Path, PathData
from mcx.target import FeynmanKac, StateSpace

__all__ = [
    "Context",
    "Held",
    "Nested",
    "NestedData",
    "Nesting",
    "Stage",
    "Times",
    "nest",
    "populate",
    "prepared",
    "times",
    "values_at",
]


class NestedData(NamedTuple):
    """What the model's functions are given.

    path: data of the law of the parameters.
    spaces: state-space models by name, independent given the parameters; all of the same length.
    """

    path: PathData
    spaces: dict[str, StateSpace]

    @property
    def num_times(self) -> int:
        """T."""
        return next(iter(self.spaces.values())).feynman_kac.num_times


class Times(NamedTuple):
    """Input of a step.

    t: its time.
    last: whether nothing comes in, and particles that weigh the same are asked for, at time t.
    """

    t: Any
    last: Any


def times(num_times: int) -> Times:
    """Those of T observations, without the end."""
    return Times(jnp.arange(num_times), jnp.zeros(num_times, bool))


class Stage(NamedTuple):
    """How particles were moved before the last step; the same for all of them.

    moved: whether they were; nothing below counts otherwise.
    acceptance, num_moves, places, densities: see :class:`~mcx.inference.tempering.moves.Moved`.
    """

    moved: Any
    acceptance: Any
    num_moves: Any
    places: Any
    densities: Any


class Held(NamedTuple):
    """Paths that the systems were given when they grew; see :mod:`mcx.inference.smc2.nested_paths`.

    paths: of the systems by name, with a leading axis of the times up to then.
    on: whether the systems are still those.
    """

    paths: dict[str, Any]
    on: Any


class Nested(NamedTuple):
    """A particle: parameters, and particle systems that run given them.

    position: (d,), unconstrained.
    base: log density there of the law that positions were drawn from.
    other: log likelihood of what does not belong to the state-space models; and prior over that law.
    keys: (T,) data of the keys of the systems' steps, from which they can be had once more.
    systems: by name.
    stage: see :class:`Stage`.
    held: what the systems depend on besides their keys; None where no systems ever grew.
    """

    position: Any
    base: Any
    other: Any
    keys: Any
    systems: dict[str, SMCState]
    stage: Stage
    held: Held | None = None

    @property
    def log_target(self) -> Any:
        """Log density of the extended law, of parameters and particle systems."""
        found = self.base + self.other + self.log_evidence
        return jnp.where(jnp.isnan(found) | (found == jnp.inf), -jnp.inf, found)

    @property
    def log_evidence(self) -> Any:
        """Estimated, of the observations so far."""
        return sum(s.log_evidence for s in self.systems.values())


@dataclass(frozen=True)
class Nesting:
    """What is nested; hashable.

    Attributes:
        path: law of the parameters: drawn from its start, weighted by all of its terms at time 0.
        settings: of the inner systems.
    """

    path: Path
    settings: SMCSettings


class Context(NamedTuple):
    """Data, and what moves are adapted to: see :mod:`mcx.inference.smc2.nested_moves`."""

    data: NestedData
    due: Any = None
    centre: Any = None
    covariance: Any = None


def nest(nesting: Nesting, data: NestedData) -> FeynmanKac:
    """A population as one particle: the Feynman-Kac model of parameters with their particle filters.

    A particle is drawn from the law of the parameters; a step is one of its filters, and the potential is
    the increment of their estimated evidence. As that is unbiased, the model's evidence is the one of all
    observations, and weighted parameters follow their posterior given y_0, ..., y_t, whatever the number of
    inner particles.

    Args:
        nesting: the law of the parameters, and settings of the filters.
        data: of both.

    Returns:
        A model for :func:`mcx.inference.smc.smc.smc`. Parameters are never moved:
        :func:`~mcx.inference.smc2.nested_moves.with_pmmh` adds that, which makes it SMC^2.

    Source: Chopin, Jacob and Papaspiliopoulos (2013), SMC^2, section 3.1.
    """
    return replace(
        _functions(nesting),
        num_times=data.num_times,
        inputs=times(data.num_times),
        prepare=jax.tree_util.Partial(_context, data),
    )


def _context(data: NestedData, params: Any = None) -> Context:
    return Context(data)


@lru_cache(maxsize=64)
def _functions(nesting: Nesting) -> FeynmanKac:
    """The functions, the same objects for equal settings: compiled programs are found by them."""

    def initial(key: Any, ctx: Context, u: Times) -> Nested:
        key_position, key_run = jax.random.split(key)
        position = nesting.path.initial(ctx.data.path, key_position)
        return populate(nesting, ctx.data, key_run, position, 0)

    def transition(key: Any, ctx: Context, particle: Nested, u: Times) -> Nested:
        values = values_at(nesting.path, ctx.data, particle.position)
        systems = {}
        for i, (name, space) in enumerate(sorted(ctx.data.spaces.items())):
            fk, own, key_own = space.feynman_kac, prepared(space, values), jax.random.fold_in(key, i)
            y = jax.tree_util.tree_map(lambda x: jnp.asarray(x)[u.t], fk.inputs)
            systems[name] = move(key_own, fk, own, particle.systems[name], y, nesting.settings)
        keys = particle.keys.at[u.t].set(jax.random.key_data(key))
        return particle._replace(keys=keys, systems=systems)

    def log_potential(ctx: Context, before: Nested | None, particle: Nested, u: Times) -> Any:
        found = sum(s.info.log_increment for s in particle.systems.values())
        return found + particle.other if before is None else jnp.where(u.last, 0.0, found)

    return FeynmanKac(initial, transition, log_potential, 1)


def populate(nesting: Nesting, data: NestedData, key: Any, position: Any, t: Any) -> Nested:
    """A particle with these parameters, its systems newly run from time 0 to t.

    Args:
        nesting: what is nested.
        data: of it.
        key: a typed key.
        position: (d,).
        t: last time; may be traced. Costs O(t N), memory O(N).
    """
    base, terms = nesting.path.parts(data.path, position)
    values = values_at(nesting.path, data, position)
    times = jnp.arange(data.num_times, dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, times)
    systems = {}
    for i, (name, space) in enumerate(sorted(data.spaces.items())):
        fk, own = space.feynman_kac, prepared(space, values)
        inputs = jax.tree_util.tree_map(jnp.asarray, fk.inputs)

        def step(s: Any, state: SMCState, i: int = i, fk: Any = fk, own: Any = own, us: Any = inputs) -> Any:
            u = jax.tree_util.tree_map(lambda x: x[s], us)
            return move(jax.random.fold_in(keys[s], i), fk, own, state, u, nesting.settings)

        u0 = jax.tree_util.tree_map(lambda x: x[0], inputs)
        first = initialize(jax.random.fold_in(keys[0], i), fk, own, u0, nesting.settings)
        systems[name] = jax.lax.fori_loop(1, t + 1, step, first) if not _is_zero(t) else first
    zero = jnp.zeros_like(base)
    stage = Stage(jnp.asarray(False), zero, jnp.int32(0), zero, zero)
    return Nested(position, base, terms[0], jax.random.key_data(keys), systems, stage)


# Values and contexts are had anew at every time: kept, the contexts of all parameters may take more memory
# than their particles, and the model's own code is small beside N particles.
def values_at(path: Path, data: NestedData, position: Any) -> dict[str, Any]:
    """Parameters by site at an unconstrained point (d,)."""
    target = path.target(data.path)
    return target.constrain(target.unravel(position))


def prepared(space: StateSpace, values: dict[str, Any]) -> Any:
    """The context of a state-space model at these parameters."""
    return space.feynman_kac.prepare({k: values[k] for k in space.params})


def _is_zero(t: Any) -> bool:
    return isinstance(t, int) and t == 0
