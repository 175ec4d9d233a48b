"""Smoothing: mcx against the ``particles`` library, PPG against PaRIS, and how costs grow.

The model is x' = 0.9 x + N(0, 1), y = x + N(0, 0.2), x_0 stationary; the functional is the sum of
x_{t-1} x_t, whose smoothed expectation is known from dense Gaussian algebra. Calls are ``mcx.smooth`` as
users make them, with model and data given anew and a new key; the first call of each case compiles.

    peer    seconds of a run by the ``particles`` library over those of mcx, with the same N and T
    PPG     root mean square error of the mean of c chains at equal budget k N a chain, against PaRIS
    backward  the three ways to draw paths backwards
    cost    seconds a run and ns a particle, time, chain and sweep; memory of the compiled program

``--peer`` installs and runs ``particles`` in an environment of its own (minutes: its PaRIS is a loop).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _peers import environment, install, last_line
from _report import command, machine, report

import mcx
import mcx.dist as dist
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, sweep
from mcx.inference.smoothing.additive import as_functional, summand_of
from mcx.inference.smoothing.recursion import Recursion
from mcx.model.series.state_space import state_space
from mcx.testing import dense_gaussian

HERE = Path(__file__).resolve().parent
RHO, VARIANCE = 0.9, 0.2
PARAMS = {"rho": RHO}
PEER_TASKS = (("PaRIS", 1000, 100, 1), ("FFBS", 1000, 100, 3), ("conditional SMC", 100, 100, 7))
GOAL_PARIS = 500
KINDS = ("exact", "imh", "hybrid")


@mcx.model
def ar(y: Any) -> Any:
    rho = mcx.sample("rho", dist.Uniform(-1, 1))
    return mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1 / jnp.sqrt(1 - rho**2)),
        transition=lambda x, u: dist.Normal(rho * x, 1.0),
        emission=lambda x, u: dist.Normal(x, VARIANCE**0.5),
        obs=y,
    )


def product(x_prev: Any, x: Any, t: Any) -> Any:
    return x_prev * x


def simulate(times: int) -> np.ndarray:
    rng = np.random.default_rng(20261121)
    x = np.empty(times)
    x[0] = rng.normal() / (1 - RHO**2) ** 0.5
    for t in range(1, times):
        x[t] = RHO * x[t - 1] + rng.normal()
    return (x + VARIANCE**0.5 * rng.normal(size=times)).astype(np.float32)


def exact(y: np.ndarray) -> float:
    d = dense_gaussian(
        y,
        initial_mean=0.0,
        initial_cov=1 / (1 - RHO**2),
        transition_matrix=RHO,
        transition_cov=1.0,
        observation_matrix=1.0,
        observation_cov=VARIANCE,
    )
    mean = d.means[:, 0]
    return float(np.trace(d.cov[:, 0, :, 0] + np.outer(mean, mean), offset=1))


def run(y: np.ndarray, method: Any, seed: int, chains: int = 1) -> Any:
    return mcx.smooth(
        ar(y), product, params=PARAMS, method=method, key=seed, num_chains=chains, progress=False
    )


def timed(call: Any, repeats: int) -> tuple[float, float]:
    """Seconds of the first call beyond the others, and their median."""
    seconds = []
    for seed in range(repeats + 1):
        begun = time.perf_counter()
        call(seed)
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[1:])
    return seconds[0] - median, median


def csmc(y: np.ndarray, num: int) -> Any:
    """One conditional sweep with backward sampling, compiled."""
    fk = state_space(ar(y)).feynman_kac
    ctx = fk.prepare({"rho": jnp.float32(RHO)})
    method = ConditionalSMC(num_particles=num)
    jitted = jax.jit(lambda key, path: sweep(key, fk, ctx, path, method)[0])
    start = jnp.zeros(len(y))
    return lambda seed: jax.block_until_ready(jitted(jax.random.key(seed), start))


def against_peer(python: Path | None, why: str) -> tuple[list[str], list[str]]:
    y = simulate(100)
    truth = exact(y)
    theirs: dict[str, Any] = {}
    if python is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.npz"
            np.savez(path, y=y, rho=RHO, sigma_y=VARIANCE**0.5)
            command = [str(python), str(HERE / "_smoothing_peer.py"), str(path), json.dumps(PEER_TASKS)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        if done.returncode:
            why = last_line(done.stderr)
        else:
            found = json.loads(done.stdout.splitlines()[-1])
            theirs = {row["task"]: row for row in found["rows"]}
            why = f"particles {found['version']}"
    lines = ["| task | N | compile s | mcx ms | particles ms | ratio | mcx off by |", "|---" * 7 + "|"]
    goals = []
    for task, num, _, _ in PEER_TASKS:
        off = ""
        if task == "conditional SMC":
            compile_time, mine = timed(csmc(y, num), 15)
        else:
            methods = {
                "PaRIS": mcx.PaRIS(num_particles=num),
                "FFBS": mcx.FFBS(num_particles=num, num_paths=num),
            }
            values = []
            compile_time, mine = timed(
                lambda seed, m=methods[task], v=values: v.append(float(run(y, m, seed).value)), 15
            )
            off = f"{np.mean(values) - truth:+.2f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}"
        peer = statistics.median(theirs[task]["seconds"]) if task in theirs else float("nan")
        figures = f"{compile_time:.1f} | {1e3 * mine:.2f} | {1e3 * peer:.0f} | {peer / mine:.0f}"
        lines.append(f"| {task} | {num} | {figures} | {off} |")
        if task == "PaRIS" and task in theirs:
            met = "met" if peer / mine >= GOAL_PARIS else "missed"
            goals.append(f"- PaRIS at least {GOAL_PARIS} x faster than particles: {peer / mine:.0f}, {met}")
    return [f"N particles, T = 100; {why}:", "", *lines, ""], goals


def equal_budget(replicates: int) -> list[str]:
    """PPG with k = 15 sweeps of N = 50 against PaRIS with N = 750."""
    y = simulate(100)
    truth = exact(y)
    lines = ["| method | bias | sd | rmse, 1 chain | 8 chains | 64 chains |", "|---" * 6 + "|"]
    cases = {
        "PaRIS, N = 750": mcx.PaRIS(num_particles=750),
        "PaRIS, N = 50": mcx.PaRIS(num_particles=50),
        "PPG, N = 50, k = 15, k0 = 0": mcx.PPG(
            num_particles=50, num_warmup=0, num_samples=15, num_mh_steps=2
        ),
        "PPG, N = 50, k = 15, k0 = 7": mcx.PPG(num_particles=50, num_warmup=7, num_samples=8, num_mh_steps=2),
    }
    for name, method in cases.items():
        errors = np.asarray(run(y, method, 1, replicates).draws).mean(1) - truth
        rmse = [
            float(np.sqrt(np.mean(errors[: len(errors) // c * c].reshape(-1, c).mean(1) ** 2)))
            for c in (1, 8, 64)
        ]
        bias = f"{errors.mean():+.2f} ± {errors.std() / len(errors) ** 0.5:.2f}"
        cells = [name, bias, f"{errors.std():.2f}", *(f"{r:.2f}" for r in rmse)]
        lines.append("| " + " | ".join(cells) + " |")
    return [f"Equal budgets, T = 100, {replicates} replicates (exact: {truth:.2f}):", "", *lines, ""]


def backward_draws() -> list[str]:
    """The three ways to draw backwards, as many paths as particles."""
    y = simulate(100)
    truth = exact(y)
    lines = ["| backward | N | compile s | ms | ns a path and time | off by |", "|---" * 6 + "|"]
    for num, kinds in ((100, KINDS), (1000, KINDS), (10_000, KINDS[1:])):  # exact draws cost O(N^2)
        for kind in kinds:
            method = mcx.FFBS(num_particles=num, num_paths=num, backward=kind)
            values: list[float] = []
            compile_time, seconds = timed(
                lambda seed, m=method, v=values: v.append(float(run(y, m, seed).value)), 9
            )
            off = f"{np.mean(values) - truth:+.2f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}"
            each = 1e9 * seconds / (num * len(y))
            lines.append(
                f"| {kind} | {num:,} | {compile_time:.1f} | {1e3 * seconds:.1f} | {each:.0f} | {off} |"
            )
    return ["Backward draws, FFBS, T = 100, as many paths as particles:", "", *lines, ""]


def memory(y: np.ndarray, method: Any) -> float:
    """Bytes that one sweep takes besides its arguments."""
    space = state_space(ar(y))
    fk = space.feynman_kac
    ctx = fk.prepare({"rho": jnp.float32(RHO)})
    recursion = Recursion(fk, ctx, None, summand_of(as_functional(product), fk, space.view), method.smoothing)
    path = jnp.zeros(len(y))
    program = jax.jit(lambda key, path: method.sweep(key, recursion, path)[:2])
    used: Any = program.lower(jax.random.key(0), path).compile().memory_analysis()
    return float(used.temp_size_in_bytes)


def costs() -> list[str]:
    lines = ["| method | N | T | chains | seconds | ns | temporary MB |", "|---" * 7 + "|"]
    grid = [(1000, 100, 1), (10_000, 100, 1), (1000, 1000, 1), (1000, 10_000, 1)]
    for num, times, chains in grid:
        method = mcx.PaRIS(num_particles=num)
        lines.append(_cost("PaRIS", method, num, times, chains, 1))
    for num, times, chains in ((100, 100, 1), (100, 100, 8), (100, 100, 64), (100, 1000, 8), (400, 100, 8)):
        method = mcx.PPG(num_particles=num, num_warmup=4, num_samples=4)
        lines.append(_cost("PPG, k = 8", method, num, times, chains, 8))
    return ["Costs:", "", *lines, ""]


def _cost(name: str, method: Any, num: int, times: int, chains: int, sweeps: int) -> str:
    y = simulate(times)
    _, seconds = timed(lambda seed: run(y, method, seed, chains), 3)
    each = 1e9 * seconds / (num * times * chains * sweeps)
    size = memory(y, method) / 1e6
    return f"| {name} | {num:,} | {times:,} | {chains} | {seconds:.3f} | {each:.0f} | {size:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="store_true", help="run the particles library as well")
    parser.add_argument(
        "--quick", action="store_true", help="64 replicates instead of 512, no table of costs"
    )
    parser.add_argument("--backward", action="store_true", help="the table of backward draws alone")
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    goals: list[str] = []
    if args.backward:
        tables = backward_draws()
    else:
        python, why = install("particles") if args.peer else (None, "the particles library did not run")
        peer, goals = against_peer(python, why)
        tables = peer + equal_budget(64 if args.quick else 512)
        tables += [] if args.quick else backward_draws() + costs()
    how = f"`{command()}`. {machine()}. Load average before: {load:.1f}; after: {os.getloadavg()[0]:.1f}."
    lines = "\n".join([*tables, *goals]).rstrip().splitlines()
    report("smoothing of a linear Gaussian model", how, lines, record=args.record)


if __name__ == "__main__":
    main()
