"""A peer's particle filter, in an environment of its own, without mcx.

``python _filters_peers.py PEER N T FILTERS DATA.npz REPEATS`` reads data and exact answers, prints JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from _filters_common import PHI, SIGMA_Y, Case, Contender, Output, compete

THRESHOLDS = (0.5, 1.0)


def _cuthbert(case: Case, y: np.ndarray) -> list[Contender]:
    """The two functions of its online interface in a scan: faster than its ``filter``, which keeps every
    particle. Its first state is weighted by nothing, so it stands for the time before y_0."""
    import jax
    import jax.numpy as jnp
    from cuthbert.smc.particle_filter import build_filter
    from cuthbertlib.resampling import systematic
    from cuthbertlib.resampling.adaptive import ess_decorator

    def log_potential(x_prev: Any, x: Any, y: Any) -> Any:
        return jax.scipy.stats.norm.logpdf(y, x, SIGMA_Y)

    def make(threshold: float) -> Any:
        resampling = systematic.resampling
        if threshold < 1:
            resampling = ess_decorator(resampling, threshold)

        def run(key: Any, phi: Any, y: Any) -> Any:
            fns = build_filter(
                lambda key: jax.random.normal(key) / jnp.sqrt(1 - phi**2),
                lambda key, x, _: phi * x + jax.random.normal(key),
                log_potential,
                case.particles,
                resampling,
            )
            key_start, key_run = jax.random.split(key)
            state = fns.init_prepare(key=key_start)._replace(model_inputs=y[0])

            def step(state: Any, at: Any) -> Any:
                key, y = at
                state = fns.filter_combine(state, fns.filter_prepare(y, key=key))
                return state, _moments(jax, state.particles, state.log_weights)

            state, kept = jax.lax.scan(step, state, (jax.random.split(key_run, len(y)), y))
            return state.log_normalizing_constant, *kept

        return run

    return [_jitted(jax, case, y, "cuthbert", h, make(h)) for h in THRESHOLDS]


def _smcx(case: Case, y: np.ndarray) -> list[Contender]:
    """Moments need its whole history, which the compiled program keeps; evidence and effective sample size
    alone do not, and are timed as well."""
    import jax
    import jax.numpy as jnp
    import smcx

    def make(threshold: float, history: bool) -> Any:
        def run(key: Any, phi: Any, y: Any) -> Any:
            result = smcx.bootstrap_filter(
                key,
                lambda key, num: jax.random.normal(key, (num,)) / jnp.sqrt(1 - phi**2),
                lambda key, x: phi * x + jax.random.normal(key),
                lambda y, x: jax.scipy.stats.norm.logpdf(y[0], x, SIGMA_Y),
                y,
                case.particles,
                # a threshold of 1 would not resample equal weights; above 1 always does
                resampling_threshold=threshold if threshold < 1 else 1.1,
                store_history=history,
            )
            if not history:
                return result.marginal_loglik, None, None, result.ess
            mean, sd, _ = jax.vmap(lambda x, w: _moments(jax, x, w))(
                result.filtered_particles, result.filtered_log_weights
            )
            return result.marginal_loglik, mean, sd, result.ess

        return run

    found = [_jitted(jax, case, y, "smcx", h, make(h, True)) for h in THRESHOLDS]
    return [*found, _jitted(jax, case, y, "smcx, evidence only", 0.5, make(0.5, False))]


def _particles(case: Case, y: np.ndarray) -> list[Contender]:
    """Many filters are as many single ones, one after the other."""
    import particles
    from particles.collectors import Moments
    from particles.kalman import LinearGauss
    from particles.state_space_models import Bootstrap

    def make(threshold: float) -> Contender:
        def one() -> Any:
            fk = Bootstrap(ssm=LinearGauss(rho=PHI, sigmaX=1.0, sigmaY=SIGMA_Y), data=y)
            filter_ = particles.SMC(
                fk=fk, N=case.particles, resampling="systematic", ESSrmin=threshold, collect=[Moments()]
            )
            filter_.run()
            return filter_

        def call(seed: int) -> Any:
            np.random.seed(seed)  # noqa: NPY002  the library draws from numpy's global state
            return [one() for _ in range(case.filters)]

        def output(runs: Any) -> Output:
            moments = [r.summaries.moments for r in runs]
            return Output(
                np.array([r.logLt for r in runs]),
                np.array([[m["mean"] for m in ms] for ms in moments]),
                np.sqrt([[m["var"] for m in ms] for ms in moments]),
                np.array([r.summaries.ESSs for r in runs]),
            )

        return Contender("particles", "systematic", threshold, call, output)

    return [make(h) for h in THRESHOLDS]


def _moments(jax: Any, x: Any, log_w: Any) -> tuple[Any, Any, Any]:
    w = jax.nn.softmax(log_w)
    mean = w @ x
    return mean, (w @ (x - mean) ** 2) ** 0.5, 1 / (w @ w)


def _jitted(jax: Any, case: Case, y: np.ndarray, name: str, threshold: float, run: Any) -> Contender:
    def runs(key: Any, phi: Any, y: Any) -> Any:
        return jax.vmap(run, (0, None, None))(jax.random.split(key, case.filters), phi, y)

    jitted = jax.jit(run if case.filters == 1 else runs)

    def call(seed: int) -> Any:
        return jax.device_get(jitted(jax.random.key(seed), np.float32(PHI), y))

    def output(result: Any) -> Output:
        return Output(*(x[None] if case.filters == 1 and x is not None else x for x in result))

    return Contender(name, "systematic", threshold, call, output)


PEERS: dict[str, Callable[[Case, np.ndarray], list[Contender]]] = {
    "cuthbert": _cuthbert,
    "smcx": _smcx,
    "particles": _particles,
}
PACKAGES = ("cuthbert", "smcx", "particles", "jax", "numba", "numpy")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    peer, *sizes, path, repeats = sys.argv[1:]
    case = Case(*map(int, sizes))
    given = np.load(path)
    exact = {k: given[k] for k in ("log_evidence", "mean", "sd")}
    rows = compete(PEERS[peer](case, given["y"]), case, exact, int(repeats))
    print(json.dumps({"rows": rows, "versions": versions()}))


if __name__ == "__main__":
    main()
