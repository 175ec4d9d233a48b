"""Chains over devices: run time on one device over that on several.

On a processor, devices are threads of JAX's own (``jax_num_cpu_devices``), one a core; elsewhere they are
what ``jax.devices()`` lists. NUTS, ChEES and tempered SMC on real posteriors; particle Gibbs, PPG and SMC^2
on the S&P 500's last 100 days: 8 chains or replicates each (64 of ChEES, 4 of SMC^2). And one filter whose
100,000 particles are shared by the devices. Compiled before the clock starts, runs take turns, medians. A
ratio equal to the number of devices is the best there can be.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from _peers import ROOT


def subjects(chains: int) -> dict[str, Callable[[Any, int], float]]:
    """By name, what runs with a key on some devices and gives its run time."""
    sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    from particle_gibbs import data
    from posteriordb import PROBLEMS
    from stochastic_volatility import stochastic_volatility

    import mcx

    posterior = PROBLEMS["hmm_example-hmm_example"].bound()
    series = stochastic_volatility(data(100)[0])
    params = {"half_persistence": 0.965, "mean_log_volatility": -7.7, "shock_scale": 0.5}

    def infer(bound: Any, method: Any, many: int) -> Callable[[Any, int], float]:
        def run(devices: Any, key: int) -> float:
            options = {"num_chains": many, "devices": devices, "progress": False, "warnings": "ignore"}
            return float(mcx.infer(bound, method, key=key, **options).info.run_time)

        return run

    def ppg(devices: Any, key: int) -> float:
        method = mcx.PPG(num_particles=100, num_warmup=10, num_samples=190)
        found = mcx.smooth(
            series,
            lambda x_prev, x, t: x_prev * x,
            params=params,
            method=method,
            key=key,
            num_chains=chains,
            devices=devices,
            progress=False,
        )
        return float(found.info.run_time)

    def particles(devices: Any, key: int) -> float:
        options = {"num_particles": 100_000, "progress": False}
        found = mcx.filter(series, params=params, key=key, devices=devices, **options)
        return float(found.info.run_time)

    gibbs = mcx.ParticleGibbs(num_warmup=200, num_samples=1000)
    return {
        "NUTS": infer(posterior, mcx.NUTS(), chains),
        "ChEES": infer(posterior, mcx.ChEES(num_samples=2000), 8 * chains),
        "particle Gibbs": infer(series, gibbs, chains),
        "PPG": ppg,
        "tempered SMC": infer(PROBLEMS["arK-arK"].bound(), mcx.TemperedSMC(256), chains),
        "SMC^2": infer(series, mcx.SMC2(256, 64), chains // 2),
        "particles of one filter": particles,
    }


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--only", nargs="+", help="names of rows")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    several = jax.device_count()
    kind, load = jax.devices()[0].device_kind, os.getloadavg()[0]
    print(f"{time.strftime('%Y-%m-%d')}, {several} x {kind}, load average {load:.1f}\n")
    print(f"| | one device s | {several} devices s | ratio |\n|---|---|---|---|")
    for name, run in subjects(given.chains).items():
        if given.only and name not in given.only:
            continue
        times: dict[Any, list[float]] = {None: [], several: []}
        for repeat in range(given.repeats + 1):
            for devices, found in times.items():
                seconds = run(devices, repeat)
                if repeat:
                    found.append(seconds)
        one, many = (statistics.median(x) for x in times.values())
        print(f"| {name} | {one:.2f} | {many:.2f} | {one / many:.2f} |", flush=True)


if __name__ == "__main__":
    main()
