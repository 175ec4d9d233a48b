"""Particle Gibbs against joint NUTS, mcx's and NumPyro's, on a stochastic volatility model of the S&P 500.

One model (examples/stochastic_volatility.py: 3 parameters, 2516 daily log volatilities, centred), 4
vectorised chains; every sampler in a process of its own, without a persistent compilation cache, one at a
time. Answers are compared with Stan's (inference-gym 0.0.5): a row that says WRONG has a parameter off by
more than 4 combined standard errors, or one of the log volatilities by more than 5.

    compile   of mcx the first call, of 10 + 10 steps, whose programs serve any number of them; of NumPyro
              that of ``MCMC`` within ``jax.jit``, as plain calls compile anew every time
    run       warm-up and sampling, nothing compiled, results on the host; median over seeds
    ESS       bulk: the least of the parameters; least and median over 101 of the days
    ESS/s     over run
    z         worst deviation from Stan's mean, in combined standard errors: parameters, log volatilities

``--quick`` takes the last 100 days, for which Stan's answers are known for the parameters alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHAINS = 4
SAMPLERS = ("particle gibbs", "mcx nuts", "numpyro nuts")

# mean and its standard error; the log volatilities' standard errors are at most 0.0012
STAN = {
    2516: {
        "persistence": (0.954188910515, 3.005e-05),
        "mean_log_volatility": (-9.818608855700, 2.941e-04),
        "shock_scale": (0.338800076905, 1.119e-04),
    },
    100: {
        "persistence": (0.931639302140, 1.448e-04),
        "mean_log_volatility": (-7.661182867498, 6.204e-03),
        "shock_scale": (0.533825742426, 3.975e-04),
    },
}
STAN_ERROR_H = 0.0012


def data(days: int) -> tuple[Any, Any]:
    """Returns of the last days, and Stan's mean log volatilities where all days are taken."""
    import numpy as np

    path = ROOT / "examples" / "data" / "sp500.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1)[-days:]
    whole = days == 2516
    returns = table[:, 0] if whole else table[:, 0] - table[:, 0].mean()
    return returns.astype(np.float32), table[:, 1] if whole else None


Run = Callable[[int], Mapping[str, Any]]  # seed -> draws by site, chain x draw
Contender = tuple[Callable[[], Any], Run]  # what is timed as compilation, and the run


def with_mcx(method: Any, bound: Any) -> Contender:
    """What a user calls."""
    import mcx

    def run(seed: int, method: Any = method) -> Mapping[str, Any]:
        quiet = {"progress": False, "warnings": "ignore"}
        return mcx.infer(bound, method, key=seed, num_chains=CHAINS, **quiet).draws

    return lambda: run(0, replace(method, num_warmup=10, num_samples=10)), run


