"""Sobol' indices: mcx against SALib and OpenTURNS, errors against exact values at as many calls.

Ishigami's function (3 inputs) and Sobol's g-function (6 inputs, a kink in each), whose indices are known in
closed form. Peers run in environments of their own, as their documentation shows; all have the same budget.

    first, total   root mean square error over runs and inputs
    seconds        of a run, evaluations included; of mcx the second, as programs are compiled by then
    covered        share of indices, and runs, whose 95 % interval holds the truth, where there is one

    python benchmarks/sobol.py            # mcx alone
    python benchmarks/sobol.py --peers    # and SALib and OpenTURNS
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _peers import ROOT, environment, install, last_line

N = 1024  # blocks of d + 2 calls: a power of two, as SALib's points want
A = np.array([0.0, 1.0, 4.5, 9.0, 99.0, 99.0])
BOUNDS = {"ishigami": [(-np.pi, np.pi)] * 3, "g": [(0.0, 1.0)] * 6}
PROGRAMS = {  # name -> peer
    "mcx": None,
    "mcx, random points": None,
    "mcx, no polynomials": None,
    "SALib": "SALib",
    "OpenTURNS, Saltelli": "openturns",
    "OpenTURNS, Martinez": "openturns",
    "OpenTURNS, chaos": "openturns",
}


def evaluated(name: str, x: np.ndarray) -> np.ndarray:
    if name == "ishigami":
        return np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])
    return np.prod((np.abs(4 * x - 2) + A) / (1 + A), 1)


def with_mcx(name: str, controls: str, points: str) -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    import uq_problems

    import mcx.dist as dist
    from mcx.estimators import sobol_indices

    low, high = BOUNDS[name][0]
    d = len(BOUNDS[name])
    law = dist.Uniform(low, high).expand([d]).to_event(1)
    function = uq_problems.ishigami if name == "ishigami" else uq_problems.g_function

    def run(seed: int) -> tuple[Any, ...]:
        found = sobol_indices(function, law, budget=N * (d + 2), controls=controls, design=points, key=seed)
        half = {k: 1.96 * found.se[k] for k in found.se}
        return found.value["first"], found.value["total"], half["first"], half["total"]

    return run


def with_salib(name: str) -> Any:
    from SALib.analyze import sobol as analyze
    from SALib.sample import sobol as sample

    d = len(BOUNDS[name])
    problem = {"num_vars": d, "names": [f"x{i}" for i in range(d)], "bounds": BOUNDS[name]}

    def run(seed: int) -> tuple[Any, ...]:
        x = sample.sample(problem, N, calc_second_order=False, scramble=True, seed=seed)
        found = analyze.analyze(problem, evaluated(name, x), calc_second_order=False, seed=seed)
        return found["S1"], found["ST"], found["S1_conf"], found["ST_conf"]

    return run


def with_openturns(name: str, algorithm: str) -> Any:
    import openturns as ot

    d = len(BOUNDS[name])
    law = ot.JointDistribution([ot.Uniform(*b) for b in BOUNDS[name]])

    def pick_freeze(seed: int) -> tuple[Any, ...]:
        ot.RandomGenerator.SetSeed(seed)
        x = ot.SobolIndicesExperiment(law, N, False).generate()
        y = ot.Sample(evaluated(name, np.asarray(x))[:, None])
        which = {
            "Saltelli": ot.SaltelliSensitivityAlgorithm,
            "Martinez": ot.MartinezSensitivityAlgorithm,
        }[algorithm]
        found = which(x, y, N)
        first, total = found.getFirstOrderIndicesInterval(), found.getTotalOrderIndicesInterval()
        half = [(np.asarray(i.getUpperBound()) - np.asarray(i.getLowerBound())) / 2 for i in (first, total)]
        return found.getFirstOrderIndices(), found.getTotalOrderIndices(), *half

    def chaos(seed: int) -> tuple[Any, ...]:
        ot.RandomGenerator.SetSeed(seed)
        x = law.getSample(N * (d + 2))
        y = ot.Sample(evaluated(name, np.asarray(x))[:, None])
        algorithm = ot.FunctionalChaosAlgorithm(x, y, law)
        algorithm.run()
        found = ot.FunctionalChaosSobolIndices(algorithm.getResult())
        first = [found.getSobolIndex(i) for i in range(d)]
        return first, [found.getSobolTotalIndex(i) for i in range(d)], None, None

    return chaos if algorithm == "chaos" else pick_freeze


def program(label: str, name: str) -> Any:
    if label.startswith("mcx"):
        controls = "none" if "no polynomials" in label else "polynomials"
        return with_mcx(name, controls, "random" if "random" in label else "sobol")
    return with_salib(name) if label == "SALib" else with_openturns(name, label.split(", ")[1])


def worker(label: str, name: str, runs: int) -> None:
    run = program(label, name)
    run(runs + 1)
    began = time.perf_counter()
    found = [run(seed) for seed in range(1, runs + 1)]
    seconds = (time.perf_counter() - began) / runs
    listed = [[None if part is None else np.asarray(part).tolist() for part in one] for one in found]
    print(json.dumps({"found": listed, "seconds": seconds}))


def truth(name: str) -> tuple[np.ndarray, np.ndarray]:
    sys.path.insert(0, str(ROOT / "tests"))
    import uq_problems

    return uq_problems.ishigami_truth() if name == "ishigami" else uq_problems.g_truth()


def row(label: str, name: str, python: Path | None, runs: int) -> str:
    command = [str(python or sys.executable), __file__, "--worker", label, name, "--runs", str(runs)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        return f"| {name} | {label} | {last_line(done.stderr)} |"
    result = json.loads(done.stdout.splitlines()[-1])
    errors, covered = [], []
    for k, exact in enumerate(truth(name)):
        error = np.array([one[k] for one in result["found"]], float) - exact
        errors.append(np.sqrt((error**2).mean()))
        if result["found"][0][k + 2] is not None:
            covered.append(np.abs(error) < np.array([one[k + 2] for one in result["found"]], float))
    share = f"{np.mean(covered):.3f}" if covered else ""
    calls = N * (len(BOUNDS[name]) + 2)
    return (
        f"| {name}, {calls} calls | {label} | {errors[0]:.1e} | {errors[1]:.1e} | {share} "
        f"| {result['seconds']:.2g} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", action="store_true", help="SALib and OpenTURNS too")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker, args.runs)
    pythons: dict[str, Any] = {p: install(p) for p in ("SALib", "openturns")} if args.peers else {}
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {args.runs} runs")
    print("| case | program | first | total | covered | seconds |\n|---|---|---|---|---|---|")
    for name in BOUNDS:
        for label, peer in PROGRAMS.items():
            if peer is None:
                print(row(label, name, None, args.runs), flush=True)
            elif peer in pythons:
                python, why = pythons[peer]
                text = row(label, name, python, args.runs) if python else f"| {name} | {label} | {why} |"
                print(text, flush=True)


if __name__ == "__main__":
    main()
