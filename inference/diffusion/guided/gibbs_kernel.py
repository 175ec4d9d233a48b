"""Diffusion priors in models with parameters: a path down the levels of noise and the parameters, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, SweepInfo, sweep
from mcx.inference.conditional_smc.initial_path import starting_path
from mcx.inference.diffusion.guided.calibration import Guidance, GuidedData
from mcx.inference.diffusion.guided.feynman_kac import guided, path_of
from mcx.inference.mcmc.kernel import MCMCKernel, MCMCState
from mcx.inference.particle_gibbs.kernel import PathAverages
from mcx.methods.initial_points import InitialPoints, best_initial_point
from mcx.run.kernel import Kernel
from mcx.types import Array, Flags, Float, Int, Key, PyTree, Scalar, Stats, Vector

type Point = Float[Array, "..."]
type Path = Float[Array, "K+1 ..."]
type Draw = tuple[Point, Vector]


class GuidedGibbsState(NamedTuple):
    """State of one chain: a path (K + 1, ...), which ends in the site's value, and the other sites.

    The whole path is kept, as the discretised reverse process is not the noising process run backwards.
    ``averages`` are those of conditional SMC over ``num_kept`` sweeps.
    """

    path: Path
    params: MCMCState
    averages: PathAverages
    num_kept: Int[Array, ""]

    @property
    def started(self) -> Flags:
        """Whether a finite initial point was found."""
        return self.params.started


@dataclass(frozen=True)
class GuidedGibbsKernel(Kernel):
    """Particle Gibbs on the levels of noise: conditional SMC on paths, ``mcmc`` on the other sites, in turn.

    A sweep leaves the posterior of the discretised reverse process and the parameters invariant, for any
    number of particles. Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3.
    """

    guidance: Guidance
    paths: ConditionalSMC
    mcmc: MCMCKernel

    @override
    def init(self, data: GuidedData, key: Key, start: InitialPoints) -> GuidedGibbsState:
        """The best of several initial parameters, by the evidence of a guided run at each."""

        def attempt(number: Scalar) -> tuple[Scalar, GuidedGibbsState]:
            key_params, key_path = jax.random.split(jax.random.fold_in(key, number))
            noise = jax.random.uniform(key_params, start.position.shape, minval=-1.0, maxval=1.0)
            position = start.position + start.radius * noise
            zeros = jnp.zeros(data.chain.shape, data.chain.rho.dtype)
            ctx = data._replace(given=self._values(data, zeros, position))
            backward = self.paths.backward == "exact"
            path, log_z = starting_path(
                key_path, guided(self.guidance, data), ctx, self.paths.num_particles, backward=backward
            )
            params = self.mcmc.at(self._conditioned(data, path.position), position)
            none = jnp.zeros(len(path.position))
            averages = PathAverages(none, none, none)
            state = GuidedGibbsState(path.position, params, averages, jnp.zeros((), jnp.int32))
            return jnp.where(state.started, log_z, -jnp.inf), state

        best: GuidedGibbsState = best_initial_point(attempt, start)
        return best

    @override
    def step(
        self, data: GuidedData, key: Key, state: GuidedGibbsState, u: Mapping[str, Scalar]
    ) -> tuple[GuidedGibbsState, dict[str, Scalar]]:
        """A path given the parameters, then the parameters given its end."""
        key_path, key_params = jax.random.split(key)
        path, swept = self._move_path(data, key_path, state)
        conditioned = self._conditioned(data, path)
        params = self.mcmc.refresh(conditioned, state.params)
        params, stats = self.mcmc.step(conditioned, key_params, params, u["code"])
        count = state.num_kept + u["keep"]
        share = u["keep"] / jnp.maximum(count, 1)
        now = PathAverages.of(swept)
        averages = jax.tree_util.tree_map(lambda old, new: old + share * (new - old), state.averages, now)
        stats = {**stats, **{f"{self.guidance.name}.{k}": jnp.mean(v) for k, v in now._asdict().items()}}
        return GuidedGibbsState(path, params, averages, count), stats

    def _move_path(self, data: GuidedData, key: Key, state: GuidedGibbsState) -> tuple[Path, SweepInfo]:
        """A new path given the parameters."""
        key_siblings, key_sweep = jax.random.split(key)
        ctx = data._replace(given=self._values(data, state.path[-1], state.params.position))
        path = path_of(self.guidance, ctx, key_siblings, state.path)
        new, info = sweep(key_sweep, guided(self.guidance, data), ctx, path, self.paths)
        return new.position, info

    def _conditioned(self, data: GuidedData, path: Path) -> PyTree:
        """Data of the other sites' target, given the end of a path."""
        return data.model, {self.guidance.name: path[-1]}

    def _values(self, data: GuidedData, x: Point, position: Vector) -> dict[str, Array]:
        """Constrained values of the other sites."""
        target = self.mcmc.target((data.model, {self.guidance.name: x}))
        found = target.constrain(target.unravel(position))
        return {name: found[name] for name, _ in self.mcmc.shapes}

    @override
    def collect(self, state: GuidedGibbsState, info: dict[str, Scalar]) -> tuple[Draw, Mapping[str, Scalar]]:
        """The site's value and the parameters, and the sweep's statistics."""
        return (state.path[-1], state.params.position), info

    @override
    def emit(self, data: GuidedData, draw: Draw) -> tuple[dict[str, Array], Vector]:
        """A draw as sites, and the unconstrained parameters of it."""
        x, position = draw
        target = self.mcmc.target((data.model, {self.guidance.name: x}))
        return {**target.constrain(target.unravel(position)), self.guidance.name: x}, position

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        """Update rate of the path, and what the Markov chain method shows."""
        rate = float(np.mean(stats[f"{self.guidance.name}.update_rate"]))
        return {"update rate": rate, **self.mcmc.report(stats)}
