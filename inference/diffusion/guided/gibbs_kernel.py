"""Diffusion priors in models with parameters: paths down the levels of noise and parameters, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, SweepInfo, sweep
from mcx.inference.conditional_smc.initial_path import starting_path
from mcx.inference.diffusion.guided.calibration import GuidedData, Guiding
from mcx.inference.diffusion.guided.feynman_kac import code, path_of
from mcx.inference.mcmc.base import MCMCKernel, MCMCState
from mcx.inference.mcmc.initial_points import InitialPoints, best_initial_point
from mcx.inference.particle_gibbs.kernel import PathAverages
from mcx.target import FeynmanKac

__all__ = ["GuidedGibbsKernel", "GuidedGibbsState"]


class GuidedGibbsState(NamedTuple):
    """State of one chain.

    path: y at every level of noise, from the noisiest, (K + 1, ...); the last is the site's value. The whole
        path is kept, as the discretised reverse process is not the noising process run backwards.
    params: of the Markov chain method on the other sites.
    averages: of conditional SMC over the kept sweeps.
    num_kept: sweeps that the averages count.
    """

    path: Any
    params: MCMCState
    averages: PathAverages
    num_kept: Any

    @property
    def started(self) -> Any:
        """Whether a finite starting point was found."""
        return self.params.started


@dataclass(frozen=True)
class GuidedGibbsKernel:
    """Particle Gibbs on the levels of noise: the kernel that the driver runs.

    Attributes:
        how: the guidance.
        paths: conditional SMC.
        mcmc: a transition on the other sites, given the one with the diffusion prior.

    A sweep leaves the posterior of the discretised reverse process and the parameters invariant, for any
    number of particles. Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3.
    """

    how: Guiding
    paths: ConditionalSMC
    mcmc: MCMCKernel

    def init(self, data: GuidedData, key: Any, start: InitialPoints) -> GuidedGibbsState:
        """The best of several starting parameters, by the evidence of a guided run at each."""

        def attempt(number: Any) -> tuple[Any, GuidedGibbsState]:
            key_params, key_path = jax.random.split(jax.random.fold_in(key, number))
            noise = jax.random.uniform(key_params, start.position.shape, minval=-1.0, maxval=1.0)
            position = start.position + start.radius * noise
            zeros = jnp.zeros(data.chain.shape, data.chain.rho.dtype)
            ctx = data._replace(given=self._values(data, zeros, position))
            backward = self.paths.sampling == "backward"
            path, log_z = starting_path(
                key_path, self._model(data), ctx, self.paths.num_particles, backward=backward
            )
            params = self.mcmc.at(self._given(data, path.position), position)
            none = jnp.zeros(len(path.position))
            averages = PathAverages(none, none, none)
            state = GuidedGibbsState(path.position, params, averages, jnp.zeros((), jnp.int32))
            return jnp.where(state.started, log_z, -jnp.inf), state

        best: GuidedGibbsState = best_initial_point(attempt, start)
        return best

    def step(self, data: GuidedData, key: Any, state: GuidedGibbsState, u: Any) -> tuple[Any, Any]:
        """A path given the parameters, then the parameters given its end."""
        key_path, key_params = jax.random.split(key)
        path, swept = self.move_path(data, key_path, state)
        given = self._given(data, path)
        params = self.mcmc.refresh(given, state.params)
        params, stats = self.mcmc.step(given, key_params, params, u["code"])
        count = state.num_kept + u["keep"]
        share = u["keep"] / jnp.maximum(count, 1)
        now = PathAverages.of(swept)
        averages = jax.tree_util.tree_map(lambda old, new: old + share * (new - old), state.averages, now)
        stats = {**stats, **{f"{self.how.name}.{k}": jnp.mean(v) for k, v in now._asdict().items()}}
        return GuidedGibbsState(path, params, averages, count), stats

    def move_path(self, data: GuidedData, key: Any, state: GuidedGibbsState) -> tuple[Any, SweepInfo]:
        """A new path given the parameters."""
        key_siblings, key_sweep = jax.random.split(key)
        ctx = data._replace(given=self._values(data, state.path[-1], state.params.position))
        path = path_of(self.how, ctx, key_siblings, state.path)
        new, info = sweep(key_sweep, self._model(data), ctx, path, self.paths)
        return new.position, info

    def _model(self, data: GuidedData) -> FeynmanKac:
        return replace(code(self.how), num_times=data.chain.num_steps + 1, inputs=data.levels)

    def _given(self, data: GuidedData, path: Any) -> tuple[Any, dict[str, Any]]:
        return data.model, {self.how.name: path[-1]}

    def _values(self, data: GuidedData, x: Any, position: Any) -> dict[str, Any]:
        """Constrained values of the other sites."""
        target = self.mcmc.target((data.model, {self.how.name: x}))
        found = target.constrain(target.unravel(position))
        return {name: found[name] for name, _ in self.mcmc.shapes}

    def collect(self, state: GuidedGibbsState, info: Any) -> tuple[Any, Mapping[str, Any]]:
        """The site's value and the parameters, and the sweep's statistics."""
        return (state.path[-1], state.params.position), info

    def emit(self, data: GuidedData, draw: Any) -> Any:
        """A draw as sites, and the unconstrained parameters among it."""
        x, position = draw
        target = self.mcmc.target((data.model, {self.how.name: x}))
        return {**target.constrain(target.unravel(position)), self.how.name: x}, position

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Update rate of the path, and what the Markov chain method shows."""
        rate = float(np.mean(stats[f"{self.how.name}.update_rate"]))
        return {"update rate": rate, **self.mcmc.report(stats)}
