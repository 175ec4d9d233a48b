"""One time of SMC^2 as a step of the driver."""

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
from mcx.inference.smc2.nested import NestedFilterData, NestedFilters, Times, nest
from mcx.inference.smc2.nested_moves import PMMHMoves, with_pmmh
from mcx.types import Key, PyTree, Stats


def inputs(num_steps: int) -> Times:
    """Inputs of the steps after time 0: all later times, and the end."""
    t = np.arange(1, num_steps + 1, dtype=np.int32)
    return Times(np.minimum(t, num_steps - 1), t == num_steps)


@dataclass(frozen=True)
class SMC2Kernel(ParticleKernel):
    """Times of SMC^2 for the driver; the data are those of the nested model.

    Attributes:
        settings: of the outer system.
        least_acceptance: the run stops where moves are accepted less often than this.
    """

    nesting: NestedFilters
    moves: PMMHMoves
    settings: SMCSettings
    least_acceptance: float = 0.0
    mesh: Mesh | None = None

    @override
    def init(self, data: NestedFilterData, key: Key, start: PyTree) -> SMCState:
        if start is not None:
            return self._spread(start)
        now = Times(jnp.int32(0), jnp.asarray(False))
        fk = nest(self.nesting, data)
        return self._spread(initialize(key, fk, fk.prepare(None), now, self.settings))

    @override
    def step(self, data: NestedFilterData, key: Key, state: SMCState, u: Times) -> tuple[SMCState, None]:
        """One time, preceded by moves if they are due; or the end, which resamples and moves."""
        info = state.info
        # resample at the end for any weights, unless all are zero
        seen = jnp.where(u.last & ~state.collapsed, 0.5 * self.settings.threshold, info.ess)
        state = state._replace(info=info._replace(ess=seen))
        fk = with_pmmh(self.nesting, self.moves, data)
        return self._spread(move(key, fk, fk.prepare(None), state, u, self.settings)), None

    @override
    def collect(self, state: SMCState, info: PyTree) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Statistics of the step; those of its moves and resampling belong to the time before."""
        stage = jax.tree.map(lambda a: a[0], state.particles.stage)
        moved = stage.moved
        # counted as if the potentials of all particles of a filter failed together
        inner = sum(jnp.sum(s.info.num_nonfinite) for s in state.particles.systems.values())
        inner = jnp.ceil(inner / self.nesting.settings.num_particles).astype(jnp.int32)
        number = jnp.int32(self.nesting.settings.num_particles)
        return {}, {
            "ess": state.info.ess,
            "num_particles": number,
            "log_evidence_increment": state.info.log_increment,
            "log_evidence": state.log_evidence,
            "nonfinite": jnp.maximum(state.info.num_nonfinite, inner),
            "max_log_weight": state.info.max_log_weight,
            "moved": moved,
            "acceptance": jnp.where(moved, stage.acceptance, jnp.nan),
            "num_moves": jnp.where(moved, stage.num_moves, 0),
            "correlation": jnp.where(moved, stage.places, jnp.nan),
            "correlation_density": jnp.where(moved, stage.densities, jnp.nan),
            "unique_ancestors": unique_ancestors(state.ancestors[None])[0],
        }

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        shown: dict[str, float] = {
            "log evidence": float(np.mean(stats["log_evidence"][-1])),
            "ESS": float(np.min(stats["ess"])),
        }
        rates = stats["acceptance"][np.isfinite(stats["acceptance"])]
        return {**shown, "acceptance": float(rates[-1])} if len(rates) else shown

    @override
    def stop(self, stats: Stats) -> bool:
        """Whether a replicate is lost, which makes it pointless to go on, or filters may have to grow."""
        return lost(stats) or bool(np.any(stats["acceptance"] < self.least_acceptance))


def lost(stats: Stats) -> bool:
    """Whether all weights of a replicate became zero."""
    return bool(np.any(stats["log_evidence_increment"] == -np.inf))
