"""Denoising MCMC against samples that start from noise: distance to the data by calls of the model a draw.

The model is a ring of 8 Gaussians of radius 4, standard deviation 0.1 and weights in proportion to 1, ..., 8,
with its exact score, and noise levels from 0.002 to 20. 4,000 draws: from noise, along Karras' levels to 0;
or of 200 chains (of 20 draws each, after 50 steps of warm-up) whose points are denoised in few steps.

    calls      of the model a draw, those of the chain included; what chains need to start and warm up is in
               the last column, by draw
    distance   sliced Wasserstein distance to 20,000 exact draws, mean and standard deviation over seeds
    exact      of another set of 4,000 exact draws: what no sampler can go below but by chance
    crossings  how often a chain's next draw is in another mode, share of draws; it would be 0.82 of
               independent ones. "at the least noise" is the same chain without levels
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _report import command, machine, report

import mcx
from mcx.diffusion import (
    DDIM,
    DenoisingMCMC,
    DPMSolver,
    EulerMaruyama,
    GaussianMixture,
    Heun,
    levels,
    sample,
)

HERE = Path(__file__).resolve().parent
CHAINS, DRAWS, WARMUP = 200, 20, 50
FIRST, LAST, POWER = 20.0, 0.002, 7.0
GRID = levels(FIRST, LAST, 199)
CALLS = (3, 4, 5, 7, 11, 17, 33)
ANGLES = 2 * np.pi * np.arange(8) / 8
WEIGHTS = np.arange(1.0, 9.0) / np.arange(1.0, 9.0).sum()
RING = GaussianMixture.of(4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.01, WEIGHTS)
METHODS = {
    "DDIM": DDIM(),
    "DPM-Solver++ 2M": DPMSolver(order=2),
    "Heun": Heun(),
    "Euler-Maruyama": EulerMaruyama(),
}


class Problem(NamedTuple):
    """A model and its points' shape; first and last of Karras' levels; chains' levels, number and draws."""

    model: Any
    shape: tuple[int, ...]
    ends: tuple[float, float]
    grid: np.ndarray
    chains: int
    draws: int


RINGS = Problem(RING, (2,), (FIRST, LAST), GRID, CHAINS, DRAWS)
Run = Callable[[int], tuple[Any, float]]


def from_noise(problem: Problem, method: Any, calls: int) -> Run | None:
    num, shape = problem.chains * problem.draws, problem.shape
    for steps in (calls, (calls + 1) // 2):
        ends = problem.ends
        down = levels(*ends, steps - 1, POWER, to_zero=True) if steps > 1 else np.array([ends[0], 0.0])
        if method.nfe(down) == calls:
            return lambda seed: (sample(problem.model, num, shape, down, key=seed, method=method), 0.0)
    return None


def by_chains(problem: Problem, method: Any, calls: int, **options: Any) -> Run | None:
    moves = 2 if options.get("metropolis", True) else 1
    for steps in range(1, calls):
        how = DenoisingMCMC(
            num_samples=problem.draws,
            num_warmup=WARMUP,
            integrator=method,
            num_denoise=steps,
            **options,
        )

        def run(seed: int, how: DenoisingMCMC = how) -> tuple[Any, float]:
            chains = {"num_chains": problem.chains, "progress": False}
            found = how.run(problem.model, problem.shape, problem.grid, key=seed, **chains)
            return found.x.reshape(-1, *problem.shape), found.nfe_start / problem.draws

        if method.nfe(np.linspace(1.0, 0.0, steps + 1)) + moves == calls:
            return run
    return None


def table(
    starts: dict[str, Callable[[Any, int], Run | None]],
    methods: dict[str, Any],
    distance: Callable[[Any], Any],
    seeds: range,
    calls: Sequence[int],
) -> list[str]:
    """Distances by start, method and calls, mean and standard deviation over seeds."""
    lines = [
        "| start | integrator | " + " | ".join(f"{c} calls" for c in calls) + " | to start |",
        "|---" * (len(calls) + 3) + "|",
    ]
    for start, prepare in starts.items():
        for name, method in methods.items():
            cells, before = [], 0.0
            for num in calls:
                run = prepare(method, num)
                if run is None:
                    cells.append("")
                    continue
                found = [run(seed) for seed in seeds]
                cells.append(cell([float(distance(x)) for x, _ in found]))
                before = found[0][1]
            lines.append(f"| {start} | {name} | " + " | ".join(cells) + f" | {before:.1f} |")
            print(lines[-1], flush=True)
    return lines


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}"


def crossings(seed: int, rho: np.ndarray, metropolis: bool) -> float:
    """Share of draws in another mode than the chain's draw before."""
    step = None if metropolis else 0.05
    how = DenoisingMCMC(num_samples=200, num_warmup=WARMUP, metropolis=metropolis, step_size=step)
    x = how.run(RING, (2,), rho, key=seed, num_chains=CHAINS, progress=False).x
    mode = np.linalg.norm(x[:, :, None] - np.asarray(RING.means), axis=-1).argmin(-1)
    return float(np.mean(mode[:, 1:] != mode[:, :-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS, help="of the model a draw")
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    args = parser.parse_args()
    load, begun = os.getloadavg()[0], time.perf_counter()
    exact = RING.sample(jax.random.key(12345), 20_000)

    @jax.jit
    def distance(x: Any) -> Any:
        return mcx.sliced_wasserstein(x, exact, num_projections=128, key=jax.random.key(1)).value

    seeds = range(args.seeds)
    floor = [float(distance(RING.sample(jax.random.key(50 + s), CHAINS * DRAWS))) for s in seeds]
    starts: dict[str, Callable[[Any, int], Run | None]] = {
        "noise": partial(from_noise, RINGS),
        "chains": partial(by_chains, RINGS, metropolis=False, step_size=0.05),
        "chains, Metropolis": partial(by_chains, RINGS),
    }
    lines = table(starts, METHODS, distance, seeds, args.calls)
    lines += [f"| exact | | {cell(floor)} |" + " |" * len(args.calls), "", "Crossings:", ""]
    for metropolis in (False, True):
        many, one = (crossings(0, rho, metropolis) for rho in (GRID, np.array([LAST, 1.01 * LAST])))
        who = "with Metropolis" if metropolis else "without Metropolis"
        lines.append(f"- {who}: {many:.3f}; at the least noise {one:.3f}")
    how = (
        f"`{command()}`. {machine()}; {args.seeds} "
        f"seeds, {time.perf_counter() - begun:.0f} s. Load average before: {load:.1f}; after: "
        f"{os.getloadavg()[0]:.1f}."
    )
    report("denoising MCMC on a ring", how, lines, record=args.record)


if __name__ == "__main__":
    main()
