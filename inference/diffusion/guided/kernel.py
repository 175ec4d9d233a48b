"""One step down the levels of noise, of all guided particles, as a step of the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mcx.inference.diffusion.guided.calibration import GuidedData
from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.smc.genealogy import unique_ancestors
from mcx.inference.smc.particle_kernel import ParticleKernel, step_stats
from mcx.target import FeynmanKac

__all__ = ["GuidedKernel", "first_stats"]


@dataclass(frozen=True)
class GuidedKernel(ParticleKernel):
    """Steps of a guided particle system for the driver; the input of a step is its number, from 1.

    Attributes:
        fk: the model's functions, without data.
        settings: of the particle system.
        mesh: devices that share the particles of one replicate.
    """

    fk: FeynmanKac
    settings: SMCSettings
    mesh: Mesh | None = None

    def init(self, data: GuidedData, key: Any, start: Any) -> SMCState:
        """Draws at the noisiest level."""
        return self._spread(initialize(key, self.fk, data, _row(data, 0), self.settings))

    def step(self, data: GuidedData, key: Any, state: SMCState, u: Any) -> tuple[SMCState, Any]:
        """One level down."""
        row = _row(data, u)
        new = move(key, self.fk, data, state, row, self.settings)
        return self._spread(new), row.steps.rho

    def collect(self, state: SMCState, info: Any) -> tuple[Any, Mapping[str, Any]]:
        """Ancestors of the particles, and statistics of the step."""
        return state.ancestors, {**_stats(state), "rho": info}

    def emit(self, data: GuidedData, draw: Any) -> Any:
        """Ancestors as they are."""
        return draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Level of noise, effective sample size, log evidence so far."""
        last = {k: v[-1] for k, v in stats.items()}
        return {
            "noise": float(np.mean(last["rho"])),
            "ess": float(np.mean(last["ess"])),
            "log evidence": float(np.mean(last["log_evidence"])),
        }

    def stop(self, stats: Mapping[str, Any]) -> bool:
        """Whether a replicate is lost, so that there is no point in going on."""
        return bool(np.any(stats["log_evidence_increment"] == -np.inf))


def first_stats(state: SMCState, rho: Any) -> dict[str, Any]:
    """Statistics of the noisiest level, of all replicates."""
    found = jax.vmap(_stats)(state)
    return {**found, "rho": jnp.broadcast_to(rho, found["ess"].shape)}


def _row(data: GuidedData, t: Any) -> Any:
    return jax.tree_util.tree_map(lambda x: x[t], data.levels)


def _stats(state: SMCState) -> dict[str, Any]:
    return {**step_stats(state), "unique_ancestors": unique_ancestors(state.ancestors[None])[0]}
