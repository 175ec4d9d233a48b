"""Sliced Wasserstein distances: mcx against POT and OTT-JAX, in time, memory and accuracy.

Each row is one program in a fresh process: two samples of d = 10 in float32, the same random directions'
number for all. Columns:

    seconds         median of the calls after the first (compiled) one
    MiB             peak resident memory of a call above what the process held before it
    SW2             the value; rows whose value is off by more than their error says do not count
    speed, memory   POT's (or, for gradients, OTT's) number over this one's

mcx's plain rows use independent directions without control variates, as the peers do: the same estimator.
The row "mcx, default" is what a user gets, whose error is smaller; "error" is the standard deviation over
repeated keys, relative, where the row has several.

    python benchmarks/sliced.py                # mcx alone: about 2 minutes
    python benchmarks/sliced.py --peers        # and POT and OTT-JAX, installed into environments of their own
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from _peers import ROOT, environment, install, last_line, peak_memory

D = 10
CASES = {  # name -> n, m, directions, weighted
    "equal": (10_000, 10_000, 1000, False),
    "unequal": (10_000, 7_000, 1000, False),
    "weighted": (10_000, 7_000, 1000, True),
    "large": (100_000, 100_000, 100, False),
}
ROWS = (  # program, its interpreter, with a gradient
    ("mcx", None, False),
    ("mcx, default", None, False),
    ("pot", "ot", False),
    ("ott", "ott", False),
    ("mcx", None, True),
    ("ott", "ott", True),
)
REPEATS = 5


def data(case: str) -> tuple[Any, ...]:
    import numpy as np

    n, m, num, weighted = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, D)).astype(np.float32)
    y = (rng.standard_t(5, size=(m, D)) * np.linspace(0.5, 2, D) + 0.3).astype(np.float32)
    a = rng.exponential(size=n).astype(np.float32) if weighted else None
    b = rng.exponential(size=m).astype(np.float32) if weighted else None
    return x, y, None if a is None else a / a.sum(), None if b is None else b / b.sum(), num


def with_mcx(case: str, gradient: bool, default: bool) -> Any:
    import jax

    import mcx  # noqa: F401
    from mcx.estimators.sliced import sliced_wasserstein

    x, y, a, b, num = data(case)
    options = {} if default else {"directions": "iid", "control_variates": None}

    def distance(x: Any, key: Any) -> Any:
        return sliced_wasserstein(
            x, y, x_weights=a, y_weights=b, num_projections=num, key=key, **options
        ).value

    fn = jax.value_and_grad(distance) if gradient else distance
    x = jax.device_put(x)
    compiled = jax.jit(fn).lower(x, jax.random.key(0)).compile()
    return lambda seed: first(jax.block_until_ready(compiled(x, jax.random.key(seed))))


def with_pot(case: str) -> Any:
    import ot

    x, y, a, b, num = data(case)
    return lambda seed: float(ot.sliced_wasserstein_distance(x, y, a, b, n_projections=num, p=2, seed=seed))


def with_ott(case: str, gradient: bool) -> Any:
    import jax
    import jax.numpy as jnp
    from ott.tools import sliced

    x, y, a, b, num = data(case)

    def distance(x: Any, key: Any) -> Any:
        options = {} if a is None else {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        return jnp.sqrt(sliced.sliced_wasserstein(x, jnp.asarray(y), n_proj=num, rng=key, **options)[0])

    fn = jax.value_and_grad(distance) if gradient else distance
    x = jax.device_put(x)
    compiled = jax.jit(fn).lower(x, jax.random.key(0)).compile()
    return lambda seed: first(jax.block_until_ready(compiled(x, jax.random.key(seed))))


def first(found: Any) -> float:
    return float(found[0] if isinstance(found, tuple) else found)


def worker(program: str, case: str, gradient: bool) -> None:
    if program == "pot":
        call = with_pot(case)
    elif program == "ott":
        call = with_ott(case, gradient)
    else:
        call = with_mcx(case, gradient, program.endswith("default"))
    peak = peak_memory(lambda: call(0))
    times, values = [], []
    for seed in range(1, REPEATS + 1):
        start = time.perf_counter()
        values.append(call(seed))
        times.append(time.perf_counter() - start)
        if sum(times) > 60:
            break
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
    print(json.dumps({"seconds": median(times), "MiB": peak, "SW2": mean, "error": spread / mean}))


def run(program: str, python: Path | None, case: str, gradient: bool) -> dict[str, Any]:
    command = [str(python or sys.executable), __file__, "--worker", program, case] + ["--gradient"] * gradient
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        return {"failed": last_line(done.stderr)}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", action="store_true", help="POT and OTT-JAX too")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--gradient", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker, args.gradient)

    pythons = {peer: install(peer) for peer in ("ot", "ott")} if args.peers else {}
    results = []
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {ROOT.name}")
    print("| case | program | gradient | seconds | MiB | SW2 | error | speed | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in args.cases:
        rows = []
        for program, peer, gradient in ROWS:
            if peer is not None and peer not in pythons:
                continue
            python, why = pythons[peer] if peer else (None, "")
            found = {"failed": why} if peer and python is None else run(program, python, case, gradient)
            rows.append({"case": case, "program": program, "gradient": gradient, **found})
        for row in rows:
            show(row, rows)
        results += rows
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def show(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if "failed" in row:
        print(f"| {row['case']} | {row['program']} | {row['gradient']} | {row['failed']} |", flush=True)
        return
    rival = "ott" if row["gradient"] else "pot"
    against = [r for r in rows if r["program"] == rival and r["gradient"] == row["gradient"] and "MiB" in r]
    ratios = [f"{against[0][k] / max(row[k], 1e-9):.1f}" for k in ("seconds", "MiB")] if against else ["", ""]
    print(
        f"| {row['case']} | {row['program']} | {'yes' if row['gradient'] else ''} | {row['seconds']:.3g} | "
        f"{row['MiB']:.0f} | {row['SW2']:.5f} | {row['error']:.1e} | {ratios[0]} | {ratios[1]} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
