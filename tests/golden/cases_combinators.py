"""The combinators of Feynman-Kac models: their imports are in one place, here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import models
from cases_particles import SCHEMES
from fields import list_of, taken
from registry import case

import mcx
import mcx.combinators as c


def annealed_case(name: str, path_of: Any, move: Any, **options: Any) -> None:
    """A case of a path of laws with moves."""

    @case(f"combinators/{name}")
    def run() -> dict[str, Any]:
        path, data = path_of(c.target(models.a_normal()))
        annealing = c.Annealing(path, c.CloudMoves(move.transition(), move.target_accept, max_moves=4))
        model = c.with_moves(annealing, data, num_stages=4)

        def pure(key: Any) -> Any:
            return taken("smc", mcx.smc(key, model, num_particles=32, threshold=1.0, **options))

        return {**pure(jax.random.key(0)), "program": jax.make_jaxpr(pure)(jax.random.key(0))}


annealed_case("tempered", c.tempered, mcx.RandomWalk())
annealed_case("annealed data", c.annealed_data, mcx.RandomWalk(), resampling="systematic")


@case("combinators/nested")
def nested() -> dict[str, Any]:
    apart = c.marginal_model(models.an_ar())
    filters, data = c.nested_filters(apart, num_particles=8)
    found = {}
    parts = {"nest": c.nest(filters, data), "pmmh": c.with_pmmh(filters, c.PMMHMoves(max_moves=2), data)}
    for name, model in parts.items():

        def pure(key: Any, model: Any = model) -> Any:
            return taken("smc", mcx.smc(key, model, num_particles=8))

        found[name] = pure(jax.random.key(0))
        found[f"{name} program"] = jax.make_jaxpr(pure)(jax.random.key(0))
    bank = mcx.smc(jax.random.key(0), parts["nest"], num_particles=8)
    wider, _ = c.nested_filters(apart, num_particles=12)
    grown = c.grow(filters, wider, data, jax.random.key(1), bank.state.particles, len(models.Y))
    return {**found, "grown": list_of(grown)}


@case("combinators/conditional")
def conditional_smc() -> dict[str, Any]:
    model = c.marginal_model(models.an_ar()).data.spaces["x"].feynman_kac

    def pure(key: Any, path: Any) -> Any:
        key_run, key_path = jax.random.split(key)
        options = {"num_particles": 8, "resampling": c.keep_first, "history": "full"}
        past = mcx.smc(key_run, c.conditional(model, path), models.AR_PARAMS, **options).history
        return c.draw_path(key_path, past.ancestors, past.particles, past.log_w[-1])

    path = jnp.zeros(len(models.Y))
    return {"path": pure(jax.random.key(2), path), "program": jax.make_jaxpr(pure)(jax.random.key(2), path)}


@case("combinators/resampling")
def resampling() -> dict[str, Any]:
    log_w = jax.nn.log_softmax(jnp.asarray(models.Y))
    found: dict[str, Any] = {}
    for name in SCHEMES:
        scheme = c.resampling.as_resampling(name)
        for num in (5, 8, 13) if name not in ("killing", "birth_death") else (8,):
            found[f"{name} {num}"] = scheme(jax.random.key(3), log_w, num)
        found[f"{name} adaptive"] = list_of(c.resampling.adaptive(name, 0.9)(jax.random.key(3), log_w))
        program = jax.make_jaxpr(lambda key, w, scheme=scheme: scheme(key, w, 8))
        found[f"{name} program"] = program(jax.random.key(3), log_w)
    return found
