"""One stage of an SMC sampler as a step of the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import override

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mcx.inference.smc.engine import SMCSettings, SMCState, initialize, move
from mcx.inference.smc.genealogy import unique_ancestors
from mcx.inference.smc.particle_kernel import ParticleKernel
from mcx.inference.tempering.annealing import Annealing, with_moves
from mcx.inference.tempering.paths import LawPathData
from mcx.target import FeynmanKac
from mcx.types import Flags, Key, PyTree, Stats


@dataclass(frozen=True)
class SamplerKernel(ParticleKernel):
    """Stages of a path of laws for the driver, until the path's end; the data are those of the path."""

    annealing: Annealing
    settings: SMCSettings
    mesh: Mesh | None = None

    @property
    @override
    def open_ended(self) -> bool:
        return True

    @override
    def finished(self, state: SMCState) -> Flags:
        """Whether the path has reached its end, or all particles are lost."""
        return (state.particles.stage.level[..., 0] >= 1) | (state.info.ess == 0)

    @override
    def init(self, data: LawPathData, key: Key, start: PyTree) -> SMCState:
        return self._spread(initialize(key, *self._model(data), None, self.settings))

    @override
    def step(self, data: LawPathData, key: Key, state: SMCState, u: PyTree) -> tuple[SMCState, Flags]:
        """One stage, or none if the path is finished: results do not depend on when the driver stops."""
        over = self.finished(state)
        new = move(key, *self._model(data), state, None, self.settings)
        new = jax.tree.map(lambda a, b: jnp.where(over, b, a), new, state)
        return self._spread(new), ~over

    def _model(self, data: LawPathData) -> tuple[FeynmanKac, PyTree]:
        fk = with_moves(self.annealing, data, 1)  # all stages are alike, and the driver counts them
        return fk, fk.prepare(None)

    @override
    def collect(self, state: SMCState, info: Flags) -> tuple[PyTree, Mapping[str, PyTree]]:
        stage = jax.tree.map(lambda a: a[0], state.particles.stage)
        stats = {
            "level": stage.level,
            "ess": stage.ess,
            "step_size": stage.step_size,
            "acceptance": stage.acceptance,
            "num_moves": stage.num_moves,
            "correlation": stage.places,
            "correlation_density": stage.densities,
            "forced": stage.forced,
            "unique_ancestors": unique_ancestors(state.ancestors[None])[0],
            "log_evidence_increment": state.info.log_increment,
            "log_evidence": state.log_evidence,
            "nonfinite": state.info.num_nonfinite,
            "max_log_weight": state.info.max_log_weight,
            "took_place": info,
        }
        return {}, stats

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        last = {k: v[-1] for k, v in stats.items()}
        return {
            "level": float(np.min(last["level"])),
            "log evidence": float(np.mean(last["log_evidence"])),
            "acceptance": float(np.mean(last["acceptance"])),
            "moves": float(np.mean(last["num_moves"])),
        }

    @override
    def stop(self, stats: Stats) -> bool:
        """Whether all replicates are finished, or one is lost, which makes it pointless to go on."""
        lost = np.any(stats["log_evidence_increment"] == -np.inf)
        return bool(lost or np.all(stats["level"][-1] >= 1))
