"""A particle filter as a kernel for the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import override

import numpy as np
from jax.sharding import Mesh

from mcx.inference.smc.engine import SMCSettings, SMCState, end_block, initialize, move
from mcx.inference.smc.history import HistorySettings, record
from mcx.inference.smc.particle_kernel import ParticleKernel, step_stats
from mcx.target import FeynmanKac
from mcx.types import Key, PyTree, Scalar, Stats


@dataclass(frozen=True)
class FilterKernel(ParticleKernel):
    """A particle system of which a history is kept; its data are the context and the input of t = 0.

    Attributes:
        fk: the model's functions, without data.
        keep: what the history keeps.
        max_nonfinite: largest tolerated share of a step's potentials that are NaN or +inf.
    """

    fk: FeynmanKac
    settings: SMCSettings
    keep: HistorySettings
    max_nonfinite: float
    mesh: Mesh | None = None

    @property
    @override
    def block_size(self) -> int | None:
        return self.settings.lag

    @override
    def init(self, data: PyTree, key: Key, start: PyTree) -> SMCState:
        ctx, u = data
        return self._spread(initialize(key, self.fk, ctx, u, self.settings))

    @override
    def step(self, data: PyTree, key: Key, state: SMCState, u: PyTree) -> tuple[SMCState, None]:
        return self._spread(move(key, self.fk, data[0], state, u, self.settings)), None

    @override
    def end_block(self, state: SMCState) -> SMCState:
        return end_block(state)

    @override
    def collect(self, state: SMCState, info: None) -> tuple[PyTree, Mapping[str, Scalar]]:
        kept = record(state, self.keep)
        draw = {k: v for k, v in kept._asdict().items() if k not in ("info", "log_evidence")}
        return draw, step_stats(state)

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        last = stats["log_evidence"][-1]
        shown = {"log evidence": float(np.mean(last)), "ESS": float(np.min(stats["ess"]))}
        bad = int(np.sum(stats["nonfinite"]))
        return {**shown, "non-finite": bad} if bad else shown

    @override
    def stop(self, stats: Stats) -> bool:
        """Whether a step went wrong: there is no point in going on."""
        too_many = stats["nonfinite"] > self.max_nonfinite * self.settings.num_particles
        return bool(np.any(too_many) or np.any(stats["log_evidence_increment"] == -np.inf))
