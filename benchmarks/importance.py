"""Many expectations from one sample, and Sobol' indices: variances against published ones, at as many calls.

    T1   E x^2 .. E x^20 under N(0, 1), 20,000 draws: sum of relative variances
    T2a  mean deflection of a beam under 100 laws, 20,000 draws: sum of variances
    T2b  first-order Sobol' indices of the beam, 140,000 calls: sum of variances, by plug-in of 8
         expectations, and by mcx.estimators.sobol_indices
    the rest: integrals over the unit cube in 4 and 8 dimensions, of 5000 and 50,000 calls: root mean square
         error

T1 to T2b are cases of Demange-Chryst, Bachoc and Morio (2022), whose stored results are sums of sample
variances over 200 runs (for T2a of another draw of the hundred laws); the others are of Leluc, Portier,
Segers and Zhuman (2022), over 100 runs. "paper" is ``mcx.AdaptiveImportance.paper()``.

    error     mean over runs of squared errors against the truth, summed over expectations; or its root
    predicted the same from standard errors
    covered   share of the expectations, and runs, whose 95 % interval holds the truth
    s         a run, compiled before
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mcx
import mcx.dist as dist
from mcx.estimators import expectations, sobol_indices

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from uq_problems import (
    CUBE,
    MOMENTS,
    beam,
    beam_mean,
    beam_products,
    beam_truth,
    even_powers,
    gaussians,
    perturbed_beams,
)

Run = Callable[[Any], tuple[np.ndarray, np.ndarray]]
ABSOLUTE = {"criterion": "absolute"}


def errors(runs: int, seed: int, run: Run) -> tuple[np.ndarray, np.ndarray, float]:
    """Errors and standard errors (run, J), and seconds a run."""
    keys = jax.random.split(jax.random.key(seed), runs + 1)
    run(keys[-1])
    began = time.perf_counter()
    found = [run(k) for k in keys[:-1]]
    spent = time.perf_counter() - began
    return np.stack([e for e, _ in found]), np.stack([s for _, s in found]), spent / runs


def by_importance(function: Any, law: Any, truth: Any, unit: Any, method: Any) -> Run:
    def run(key: Any) -> tuple[np.ndarray, np.ndarray]:
        found = expectations(function, law, method=method, key=key)
        return (found.value - truth) / unit, np.asarray(found.se) / unit

    return run


def by_plug_in(method: Any) -> Run:
    """Indices from expectations of pick-freeze products; their standard errors are not known."""
    function, law, _ = beam_products()
    first = beam_truth()[2]

    def run(key: Any) -> tuple[np.ndarray, np.ndarray]:
        value = np.asarray(expectations(function, law, method=method, key=key).value, float)
        index = (value[:6] - value[6] ** 2) / (value[7] - value[6] ** 2)
        return index - first, np.full(6, np.nan)

    return run


def by_sobol(**options: Any) -> Run:
    law = dist.Normal(*(jnp.asarray(a) for a in gaussians())).to_event(1)
    first = beam_truth()[2]

    def run(key: Any) -> tuple[np.ndarray, np.ndarray]:
        found = sobol_indices(beam, law, budget=140_000, key=key, **options)
        return found.value["first"] - first, found.se["first"]

    return run


def published() -> dict[str, list[tuple[str, Run, float]]]:
    """By case: what to run, and the published sum of variances."""
    one = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
    loc, cov = perturbed_beams()
    means = np.array([beam_mean(m, c) for m, c in zip(loc, cov, strict=True)])
    laws = dist.MultivariateNormal(jnp.asarray(loc), jnp.asarray(cov))
    products, law, truth = beam_products()
    paper, defaults = mcx.AdaptiveImportance.paper, mcx.AdaptiveImportance
    return {
        "T1": [
            ("paper", by_importance(even_powers, one, MOMENTS, MOMENTS, paper()), 1.631e-3),
            ("defaults", by_importance(even_powers, one, MOMENTS, MOMENTS, defaults()), 1.631e-3),
        ],
        "T2a": [
            ("paper", by_importance(beam, laws, means, 1.0, paper(**ABSOLUTE)), 4.38e-6),
            ("defaults", by_importance(beam, laws, means, 1.0, defaults()), 4.38e-6),
        ],
        "T2b, 8 expectations": [
            ("paper", by_importance(products, law, truth, 1.0, paper(**ABSOLUTE)), 2.24e-9),
            ("defaults, absolute", by_importance(products, law, truth, 1.0, defaults(**ABSOLUTE)), 2.24e-9),
        ],
        "T2b, indices": [
            ("paper", by_plug_in(paper(**ABSOLUTE)), 1.73e-4),
            ("defaults, absolute", by_plug_in(defaults(**ABSOLUTE)), 1.73e-4),
            ("sobol_indices", by_sobol(), 1.73e-4),
            ("sobol_indices, no polynomials", by_sobol(controls="none"), 1.73e-4),
        ],
    }


def published_table(names: list[str], methods: tuple[str, ...], runs: int, seed: int) -> None:
    print(
        f"\n{'case':<21}{'method':<31}{'error':>10}{'predicted':>11}{'covered':>9}{'published':>11}{'s':>7}"
    )
    for case, rows in published().items():
        for name, run, reference in rows if case.split(",")[0] in names else ():
            if not name.startswith(methods):
                continue
            error, se, spent = errors(runs, seed, run)
            covered = np.mean(np.abs(error) < 1.96 * se) if np.isfinite(se).all() else np.nan
            print(
                f"{case:<21}{name:<31}{(error**2).mean(0).sum():>10.2e}{(se**2).mean(0).sum():>11.2e}"
                f"{covered:>9.3f}{reference:>11.2e}{spent:>7.2f}",
                flush=True,
            )


def cube_table(runs: int, seed: int) -> None:
    print(f"\n{'case':<21}{'method':<15}{'calls':>7}{'error':>10}{'predicted':>11}{'covered':>9}", end="")
    print(f"{'AIS':>9}{'AISCV':>9}{'s':>7}")
    for (name, d), (function, stored) in CUBE.items():
        law = dist.Uniform(0.0, 1.0).expand([d]).to_event(1)
        for i, budget in enumerate((5_000, 50_000)):
            for label, controls in (("defaults", "all"), ("no controls", "none")):
                method = mcx.AdaptiveImportance(budget=budget, controls=controls)
                error, se, spent = errors(runs, seed, by_importance(function, law, 1.0, 1.0, method))
                error, se = error.reshape(-1), se.reshape(-1)
                print(
                    f"{f'{name}, d = {d}':<21}{label:<15}{budget:>7}{np.sqrt((error**2).mean()):>10.1e}"
                    f"{np.sqrt((se**2).mean()):>11.1e}{np.mean(np.abs(error) < 1.96 * se):>9.3f}"
                    f"{stored['AIS'][i]:>9.1e}{stored['AISCV'][i]:>9.1e}{spent:>7.2f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", default=["T1", "T2a", "T2b", "cube"])
    parser.add_argument("--methods", nargs="*", default=[""], help="beginnings of their names")
    args = parser.parse_args()
    published_table(args.cases, tuple(args.methods), args.runs, args.seed)
    if "cube" in args.cases:
        cube_table(args.runs, args.seed)


if __name__ == "__main__":
    main()
