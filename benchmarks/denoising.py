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
import platform
import textwrap
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

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


def from_noise(method: Any, calls: int) -> Callable[[int], tuple[Any, float]] | None:
    for steps in (calls, (calls + 1) // 2):
        down = levels(FIRST, LAST, steps - 1, POWER, to_zero=True) if steps > 1 else np.array([FIRST, 0.0])
        if method.nfe(down) == calls:
            return lambda seed: (sample(seed, RING, CHAINS * DRAWS, (2,), down, method=method), 0.0)
    return None


def by_chains(method: Any, calls: int, metropolis: bool) -> Callable[[int], tuple[Any, float]] | None:
    moves = 2 if metropolis else 1
    for steps in range(1, calls):
        how = DenoisingMCMC(
            num_samples=DRAWS,
            num_warmup=WARMUP,
            metropolis=metropolis,
            step_size=None if metropolis else 0.05,
            integrator=method,
            num_denoise=steps,
        )

        def run(seed: int, how: DenoisingMCMC = how) -> tuple[Any, float]:
            found = how.run(RING, (2,), GRID, key=seed, num_chains=CHAINS, progress=False)
            return found.x.reshape(-1, 2), found.nfe_start / DRAWS

        if method.nfe(np.linspace(1.0, 0.0, steps + 1)) + moves == calls:
            return run
    return None


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
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    args = parser.parse_args()
    load, begun = os.getloadavg()[0], time.perf_counter()
    exact = RING.sample(jax.random.key(12345), 20_000)

    @jax.jit
    def distance(x: Any) -> Any:
        return mcx.sliced_wasserstein(x, exact, num_projections=128, key=jax.random.key(1)).value

    def cell(values: list[float]) -> str:
        return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}"

    seeds = range(args.seeds)
    floor = [float(distance(RING.sample(jax.random.key(50 + s), CHAINS * DRAWS))) for s in seeds]
    lines = [
        "| start | integrator | " + " | ".join(f"{c} calls" for c in CALLS) + " | to start |",
        "|---" * (len(CALLS) + 3) + "|",
    ]
    starts: dict[str, Callable[[Any, int], Any]] = {
        "noise": from_noise,
        "chains": lambda method, calls: by_chains(method, calls, False),
        "chains, Metropolis": lambda method, calls: by_chains(method, calls, True),
    }
    for start, prepare in starts.items():
        for name, method in METHODS.items():
            cells, before = [], 0.0
            for calls in CALLS:
                run = prepare(method, calls)
                if run is None:
                    cells.append("")
                    continue
                found = [run(seed) for seed in seeds]
                cells.append(cell([float(distance(x)) for x, _ in found]))
                before = found[0][1]
            lines.append(f"| {start} | {name} | " + " | ".join(cells) + f" | {before:.1f} |")
            print(lines[-1], flush=True)
    lines += [f"| exact | | {cell(floor)} |" + " |" * len(CALLS), "", "Crossings:", ""]
    for metropolis in (False, True):
        many, one = (crossings(0, rho, metropolis) for rho in (GRID, np.array([LAST, 1.01 * LAST])))
        who = "with Metropolis" if metropolis else "without Metropolis"
        lines.append(f"- {who}: {many:.3f}; at the least noise {one:.3f}")
    how = (
        f"`python benchmarks/denoising.py`. {os.cpu_count()} shared {platform.machine()} cores, no GPU; "
        f"Python {platform.python_version()}, mcx {mcx.__version__}, jax {jax.__version__}; {args.seeds} "
        f"seeds, {time.perf_counter() - begun:.0f} s. Load average before: {load:.1f}; after: "
        f"{os.getloadavg()[0]:.1f}."
    )
    title = f"## {date.today().isoformat()}: denoising MCMC on a ring"
    text = "\n".join([title, "", *textwrap.wrap(how, 118, break_on_hyphens=False), "", *lines]) + "\n"
    print("\n" + text)
    if args.record:
        with (HERE / "RESULTS.md").open("a") as results:
            results.write("\n" + text)


if __name__ == "__main__":
    main()
