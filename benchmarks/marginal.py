"""Methods whose likelihood particle filters estimate: SMC^2 against smcx, PMMH against ``particles``.

The model is x' = phi x + N(0, 0.49), y = x + N(0, 0.25), phi uniform on (-1, 1), 100 observations. Evidence
and posterior of phi are known from quadrature over the Kalman likelihood.

    SMC^2  the same numbers of parameters and particles; both choose when to move. smcx makes as many moves
           each time as it is told, mcx as many as it takes to forget. Its loop over time is not compiled, and
           cannot be: it compiles steps in every call. rmse: of a replicate's log evidence; compile: the first
           call less a later one; run: seconds of a replicate; work: rmse^2 x run
    PMMH   the same number of particles; ESS/s: bulk effective draws of phi by seconds of the whole run,
           warm-up included (mcx) or of its later three quarters (particles), nothing compiled;
           filters/s: filters run by seconds

The peers run in environments of their own, one process at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _peers import environment, install, last_line
from _report import command, machine, report

import mcx
import mcx.dist as dist
from mcx.testing import kalman

HERE = Path(__file__).resolve().parent
T, SIGMA_X, SIGMA_Y = 100, 0.7, 0.5
NUM_PARAMS, NUM_PARTICLES, REPLICATES = 512, 128, 20
PMMH_PARTICLES, PEER_STEPS = 100, 2000


@mcx.model
def persistence(y: Any) -> None:
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(phi * x, SIGMA_X),
        emission=lambda x, u: dist.Normal(x, SIGMA_Y),
        obs=y,
    )


def simulate() -> np.ndarray:
    rng = np.random.default_rng(20261122)
    x = [rng.normal()]
    for _ in range(T - 1):
        x.append(0.8 * x[-1] + SIGMA_X * rng.normal())
    return (np.array(x) + SIGMA_Y * rng.normal(size=T)).astype(np.float32)


def exact(y: np.ndarray) -> tuple[float, float]:
    """Log evidence, posterior mean of phi."""
    grid = (np.arange(2000) + 0.5) / 1000 - 1
    log_p = np.array(
        [
            kalman(
                y, initial_mean=0.0, initial_cov=1.0, transition_matrix=phi, transition_cov=SIGMA_X**2,
                observation_matrix=1.0, observation_cov=SIGMA_Y**2,
            ).log_evidence
            for phi in grid
        ]
    )  # fmt: skip
    w = np.exp(log_p - log_p.max())
    return float(np.log(w.mean()) + log_p.max()), float(w @ grid / w.sum())


def peer(name: str, script: str, y: np.ndarray, *numbers: int) -> tuple[dict[str, Any] | None, str]:
    python, why = install(name)
    if python is None:
        return None, why
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "y.npz"
        np.savez(path, y=y)
        command = [str(python), str(HERE / script), str(path), *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        return None, last_line(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), ""


def smc2(y: np.ndarray, log_z: float) -> list[str]:
    rows = ["| SMC^2 | moves | off by | rmse | compile s | run s | work |", "|---" * 7 + "|"]

    def row(name: str, moves: str, found: np.ndarray, cold: float, seconds: float) -> str:
        error = found - log_z
        rmse = float(np.sqrt(np.mean(error**2)))
        figures = f"{error.mean():+.3f} | {rmse:.3f} | {cold:.1f} | {seconds:.2f} | {rmse**2 * seconds:.2g}"
        return f"| {name} | {moves} | {figures} |"

    method = mcx.SMC2(NUM_PARAMS, NUM_PARTICLES)

    def run(seed: int, chains: int) -> Any:
        options = {"progress": False, "warnings": "ignore"}
        return mcx.infer(persistence(y), method, key=seed, num_chains=chains, **options)

    begun = time.perf_counter()
    run(0, REPLICATES)
    cold = time.perf_counter() - begun
    begun = time.perf_counter()
    post = run(1, REPLICATES)
    seconds = time.perf_counter() - begun
    stats = post.smc_stats
    moves = stats["num_moves"][stats["moved"].astype(bool)].mean()
    rows.append(
        row("mcx", f"{moves:.1f}", stats["log_evidence"][:, -1], cold - seconds, seconds / REPLICATES)
    )
    print(rows[-1], flush=True)
    for steps in (1, 5):
        numbers = (NUM_PARAMS, NUM_PARTICLES, steps, REPLICATES)
        found, why = peer("smcx", "_marginal_smcx.py", y, *numbers)
        if found is None:
            rows.append(f"| smcx | {steps} | {why} |")
            continue
        each = float(np.median(found["seconds"][1:]))
        name = f"smcx {found['version']}"
        rows.append(row(name, str(steps), np.array(found["log_z"]), found["seconds"][0] - each, each))
        print(rows[-1], flush=True)
    return rows


def pmmh(y: np.ndarray, mean: float) -> list[str]:
    from arviz_stats.base import array_stats

    rows = ["| PMMH | chains | off by | its error | run s | ESS/s | filters/s |", "|---" * 7 + "|"]

    def row(name: str, draws: np.ndarray, seconds: float, filters: int) -> str:
        ess = float(array_stats.ess(draws, method="bulk"))
        off, error = draws.mean() - mean, float(array_stats.mcse(draws, method="mean"))
        figures = f"{off:+.4f} | {error:.4f} | {seconds:.1f} | {ess / seconds:.1f} | {filters / seconds:.0f}"
        return f"| {name} | {len(draws)} | {figures} |"

    for chains in (1, 4):
        method = mcx.PMMH(PMMH_PARTICLES, num_warmup=500, num_samples=5000)

        def run(seed: int, method: Any = method, chains: int = chains) -> Any:
            options = {"progress": False, "warnings": "ignore"}
            return mcx.infer(persistence(y), method, key=seed, num_chains=chains, **options)

        run(0)
        begun = time.perf_counter()
        post = run(1)
        seconds = time.perf_counter() - begun
        rows.append(row("mcx", np.asarray(post["phi"], float), seconds, chains * 5500))
        print(rows[-1], flush=True)
    found, why = peer("particles", "_marginal_particles.py", y, PMMH_PARTICLES, PEER_STEPS)
    if found is None:
        return [*rows, f"| particles | {why} |"]
    draws = np.array(found["draws"])[None, PEER_STEPS // 4 :]
    rows.append(row(f"particles {found['version']}", draws, 0.75 * found["seconds"], 3 * PEER_STEPS // 4))
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    y = simulate()
    log_z, mean = exact(y)
    tables = [smc2(y, log_z), pmmh(y, mean)]
    how = (
        f"`{command()}`. {machine()}; "
        f"{NUM_PARAMS} parameters with {NUM_PARTICLES} particles, {REPLICATES} replicates; PMMH with "
        f"{PMMH_PARTICLES} particles. "
        f"Load average before: {load:.1f}; after: {os.getloadavg()[0]:.1f}."
    )
    report("SMC^2 and PMMH", how, [line for table in tables for line in ("", *table)][1:], record=args.record)


if __name__ == "__main__":
    main()
