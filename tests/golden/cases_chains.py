"""Markov chain methods: ``infer`` and ``program``, what follows them, and ``mcx.run``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
from fields import taken
from registry import case, infer_case

import mcx

FEW = {"num_warmup": 12, "num_samples": 6}
FUNCTIONS = {"mean": lambda v: v["mu"], "large": lambda v: v["mu"] > 0.5}

infer_case("infer/nuts", models.a_normal, mcx.NUTS(**FEW, max_tree_depth=4))
infer_case("infer/nuts one chain", models.a_normal, mcx.NUTS(**FEW, max_tree_depth=4), num_chains=1)
infer_case("infer/nuts diagonal", models.a_schools, mcx.NUTS(**FEW, max_tree_depth=4, dense_mass=False))
infer_case("infer/nuts path", models.an_ar, mcx.NUTS(**FEW, max_tree_depth=3))
infer_case("infer/nuts scan", models.a_walk, mcx.NUTS(**FEW, max_tree_depth=3))
infer_case(
    "infer/nuts init prior", models.a_normal, mcx.NUTS(**FEW, max_tree_depth=3), program=False, init="prior"
)
infer_case(
    "infer/nuts init radius", models.a_normal, mcx.NUTS(**FEW, max_tree_depth=3), program=False, init=0.1
)
infer_case(
    "infer/nuts init values",
    models.a_normal,
    mcx.NUTS(**FEW, max_tree_depth=3),
    program=False,
    init={"mu": 0.0, "s": 1.0},
)
infer_case(
    "infer/nuts batches", models.a_normal, mcx.NUTS(**FEW, max_tree_depth=3), program=False, batch_size=1
)
infer_case("infer/nuts no warm-up", models.a_normal, mcx.NUTS(num_warmup=0, num_samples=6, max_tree_depth=3))
infer_case("infer/hmc", models.a_normal, mcx.HMC(**FEW))
infer_case("infer/hmc schools", models.a_schools, mcx.HMC(**FEW))
infer_case("infer/mala", models.a_normal, mcx.MALA(**FEW))
infer_case("infer/random walk", models.a_normal, mcx.RandomWalk(**FEW))
infer_case("infer/random walk diagonal", models.a_schools, mcx.RandomWalk(**FEW, dense_mass=False))
infer_case("infer/chees", models.a_normal, mcx.ChEES(**FEW), num_chains=4)
infer_case("infer/chees schools", models.a_schools, mcx.ChEES(**FEW), num_chains=8)


def short_nuts(bound: Any, num_samples: int = 20) -> Any:
    """Draws for what takes draws."""
    method = mcx.NUTS(num_warmup=20, num_samples=num_samples, max_tree_depth=4)
    return mcx.infer(bound, method, key=0, num_chains=2, progress=False, warnings="ignore")


@case("results/predict")
def predict() -> dict[str, Any]:
    post = short_nuts(models.a_schools())
    found = mcx.predict(post, models.a_schools(), key=1)
    anew = mcx.predict(post, models.a_schools(), key=2, resample=["z"])
    prior = mcx.predict(None, models.a_schools(), key=3, num_draws=20)
    return {"fitted": dict(found), "resampled": dict(anew), "prior": dict(prior)}


@case("results/forecast")
def forecast() -> dict[str, Any]:
    ahead = mcx.forecast(short_nuts(models.an_ar(), 6), 3, key=1)
    return {"draws": dict(ahead), "quantiles": ahead.quantiles([0.1, 0.9])}


@case("results/datatree")
def datatree() -> dict[str, Any]:
    tree = short_nuts(models.a_schools()).to_datatree()
    return {
        name: {k: np.asarray(v) for k, v in tree[name].data_vars.items()} for name in sorted(tree.children)
    }


@case("results/summary")
def summary() -> dict[str, Any]:
    table = short_nuts(models.a_schools()).summary()
    return {"text": np.frombuffer(str(table).encode(), np.uint8)}


@case("results/simulate")
def simulate() -> dict[str, Any]:
    return {"draws": {name: dict(bound().simulate(key=0)) for name, bound in SIMULATED.items()}}


SIMULATED = {"schools": models.a_schools, "ar": models.an_ar, "trend": models.a_trend, "walk": models.a_walk}


@case("expect/stein controls")
def stein_controls() -> dict[str, Any]:
    post = short_nuts(models.a_normal(), 60)
    degrees = {degree: mcx.SteinControls(degree=degree) for degree in (None, 0, 1, 2)}
    found = {str(d): mcx.expect(post, FUNCTIONS, method=method) for d, method in degrees.items()}
    return {f"{d} {name}": taken("estimate", e) for d, one in found.items() for name, e in one.items()}


@case("expect/weighted draws")
def weighted() -> dict[str, Any]:
    method = mcx.TemperedSMC(num_particles=64, move=mcx.RandomWalk())
    post = mcx.infer(models.a_normal(), method, key=0, num_chains=4, progress=False, warnings="ignore")
    return {name: taken("estimate", e) for name, e in mcx.expect(post, FUNCTIONS).items()}


def importance_case(name: str, **settings: Any) -> None:
    """A case of adaptive importance sampling of a posterior."""

    @case(f"expect/importance{name}")
    def run() -> dict[str, Any]:
        method = mcx.AdaptiveImportance(**{"budget": 600, "num_iterations": 3, **settings})
        found = mcx.expect(models.a_normal(), FUNCTIONS, method=method, key=1)
        return {name: taken("estimate", e) for name, e in found.items()}


importance_case("")
importance_case(" all samples", samples="all")
importance_case(" relative error", relative_error=0.05)
importance_case(" plain", controls="none", df=None, num_components=1)
importance_case(" least squares", fit="least_squares")
importance_case(" own proposal", proposals=(mcx.dist.Normal(0.0, 1.5).expand([2]).to_event(1),))


@case("expect/nuts")
def expect_nuts() -> dict[str, Any]:
    method = mcx.NUTS(num_warmup=20, num_samples=30, max_tree_depth=4)
    options = {"progress": False, "warnings": "ignore", "num_chains": 2}
    found = mcx.expect(models.a_normal(), FUNCTIONS, method=method, key=1, **options)
    return {name: taken("estimate", e) for name, e in found.items()}


@case("run/blackjax")
def run_blackjax() -> dict[str, Any]:
    import blackjax

    algorithm = blackjax.hmc(lambda x: -0.5 * jnp.sum(x**2), 0.5, jnp.ones(2), 5)
    options = {"collect": lambda state, info: state.position, "progress": False}
    found = mcx.run(
        algorithm, key=0, num_chains=3, num_steps=10, num_discard=2, init=jnp.zeros((3, 2)), **options
    )
    return taken("run", found)


class Walk(mcx.Kernel):
    """A kernel with everything that kernels may have by themselves."""

    def init(self, data: Any, key: Any, start: Any) -> Any:
        return jax.random.normal(key) if start is None else start

    def step(self, data: Any, key: Any, state: Any, u: Any) -> tuple[Any, Any]:
        new = state + data * u * jax.random.normal(key)
        return new, abs(new - state)

    def collect(self, state: Any, info: Any) -> tuple[Any, dict[str, Any]]:
        return state, {"moved": info}

    def emit(self, data: Any, draw: Any) -> dict[str, Any]:
        return {"twice": 2 * draw}

    def report(self, stats: Any) -> dict[str, Any]:
        return {}


@case("run/own kernel")
def run_own() -> dict[str, Any]:
    steps = {"num_steps": 10, "inputs": jnp.linspace(0.5, 1.0, 10), "chunk_size": 3}
    found = mcx.run(Walk(), jnp.float32(0.3), key=0, num_chains=2, progress=False, **steps)
    return taken("run", found)
