"""Annealing a mixture of 40 Gaussians by Feynman-Kac correctors: what noise gain and resampling do.

The model is 40 equal Gaussians in the plane, means uniform on (-40, 40)^2 and standard deviation
softplus(1), with its exact score; the target its third power; 10,000 particles, 1,000 steps, noise levels
geometric from 50 to 0.01. Skreta et al. (2025), table A1, have this problem; their means are other draws of
the same law, and settings that the paper leaves open were inferred, so their figures are for orientation.

    gain       b: 1 is their "target score", 1 / 3 their "tempered noise", 3 the default here
    resampled  scheme, and below which effective sample size; birth_death is their jump process. "no weights":
               scores put together, as if the weights were all the same
    W1, W2     Wasserstein distances of 2,000 particles to as many exact draws (linear assignment)
    TV         total variation of histograms of all on 200 x 200 cells
    missing    modes with less than a fifth of their mass, of those with a thousandth or more
    exact      another set of exact draws: what no sampler can go below
    log Z      of the third power's integral
    seconds    of a run, nothing compiled; "compile" the first call less that

Exact draws come by importance resampling of 4 million from a mixture with a third of the variances.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _report import command, machine, report
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import mcx
import mcx.inference.smc.resampling
from mcx.diffusion import GaussianMixture, anneal, corrector, levels

HERE = Path(__file__).resolve().parent
POWER, PARTICLES, STEPS, REACH = 3, 10_000, 1000, 40.0
CASES = [  # gain, threshold, scheme, refresh
    (1.0, 0.0, "systematic", False),
    (1 / 3, 0.0, "systematic", False),
    (1.0, 1.0, "birth_death", False),
    (1 / 3, 1.0, "birth_death", False),
    (1.0, 1.0, "systematic", False),
    (1 / 3, 1.0, "systematic", False),
    (3.0, 0.0, "systematic", False),
    (3.0, 1.0, "birth_death", False),
    (3.0, 1.0, "systematic", False),
    (3.0, 0.9, "systematic", False),
    (3.0, 0.9, "systematic", True),
]


def problem(seed: int) -> GaussianMixture:
    means = np.random.default_rng(seed).uniform(-REACH, REACH, (40, 2))
    return GaussianMixture.of(means, np.full(40, np.log1p(np.e) ** 2))


def exact(model: GaussianMixture, key: Any, num: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Draws of the third power, the masses of its modes, and the log of its integral."""
    narrow = GaussianMixture.of(model.means, np.asarray(model.variances) / POWER)
    key_draw, key_pick = jax.random.split(key)
    x = narrow.sample(key_draw, 4_000_000)

    @jax.jit
    def log_w(x: Any) -> Any:
        density = jax.vmap(lambda v: POWER * model.log_density(v, 0.0) - narrow.log_density(v, 0.0))
        return jax.lax.map(density, x.reshape(400, -1, 2)).reshape(-1)

    log_ratio = log_w(x)
    log_z = float(jax.nn.logsumexp(log_ratio) - jnp.log(len(x)))
    w = jax.nn.softmax(log_ratio)
    picked = np.asarray(mcx.inference.smc.resampling.systematic(key_pick, jnp.log(w), num))
    draws = np.asarray(x)[np.random.default_rng(0).permutation(picked)]
    return draws, masses(model, draws), log_z


def masses(model: GaussianMixture, x: np.ndarray) -> np.ndarray:
    nearest = cdist(x, np.asarray(model.means)).argmin(1)
    return np.bincount(nearest, minlength=40) / len(x)


def quality(model: GaussianMixture, x: np.ndarray, truth: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    rng = np.random.default_rng(1)
    cost = cdist(rng.permutation(x)[:2000], truth[:2000])
    row, column = linear_sum_assignment(cost**2)
    w2 = float(np.sqrt(np.mean(cost[row, column] ** 2)))
    row, column = linear_sum_assignment(cost)
    edges = np.linspace(-REACH - 10, REACH + 10, 201)
    cells = [np.histogram2d(*d.T, bins=(edges, edges))[0] / len(d) for d in (x, truth[: len(x)])]
    seen = shares > 1e-3
    return {
        "W1": float(cost[row, column].mean()),
        "W2": w2,
        "TV": float(0.5 * np.abs(cells[0] - cells[1]).sum()),
        "missing": int(np.sum(masses(model, x)[seen] < 0.2 * shares[seen])),
    }


def table(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        "| gain | resampled | refreshed | W1 | W2 | TV | missing | log Z | compile s | seconds |",
        "|---" * 10 + "|",
    ]
    for case in dict.fromkeys(f["case"] for f in found):
        ours = [f for f in found if f["case"] == case]

        def cell(name: str, digits: int = 2, ours: Any = ours) -> str:
            values = [f[name] for f in ours]
            return f"{np.mean(values):.{digits}f} +- {np.std(values, ddof=1):.{digits}f}"

        times = f"{ours[0]['compile']:.1f} | {cell('seconds')}" if "seconds" in ours[0] else " | "
        label = "exact | | " if case == "exact" else case
        weighed = "no weights" not in case
        rows.append(
            f"| {label} | {cell('W1')} | {cell('W2')} | {cell('TV', 3)} | {cell('missing', 1)} | "
            f"{cell('log_z') if weighed else ''} | {times} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    model = problem(0)
    truth, shares, log_z_exact = exact(model, jax.random.key(0), 50_000)
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        x, _, _ = exact(model, jax.random.key(100 + seed), PARTICLES)
        found.append(
            {"case": "exact", "seed": seed, "log_z": log_z_exact, **quality(model, x, truth, shares)}
        )
    for gain, threshold, scheme, refresh in CASES:
        fk = corrector(
            anneal(model, float(POWER)),
            jnp.zeros(2),
            levels(50.0, 0.01, STEPS),
            noise_gain=gain,
            refresh=refresh,
        )

        @jax.jit
        def run(key: Any, fk: Any = fk, threshold: float = threshold, scheme: str = scheme) -> Any:
            options = {"num_particles": PARTICLES, "threshold": threshold, "resampling": scheme}
            result = mcx.smc(key, fk, **options)
            if not threshold:
                return result.state.particles.position, result.log_evidence
            last = mcx.inference.smc.resampling.systematic(key, result.state.log_w, PARTICLES)
            return result.state.particles.position[last], result.log_evidence

        begun = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(99)))
        cold = time.perf_counter() - begun
        for seed in range(args.seeds):
            begun = time.perf_counter()
            x, log_z = jax.block_until_ready(run(jax.random.key(seed)))
            seconds = time.perf_counter() - begun
            found.append(
                {
                    "case": " | ".join(
                        [
                            f"{gain:.2g}",
                            f"{scheme}, {threshold}" if threshold else "no weights",
                            "yes" if refresh else "no",
                        ]
                    ),
                    "seed": seed,
                    "seconds": seconds,
                    "compile": cold - seconds,
                    "log_z": float(log_z),
                    **quality(model, np.asarray(x, float), truth, shares),
                }
            )
            print(found[-1], flush=True)
    rows = table(found)
    how = (
        f"`{command()}`. {machine()}; {args.seeds} seeds. "
        f"Load average before: {load:.1f}; after: {os.getloadavg()[0]:.1f}."
    )
    report("annealing 40 Gaussians", how, rows, record=args.record)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
