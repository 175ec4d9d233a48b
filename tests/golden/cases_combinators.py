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
from mcx.inference.smc.conditional import conditional
from mcx.inference.smc.genealogy import draw_path
from mcx.inference.smc.moves import CloudMoves
from mcx.inference.smc.nested import nest
from mcx.inference.smc.nested_moves import PMMHMoves, with_pmmh
from mcx.inference.smc.nested_paths import grow
from mcx.inference.smc.paths import annealed_data, tempered
from mcx.inference.smc.resampling import adaptive, as_resampling
from mcx.inference.smc.tempering import Annealing, with_moves
from mcx.model.compile import compile_model
from mcx.ops.random import choose


def annealed_case(name: str, path_of: Any, move: Any, **options: Any) -> None:
    """A case of a path of laws with moves."""

    @case(f"combinators/{name}")
    def run() -> dict[str, Any]:
        path, data = path_of(compile_model(models.a_normal()))
        annealing = Annealing(path, CloudMoves(move.transition(), move.target_accept, max_moves=4))
        model = with_moves(annealing, data, num_stages=4)

        def pure(key: Any) -> Any:
            return taken("smc", mcx.smc(key, model, num_particles=32, threshold=1.0, **options))

        return {**pure(jax.random.key(0)), "program": jax.make_jaxpr(pure)(jax.random.key(0))}


annealed_case("tempered", tempered, mcx.RandomWalk())
annealed_case("annealed data", annealed_data, mcx.RandomWalk(), resampling="systematic")


@case("combinators/nested")
def nested() -> dict[str, Any]:
    method = mcx.SMC2(num_params=8, num_particles=8)
    plan = method.plan(models.an_ar())
    nesting, data = method.nested(plan, num_particles=8)
    found = {}
    parts = {"nest": nest(nesting, data), "pmmh": with_pmmh(nesting, PMMHMoves(max_moves=2), data)}
    for name, model in parts.items():

        def pure(key: Any, model: Any = model) -> Any:
            return taken("smc", mcx.smc(key, model, num_particles=8))

        found[name] = pure(jax.random.key(0))
        found[f"{name} program"] = jax.make_jaxpr(pure)(jax.random.key(0))
    bank = mcx.smc(jax.random.key(0), parts["nest"], num_particles=8)
    wider, _ = method.nested(plan, num_particles=12)
    grown = grow(nesting, wider, data, jax.random.key(1), bank.state.particles, len(models.Y))
    return {**found, "grown": list_of(grown)}


def keep_first(key: Any, log_w: Any, num: int) -> Any:
    return choose(key, log_w, (num,)).at[0].set(0)


@case("combinators/conditional")
def conditional_smc() -> dict[str, Any]:
    method = mcx.SMC2(num_params=8, num_particles=8)
    _, data = method.nested(method.plan(models.an_ar()), num_particles=8)
    model = data.spaces["x"].feynman_kac

    def pure(key: Any, path: Any) -> Any:
        key_run, key_path = jax.random.split(key)
        options = {"num_particles": 8, "resampling": keep_first, "history": "full"}
        past = mcx.smc(key_run, conditional(model, path), models.AR_PARAMS, **options).history
        return draw_path(key_path, past.ancestors, past.particles, past.log_w[-1])

    path = jnp.zeros(len(models.Y))
    return {"path": pure(jax.random.key(2), path), "program": jax.make_jaxpr(pure)(jax.random.key(2), path)}


@case("combinators/resampling")
def resampling() -> dict[str, Any]:
    log_w = jax.nn.log_softmax(jnp.asarray(models.Y))
    found: dict[str, Any] = {}
    for name in SCHEMES:
        scheme = as_resampling(name)
        for num in (5, 8, 13) if name not in ("killing", "birth_death") else (8,):
            found[f"{name} {num}"] = scheme(jax.random.key(3), log_w, num)
        found[f"{name} adaptive"] = list_of(adaptive(name, 0.9)(jax.random.key(3), log_w))
        program = jax.make_jaxpr(lambda key, w, scheme=scheme: scheme(key, w, 8))
        found[f"{name} program"] = program(jax.random.key(3), log_w)
    return found
