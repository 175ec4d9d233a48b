"""What a user waits for: a fresh process from ``import`` to a printed eight-schools summary.

mcx against NumPyro, without a persistent compilation cache and with a warm one (JAX's, in a new folder).
Wall seconds of the whole process, and of its parts as it sees them; medians of n runs, in alternation.
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

HEAD = """
import time
begun = time.perf_counter()
import numpy as np
sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
"""

TAIL = """
import json, sys
done = time.perf_counter()
parts = {"import": imported - begun, "infer": sampled - imported, "summary": done - sampled}
print(json.dumps(parts), file=sys.stderr)
"""

MODEL = """
def eight_schools(sigma, y):
    mu = ppl.sample("mu", dist.Normal(0, 5))
    tau = ppl.sample("tau", dist.HalfCauchy(5))
    with ppl.plate("school", len(sigma)):
        z = ppl.sample("z", dist.Normal(0, 1))
        theta = ppl.deterministic("theta", mu + tau * z)
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)
"""

PROGRAMS = {
    "mcx": f"""{HEAD}
import mcx
import mcx as ppl
import mcx.dist as dist
mcx.NUTS  # loaded on first use: count it as import
imported = time.perf_counter()
{MODEL}
posterior = mcx.infer(mcx.model(eight_schools)(sigma, y), mcx.NUTS(), key=0, progress=False)
sampled = time.perf_counter()
print(posterior.summary())
{TAIL}""",
    "numpyro": f"""{HEAD}
import jax
import numpyro as ppl
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
imported = time.perf_counter()
{MODEL}
mcmc = MCMC(NUTS(eight_schools), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized",
            progress_bar=False)
mcmc.run(jax.random.key(0), sigma, y)
jax.block_until_ready(mcmc.get_samples())
sampled = time.perf_counter()
mcmc.print_summary()
{TAIL}""",
}


def run_once(program: str, cache: Path | None) -> dict[str, float]:
    """Seconds of one fresh process: all of it, and its parts."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    if cache is None:
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        env["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    begun = time.perf_counter()
    command = [sys.executable, "-c", PROGRAMS[program]]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    wall = time.perf_counter() - begun
    if done.returncode != 0:
        raise RuntimeError(f"{program} failed:\n{done.stderr}")
    return {"wall": wall, **json.loads(done.stderr.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="fresh processes of each kind (default 3)")
    parser.add_argument("--quick", action="store_true", help="one run of each kind")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {p: Path(folder) / p for p in PROGRAMS}
        for program, cache in caches.items():
            run_once(program, cache)  # fills the cache, and the disk's
        for _ in range(1 if args.quick else args.runs):
            for program, cache in caches.items():
                results.setdefault(f"{program}, no cache", []).append(run_once(program, None))
                results.setdefault(f"{program}, warm cache", []).append(run_once(program, cache))

    lines = ["| | wall s (range) | import | compile + sample | summary |", "|---|---|---|---|---|"]
    for name in sorted(results, key=lambda name: name.split(",")[1]):
        rows = results[name]
        median = {part: statistics.median(r[part] for r in rows) for part in rows[0]}
        span = f"{min(r['wall'] for r in rows):.1f}-{max(r['wall'] for r in rows):.1f}"
        parts = " | ".join(f"{median[part]:.2f}" for part in ("import", "infer", "summary"))
        lines.append(f"| {name} | {median['wall']:.1f} ({span}) | {parts} |")
    text = "\n".join(lines)
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"load": os.getloadavg()[0], "results": results}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
