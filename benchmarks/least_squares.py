"""Weighted least squares: error of each design relative to the best approximation, and the cost of a draw.

Uniform law on [-1, 1], Legendre polynomials below degree m; the function is 1 / (1 + 5 x^2) or |x - 0.3|. Of
300 replicates: mean and median of the squared L2 error over the squared distance to the span, exact for the
function at hand, and how often the Gram matrix G has ||G - I|| <= 1/2. In float64, since independent points
with n = m leave nothing of float32.

    mean, median   1 is the best there is; one DPP with n = m has mean 1 + m (Ermakov & Zolotukhin)
    ms             a design of n points, when many are drawn at once

``--cost`` measures projection DPPs alone: on grids of M candidates, and exact, in d variables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.estimators.least_squares import design, fit, legendre, on_grid

CASES: dict[str, tuple[int, Callable[[Any], Any], float]] = {
    "m = 10, 1 / (1 + 5 x^2)": (10, lambda x: 1 / (1 + 5 * x**2), 0.0),
    "m = 20, |x - 0.3|": (20, lambda x: abs(x - 0.3), 0.3),
}
DESIGNS = [
    ("iid", 1),
    ("iid", 2),
    ("iid", 5),
    ("iid", 10),
    ("dpp", 1),
    ("dpp", 2),
    ("volume", 2),
    ("dpp", 5),
    ("volume", 5),
]


def best_approximation(basis: Any, f: Callable[[Any], Any], kink: float) -> tuple[np.ndarray, float]:
    """Coefficients and squared error, by Gauss-Legendre quadrature on either side of a kink."""
    x, w = np.polynomial.legendre.leggauss(200)
    halves = [(a + (b - a) * (x + 1) / 2, w * (b - a) / 4) for a, b in ((-1, kink), (kink, 1))]
    x, w = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    phi = np.asarray(basis(x[:, None]))
    c = phi.T @ (w * f(x))
    return c, float(w @ (f(x) - phi @ c) ** 2)


def errors(case: str, scheme: str, copies: int, replicates: int, key: Any) -> tuple[Any, Any, float]:
    """Squared errors relative to the best one's, ||G - I||, and milliseconds a design."""
    m, f, kink = CASES[case]
    basis = legendre(m - 1)
    c, best = best_approximation(basis, f, kink)
    draw = jax.jit(jax.vmap(lambda k: design(basis, copies * m, scheme=scheme, key=k)))
    keys = jax.random.split(key, replicates)
    drawn = jax.block_until_ready(draw(keys))
    began = time.perf_counter()
    jax.block_until_ready(draw(keys))
    spent = time.perf_counter() - began
    fitted = jax.vmap(lambda d: fit(d, f(d.points[:, 0])))(drawn)
    ratio = 1 + np.sum((np.asarray(fitted.coefficients) - c) ** 2, 1) / best
    return ratio, np.asarray(fitted.gram_error), 1e3 * spent / replicates


def table(replicates: int, seed: int) -> None:
    for case in CASES:
        print(f"\n{case}, {replicates} replicates")
        print(f"{'design':<10}{'n':>5}{'mean':>10}{'+-':>9}{'median':>9}{'P(||G-I||<=.5)':>16}{'ms':>8}")
        for i, (scheme, copies) in enumerate(DESIGNS):
            key = jax.random.fold_in(jax.random.key(seed), i)
            ratio, gram, ms = errors(case, scheme, copies, replicates, key)
            se = ratio.std(ddof=1) / np.sqrt(replicates)
            size = CASES[case][0] * copies
            stable = np.mean(gram <= 0.5)
            print(
                f"{scheme:<10}{size:>5}{ratio.mean():>10.4g}{se:>9.2g}{np.median(ratio):>9.4g}"
                f"{stable:>16.3f}{ms:>8.3f}"
            )


def cost() -> None:
    def seconds(run: Callable[[Any], Any]) -> tuple[float, float]:
        times = []
        for i in range(4):
            began = time.perf_counter()
            jax.block_until_ready(run(jax.random.key(i)))
            times.append(time.perf_counter() - began)
        return times[0], min(times[1:])

    print(f"\n{'projection DPP':<34}{'first s':>9}{'ms':>10}")
    for size, candidates in ((20, 10**4), (20, 10**5), (100, 10**4), (100, 10**5)):
        grid = jnp.linspace(-1, 1, candidates)[:, None]
        basis = on_grid(lambda x, m=size: jnp.cos(jnp.arange(m) * jnp.arccos(x[0])), grid)
        first, warm = seconds(jax.jit(basis.draw_dpp))
        print(f"{f'grid, M = {candidates}, m = {size}':<34}{first:>9.2f}{1e3 * warm:>10.2f}")
    for degree, dim in ((19, 1), (99, 1), (5, 2), (4, 4), (3, 8)):
        exact = legendre(degree, dim)
        first, warm = seconds(jax.jit(exact.draw_dpp))
        print(f"{f'exact, d = {dim}, m = {exact.size}':<34}{first:>9.2f}{1e3 * warm:>10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if args.cost:
        cost()
    else:
        table(args.replicates, args.seed)


if __name__ == "__main__":
    main()
