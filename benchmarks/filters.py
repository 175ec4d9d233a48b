"""Particle filters: mcx against a hand-written scan, and against cuthbert, smcx and particles.

The model is x' = 0.9 x + N(0, 1), y = x + N(0, 0.5^2), x_0 stationary. Every contender computes the log
evidence and, at every time, filtering mean and sd and effective sample size, and has them on the host. Every
case runs in a fresh process without a persistent compilation cache, its contenders in turns, a new key each
time. With ``--peers`` each peer is installed into an environment of its own, ``.cache/bench/<peer>``.

    compile     the first call less the median of the others
    run         median; for mcx.filter of whole calls, model and data given anew, as users make them
    host        of mcx.filter: what is left of run without the compiled programs (and moving their results)
    / by hand   run over that of the hand-written filter with the same resampling; of mcx, the median of
                the ratios turn by turn
    ns          run over particles, times and filters
    z           of the log evidence against the Kalman filter's, over all repeats
    mean, sd    root mean square errors over time, in units of the exact sd / sqrt(N)
    ESS         mean over time, of N

A row that is far from the exact answers says WRONG.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _filters_common import Case
from _peers import PEERS, environment, install, last_line

HERE = Path(__file__).resolve().parent

OVERHEAD = Case(100, 50)
CASES = (OVERHEAD, Case(1_000, 1_000), Case(10_000, 100), Case(100_000, 100), Case(1_000, 100, 64))
GRADIENT = Case(1_000, 1_000)
MEMORY = ((1_000, 100), (1_000, 1_000), (1_000, 10_000), (10_000, 1_000), (100_000, 100))
OWN = ("mcx.filter", "mcx.smc", "by hand")  # run in one process, in turns
GOAL_BY_HAND, GOAL_PEERS = 1.25, 3.0


def in_fresh_process(task: str, *arguments: Any) -> Any:
    """What ``_filters_mcx.<task>(*arguments)`` gives, from a new interpreter."""
    command = [sys.executable, __file__, "--worker", task, json.dumps(arguments)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(task: str, arguments: list[Any]) -> Any:
    import _filters_mcx

    if task == "memory":
        return _filters_mcx.memory(*arguments)
    case, repeats = arguments
    return getattr(_filters_mcx, task)(Case(*case), repeats)


def write_data(case: Case, path: Path) -> None:
    """Data and exact answers, for environments without mcx."""
    import numpy as np
    from _filters_mcx import exact, simulate

    y = simulate(case.times)
    np.savez(path, y=y, **exact(y))


def run_peer(peer: str, python: Path, case: Case, repeats: int, data: Path) -> dict[str, Any]:
    worker = str(HERE / "_filters_peers.py")
    command = [str(python), worker, peer, *map(str, case), str(data), str(repeats)]
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return {"rows": [], "failure": "took more than 15 minutes"}
    if done.returncode:
        return {"rows": [], "failure": last_line(done.stderr)}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# what is reported ------------------------------------------------------------------------------------


def _setting(row: dict[str, Any]) -> str:
    often = "every step" if row["threshold"] >= 1 else f"ESS < {row['threshold']:g} N"
    return f"{row['scheme']}, {often}"


def _same(rows: list[dict[str, Any]], row: dict[str, Any], family: str) -> dict[str, Any] | None:
    """The row of another family with the same case and setting."""
    keys = ("case", "scheme", "threshold")
    return next((r for r in rows if r["family"] == family and all(r[k] == row[k] for k in keys)), None)


def _ratio(rows: list[dict[str, Any]], row: dict[str, Any]) -> float | None:
    yardstick = _same(rows, row, "by hand")
    if yardstick is None:
        return None
    if row["family"] not in OWN:
        return row["run"] / yardstick["run"]
    # taken in turns, so that each pair of calls saw about the same load
    pairs = zip(row["seconds"], yardstick["seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def timing_table(rows: list[dict[str, Any]], case: Case) -> list[str]:
    titles = ("", "resampling", "compile s", "run ms", "host ms", "/ by hand", "ns", "z", "mean", "sd", "ESS")
    lines = [f"{case.title}:", "", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for r in rows:
        if r["case"] != list(case):
            continue
        ratio = _ratio(rows, r)
        cells = (
            r["family"] + ("" if r["right"] else " WRONG"),
            _setting(r),
            f"{r['compile']:.1f}",
            f"{1e3 * r['run']:.2f}",
            "" if r["programs"] is None else f"{1e3 * (r['run'] - r['programs']):.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{1e9 * r['run'] / (case.particles * case.times * case.filters):.1f}",
            f"{r['z']:.1f}",
            "" if r["mean_error"] is None else f"{r['mean_error']:.2f}",
            "" if r["sd_error"] is None else f"{r['sd_error']:.2f}",
            f"{r['ess']:.3f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def gradient_table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    titles = ("", "resampling", "compile s", "run ms", "/ by hand", "d log evidence / d phi")
    lines = [
        f"`value_and_grad` of the log evidence in phi, {GRADIENT.title} (exact: {rows[0]['exact']:.1f}):",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" * len(titles) + "|",
    ]
    for r in rows:
        ratio = _ratio(rows, r)
        cells = (
            r["family"],
            _setting(r),
            f"{r['compile']:.1f}",
            f"{1e3 * r['run']:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{r['slope']:.0f} ± {r['slope_se']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def memory_table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    kinds = list(dict.fromkeys(r["history"] for r in rows))
    lines = [
        "Memory of the compiled `mcx.smc`, kB, temporary + results, by `history`:",
        "",
        "| N | T | " + " | ".join(kinds) + " |",
        "|---" * (2 + len(kinds)) + "|",
    ]
    for particles, times in dict.fromkeys((r["particles"], r["times"]) for r in rows):
        cells = [
            f"{r['temporary'] / 1e3:,.0f} + {r['results'] / 1e3:,.0f}"
            for kind in kinds
            for r in rows
            if (r["particles"], r["times"], r["history"]) == (particles, times, kind)
        ]
        lines.append(f"| {particles:,} | {times:,} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """What was hoped for, and what came of it."""
    lines = ["Goals:", ""]
    mine = [r for r in rows if r["family"] == "mcx.filter" and r["case"] != list(OVERHEAD)]
    for r in mine:
        if tuple(r["case"]) in {Case(1_000, 1_000), Case(100_000, 100)}:
            ratio = _ratio(rows, r) or float("nan")
            lines.append(
                f"- mcx.filter at most {GOAL_BY_HAND} x by hand, {Case(*r['case']).title}, {_setting(r)}: "
                f"{ratio:.2f}, {'met' if ratio <= GOAL_BY_HAND else 'missed'}"
            )
    for r in mine:
        peers = [p for p in rows if p["family"] not in OWN and p["mean_error"] is not None]
        peers = [p for p in peers if _same([p], r, p["family"])]
        if not peers:
            continue
        best = min(peers, key=lambda p: p["run"])
        ratio = best["run"] / r["run"]
        wanted = GOAL_PEERS if r["case"][0] == 1_000 else 1.0
        lines.append(
            f"- mcx.filter at least {wanted:g} x faster than the best peer ({best['family']}), "
            f"{Case(*r['case']).title}, {_setting(r)}: {ratio:.1f}, {'met' if ratio >= wanted else 'missed'}"
        )
    return [*lines, ""]


def circumstances(found: dict[str, Any]) -> str:
    from _report import command, machine

    loads = [r["load"] for r in found["rows"] + found["gradient"]]
    versions = ", ".join(f"{k} {found['versions'][k]}" for k in ("numpyro", "numpy"))
    return (
        f"`{command()}`: medians of {found['repeats']} calls ({found['peer_repeats']} of peers). "
        f"{machine()}, {versions}. "
        f"Load average before: {found['load']:.1f}; during, the benchmark's own work included: "
        f"{min(loads):.1f} to {max(loads):.1f}."
    )


def tables(found: dict[str, Any]) -> list[str]:
    lines = []
    for peer, own in found["peer_versions"].items():
        lines.append(f"- {peer} ran with " + ", ".join(f"{k} {v}" for k, v in own.items()))
    lines += [f"- {peer}: {why}" for peer, why in found["failures"].items()]
    lines += [""] if lines else []
    for case in CASES:
        if any(r["case"] == list(case) for r in found["rows"]):
            lines += timing_table(found["rows"], case)
    lines += gradient_table(found["gradient"]) + memory_table(found["memory"]) + goals(found["rows"])
    return "\n".join(lines).rstrip().splitlines()


def measure(peers: list[str], repeats: int, peer_repeats: int) -> dict[str, Any]:
    from importlib.metadata import version

    import mcx

    found: dict[str, Any] = {
        "load": os.getloadavg()[0],
        "repeats": repeats,
        "peer_repeats": peer_repeats,
        "versions": {
            "Python": platform.python_version(),
            "mcx": mcx.__version__,
            **{name: version(name) for name in ("jax", "numpyro", "numpy")},
        },
        "peer_versions": {},
        "failures": {},
        "rows": [],
    }
    pythons: dict[str, Path] = {}
    for peer in peers:
        python, why = install(peer)
        if python is None:
            found["failures"][peer] = why
        else:
            pythons[peer] = python
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            data = Path(folder) / f"{case.times}.npz"
            write_data(case, data)
            _tell(f"{case.title}: mcx")
            found["rows"] += in_fresh_process("timings", list(case), repeats)
            for peer, python in pythons.items():
                _tell(f"{case.title}: {peer}")
                result = run_peer(peer, python, case, peer_repeats, data)
                found["rows"] += result["rows"]
                if "failure" in result:
                    found["failures"][f"{peer}, {case.title}"] = result["failure"]
                else:
                    found["peer_versions"][peer] = result["versions"]
    _tell("gradient")
    found["gradient"] = in_fresh_process("gradient", list(GRADIENT), repeats)
    _tell("memory")
    found["memory"] = in_fresh_process("memory", MEMORY)
    return found


def _tell(line: str) -> None:
    print(f"{line} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=tuple(PEERS),
        help="run peers as well (all unless named); installs those that are missing",
    )
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--repeats", type=int, help="timed calls (default 11, of peers at most 7)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    parser.add_argument("--worker", nargs=2, metavar=("TASK", "ARGUMENTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker[0], json.loads(args.worker[1]))))
        return
    repeats = args.repeats or (3 if args.quick else 11)
    peers = [] if args.peers is None else list(args.peers or PEERS)
    found = measure(peers, repeats, min(repeats, 7))
    from _report import report

    title = "particle filters of a linear Gaussian model"
    report(title, circumstances(found), tables(found), record=args.record)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
