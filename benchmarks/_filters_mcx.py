"""mcx and the hand-written filter, for ``filters.py``: timings, memory and gradients."""

from __future__ import annotations

import math
import os
import time
from functools import partial
from typing import Any

import _filters_jax as by_hand
import jax
import jax.numpy as jnp
import numpy as np
from _filters_common import PHI, SIGMA_Y, Case, Contender, Output, compete

import mcx
import mcx.dist as dist

SETTINGS = (("multinomial", 0.5), ("systematic", 0.5), ("systematic", 1.0))


@mcx.model
def lg(y: Any) -> Any:
    phi = mcx.sample("phi", dist.Uniform(-1, 1))
    return mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1 / jnp.sqrt(1 - phi**2)),
        transition=lambda x, u: dist.Normal(phi * x, 1.0),
        emission=lambda x, u: dist.Normal(x, SIGMA_Y),
        obs=y,
    )


def simulate(times: int) -> np.ndarray:
    rng = np.random.default_rng(20261121)
    x = np.empty(times)
    x[0] = rng.normal() / math.sqrt(1 - PHI**2)
    for t in range(1, times):
        x[t] = PHI * x[t - 1] + rng.normal()
    return (x + SIGMA_Y * rng.normal(size=times)).astype(np.float32)


def exact(y: np.ndarray, phi: float = PHI) -> dict[str, Any]:
    from mcx.testing import kalman

    k = kalman(
        y,
        initial_mean=0.0,
        initial_cov=1 / (1 - phi**2),
        transition_matrix=phi,
        transition_cov=1.0,
        observation_matrix=1.0,
        observation_cov=SIGMA_Y**2,
    )
    sd = np.sqrt(k.filtered_covs[:, 0, 0])
    return {"log_evidence": k.log_evidence, "mean": k.filtered_means[:, 0], "sd": sd}


def contenders(case: Case, y: np.ndarray) -> list[Contender]:
    found = []
    for scheme, threshold in SETTINGS:
        for family, make in (("mcx.filter", _filter), ("mcx.smc", _smc), ("by hand", _by_hand)):
            found.append(make(family, case, y, scheme, threshold))
    return found


def _filter(family: str, case: Case, y: np.ndarray, scheme: str, threshold: float) -> Contender:
    given: dict[str, Any] = {}
    if (scheme, threshold) != SETTINGS[0]:
        given["method"] = mcx.ParticleFilter(resampling=scheme, threshold=threshold)
    if case.filters > 1:
        given["num_chains"] = case.filters

    def call(seed: int) -> Any:
        return mcx.filter(
            lg(y), params={"phi": PHI}, num_particles=case.particles, key=seed, progress=False, **given
        )

    def output(f: Any) -> Output:
        log_z, ess = f.stats["log_evidence"][:, -1], f.stats["ess"]
        return Output(log_z, f.record.mean["x"], f.record.sd["x"], ess)

    return Contender(family, scheme, threshold, call, output, lambda f: f.info.run_time)


def _feynman_kac(y: np.ndarray) -> Any:
    return mcx.ParticleFilter().state_space(lg(y)).feynman_kac


def _smc(family: str, case: Case, y: np.ndarray, scheme: str, threshold: float) -> Contender:
    def run(key: Any, fk: Any, phi: Any) -> Any:
        r = mcx.smc(
            key,
            fk,
            {"phi": phi},
            num_particles=case.particles,
            resampling=scheme,
            threshold=threshold,
            history="moments",
        )
        assert r.history.info is not None
        return r.log_evidence, r.history.mean, r.history.sd, r.history.info.ess

    def runs(key: Any, fk: Any, phi: Any) -> Any:
        return jax.vmap(run, (0, None, None))(jax.random.split(key, case.filters), fk, phi)

    jitted, fk = jax.jit(run if case.filters == 1 else runs), _feynman_kac(y)

    def call(seed: int) -> Any:
        return jax.device_get(jitted(jax.random.key(seed), fk, jnp.float32(PHI)))

    return Contender(family, scheme, threshold, call, partial(_stacked, case))


