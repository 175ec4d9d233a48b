"""What the driver costs: the progress bar, checkpoints, draws in files; and the memory that draws take.

share    of a run's time that the host spends on the bar, on checkpoints (taking and writing chunks, which
         the device waits for) and on draws in files: NUTS, 4 chains, on two posteriors, one cheap in time a
         draw (eight schools) and one with large draws (1000 numbers); runs of some 10 s. Timers around what
         the driver calls: differences between whole runs are noise on a shared machine
memory   most memory of its own that a fresh process holds (``RssAnon`` of Linux, looked at every 10 ms: pages
         of mapped files do not count, as the system takes them back when it needs room), less that of a run
         with 1000 draws: draws in memory, and in files (``mcx.Checkpoint(..., in_memory=False)``);
         random-walk Metropolis on 100 numbers
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _peers import ROOT, environment

DRAWS = (1000, 10_000, 100_000, 400_000)


def model(size: int) -> Any:
    """Eight schools for size 0, else so many independent normals."""
    import mcx
    from mcx import dist

    if not size:
        sys.path.insert(0, str(ROOT / "tests"))
        from problems import EFFECT, SIGMA, eight_schools

        return eight_schools(SIGMA, y=EFFECT)

    @mcx.model
    def normals() -> None:
        mcx.sample("x", dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    return normals()


def shares(size: int, draws: int) -> dict[str, tuple[float, float]]:
    """Seconds of a run of each kind, and those spent on what makes it that kind."""
    import contextlib

    import mcx
    from mcx.run.checkpoint import Recorder
    from mcx.run.draws import Draws
    from mcx.run.progress import _Bar

    bound, method = model(size), mcx.NUTS(num_warmup=200, num_samples=draws)
    spent = [0.0]

    def timed(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[0] += time.perf_counter() - begun

        return call

    watched: dict[str, list[tuple[Any, str]]] = {
        "bar": [(_Bar, "update")],
        "checkpoint": [(Recorder, "add"), (Recorder, "save")],
        "files": [(Recorder, "add"), (Recorder, "save"), (Draws, "add"), (Draws, "result")],
    }
    found = {}
    for kind, functions in watched.items():
        originals = [(owner, name, getattr(owner, name)) for owner, name in functions]
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            path = Path(folder) / "run"
            for owner, name, function in originals:
                setattr(owner, name, timed(function))
            spent[0] = 0.0
            with contextlib.redirect_stderr(nowhere):
                post = mcx.infer(
                    bound,
                    method,
                    key=1,
                    progress="bar" if kind == "bar" else False,
                    warnings="ignore",
                    checkpoint=None if kind == "bar" else mcx.Checkpoint(path, in_memory=kind != "files"),
                )
            for owner, name, function in originals:
                setattr(owner, name, function)
        found[kind] = post.info.run_time, spent[0]
    return found


def peak(kind: str, draws: int) -> float:
    """Most memory of its own that this process holds during a run, in MiB."""
    import threading

    import jax

    import mcx
    from mcx.methods.initial_points import as_initial_points
    from mcx.model.compile import compile_model

    most, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            status = Path("/proc/self/status").read_text()
            most[0] = max(most[0], int(status.split("RssAnon:")[1].split()[0]) / 1024)

    watching = threading.Thread(target=look)
    method = mcx.RandomWalk(num_warmup=0, num_samples=draws, step_size=0.1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = mcx.Checkpoint(Path(folder) / "run", in_memory=False) if kind == "files" else None
        target = model(100)
        compiled, key = compile_model(target), jax.random.key(0)
        watching.start()
        mcx.run(
            method.kernel(compiled),
            compiled.data,
            key=key,
            num_steps=draws,
            num_chains=4,
            init=as_initial_points(compiled, None, 4, key),
            inputs=method.inputs(),
            progress=False,
            checkpoint=checkpoint,
        )
    over.set()
    watching.join()
    return most[0]


def main() -> None:
    """Run it and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(peak(given.worker[0], int(given.worker[1]))))
        return
    begun = time.strftime("%Y-%m-%d")
    print(f"{begun}, load average {os.getloadavg()[0]:.1f}\n")
    print("| run | run s | bar | checkpoint | draws in files |\n|---|---|---|---|---|")
    for name, size, draws in (("eight schools", 0, 60_000), ("1000 numbers", 1_000, 5_000)):
        found = shares(size, draws)
        seconds = statistics.median(total for total, _ in found.values())
        cells = (f"{100 * part / total:.2f} %" for total, part in found.values())
        print(f"| {name}, {draws} draws | {seconds:.1f} | " + " | ".join(cells) + " |", flush=True)
    print("\n| draws | size MiB | in memory MiB | in files MiB |\n|---|---|---|---|")
    base: dict[str, float] = {}
    for draws in DRAWS:
        row = []
        for kind in ("memory", "files"):
            done = subprocess.run(
                [sys.executable, __file__, "--worker", kind, str(draws)],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            used = json.loads(done.stdout.splitlines()[-1])
            row.append(used - base.setdefault(kind, used))
        # a draw is kept as the site and as the unconstrained point it came from
        print(f"| {draws} | {draws * 4 * 200 * 4 / 2**20:.0f} | {row[0]:.0f} | {row[1]:.0f} |")


if __name__ == "__main__":
    main()
