"""What all contenders of ``filters.py`` share, in whichever environment they run: numpy and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

PHI, SIGMA_Y = 0.9, 0.5


class Case(NamedTuple):
    """N particles, T times, and how many filters at once."""

    particles: int
    times: int
    filters: int = 1

    @property
    def title(self) -> str:
        many = f", {self.filters} filters" if self.filters > 1 else ""
        return f"N = {self.particles:,}, T = {self.times:,}{many}"


class Output(NamedTuple):
    """What a filter gives, on the host: log evidence, filtering mean and sd and effective sample size.

    Leading axis: the filters that ran together; the last three have one of T. No moments: None.
    """

    log_evidence: np.ndarray
    mean: np.ndarray | None
    sd: np.ndarray | None
    ess: np.ndarray


@dataclass(frozen=True)
class Contender:
    """A way to run the filter: ``call(seed)`` does all of it and has its results on the host.

    family: contenders of one family and one setting are one library's ways to do the same.
    output: makes an :class:`Output` of what ``call`` gave, outside of the clock.
    parts: seconds that ``call`` knows it spent in compiled programs, from what it gave.
    """

    family: str
    scheme: str
    threshold: float
    call: Callable[[int], Any]
    output: Callable[[Any], Output] = lambda result: result
    parts: Callable[[Any], float] | None = None


def compete(contenders: list[Contender], case: Case, exact: Any, repeats: int) -> list[dict[str, Any]]:
    """Time contenders in turns, so that a busy machine slows all of them, and check what they give."""
    cold, rows = [], []
    for contender in contenders:
        begun = time.perf_counter()
        contender.call(0)
        cold.append(time.perf_counter() - begun)
        contender.call(1)
    seconds: list[list[float]] = [[] for _ in contenders]
    programs: list[list[float]] = [[] for _ in contenders]
    checks = [Check(case, exact) for _ in contenders]
    for repeat in range(repeats):
        for i, contender in enumerate(contenders):
            begun = time.perf_counter()
            result = contender.call(2 + repeat)
            seconds[i].append(time.perf_counter() - begun)
            if contender.parts is not None:
                programs[i].append(contender.parts(result))
            checks[i].add(contender.output(result))
    for i, contender in enumerate(contenders):
        run = float(np.median(seconds[i]))
        rows.append(
            {
                "family": contender.family,
                "scheme": contender.scheme,
                "threshold": contender.threshold,
                "case": list(case),
                "compile": cold[i] - run,
                "run": run,
                "seconds": seconds[i],
                "programs": float(np.median(programs[i])) if programs[i] else None,
                "load": os.getloadavg()[0],
                **checks[i].summary(),
            }
        )
    return rows


class Check:
    """Whether the answers are right: against the exact ones, over all repeats."""

    def __init__(self, case: Case, exact: Any) -> None:
        self.case = case
        self.log_evidence, self.mean, self.sd = (exact[k] for k in ("log_evidence", "mean", "sd"))
        self.log_z: list[float] = []
        self.errors: list[tuple[float, float]] = []
        self.ess: list[float] = []

    def add(self, output: Output) -> None:
        shape = (self.case.filters, self.case.times)
        log_z, ess = np.asarray(output.log_evidence, np.float64), np.asarray(output.ess, np.float64)
        self.log_z += [float(z) for z in log_z.reshape(self.case.filters)]
        assert ess.shape == shape, (ess.shape, shape)
        self.ess += [float(e) / self.case.particles for e in ess.mean(1)]
        if output.mean is None or output.sd is None:
            return
        mean, sd = np.asarray(output.mean, np.float64), np.asarray(output.sd, np.float64)
        assert mean.shape == sd.shape == shape, (mean.shape, shape)
        # in units of the exact sd over sqrt(N): of order 1 for any good filter
        scale = self.case.particles**0.5
        self.errors += zip(
            scale * np.sqrt(np.mean(((mean - self.mean) / self.sd) ** 2, 1)),
            scale * np.sqrt(np.mean((sd / self.sd - 1) ** 2, 1)),
            strict=True,
        )

    def summary(self) -> dict[str, Any]:
        """Errors, and ``right``.

        The estimate of the evidence is unbiased, its logarithm low by half its variance; z allows for it.
        """
        log_z, n = np.asarray(self.log_z), len(self.log_z)
        variance = float(log_z.var(ddof=1))
        error = float(log_z.mean() + variance / 2 - self.log_evidence)
        z = error / (variance / n + variance**2 / (2 * (n - 1))) ** 0.5
        mean_error = sd_error = None
        if self.errors:
            mean_error, sd_error = (float(np.mean([e[i] for e in self.errors])) for i in range(2))
        # few repeats tell the spread badly, and z has heavy tails then
        right = abs(z) < (8 if n > 6 else 25) and max(mean_error or 0.0, sd_error or 0.0) < 4
        return {
            "log_evidence_error": error,
            "log_evidence_sd": variance**0.5,
            "z": z,
            "mean_error": mean_error,
            "sd_error": sd_error,
            "ess": float(np.mean(self.ess)),
            "right": bool(right),
        }