def _by_hand(family: str, case: Case, y: np.ndarray, scheme: str, threshold: float) -> Contender:
    settings: dict[str, Any] = {"num": case.particles, "scheme": scheme, "threshold": threshold}

    def call(seed: int) -> Any:
        key, phi = jax.random.key(seed), jnp.float32(PHI)
        if case.filters == 1:
            log_z, ess, mean, sd = by_hand.one(key, phi, y, **settings)
        else:
            log_z, ess, mean, sd = by_hand.many(key, phi, y, filters=case.filters, **settings)
        return jax.device_get((log_z, mean, sd, ess))

    return Contender(family, scheme, threshold, call, partial(_stacked, case))


def _stacked(case: Case, result: Any) -> Output:
    return Output(*(x[None] if case.filters == 1 else x for x in map(np.asarray, result)))


def timings(case: Case, repeats: int) -> list[dict[str, Any]]:
    y = simulate(case.times)
    return compete(contenders(case, y), case, exact(y), repeats)


def memory(points: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Bytes of ``mcx.smc`` as a compiled program: temporary ones and results, by what it keeps."""
    rows = []
    for particles, times in points:
        fk = _feynman_kac(simulate(times))
        for history in ("none", "moments", "ancestors", "full"):

            def run(key: Any, fk: Any, phi: Any, history: str = history, num: int = particles) -> Any:
                return mcx.smc(
                    key, fk, {"phi": phi}, num_particles=num, resampling="systematic", history=history
                )

            program = jax.jit(run).lower(jax.random.key(0), fk, jnp.float32(PHI)).compile()
            used: Any = program.memory_analysis()
            rows.append(
                {
                    "particles": particles,
                    "times": times,
                    "history": history,
                    "temporary": used.temp_size_in_bytes,
                    "results": used.output_size_in_bytes,
                }
            )
    return rows


def gradient(case: Case, repeats: int) -> list[dict[str, Any]]:
    """``value_and_grad`` of the log evidence in phi; both carry the score of the resampling steps."""
    y = simulate(case.times)
    step = 1e-4
    score = (exact(y, PHI + step)["log_evidence"] - exact(y, PHI - step)["log_evidence"]) / (2 * step)
    fk = _feynman_kac(y)
    rows = []
    for scheme, threshold in SETTINGS[1:]:
        settings: dict[str, Any] = {"scheme": scheme, "threshold": threshold}

        def log_evidence(phi: Any, key: Any, fk: Any, s: str = scheme, h: float = threshold) -> Any:
            fixed: dict[str, Any] = {"num_particles": case.particles, "resampling": s, "threshold": h}
            return mcx.smc(key, fk, {"phi": phi}, **fixed).log_evidence

        ours = jax.jit(jax.value_and_grad(log_evidence))
        theirs = partial(by_hand.value_and_grad, num=case.particles, **settings)
        ways = {
            "mcx.smc": lambda seed, f=ours: f(jnp.float32(PHI), jax.random.key(seed), fk),
            "by hand": lambda seed, f=theirs: f(jnp.float32(PHI), jax.random.key(seed), y),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        slopes: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(-2, repeats):
            for name, way in ways.items():
                begun = time.perf_counter()
                _, slope = jax.device_get(way(2 + repeat))
                seconds[name].append(time.perf_counter() - begun)
                slopes[name].append(float(slope))
        for name in ways:
            run = float(np.median(seconds[name][2:]))
            rows.append(
                {
                    "family": name,
                    **settings,
                    "case": list(case),
                    "compile": seconds[name][0] - run,
                    "run": run,
                    "seconds": seconds[name][2:],
                    "slope": float(np.mean(slopes[name])),
                    "slope_se": float(np.std(slopes[name], ddof=1) / len(slopes[name]) ** 0.5),
                    "exact": score,
                    "load": os.getloadavg()[0],
                }
            )
    return rows
