"""What kernels of particle systems share: particles on several devices, and statistics of a step."""

from __future__ import annotations

import dataclasses
from typing import Self, override

from jax.sharding import Mesh

from mcx.inference.smc.engine import SMCSettings, SMCState
from mcx.run.devices import spread
from mcx.run.kernel import Kernel
from mcx.types import Scalar


class ParticleKernel(Kernel):
    """Base of the driver's kernels whose state is a particle system; a subclass is a frozen dataclass.

    Attributes:
        settings: of the particle system.
        mesh: devices that share the particles of one replicate; None for one device.
    """

    settings: SMCSettings
    mesh: Mesh | None

    @property
    @override
    def size(self) -> int:
        """Particles, which several devices may share."""
        return self.settings.num_particles

    @override
    def over_mesh(self, mesh: Mesh) -> Self:
        """The same, its particles spread over a mesh; resampling gathers what it needs from all devices."""
        return dataclasses.replace(self, mesh=mesh)  # type: ignore[type-var]

    def _spread(self, state: SMCState) -> SMCState:
        return spread(state, self.mesh, self.size)


def step_stats(state: SMCState) -> dict[str, Scalar]:
    """Statistics that every particle method has of a step."""
    info = state.info
    return {
        "ess": info.ess,
        "resampled": info.resampled,
        "log_evidence_increment": info.log_increment,
        "log_evidence": state.log_evidence,
        "nonfinite": info.num_nonfinite,
        "max_log_weight": info.max_log_weight,
    }
