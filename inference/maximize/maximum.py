"""The result of maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcx.results.posterior import RunInfo
from mcx.types import Float, Stats


@dataclass(frozen=True, eq=False)
class Maximum:
    """A maximum of the likelihood.

    Attributes:
        params: estimates by site, constrained.
        se: their standard errors, from the observed information; NaN where that is not positive definite.
        mc_se: what the randomness of the ascent adds to that, from the autocorrelation of its last updates.
        trace: the parameters after every update, by site, (updates, ...).
        stats: by name, (updates,): norm of the score, log evidence of the filters.
        covariance: of the unconstrained estimates, (d, d).
        information: observed information in unconstrained space, (d, d).
        info: how the run went.
        notes: what to be wary of.
    """

    params: dict[str, np.ndarray]
    se: dict[str, np.ndarray]
    mc_se: dict[str, np.ndarray]
    trace: dict[str, np.ndarray]
    stats: Stats
    covariance: Float[np.ndarray, "d d"]
    information: Float[np.ndarray, "d d"]
    info: RunInfo
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """False where the ascent was stopped before its end."""
        return self.info.complete

    def __repr__(self) -> str:
        updates = len(self.stats["score_norm"])
        head = f"maximum likelihood: {updates} updates, {self.info.run_time:.1f} s"
        lines = [head + f" (compile {self.info.compile_time:.1f} s)"]
        for name, x in self.params.items():
            for index in np.ndindex(np.shape(x)):
                label = name + (f"[{', '.join(map(str, index))}]" if index else "")
                errors = f"{self.se[name][index]:.2g} (Monte Carlo {self.mc_se[name][index]:.1g})"
                lines.append(f"  {label} = {x[index]:.6g} +- {errors}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
