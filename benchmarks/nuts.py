"""NUTS of mcx against NumPyro and BlackJAX on eight real posteriors: effective draws a second, compile time.

Every sampler runs every posterior in a process of its own, without a persistent cache, one process at a time;
libraries are imported and JAX is started before the clock is. Per posterior and sampler: 4 vectorised chains,
1000 + 1000 steps, several seeds. Each learns its default metric, mcx a full matrix and the others a diagonal;
"numpyro-dense" is NumPyro's with a full matrix. "chees" is mcx.ChEES as it comes: 64 chains, 200 + 500 steps;
as numbers of draws differ, its ESS/s says what the wait was good for, not what a draw is worth.

    compile  the first call less a repeat of it with the same key
    run      the repeat: warm-up and sampling, nothing compiled, results on the host
    us/step  run time over sequential leapfrog steps, warm-up included; a transition of vectorised chains
             takes as many as its longest chain
    ESS      bulk, the least over the reference's parameters
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

NAMES = ("mcx", "numpyro", "numpyro-dense", "blackjax")
ALL = (*NAMES, "chees")
QUICK = ("eight_schools-eight_schools_noncentered", "sblrc-blr", "garch-garch11")


def measure(posterior: str, sampler: str, seeds: int) -> dict[str, Any]:
    """Cold and warm times and the quality of the draws of one sampler on one posterior."""
    import jax
    import jax.numpy as jnp
    from _samplers import SAMPLERS
    from posteriordb import PROBLEMS

    problem = PROBLEMS[posterior]
    subject = SAMPLERS[sampler](problem)
    jax.block_until_ready(jax.jit(lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(3)))(jnp.ones((3, 3))))
    begun = time.perf_counter()
    subject.cold(0)
    cold = time.perf_counter() - begun
    subject.prepare()
    rows = []
    for seed in range(seeds):
        begun = time.perf_counter()
        sample = subject.run(seed)
        rows.append(_row(problem, sample, time.perf_counter() - begun))
    return {
        "posterior": posterior,
        "sampler": sampler,
        "compile": cold - rows[0]["run"],
        "load": os.getloadavg()[0],
        "versions": _versions(),
        "seeds": rows,
    }


def _row(problem: Any, sample: Any, seconds: float) -> dict[str, float]:
    import numpy as np
    from arviz_stats.base import array_stats

    draws = {k: np.asarray(sample.scalars[k], np.float64) for k in problem.reference}
    z = [
        abs(x.mean() - mean) / np.hypot(array_stats.mcse(x, method="mean"), mcse)
        for x, (mean, mcse, _) in zip(draws.values(), problem.reference.values(), strict=True)
    ]
    sequential = int(np.max(sample.warmup_steps, axis=0).sum() + np.max(sample.steps, axis=0).sum())
    return {
        "run": seconds,
        "ess": min(float(array_stats.ess(x, method="bulk")) for x in draws.values()),
        "r_hat": max(float(array_stats.rhat(x)) for x in draws.values()),
        "worst_z": float(max(z)),
        "steps_per_draw": float(np.mean(sample.steps)),
        "sequential_steps": sequential,
        "us_per_step": 1e6 * seconds / sequential,
        "divergences": int(np.sum(sample.diverging)),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import mcx

    others = {name: version(name) for name in ("jax", "numpyro", "blackjax")}
    return {"mcx": mcx.__version__, **others, "python": sys.version.split()[0]}


def in_fresh_process(posterior: str, sampler: str, seeds: int) -> dict[str, Any]:
    """Call :func:`measure` in a new interpreter."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "nuts.py"),
        "--worker",
        posterior,
        sampler,
        "--seeds",
        str(seeds),
    ]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: medians over seeds; r_hat and |z| are the worst, divergences the sum."""
    rows, compile_s = result["seeds"], result["compile"]

    def median(values: Sequence[float]) -> float:
        return float(statistics.median(values))

    return {
        "posterior": result["posterior"],
        "sampler": result["sampler"],
        "compile": compile_s,
        "run": median([r["run"] for r in rows]),
        "ess": median([r["ess"] for r in rows]),
        "ess_per_s_run": median([r["ess"] / r["run"] for r in rows]),
        "ess_per_s_all": median([r["ess"] / (r["run"] + compile_s) for r in rows]),
        "steps_per_draw": median([r["steps_per_draw"] for r in rows]),
        "us_per_step": median([r["us_per_step"] for r in rows]),
        "r_hat": max(r["r_hat"] for r in rows),
        "worst_z": max(r["worst_z"] for r in rows),
        "divergences": sum(r["divergences"] for r in rows),
    }


RATIOS = ("ess_per_s_run", "ess_per_s_all", "us_per_step", "steps_per_draw", "run", "compile")


def ratios(table: list[dict[str, Any]], subject: str) -> dict[str, dict[str, float]]:
    """Geometric means over the posteriors of one sampler's figures over another's."""
    by = {(row["posterior"], row["sampler"]): row for row in table}
    posteriors = sorted({p for p, _ in by})
    return {
        other: {
            figure: statistics.geometric_mean(
                by[p, subject][figure] / by[p, other][figure] for p in posteriors
            )
            for figure in RATIOS
        }
        for other in ALL
        if other != subject and all((p, other) in by and (p, subject) in by for p in posteriors)
    }


def markdown(table: list[dict[str, Any]], means: dict[str, dict[str, float]], subject: str) -> str:
    """The tables, as text."""
    titles = (
        "posterior",
        "sampler",
        "compile s",
        "run s",
        "min ESS",
        "ESS/s run",
        "ESS/s all",
        "leapfrogs/draw",
        "us/step",
        "max r_hat",
        "worst z",
        "div.",
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for r in table:
        cells = (
            r["posterior"].split("-")[0],
            r["sampler"],
            f"{r['compile']:.2f}",
            f"{r['run']:.3f}",
            f"{r['ess']:.0f}",
            f"{r['ess_per_s_run']:.0f}",
            f"{r['ess_per_s_all']:.0f}",
            f"{r['steps_per_draw']:.1f}",
            f"{r['us_per_step']:.2f}",
            f"{r['r_hat']:.3f}",
            f"{r['worst_z']:.1f}",
            str(r["divergences"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    if means:
        titles = ("ESS/s run", "ESS/s all", "us/step", "leapfrogs/draw", "run s", "compile s")
        lines += ["", "| geometric mean of | " + " | ".join(titles) + " |", "|---" * 7 + "|"]
        for other, mean in means.items():
            lines.append(f"| {subject} / {other} | " + " | ".join(f"{mean[f]:.2f}" for f in RATIOS) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three posteriors, one seed")
    parser.add_argument("--seeds", type=int, help="runs a sampler and posterior (default 3)")
    parser.add_argument("--posteriors", nargs="+", help="those whose names start so (default all)")
    parser.add_argument("--samplers", nargs="+", choices=ALL, default=NAMES, help="the first over each other")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--worker", nargs=2, metavar=("POSTERIOR", "SAMPLER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    seeds = args.seeds or (1 if args.quick else 3)
    if args.worker:
        print(json.dumps(measure(*args.worker, seeds)))
        return

    from posteriordb import PROBLEMS

    names = QUICK if args.quick else tuple(PROBLEMS)
    if args.posteriors:
        names = tuple(n for n in PROBLEMS if n.startswith(tuple(args.posteriors)))
    results = []
    for posterior in names:
        for sampler in args.samplers:
            results.append(in_fresh_process(posterior, sampler, seeds))
            line = summarise(results[-1])
            print(
                f"{posterior} {sampler}: compile {line['compile']:.2f} s, run {line['run']:.3f} s, "
                f"{line['ess_per_s_run']:.0f} ESS/s, load {results[-1]['load']:.1f}",
                file=sys.stderr,
            )
    table = [summarise(r) for r in results]
    means = ratios(table, args.samplers[0])
    text = markdown(table, means, args.samplers[0])
    print(text)
    if args.json:
        report = {"results": results, "summary": table, "geometric_means": means}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
