"""Annealing 40 Gaussians by Feynman-Kac correctors: mcx against a plain NumPy loop, in time and memory.

The problem is that of `gmm40.py`: the third power of 40 equal Gaussians in the plane, 10,000 particles, 1,000
steps, a noise gain of 3, systematic resampling at every step. The loop, in `_corrector_numpy.py`, knows that
the Gaussians are equal and has matrix products for distances; mcx has its general mixture. Each row is one
program in a fresh process, one seed after another.

    compile    seconds to trace and compile, nothing cached
    seconds    of a run, median of the seeds; "CPU s" of all threads, which NumPy has for matrix products
    M / s      million particles times steps a second
    speed      seconds of the loop of the same precision over this row's
    MiB        peak resident memory of a run, above what the process held before it
    log Z      error of the log of the integral, mean and standard deviation over seeds. Both programs take
               Euler's steps, and share the bias of 0.2 that comes with that
    modes      total variation of particles' shares of the 40 modes, to exact ones; likewise

The exact integral is a sum over triples of Gaussians, and so are the exact shares.

    python benchmarks/corrector_speed.py       # about 4 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from _corrector_numpy import anneal_by_loop
from _peers import environment, last_line, peak_memory

HERE = Path(__file__).resolve().parent
POWER, REACH, VARIANCE = 3, 40.0, np.log1p(np.e) ** 2
MEANS = np.random.default_rng(0).uniform(-REACH, REACH, (40, 2))  # as in gmm40.py
PROGRAMS = ("NumPy, float64", "NumPy, float32", "mcx, float64", "mcx, float32")
DRAWS = 1_000_000


def exact() -> tuple[float, np.ndarray]:
    """Log of the integral of the third power, and shares of its modes, of a million draws.

    The product of three Gaussians of equal variance v is a Gaussian of variance v / 3 around the mean of
    their means, times a weight that falls with how far these are apart.
    """
    count, dim = MEANS.shape
    triples = np.stack(np.meshgrid(*[np.arange(count)] * POWER, indexing="ij"), -1).reshape(-1, POWER)
    centres = MEANS[triples].mean(1)
    apart = ((MEANS[triples] - centres[:, None]) ** 2).sum((1, 2))
    constant = dim * (np.log(2 * np.pi * VARIANCE / POWER) - POWER * np.log(2 * np.pi * VARIANCE)) / 2
    w = np.exp(-0.5 * apart / VARIANCE)
    log_z = constant + np.log(w.mean())
    rng = np.random.default_rng(1)
    picked = np.repeat(np.arange(len(w)), rng.multinomial(DRAWS, w / w.sum()))
    x = centres[picked] + np.sqrt(VARIANCE / POWER) * rng.standard_normal((DRAWS, dim))
    return float(log_z), shares(x)


def shares(x: np.ndarray) -> np.ndarray:
    """Of particles, by nearest mode."""
    nearest = np.concatenate(
        [((part[:, None] - MEANS) ** 2).sum(-1).argmin(1) for part in np.array_split(x, len(x) // 10_000 + 1)]
    )
    return np.bincount(nearest, minlength=len(MEANS)) / len(x)


def with_mcx(rho: np.ndarray, num: int) -> tuple[Any, float]:
    import jax
    import jax.numpy as jnp

    import mcx
    from mcx.diffusion import GaussianMixture, anneal, corrector
    from mcx.inference.smc.resampling import systematic

    model = GaussianMixture.of(MEANS, np.full(len(MEANS), VARIANCE))
    fk = corrector(anneal(model, float(POWER)), jnp.zeros(2), rho, noise_gain=float(POWER))

    def run(key: Any) -> Any:
        found = mcx.smc(key, fk, num_particles=num, threshold=1.0, resampling="systematic")
        picked = systematic(jax.random.fold_in(key, 1), found.state.log_w, num)
        return found.state.particles.position[picked], found.log_evidence

    begun = time.perf_counter()
    compiled = jax.jit(run).lower(jax.random.key(0)).compile()
    seconds = time.perf_counter() - begun
    return lambda seed: jax.block_until_ready(compiled(jax.random.key(seed))), seconds


def worker(program: str, seeds: int, num: int, steps: int) -> dict[str, Any]:
    rho = np.geomspace(50.0, 0.01, steps + 1)
    dtype = np.float64 if program.endswith("64") else np.float32
    if program.startswith("mcx"):
        call, compiled = with_mcx(rho, num)
    else:

        def call(seed: int) -> Any:
            rng = np.random.default_rng(seed)
            return anneal_by_loop(rng, MEANS, VARIANCE, POWER, rho, num, dtype)

        compiled = 0.0
    memory = peak_memory(partial(call, 99))
    log_z, truth = exact()
    rows = []
    for seed in range(seeds):
        begun, spent = time.perf_counter(), time.process_time()
        x, found = call(seed)
        wall, cpu = time.perf_counter() - begun, time.process_time() - spent
        x = np.asarray(x)
        assert x.dtype == dtype and x.shape == (num, 2), (x.dtype, x.shape)
        off = 0.5 * float(np.abs(shares(x) - truth).sum())
        rows.append({"seconds": wall, "cpu": cpu, "log_z": float(found) - log_z, "modes": off})
    each = {name: [row[name] for row in rows] for name in rows[0]}
    return {"program": program, "compile": compiled, "MiB": memory, **each}


def run(program: str, seeds: int, num: int, steps: int) -> dict[str, Any]:
    env = environment()
    if program == "mcx, float64":
        env["JAX_ENABLE_X64"] = "1"
    command = [
        sys.executable,
        __file__,
        "--worker",
        program,
        "--seeds",
        seeds,
        "--num",
        num,
        "--steps",
        steps,
    ]
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True)
    if done.returncode:
        return {"program": program, "failed": last_line(done.stderr)}
    return json.loads(done.stdout.splitlines()[-1])


def table(found: list[dict[str, Any]], work: int) -> list[str]:
    lines = [
        "| program | compile s | seconds | CPU s | M / s | speed | MiB | log Z error | modes |",
        "|---" * 9 + "|",
    ]
    loops = {f["program"].split()[1]: f for f in found if f["program"].startswith("NumPy")}
    for f in found:
        if "failed" in f:
            lines.append(f"| {f['program']} | {f['failed']} |" + " |" * 7)
            continue
        seconds, rival = median(f["seconds"]), loops.get(f["program"].split()[1], {})
        speed = f"{median(rival['seconds']) / seconds:.2f}" if "seconds" in rival else ""
        lines.append(
            f"| {f['program']} | {f['compile']:.1f} | {seconds:.2f} | {median(f['cpu']):.2f} | "
            f"{work / seconds / 1e6:.2f} | {speed} | {f['MiB']:.0f} | {spread(f['log_z'], 3)} | "
            f"{spread(f['modes'], 3)} |"
        )
    return lines


def spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} +- {stdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--num", type=int, default=10_000, help="particles")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = args.seeds, args.num, args.steps
    if args.worker:
        print(json.dumps(worker(args.worker, *size)))
        return
    from _report import command, machine, report

    load, found = os.getloadavg()[0], []
    for program in PROGRAMS:
        found.append(run(program, *size))
        print(found[-1], flush=True)
    how = (
        f"`{command()}`. {machine()}, NumPy {np.__version__}; {args.seeds} seeds, "
        f"{args.num:,} particles, {args.steps:,} steps. Load average before: {load:.1f}; after: "
        f"{os.getloadavg()[0]:.1f}."
    )
    title = "annealing 40 Gaussians, against a NumPy loop"
    report(title, how, table(found, args.num * args.steps), record=args.record)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