def with_numpyro(warmup: int, draws: int, bound: Any) -> Contender:
    """``MCMC`` within ``jax.jit``."""
    import jax
    from numpyro.infer import MCMC, NUTS

    compiled: list[Any] = []

    def sample(key: Any) -> Any:
        mcmc = MCMC(
            NUTS(bound.fn), num_warmup=warmup, num_samples=draws, num_chains=CHAINS,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        mcmc.run(key, **bound.arguments())
        return mcmc.get_samples(group_by_chain=True)

    def prepare() -> None:
        compiled.append(jax.jit(sample).lower(jax.random.key(0)).compile())

    return prepare, lambda seed: jax.device_get(compiled[0](jax.random.key(seed)))


def contender(name: str, args: argparse.Namespace, bound: Any) -> Contender:
    """A sampler on a model."""
    import mcx

    if name == "particle gibbs":
        states = mcx.ConditionalSMC(num_particles=args.particles)
        method = mcx.ParticleGibbs(states=states, num_warmup=args.warmup, num_samples=args.sweeps)
        return with_mcx(method, bound)
    if name == "mcx nuts":
        return with_mcx(mcx.NUTS(num_warmup=args.warmup, num_samples=args.draws), bound)
    return with_numpyro(args.warmup, args.draws, bound)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times and answers of one sampler."""
    import arviz_stats.base  # noqa: F401  loaded behind the compiler's back otherwise: leave imports out
    import jax
    import jax.numpy as jnp

    sys.path.insert(0, str(ROOT / "examples"))
    from stochastic_volatility import stochastic_volatility

    returns, stan = data(args.days)
    bound = stochastic_volatility(jnp.asarray(returns))
    jax.block_until_ready(jax.jit(lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(3)))(jnp.ones((3, 3))))
    prepare, run = contender(name, args, bound)
    begun = time.perf_counter()
    prepare()
    compile_s = time.perf_counter() - begun
    rows = []
    for seed in range(args.seeds):
        begun = time.perf_counter()
        draws = run(seed)
        rows.append(quality(draws, args.days, stan, time.perf_counter() - begun))
    return {"sampler": name, "compile": compile_s, "load": os.getloadavg()[0], "seeds": rows}


def quality(draws: Mapping[str, Any], days: int, stan: Any, seconds: float) -> dict[str, float]:
    """Effective sample sizes, and deviations from Stan."""
    import numpy as np
    from arviz_stats.base import array_stats

    def ess(x: Any) -> float:
        return float(array_stats.ess(np.asarray(x, float), method="bulk"))

    def z(x: Any, mean: float, error: float) -> float:
        x = np.asarray(x, float)
        return float(abs(x.mean() - mean) / np.hypot(array_stats.mcse(x, method="mean"), error))

    params = {
        "persistence": 2 * np.asarray(draws["half_persistence"], float) - 1,
        "mean_log_volatility": draws["mean_log_volatility"],
        "shock_scale": draws["shock_scale"],
    }
    h = np.asarray(draws["h"])
    some = [ess(h[..., t]) for t in np.linspace(0, days - 1, 101).astype(int)]
    return {
        "run": seconds,
        **{f"ess_{k}": ess(x) for k, x in params.items()},
        "ess": min(ess(x) for x in params.values()),
        "ess_h": min(some),
        "ess_h_median": statistics.median(some),
        "r_hat": max(float(array_stats.rhat(np.asarray(x, float))) for x in params.values()),
        "z": max(z(x, *STAN[days][k]) for k, x in params.items()),
        "z_h": 0.0 if stan is None else max(z(h[..., t], stan[t], STAN_ERROR_H) for t in range(days)),
    }


def in_fresh_process(name: str, argv: list[str]) -> dict[str, Any]:
    """Call :func:`measure` in a new interpreter."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [sys.executable, __file__, *argv, "--worker", name]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def markdown(results: list[dict[str, Any]]) -> str:
    """The table, and ratios of effective sample sizes a second."""
    lines = [
        "| sampler | compile s | run s | ESS parameters | ESS/s | ESS days, least | ESS/s | median | ESS/s | "
        "r_hat | z parameters | z days |",
        "|---" * 12 + "|",
    ]
    rates: dict[str, tuple[float, float]] = {}
    for result in results:
        rows = result["seeds"]
        m = {k: statistics.median(r[k] for r in rows) for k in rows[0]}
        worst, worst_h = max(r["z"] for r in rows), max(r["z_h"] for r in rows)
        rates[result["sampler"]] = (m["ess"] / m["run"], m["ess_h_median"] / m["run"])
        wrong = " WRONG" if worst > 4 or worst_h > 5 else ""
        lines.append(
            f"| {result['sampler']}{wrong} | {result['compile']:.1f} | {m['run']:.1f} | {m['ess']:.0f} | "
            f"{m['ess'] / m['run']:.2f} | {m['ess_h']:.0f} | {m['ess_h'] / m['run']:.2f} | "
            f"{m['ess_h_median']:.0f} | {m['ess_h_median'] / m['run']:.2f} | "
            f"{max(r['r_hat'] for r in rows):.3f} | {worst:.1f} | {worst_h:.1f} |"
        )
    lines.append("")
    if "particle gibbs" in rates:
        ours = rates["particle gibbs"]
        for other, theirs in rates.items():
            if other != "particle gibbs":
                lines.append(
                    f"- particle gibbs / {other}, ESS a second: parameters {ours[0] / theirs[0]:.2f}, "
                    f"days (median) {ours[1] / theirs[1]:.2f}"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, choices=tuple(STAN), default=2516)
    parser.add_argument("--particles", type=int, default=25, help="of conditional SMC (default 25)")
    parser.add_argument("--warmup", type=int, default=1000, help="steps of every sampler (default 1000)")
    parser.add_argument("--sweeps", type=int, default=4000, help="draws of particle Gibbs (default 4000)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of NUTS (default 1000)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--quick", action="store_true", help="100 days")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--worker", choices=SAMPLERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.days = 100
    if args.worker:
        print(json.dumps(measure(args.worker, args)))
        return
    numbers = ("days", "particles", "warmup", "sweeps", "draws", "seeds")
    argv = [part for name in numbers for part in (f"--{name}", str(getattr(args, name)))]
    results = []
    for name in args.samplers:
        results.append(in_fresh_process(name, argv))
        print(f"{name}: {json.dumps(results[-1])}", file=sys.stderr)
    text = markdown(results)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
