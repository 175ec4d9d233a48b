"""Particle filters, particle Markov chain Monte Carlo, SMC samplers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
from fields import taken
from registry import case, infer_case

import mcx

SCHEMES = ("multinomial", "stratified", "systematic", "residual", "ssp", "killing", "birth_death")


def filter_case(name: str, bound: Any, params: Any = None, method: Any = None, **options: Any) -> None:
    """A case of ``mcx.filter``."""

    @case(f"filter/{name}")
    def run() -> dict[str, Any]:
        given = {"num_particles": 32, "key": 0, "progress": False, **options}
        found = mcx.filter(bound(), params=params, method=method, **given)
        fields = taken("filtered", found)
        if options.get("history") in ("ancestors", "full"):
            fields |= taken("history", found)
        if options.get("history") == "full":
            fields |= {"paths": found.paths(8, key=1), "smoothed_mean": found.smoothed_mean(2)}
        return fields


filter_case("bootstrap", models.an_ar, models.AR_PARAMS)
filter_case("two chains", models.an_ar, models.AR_PARAMS, num_chains=2)
for _history in ("none", "ancestors", "full"):
    filter_case(f"history {_history}", models.an_ar, models.AR_PARAMS, history=_history)
    filter_case(
        f"history {_history} two chains", models.an_ar, models.AR_PARAMS, history=_history, num_chains=2
    )
filter_case("quantiles", models.an_ar, models.AR_PARAMS, quantiles=(0.05, 0.5, 0.95), num_chains=2)
filter_case("batches", models.an_ar, models.AR_PARAMS, mcx.ParticleFilter(batch_size=8))
for _kind in ("bootstrap", "guided", "auxiliary"):
    filter_case(f"led {_kind}", models.a_led, None, mcx.ParticleFilter(kind=_kind))
    filter_case(f"led {_kind} two chains", models.a_led, None, mcx.ParticleFilter(kind=_kind), num_chains=2)
for _scheme in SCHEMES:
    filter_case(
        f"resampling {_scheme}", models.an_ar, models.AR_PARAMS, mcx.ParticleFilter(resampling=_scheme)
    )
filter_case("structured", models.a_trend, {"drift": 0.3}, history="full")
filter_case("discrete", models.a_hidden, {"stay": 0.7})
filter_case("scan", models.a_walk, {"step_size": 0.6}, history="full")


@case("filter/forecast")
def filter_forecast() -> dict[str, Any]:
    options = {"key": 0, "num_particles": 32, "progress": False}
    found = mcx.filter(models.an_ar(), params=models.AR_PARAMS, **options)
    led = mcx.filter(models.a_trend(), params={"drift": 0.3}, **options)
    future = {"inputs": np.ones(2, "f4")}
    return {
        "ar": dict(found.forecast(3, key=1, num_draws=10)),
        "trend": dict(led.forecast(2, key=1, num_draws=10, **future)),
    }


@case("filter/datatree")
def filter_datatree() -> dict[str, Any]:
    options = {"key": 0, "num_particles": 32, "progress": False, "num_chains": 2, "history": "full"}
    tree = mcx.filter(models.an_ar(), params=models.AR_PARAMS, **options).to_datatree()
    return {
        name: {k: np.asarray(v) for k, v in tree[name].data_vars.items()} for name in sorted(tree.children)
    }


def online_case(name: str, bound: Any, params: Any, **options: Any) -> None:
    """A case of ``mcx.OnlineFilter``."""

    @case(f"online/{name}")
    def run() -> dict[str, Any]:
        online = mcx.OnlineFilter(bound(), params=params, num_particles=32, **options)
        state = online.init(0, models.Y[0])
        for t in range(1, 5):
            state = online.step(t, state, models.Y[t])
        return {"moments": online.moments(state), **taken("online", state)}


online_case("bootstrap", models.an_ar, models.AR_PARAMS)
online_case("auxiliary", models.a_led, None, method=mcx.ParticleFilter(kind="auxiliary"))

infer_case("infer/pmmh", models.an_ar, mcx.PMMH(16, num_warmup=6, num_samples=4))
infer_case("infer/pmmh scan", models.a_walk, mcx.PMMH(16, num_warmup=6, num_samples=4), num_chains=1)
infer_case("infer/pmmh pilot", models.an_ar, mcx.PMMH(num_warmup=4, num_samples=4), program=False)
infer_case(
    "infer/pmmh auxiliary",
    models.a_trend,
    mcx.PMMH(
        16, num_warmup=6, num_samples=4, filter=mcx.ParticleFilter(resampling="systematic"), dense_mass=False
    ),
)
infer_case("infer/smc2", models.an_ar, mcx.SMC2(num_params=16, num_particles=8))
infer_case(
    "infer/smc2 grow", models.an_ar, mcx.SMC2(num_params=16, num_particles=4, grow=True), program=False
)
infer_case(
    "infer/smc2 start",
    models.a_trend,
    mcx.SMC2(num_params=16, num_particles=8, initial_law=1.5, resampling="multinomial", batch_size=8),
)

CLOUD: dict[str, Any] = {"num_particles": 32, "move": mcx.RandomWalk()}
infer_case("infer/tempered", models.a_normal, mcx.TemperedSMC(num_particles=32))
infer_case("infer/tempered random walk", models.a_schools, mcx.TemperedSMC(**CLOUD))
infer_case("infer/tempered mala", models.a_normal, mcx.TemperedSMC(num_particles=32, move=mcx.MALA()))
infer_case("infer/tempered waste-free", models.a_normal, mcx.TemperedSMC(**CLOUD, waste_free_length=4))
infer_case("infer/tempered levels", models.a_normal, mcx.TemperedSMC(**CLOUD, levels=(0.1, 0.4, 1.0)))
infer_case(
    "infer/tempered start", models.a_normal, mcx.TemperedSMC(**CLOUD, initial_law=2.0, dense_mass=False)
)
infer_case("infer/tempered one chain", models.a_normal, mcx.TemperedSMC(**CLOUD, batch_size=8), num_chains=1)
infer_case("infer/data annealed", models.a_normal, mcx.DataAnnealedSMC(num_particles=32))
infer_case(
    "infer/data annealed levels",
    models.a_normal,
    mcx.DataAnnealedSMC(**CLOUD, levels=tuple((k + 1) / 8 for k in range(8))),
)


def walk_step(key: Any, scale: Any, x: Any, u: Any) -> Any:
    return x + scale * jax.random.normal(key)


WALK = mcx.FeynmanKac(
    initial=lambda key, scale, u: scale * jax.random.normal(key),
    transition=walk_step,
    log_potential=lambda scale, x_prev, x, u: -0.5 * (u - x) ** 2,
    num_steps=len(models.Y),
    inputs=jnp.asarray(models.Y),
)


def smc_case(name: str, **options: Any) -> None:
    """A case of ``mcx.smc``."""

    @case(f"smc/{name}")
    def run() -> dict[str, Any]:
        def pure(key: Any, scale: Any) -> Any:
            return taken("smc", mcx.smc(key, WALK, scale, num_particles=16, **options))

        key, scale = jax.random.key(0), jnp.float32(0.8)
        return {**pure(key, scale), "program": jax.make_jaxpr(pure)(key, scale)}


for _scheme in SCHEMES:
    smc_case(_scheme, resampling=_scheme, history="ancestors")
smc_case("full history", history="full", threshold=1.0)
smc_case("moments", history="moments", quantiles=(0.1, 0.9))


@case("smc/gradient")
def smc_gradient() -> dict[str, Any]:
    def evidence(scale: Any, key: Any) -> Any:
        return mcx.smc(key, WALK, scale, num_particles=16).log_evidence

    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.vmap(jax.value_and_grad(evidence), (None, 0))
    return {"found": found(jnp.float32(0.8), keys), "program": jax.make_jaxpr(found)(jnp.float32(0.8), keys)}
