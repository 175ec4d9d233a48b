"""A step of particle marginal Metropolis-Hastings: a random walk on parameters, with paths from filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.kernel import ChainKernel
from mcx.inference.mcmc.whitening import Whitening
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.genealogy import draw_path
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.smc import SMCResult, loop
from mcx.methods.initial_points import InitialPoints, best_initial_point
from mcx.model.conditioning import placeholders
from mcx.model.series.state_space import BlockData, path_sites
from mcx.ops.random import accept
from mcx.target import Target, TargetFunctions
from mcx.types import Array, Flags, Int, Key, PyTree, Scalar, SiteValues, Stats, Vector

# Bounds of the scale of steps, in standard deviations of the posterior times d^-1/2: half of the best scale,
# and the best one, which is 2.38 without noise in the evidence and 2.56 with the most noise that pays
# (Sherlock et al. 2015).
_SCALES = (1.2, 2.5)


class Point(NamedTuple):
    """Parameters, and the result of one run of the particle filters there.

    position: unconstrained, (d,).
    log_density: of everything but the Markov blocks: prior, log Jacobians, other likelihoods.
    log_evidence: log of the estimated evidence of the blocks.
    paths: values of a path from the same run, by site.
    num_nonfinite: potentials of that run that were NaN or +inf.
    """

    position: Vector
    log_density: Scalar
    log_evidence: Scalar
    paths: dict[str, Array]
    num_nonfinite: Int[Array, ""]

    @property
    def log_target(self) -> Scalar:
        """Log density of the extended law in the parameters, given the particles."""
        return self.log_density + self.log_evidence


class PMMHState(NamedTuple):
    """State of one chain, ``started`` if an initial point of positive evidence was found.

    The evidence of ``point`` is the estimate that was accepted, never a new one.
    """

    point: Point
    warmup: PyTree
    started: Flags


@dataclass(frozen=True)
class PMMHKernel(ChainKernel):
    """Particle marginal Metropolis-Hastings on a model.

    The target of this kernel is the density of the parameters without the Markov blocks; ``conditional`` are
    functions of the density given the paths.
    """

    conditional: TargetFunctions
    settings: SMCSettings

    @property
    @override
    def uses_gradient(self) -> bool:
        return False

    @override
    def init(self, data: BlockData, key: Key, start: InitialPoints) -> PyTree:
        """The best of several initial points, by the evidence that filters estimate there."""

        def attempt(number: Int[Array, ""]) -> tuple[Scalar, PMMHState]:
            key_position, key_filter = jax.random.split(jax.random.fold_in(key, number))
            noise = jax.random.uniform(key_position, start.position.shape, minval=-1.0, maxval=1.0)
            point = self.at(data, key_filter, start.position + start.radius * noise)
            started = jnp.isfinite(point.log_target)
            state = PMMHState(point, self.adaptation(jnp.zeros_like(point.position)), started)
            return jnp.where(started, point.log_evidence, -jnp.inf), state

        return best_initial_point(attempt, start)

    @override
    def step(
        self, data: BlockData, key: Key, state: PMMHState, u: dict[str, Array]
    ) -> tuple[PMMHState, dict[str, PyTree]]:
        """Propose, accept or reject, then adapt by ``u``: a code, and whether a covariance is learned."""
        key_propose, key_filter, key_accept = jax.random.split(key, 3)
        adapted = state.warmup
        bounded = jnp.clip(adapted.step_size, *(c / state.point.position.shape[0] ** 0.5 for c in _SCALES))
        scale = jnp.where(u["learned"], bounded, adapted.step_size)
        whitening = Whitening(adapted.inverse_mass_matrix)
        noise = jax.random.normal(key_propose, state.point.position.shape)
        proposal = self.at(data, key_filter, state.point.position + whitening(scale * noise))
        point, stats = self.decide(key_accept, state.point, proposal)
        none, rate = jnp.zeros_like(point.position), stats["acceptance_rate"]
        adapting = warmup.step(adapted, u["code"], point.position, none, rate, self.tuning)
        return PMMHState(point, adapting, state.started), {**stats, "step_size": scale}

    def at(self, data: BlockData, key: Key, position: Vector) -> Point:
        """Run the particle filters at a position. This costs O(T N), and memory O(T N)."""
        target, values = self._values(data, position)
        paths: dict[str, Array] = {}
        log_evidence, num_nonfinite = jnp.zeros(()), jnp.zeros((), jnp.int32)
        for name, key_block in self._keys(data, key):
            key_filter, key_path = jax.random.split(key_block)
            found = self._filter(data, name, key_filter, values, "full")
            past = found.history
            path = draw_path(key_path, past.ancestors, past.particles, past.log_w[-1])
            paths |= data.spaces[name].path_values(path)
            log_evidence += found.log_evidence
            assert past.info is not None
            num_nonfinite += jnp.sum(past.info.num_nonfinite)
        log_density = target.log_density(target.unravel(position))
        return Point(position, log_density, log_evidence, paths, num_nonfinite)

    def log_evidence(self, data: BlockData, key: Key, position: Vector) -> Scalar:
        """Estimate the log evidence of the blocks alone. This costs O(T N), and memory O(N)."""
        _, values = self._values(data, position)
        runs = [self._filter(data, name, own, values, "none") for name, own in self._keys(data, key)]
        return sum((run.log_evidence for run in runs), start=jnp.zeros(()))

    def decide(self, key: Key, old: Point, new: Point) -> tuple[Point, dict[str, PyTree]]:
        """Accept or reject a point that a symmetric law proposed.

        This leaves a law of parameters, particles and path invariant whose density is prior times estimated
        evidence. As the estimate is unbiased, its marginal law of parameters and path is the posterior
        (Andrieu, Doucet and Holenstein 2010, section 2.4.2).
        """
        log_ratio = (new.log_density - old.log_density) + (new.log_evidence - old.log_evidence)
        accepted = accept(key, log_ratio)
        point: Point = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
        rate = jnp.exp(jnp.minimum(log_ratio, 0.0))
        return point, {
            "lp": point.log_target,
            "log_evidence": point.log_evidence,
            "acceptance_rate": jnp.nan_to_num(rate, nan=0.0),
            "accepted": accepted,
            "nonfinite": new.num_nonfinite,
        }

    def _filter(self, data: BlockData, name: str, key: Key, values: SiteValues, history: str) -> SMCResult:
        fk, params = data.spaces[name].feynman_kac, data.spaces[name].params
        ctx = fk.prepare({k: values[k] for k in params})
        return loop(key, fk, ctx, self.settings, HistorySettings(history))

    def _values(self, data: BlockData, position: Vector) -> tuple[Target, dict[str, Array]]:
        """The target without the blocks, and constrained values of the parameters."""
        paths = tuple(site for space in data.spaces.values() for site in path_sites(space))
        # the density of the paths is not used, so any values of theirs will do
        target = self.target((data.model, placeholders(self.sites, paths)))
        return target, target.constrain(target.unravel(position))

    def _keys(self, data: BlockData, key: Key) -> list[tuple[str, Key]]:
        return [(name, jax.random.fold_in(key, i)) for i, name in enumerate(sorted(data.spaces))]

    @override
    def collect(self, state: PyTree, info: PyTree) -> tuple[PyTree, Mapping[str, PyTree]]:
        return (state.point.paths, state.point.position), info

    @override
    def emit(self, data: BlockData, draw: PyTree) -> PyTree:
        paths, position = draw
        z = self.target(None).unravel(position)
        return {**self.conditional.constrain((data.model, paths), z), **paths}, position

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        shown = {**super().report(stats), "log evidence": float(np.mean(stats["log_evidence"][-1]))}
        bad = int(np.sum(stats["nonfinite"]))
        return {**shown, "non-finite": bad} if bad else shown
