"""The Markov chain of denoising MCMC: Langevin moves of a point, draws of its noise level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.diffusion.denoising_mcmc.level_laws import LevelLaw
from mcx.inference.diffusion.integrators.base import Integrator
from mcx.inference.diffusion.models.arguments import ByLevel, Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops import collectives
from mcx.ops.random import accept, choose
from mcx.run.kernel import Kernel
from mcx.types import Array, Float, Int, Key, PyTree, Scalar, Stats, UInt32

NUM_BINS = 16  # of levels; each bin has a step size of its own
_TARGET_ACCEPT = 0.574  # optimal for Metropolis-adjusted Langevin moves: Roberts and Rosenthal (1998)
_ADAPTS = 0.6  # exponent of the gain of Robbins and Monro's stochastic approximation


class ProductSpace(NamedTuple):
    """The data of the kernel: the product space of points and K rising levels, with their log prior.

    tables: what the integrator prepared; leaves that depend on the first level have a leading axis K.
    key: raw data of the key that denoising draws from.
    """

    model: Denoiser
    level_law: LevelLaw
    rho: ByLevel
    log_prior: ByLevel
    tables: PyTree
    key: UInt32[Array, " words"]


type _Placed = tuple[Point, Int[Array, ""]]  # a point, and the index of its level
type _Info = tuple[Scalar, UInt32[Array, " 2"]]  # acceptance rate of a step, and seed of its denoising


class Chain(NamedTuple):
    """The state of a chain: a point, and the index of its level.

    log_step: log step size of the Langevin moves by bin of levels.
    visits: number of steps in which some chain was in a bin.
    count: number of steps taken.
    kept: the point of this step's moves that is denoised, and its level.
    """

    y: Point
    level: Int[Array, ""]
    log_step: Float[Array, " bins"]
    visits: Float[Array, " bins"]
    count: Int[Array, ""]  # type: ignore[assignment]  # tuples have a method of this name
    kept: _Placed


@dataclass(frozen=True)
class DenoisingKernel(Kernel):
    """A step makes ``num_skip`` moves, each of the point and then of its level; hashable.

    Attributes:
        step_size: of the moves; None to learn it while the chains warm up, ``num_warmup`` steps.
        smallest: whether to keep the point of the smallest level among a step's moves, rather than the last.
        by_level: which leaves of the integrator's tables depend on the level.
    """

    integrator: Integrator
    num_skip: int
    metropolis: bool
    step_size: float | None
    num_warmup: int
    smallest: bool
    by_level: tuple[bool, ...]

    @property
    def pooled(self) -> bool:
        """Whether step sizes are learned from all chains together."""
        return self.step_size is None

    def init(self, data: ProductSpace, key: Key, start: Mapping[str, Array]) -> Chain:
        """The state at a point ``y`` and its ``level``."""
        y, level = start["y"], start["level"]
        bins = np.minimum(np.arange(NUM_BINS) * data.rho.shape[0] // NUM_BINS, data.rho.shape[0] - 1)
        size = 1.0 if self.step_size is None else self.step_size
        log_step = jnp.log(size * jnp.ones(NUM_BINS, y.dtype))
        if self.step_size is None:  # the variance at a level is at least that of its noise
            log_step = 2 * jnp.log(data.rho[bins]) - jnp.log(y.size) / 3
        return Chain(y, level, log_step, jnp.zeros(NUM_BINS, y.dtype), jnp.int32(0), (y, level))

    def step(self, data: ProductSpace, key: Key, state: Chain, u: PyTree) -> tuple[Chain, _Info]:
        """Move, and adapt step sizes while the chains warm up."""
        key_moves, key_seed = jax.random.split(key)
        largest = (state.y, jnp.int32(data.rho.shape[0]))

        type Moved = tuple[Point, Int[Array, ""], _Placed]

        def move(carry: Moved, key: Key) -> tuple[Moved, tuple[Int[Array, ""], Scalar]]:
            y, level, kept = carry
            key_move, key_level = jax.random.split(key)
            bin_ = level * NUM_BINS // data.rho.shape[0]
            y, rate = self._langevin(data, key_move, y, data.rho[level], jnp.exp(state.log_step[bin_]))
            log_w = data.level_law.log_density(data.model, y, data.rho) + data.log_prior
            level = choose(key_level, log_w)
            better = level < kept[1] if self.smallest else jnp.asarray(True)
            kept = jax.tree_util.tree_map(lambda a, b: jnp.where(better, a, b), (y, level), kept)
            return (y, level, kept), (bin_, rate)

        begin = (state.y, state.level, largest)
        (y, level, kept), (bins, rates) = jax.lax.scan(
            move, begin, jax.random.split(key_moves, self.num_skip)
        )
        state = self._adapted(state, bins, rates)._replace(y=y, level=level, count=state.count + 1, kept=kept)
        return state, (jnp.mean(rates), jax.random.bits(key_seed, (2,)))

    def _langevin(
        self, data: ProductSpace, key: Key, y: Point, rho: Scalar, step: Scalar
    ) -> tuple[Point, Scalar]:
        """The point after a move at a level, and the probability of accepting the proposal."""
        key_noise, key_accept = jax.random.split(key)

        def ahead(v: Point) -> Point:
            return v + 0.5 * step * (data.model.denoise(v, rho) - v) / rho**2

        noise = jax.random.normal(key_noise, y.shape, y.dtype)
        centre = ahead(y)
        proposal = centre + jnp.sqrt(step) * noise
        if not self.metropolis:
            return proposal, jnp.ones((), y.dtype)
        log_ratio = data.model.log_density(proposal, rho) - data.model.log_density(y, rho)
        log_ratio += 0.5 * jnp.sum(noise**2) - 0.5 * jnp.sum((y - ahead(proposal)) ** 2) / step
        rate = jnp.nan_to_num(jnp.exp(jnp.minimum(log_ratio, 0.0)))
        return jnp.where(accept(key_accept, log_ratio), proposal, y), rate

    def _adapted(self, state: Chain, bins: Int[Array, " moves"], rates: Float[Array, " moves"]) -> Chain:
        """Adapt each step size towards the target acceptance rate by the moves of all chains in its bin."""
        if self.step_size is not None:
            return state
        hits = jax.nn.one_hot(bins, NUM_BINS, dtype=rates.dtype)
        count, accepted = collectives.mean((hits.sum(0), rates @ hits))
        found = jnp.where(count > 0, accepted / jnp.where(count > 0, count, 1.0), _TARGET_ACCEPT)
        visits = state.visits + (count > 0)
        gain = 2.0 * (visits + 1.0) ** -_ADAPTS
        moved = state.log_step + gain * (found - _TARGET_ACCEPT)
        learning = state.count < self.num_warmup
        return state._replace(log_step=jnp.where(learning, moved, state.log_step), visits=visits)

    def collect(self, state: Chain, info: _Info) -> tuple[Mapping[str, Array], Mapping[str, Scalar]]:
        """The kept point with its level, and the seed of its denoising."""
        (y, level), (accepted, seed) = state.kept, info
        return {"y": y, "level": level, "seed": seed}, {"acceptance": accepted}

    def emit(self, data: ProductSpace, draw: Mapping[str, Array]) -> Mapping[str, Array]:
        """The denoised point, with the noisy one and its level."""
        y, level = draw["y"], draw["level"]
        key = None
        if self.integrator.num_draws:
            key = jax.random.wrap_key_data(data.key)
            for part in draw["seed"]:
                key = jax.random.fold_in(key, part)
        # leaves that are the same at all levels stay unbatched under vmap: lax.cond on them stays a branch
        leaves, tree = jax.tree_util.tree_flatten(data.tables)
        leaves = [x[level] if varies else x for x, varies in zip(leaves, self.by_level, strict=True)]
        table = jax.tree_util.tree_unflatten(tree, leaves)
        x = self.integrator.run(key, data.model, y, table, None, False)
        return {"x": x, "noisy": y, "level": level}

    def report(self, stats: Stats) -> Mapping[str, Any]:
        """The acceptance rate."""
        return {"acceptance": float(stats["acceptance"].mean())} if self.metropolis else {}
