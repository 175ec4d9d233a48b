"""Posterior expectations: `mcx.expect` with Stein control variates against plain averages of NUTS draws.

Means and mean squares of all parameters of posteriors of posteriordb, over several runs of short chains.
Control variates cost one gradient a draw, plain averages none; variances are inversely proportional to
gradients, so that

    gain        variance over runs of the plain averages over that with control variates, times the ratio of
                their numbers of gradients: how much less work the same error takes. Median, least and largest
                over parameters; of means, and of mean squares
    predicted   the same from standard errors (median)
    covered     share of intervals of 1.96 standard errors that hold the reference, whose own error is added
    gradients   of a run: leapfrog steps, warm-up included, and draws

    python benchmarks/expect.py            # five posteriors, 20 runs each
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import mcx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from posteriordb import PROBLEMS, Problem
from posteriordb.problems import DATA

NAMES = (
    "eight_schools-eight_schools_noncentered",
    "kidiq-kidscore_interaction",
    "sblrc-blr",
    "arK-arK",
    "gp_pois_regr-gp_regr",
)


def averages(problem: Problem, found: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors (2, parameter): of the parameters, and of their squares."""

    def flat(tree: dict[str, Any]) -> list[Any]:
        scalars = problem.scalars({k: np.asarray(x)[None, None] for k, x in tree.items()})
        return [np.ravel(scalars[name])[0] for name in problem.reference]

    both = [found["mean"], found["square"]]
    return np.array([flat(e.value) for e in both]), np.array([flat(e.se) for e in both])


def reference_of(name: str) -> np.ndarray:
    """The reference's values and their errors, each (2, parameter)."""
    found = json.loads((DATA / f"{name}.json").read_text())["reference"]
    of = [found["mean"], found["mean_squared"]]
    values = [of[0]["mean_value"], of[1]["mean_squared_value"]]
    return np.array([values, [one["mcse_mean"] for one in of]], float)


def measure(name: str, runs: int, method: Any) -> str:
    problem = PROBLEMS[name]
    functions = {"mean": lambda v: v, "square": lambda v: {k: x**2 for k, x in v.items()}}
    found: dict[str, list[Any]] = {"plain": [], "controls": []}
    gradients = []
    for seed in range(runs):
        posterior = mcx.infer(problem.bound(), method, key=seed, progress=False, warnings="ignore")
        steps = posterior.stats["n_steps"].sum() + posterior.warmup_stats["n_steps"].sum()
        gradients.append((int(steps), posterior.num_chains * posterior.num_draws))
        for label, degree in (("plain", 0), ("controls", None)):
            estimates = mcx.expect(posterior, functions, method=mcx.SteinControls(degree))
            found[label].append(averages(problem, estimates))
    steps, draws = np.mean(gradients, 0)
    value = {k: np.array([v for v, _ in each]) for k, each in found.items()}  # run x 2 x parameter
    se = {k: np.array([s for _, s in each]) for k, each in found.items()}
    work = steps / (steps + draws)
    gain = work * value["plain"].var(0, ddof=1) / value["controls"].var(0, ddof=1)
    predicted = work * np.median((se["plain"] / se["controls"]) ** 2, 0)
    reference, error = reference_of(name)
    covered = {
        k: np.mean(np.abs(value[k] - reference) < 1.96 * np.hypot(se[k], error))
        for k in ("plain", "controls")
    }

    def shown(x: np.ndarray) -> str:
        return f"{np.median(x):.3g} ({x.min():.2g} to {x.max():.2g})"

    return (
        f"| {name.split('-')[1]} | {shown(gain[0])} | {shown(gain[1])} | {np.median(predicted[0]):.3g}, "
        f"{np.median(predicted[1]):.3g} | {covered['controls']:.3f} ({covered['plain']:.3f}) "
        f"| {steps:.0f} + {draws:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--posteriors", nargs="+", choices=list(PROBLEMS), default=list(NAMES))
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {args.runs} runs")
    print("| posterior | gain, means | gain, squares | predicted | covered (plain) | gradients |")
    print("|---|---|---|---|---|---|")
    for name in args.posteriors:
        print(measure(name, args.runs, mcx.NUTS(num_warmup=300, num_samples=250)), flush=True)


if __name__ == "__main__":
    main()
