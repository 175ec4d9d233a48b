"""One step of all guided particles down the levels of noise, as a step of the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import override

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mcx.inference.diffusion.guided.calibration import Guidance, GuidedData, Levels
from mcx.inference.diffusion.guided.feynman_kac import guided
from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.smc.genealogy import unique_ancestors
from mcx.inference.smc.particle_kernel import ParticleKernel, step_stats
from mcx.types import Array, Index, Int, Key, Num, PyTree, Scalar, Stats


@dataclass(frozen=True)
class GuidedKernel(ParticleKernel):
    """Steps of a guided particle system, whose inputs are their numbers, from 1."""

    guidance: Guidance
    settings: SMCSettings
    mesh: Mesh | None = None

    @override
    def init(self, data: GuidedData, key: Key, start: PyTree) -> SMCState:
        """Draws at the noisiest level."""
        fk = guided(self.guidance, data)
        return self._spread(initialize(key, fk, data, _row(data, 0), self.settings))

    @override
    def step(self, data: GuidedData, key: Key, state: SMCState, u: Int[Array, ""]) -> tuple[SMCState, Scalar]:
        """One level down."""
        row = _row(data, u)
        new = move(key, guided(self.guidance, data), data, state, row, self.settings)
        return self._spread(new), row.steps.rho

    @override
    def collect(self, state: SMCState, info: Scalar) -> tuple[Index, Mapping[str, Scalar]]:
        """Ancestors of the particles, and statistics of the step."""
        return state.ancestors, {**_stats(state), "rho": info}

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        """Level of noise, effective sample size, log evidence so far."""
        last = {k: v[-1] for k, v in stats.items()}
        return {
            "noise": float(np.mean(last["rho"])),
            "ess": float(np.mean(last["ess"])),
            "log evidence": float(np.mean(last["log_evidence"])),
        }

    @override
    def stop(self, stats: Stats) -> bool:
        """Whether a replicate is lost, so that there is no point in going on."""
        return bool(np.any(stats["log_evidence_increment"] == -np.inf))


def first_stats(state: SMCState, rho: Scalar) -> dict[str, Num[Array, " chain"]]:
    """Statistics of the noisiest level, of all replicates."""
    found = jax.vmap(_stats)(state)
    return {**found, "rho": jnp.broadcast_to(rho, found["ess"].shape)}


def _row(data: GuidedData, t: int | Int[Array, ""]) -> Levels:
    row: Levels = jax.tree_util.tree_map(lambda x: x[t], data.levels)
    return row


def _stats(state: SMCState) -> dict[str, Scalar]:
    return {**step_stats(state), "unique_ancestors": unique_ancestors(state.ancestors[None])[0]}
