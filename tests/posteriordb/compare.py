"""Is a sample from a posterior the same posterior as the reference's?"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from mcx import Posterior
from posteriordb.problems import Problem

THRESHOLD = 4.0  # standard errors
SD_FLOOR = 0.05  # relative; the reference's own sd of a heavy-tailed parameter is off by a few per cent
RHAT = 1.01


def key_of(test_name: str) -> int:
    """Seed of a test: a function of its name, so that nobody can pick one that passes."""
    return int.from_bytes(hashlib.sha256(test_name.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Row:
    """One parameter against the reference.

    Attributes:
        mean_z: difference of the means in combined standard errors.
        sd_ratio, sd_z: ratio of the standard deviations, and their difference in combined standard errors.
        r_hat, ess: of the sample; bulk.
    """

    mean_z: float
    sd_ratio: float
    sd_z: float
    r_hat: float
    ess: float

    @property
    def ok(self) -> bool:
        sd_agrees = abs(self.sd_ratio - 1) <= SD_FLOOR or abs(self.sd_z) <= THRESHOLD
        return abs(self.mean_z) <= THRESHOLD and sd_agrees and self.r_hat < RHAT  # NaN is not ok


@dataclass(frozen=True)
class Comparison:
    """All parameters of one posterior."""

    rows: dict[str, Row]

    @property
    def failures(self) -> list[str]:
        return [name for name, row in self.rows.items() if not row.ok]

    @property
    def worst_z(self) -> float:
        return max(abs(row.mean_z) for row in self.rows.values())

    def __str__(self) -> str:
        lines = [f"{'':>12} {'mean z':>7} {'sd z':>7} {'sd ratio':>8} {'r_hat':>6} {'ess':>6}"]
        for name, r in self.rows.items():
            line = f"{name:>12} {r.mean_z:7.2f} {r.sd_z:7.2f} {r.sd_ratio:8.4f} {r.r_hat:6.4f} {r.ess:6.0f}"
            lines.append(line if r.ok else line + "  <--")
        return "\n".join(lines)


def compare(problem: Problem, posterior: Posterior) -> Comparison:
    """Compare means and standard deviations with the reference's, parameter by parameter."""
    scalars = problem.scalars(posterior.draws)
    return Comparison({name: _row(scalars[name], *ref) for name, ref in problem.reference.items()})


def _row(draws: np.ndarray, mean: float, mcse: float, sd: float) -> Row:
    from arviz_stats.base import array_stats

    x = np.asarray(draws, np.float64)
    own_mcse = float(array_stats.mcse(x, method="mean"))
    own_sd, own_mcse_sd = float(x.std(ddof=1)), float(array_stats.mcse(x, method="sd"))
    # the sd of n independent normal draws has standard error sd / sqrt(2 n), and n = (sd / mcse)^2
    reference_mcse_sd = mcse / math.sqrt(2)
    return Row(
        mean_z=(x.mean() - mean) / math.hypot(own_mcse, mcse),
        sd_ratio=own_sd / sd,
        sd_z=(own_sd - sd) / math.hypot(own_mcse_sd, reference_mcse_sd),
        r_hat=float(array_stats.rhat(x)),
        ess=float(array_stats.ess(x, method="bulk")),
    )
