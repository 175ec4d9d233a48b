"""Posteriors under diffusion priors whose answers are known: guidances side by side, by dimension.

The prior is a mixture of 10 Gaussians in d dimensions, given to mcx as a denoiser; d / 4 linear combinations
are observed with Gaussian noise. The posterior is a mixture again. Every guidance has the same number of
particles and steps.

    SW         sliced 2-Wasserstein distance of the draws of all replicates to as many exact ones
    mean       distance of the posterior means, over the root of the trace of the posterior covariance
    log Z      error of the log evidence, of the mean over replicates, and its standard deviation a replicate
    lineages   particles that the draws of a replicate descend from, at half of the variance
    exact      another set of exact draws: what no sampler can go below
    seconds    of a second call; "compile" the first call less that
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import command, machine, report

import mcx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from guided_problems import linear, problem  # noqa: E402

METHODS = {
    "linear_gaussian": {"guidance": "linear_gaussian"},
    "linear_gaussian, noised (MCGDiff)": {"guidance": "linear_gaussian", "lookahead": "noised"},
    "twisted (TDS)": {"guidance": "twisted"},
    "soft_value (SVDD, weighted)": {"guidance": "soft_value", "num_children": 4},
}


def run(dim: int, seed: int, particles: int, steps: int, replicates: int) -> list[dict[str, Any]]:
    mixture, matrix, scale, y = problem(dim, max(1, dim // 4), 10, seed=seed)
    exact, log_z = mixture.given(matrix, scale, y)
    rng = np.random.default_rng(seed)
    truth, other = (exact.draws(rng, 4000).astype(np.float32) for _ in range(2))
    size = np.trace(exact.covariance) ** 0.5

    def distance(x: np.ndarray) -> float:
        x = rng.permutation(x)[:4000]
        return float(mcx.sliced_wasserstein(x, truth, num_projections=512, key=0).value)

    found = [{"case": "exact", "dim": dim, "seed": seed, "SW": distance(other)}]
    prior = mcx.ScorePrior(mixture.model, num_steps=steps)
    for name, options in METHODS.items():
        method = mcx.GuidedDiffusion(particles, **options)
        times = []
        for key in (99, seed):
            begun = time.perf_counter()
            post = mcx.infer(
                linear(prior, matrix, scale, y), method, key=key, num_chains=replicates, warnings="ignore"
            )
            times.append(time.perf_counter() - begun)
        x = post["x"].reshape(-1, dim)
        each = post.smc_stats["log_evidence"][:, -1]
        half = post.info.settings["half"]
        found.append(
            {
                "case": name,
                "dim": dim,
                "seed": seed,
                "SW": distance(x),
                "mean": float(np.linalg.norm(x.mean(0) - exact.mean) / size),
                "log_z": float(post.log_evidence - log_z),
                "sd": float(each.std(ddof=1)),
                "lineages": float(post.smc_stats["lineages"][:, half].mean()),
                "seconds": times[1],
                "compile": times[0] - times[1],
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--particles", type=int, default=512)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--replicates", type=int, default=8)
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    found = [
        row
        for dim in args.dims
        for seed in range(args.seeds)
        for row in run(dim, seed, args.particles, args.steps, args.replicates)
    ]
    rows = [
        "| d | guidance | SW | mean | log Z | sd log Z | lineages | compile s | seconds |",
        "|---" * 9 + "|",
    ]
    for dim, case in dict.fromkeys((f["dim"], f["case"]) for f in found):
        ours = [f for f in found if (f["dim"], f["case"]) == (dim, case)]

        def cell(name: str, digits: int = 2, ours: Any = ours) -> str:
            values = [f[name] for f in ours if name in f]
            return f"{np.mean(values):.{digits}f}" if values else ""

        cells = [cell("SW", 3), cell("mean", 3), cell("log_z"), cell("sd"), cell("lineages", 0)]
        rows.append(f"| {dim} | {case} | {' | '.join(cells)} | {cell('compile', 1)} | {cell('seconds')} |")
    how = (
        f"`{command()}`. {machine()}; means of {args.seeds} "
        f"seeds; {args.replicates} replicates of {args.particles} particles, {args.steps} steps. "
        f"Load average before: {load:.1f}; after: {os.getloadavg()[0]:.1f}."
    )
    report("guided diffusion", how, rows, record=args.record)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
