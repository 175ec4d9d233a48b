"""Integrators of diffusion models: error against calls of the model, and time against diffrax.

The model is a ring of 8 Gaussians of radius 4, standard deviation 0.1 and weights in proportion to 1, ..., 8,
with its exact score. Levels go from 20 to 0.002 with Karras' power 7, and then to 0. Draws start from the
exact law of the first level, so that all error is the integrator's. Columns are calls of the model a draw:

    SW2        sliced Wasserstein distance of 20,000 draws to as many exact ones, mean of the seeds
    exact      another set of exact draws: what no sampler can go below but by chance
    flow       median distance of a draw to where the exact flow of its start ends

Times are medians for 4,000 draws in float32, nothing compiled, and a ratio of diffrax's to mcx's; "compile"
is the first call less that. diffrax steps to the same levels, all positive, in rho, so that Euler's method
is DDIM, and Heun's is Heun's; it needs `pip install diffrax`.

    python benchmarks/integrators.py           # about 4 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import command, machine, report

import mcx
from mcx.diffusion import (
    DDIM,
    DEIS,
    DPMSolver,
    DPMSolver2S,
    EulerMaruyama,
    GaussianMixture,
    Heun,
    PredictorCorrector,
    SDEDPMSolver,
    UniPC,
    integrate,
    levels,
)

DRAWS, TIMED = 20_000, 4000
FIRST, LAST, POWER = 20.0, 0.002, 7.0
CALLS = (5, 7, 11, 17, 33, 65)
ANGLES = 2 * np.pi * np.arange(8) / 8
RING = GaussianMixture.of(
    4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.01, np.arange(1.0, 9.0) / np.arange(1.0, 9.0).sum()
)
METHODS = {
    "DDIM": DDIM(),
    "DPM-Solver++ 2M": DPMSolver(2),
    "DPM-Solver++ 3M": DPMSolver(3),
    "DPM-Solver++ 2S": DPMSolver2S(),
    "Heun": Heun(),
    "DEIS 3, in rho": DEIS(3),
    "UniPC-2": UniPC(2),
    "UniPC-3": UniPC(3),
    "DDIM, eta 1": DDIM(1.0),
    "SDE-DPM-Solver++ 2M": SDEDPMSolver(2),
    "EDM, churn 10": Heun(s_churn=10.0),
    "Euler-Maruyama": EulerMaruyama(),
    "predictor-corrector": PredictorCorrector(DDIM()),
}
RANDOM = 8  # the first so many are deterministic


def grid(method: Any, calls: int) -> np.ndarray | None:
    """Levels that cost this many calls."""
    for steps in (calls, (calls + 1) // 2):
        rho = levels(FIRST, LAST, steps - 1, POWER, to_zero=True)
        if method.nfe(rho) == calls:
            return rho
    return None


def carried(key: Any, start: Any, rho: np.ndarray, method: Any) -> Any:
    def one(i: Any, y: Any) -> Any:
        return integrate(RING, y, rho, key=jax.random.fold_in(key, i), method=method)

    return jax.jit(jax.vmap(one))(jnp.arange(len(start)), start)


def distance(x: Any, y: Any) -> float:
    found = mcx.sliced_wasserstein(x, y, p=2, num_projections=64, key=0)
    return float(found.value)


def started(seed: int) -> tuple[Any, Any]:
    """Exact draws, and independent ones of the first level."""
    keys = jax.random.split(jax.random.key(seed), 3)
    noise = FIRST * jax.random.normal(keys[2], (DRAWS, 2))
    return RING.sample(keys[0], DRAWS), RING.sample(keys[1], DRAWS) + noise


def errors(seeds: int) -> tuple[list[dict[str, Any]], list[float]]:
    found: list[dict[str, Any]] = []
    floor = []
    fine = levels(FIRST, LAST, 600, to_zero=True)
    for seed in range(seeds):
        truth, start = started(seed)
        floor.append(distance(RING.sample(jax.random.key(100 + seed), DRAWS), truth))
        ends = carried(jax.random.key(0), start, fine, UniPC(3))
        floor.append(distance(ends, truth))
        for place, (name, method) in enumerate(METHODS.items()):
            for calls in CALLS:
                rho = grid(method, calls)
                x = carried(jax.random.key(1000 + seed), start, rho, method)
                apart = float(jnp.median(jnp.linalg.norm(x - ends, axis=1))) if place < RANDOM else None
                found.append(
                    {"method": name, "calls": calls, "seed": seed, "SW2": distance(x, truth), "flow": apart}
                )
            print(name, [f"{f['SW2']:.3g}" for f in found[-len(CALLS) :]], flush=True)
    return found, floor


def timed(fns: list[Callable[[Any], Any]], start: Any, repeats: int = 40) -> list[tuple[float, float]]:
    """Median seconds, and seconds of the first call less that, of functions that take turns."""
    seconds: list[list[float]] = [[] for _ in fns]
    for _ in range(repeats + 1):
        for fn, spent in zip(fns, seconds, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(fn(start))
            spent.append(time.perf_counter() - begun)
    return [(median(spent[1:]), spent[0] - median(spent[1:])) for spent in seconds]


def times() -> list[dict[str, Any]]:
    import diffrax

    start = started(0)[1][:TIMED]
    rows = []
    for name, method, peer in (("DDIM", DDIM(), diffrax.Euler()), ("Heun", Heun(), diffrax.Heun())):
        for steps in (16, 64):
            rho = levels(FIRST, LAST, steps, POWER)

            def with_mcx(y: Any, rho: Any = rho, method: Any = method) -> Any:
                return jax.vmap(lambda y: integrate(RING, y, rho, method=method))(y)

            def with_diffrax(y: Any, rho: Any = rho, peer: Any = peer) -> Any:
                term = diffrax.ODETerm(lambda t, y, model: (y - model.denoise(y, t)) / t)
                return jax.vmap(
                    lambda y: diffrax.diffeqsolve(
                        term,
                        peer,
                        t0=rho[0],
                        t1=rho[-1],
                        dt0=None,
                        y0=y,
                        args=RING,
                        stepsize_controller=diffrax.StepTo(ts=jnp.asarray(rho, jnp.float32)),
                        max_steps=len(rho),
                    ).ys[0]
                )(y)

            ours, theirs = jax.jit(with_mcx), jax.jit(with_diffrax)
            (here, compiled), (there, compiled_there) = timed([ours, theirs], start)
            apart = float(jnp.median(jnp.linalg.norm(ours(start) - theirs(start), axis=1)))
            rows.append(
                {
                    "method": name,
                    "calls": method.nfe(rho),
                    "mcx": here,
                    "diffrax": there,
                    "compile": (compiled, compiled_there),
                    "apart": apart,
                }
            )
            print(rows[-1], flush=True)
    return rows


def table(found: list[dict[str, Any]], field: str, floor: float | None) -> list[str]:
    rows = ["| method | " + " | ".join(map(str, CALLS)) + " |", "|---" * (len(CALLS) + 1) + "|"]
    for name in METHODS:
        cells = []
        for calls in CALLS:
            values = [f[field] for f in found if f["method"] == name and f["calls"] == calls]
            if values and values[0] is not None:
                cells.append(f"{np.mean(values):.3g}")
        if cells:
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    if floor is not None:
        rows.append("| exact | " + " | ".join([f"{floor:.3g}"] * len(CALLS)) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    found, floor = errors(args.seeds)
    try:
        speed = times()
    except ImportError:
        speed = []
        print("no diffrax here: no times")
    how = (
        f"`{command()}`. {machine()}; {args.seeds} seeds. "
        f"Load average before: {load:.1f}; after: {os.getloadavg()[0]:.1f}. "
        "Sliced Wasserstein distances of draws to exact ones, by calls of the model a draw:"
    )
    lines = table(found, "SW2", float(np.mean(floor[::2])))
    lines += ["", "Median distance to where the exact flow of a draw's start ends:", ""]
    lines += table(found, "flow", None)
    if speed:
        lines += ["", f"Times for {TIMED} draws, the same levels and calls:", ""]
        lines += [
            "| method | calls | mcx ms | diffrax ms | ratio | compile s | compile s, diffrax |",
            "|---" * 7 + "|",
        ]
        lines += [
            f"| {r['method']} | {r['calls']} | {1e3 * r['mcx']:.1f} | {1e3 * r['diffrax']:.1f} | "
            f"{r['diffrax'] / r['mcx']:.1f} | {r['compile'][0]:.2f} | {r['compile'][1]:.2f} |"
            for r in speed
        ]
    report("integrators on a ring of 8 Gaussians", how, lines, record=args.record)
    if args.json:
        args.json.write_text(json.dumps({"errors": found, "floor": floor, "times": speed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
