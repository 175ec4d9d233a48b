"""What the driver costs: the progress bar, checkpoints, draws in files; and the memory that draws take.

share    added to the time of the same run without: NUTS, 4 chains, two posteriors, one cheap in time a
         draw (eight schools) and one with large draws (10,000 numbers a draw); runs of some 10 s take
         turns, medians over them
memory   largest resident memory of a fresh process less that of a run with 1000 draws: draws in memory,
         and in files (``mcx.Checkpoint(..., in_memory=False)``); random-walk Metropolis on 100 numbers
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

KINDS = ("plain", "bar", "checkpoint", "files")
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


def shares(size: int, draws: int, repeats: int) -> dict[str, float]:
    """Seconds of each kind of run, medians."""
    import contextlib

    import mcx

    bound, method = model(size), mcx.NUTS(num_warmup=200, num_samples=draws)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 1):
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
                checkpoint = {
                    "checkpoint": mcx.Checkpoint(Path(folder) / "run"),
                    "files": mcx.Checkpoint(Path(folder) / "run", in_memory=False),
                }.get(kind)
                with contextlib.redirect_stderr(nowhere):
                    post = mcx.infer(
                        bound,
                        method,
                        key=1,
                        progress="bar" if kind == "bar" else False,
                        warnings="ignore",
                        checkpoint=checkpoint,
                    )
                if repeat:
                    times[kind].append(post.info.run_time)
    return {kind: statistics.median(x) for kind, x in times.items()}


def peak(kind: str, draws: int) -> float:
    """Largest resident memory of this process after a run, in MiB."""
    import resource

    import jax

    import mcx
    from mcx.inference.mcmc.start import starting_points
    from mcx.model.compile import compile_model

    method = mcx.RandomWalk(num_warmup=0, num_samples=draws, step_size=0.1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = mcx.Checkpoint(Path(folder) / "run", in_memory=False) if kind == "files" else None
        target = model(100)
        compiled, key = compile_model(target), jax.random.key(0)
        mcx.run(
            method.kernel(compiled),
            compiled.data,
            key=key,
            num_steps=draws,
            num_chains=4,
            start=starting_points(compiled, None, 4, key),
            inputs=method.inputs(),
            progress=False,
            checkpoint=checkpoint,
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run it and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(peak(given.worker[0], int(given.worker[1]))))
        return
    begun = time.strftime("%Y-%m-%d")
    print(f"{begun}, load average {os.getloadavg()[0]:.1f}\n")
    print("| run | plain s | bar | checkpoint | draws in files |\n|---|---|---|---|---|")
    for name, size, draws in (("eight schools", 0, 60_000), ("10,000 numbers", 10_000, 3_000)):
        found = shares(size, draws, given.repeats)
        added = [100 * (found[kind] / found["plain"] - 1) for kind in KINDS[1:]]
        print(
            f"| {name}, {draws} draws | {found['plain']:.2f} | "
            + " | ".join(f"{x:+.1f} %" for x in added)
            + " |"
        )
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
