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
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops import collectives
from mcx.ops.random import accept, choose

__all__ = ["NUM_BINS", "Chain", "DenoisingKernel", "ProductSpace"]

NUM_BINS = 16  # of levels, each with a step size of its own
_TARGET_ACCEPT = 0.574  # of Metropolis-adjusted Langevin moves: Roberts and Rosenthal (1998)
_ADAPTS = 0.6  # exponent of the gain of Robbins and Monro


class ProductSpace(NamedTuple):
    """What is sampled.

    model: the diffusion model.
    level_law: of a level given a point.
    rho: levels, (K,) rising.
    log_prior: of the levels, (K,).
    tables: of the integrator that denoises: leaves that depend on the level to start from have a leading K.
    key: data of the key that denoising draws from.
    """

    model: Denoiser
    level_law: LevelLaw
    rho: Any
    log_prior: Any
    tables: Any
    key: Any


class Chain(NamedTuple):
    """A point and its level.

    y: the point.
    level: its number.
    log_step: of Langevin moves, by bin of levels.
    visits: of the bins, by all chains' steps.
    count: steps taken.
    kept: point and level of this step's window that go on to be denoised.
    """

    y: Any
    level: Any
    log_step: Any
    visits: Any
    count: Any
    kept: Any


class _Info(NamedTuple):
    accepted: Any
    seed: Any


@dataclass(frozen=True)
class DenoisingKernel:
    """A step: ``num_skip`` moves, each of the point and then of its level; hashable.

    Attributes:
        integrator: that denoises.
        num_skip: moves a step.
        metropolis: whether moves of the point are accepted or refused.
        step_size: of the moves; None where it is learned while the chains warm up.
        num_warmup: steps that learn.
        by_level: which leaves of the integrator's table depend on the level.
        smallest: whether the point of the smallest level of a step's moves is kept, not the last.
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
        """Whether chains learn from each other."""
        return self.step_size is None

    def init(self, data: ProductSpace, key: Any, start: Any) -> Chain:
        """From a point and its level."""
        y, level = start["y"], start["level"]
        bins = np.minimum(np.arange(NUM_BINS) * data.rho.shape[0] // NUM_BINS, data.rho.shape[0] - 1)
        size = 1.0 if self.step_size is None else self.step_size
        log_step = jnp.log(size * jnp.ones(NUM_BINS, y.dtype))
        if self.step_size is None:  # every law's variance is at least that of its noise
            log_step = 2 * jnp.log(data.rho[bins]) - jnp.log(y.size) / 3
        return Chain(y, level, log_step, jnp.zeros(NUM_BINS, y.dtype), jnp.int32(0), (y, level))

    def step(self, data: ProductSpace, key: Any, state: Chain, u: Any) -> tuple[Chain, _Info]:
        """Move, and learn while the chains warm up."""
        key_moves, key_seed = jax.random.split(key)
        largest = (state.y, jnp.int32(data.rho.shape[0]))

        def move(carry: Any, key: Any) -> Any:
            y, level, kept = carry
            key_move, key_level = jax.random.split(key)
            bin_ = self._bin(data, level)
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
        state = self._learn(state, bins, rates)._replace(y=y, level=level, count=state.count + 1, kept=kept)
        seed = jax.random.bits(key_seed, (2,))
        return state, _Info(jnp.mean(rates), seed)

    def _bin(self, data: ProductSpace, level: Any) -> Any:
        return level * NUM_BINS // data.rho.shape[0]

    def _langevin(self, data: ProductSpace, key: Any, y: Any, rho: Any, step: Any) -> tuple[Any, Any]:
        """A move at a level, and the probability that it is accepted."""
        key_noise, key_accept = jax.random.split(key)

        def ahead(v: Any) -> Any:
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

    def _learn(self, state: Chain, bins: Any, rates: Any) -> Chain:
        """Step sizes towards the acceptance that is best, each by the moves of its bin, of all chains."""
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

    def collect(self, state: Chain, info: _Info) -> tuple[Any, Mapping[str, Any]]:
        """The kept point with its level, and what its denoising draws from."""
        y, level = state.kept
        return {"y": y, "level": level, "seed": info.seed}, {"acceptance": info.accepted}

    def emit(self, data: ProductSpace, draw: Any) -> Any:
        """Denoise."""
        y, level = draw["y"], draw["level"]
        key = None
        if self.integrator.num_draws:
            key = jax.random.wrap_key_data(data.key)
            for part in draw["seed"]:
                key = jax.random.fold_in(key, part)
        # what is the same at all levels stays one value under vmap, so that a condition on it stays one
        leaves, tree = jax.tree_util.tree_flatten(data.tables)
        leaves = [x[level] if varies else x for x, varies in zip(leaves, self.by_level, strict=True)]
        table = jax.tree_util.tree_unflatten(tree, leaves)
        x = self.integrator.run(key, data.model, y, table, None, False)
        return {"x": x, "noisy": y, "level": level}

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Acceptance."""
        return {"acceptance": float(stats["acceptance"].mean())} if self.metropolis else {}
