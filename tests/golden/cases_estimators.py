"""Expectations, Sobol' indices, least squares, Pareto smoothing, sliced Wasserstein distances."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import models
import numpy as np
from cases_chains import short_nuts
from fields import taken
from registry import case

import mcx
from mcx import dist, estimators
from mcx.estimators import least_squares

LAW = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
LAWS = dist.MultivariateNormal(jnp.stack([jnp.linspace(-0.5, 0.5, 3), jnp.zeros(3)], 1), jnp.eye(2))


def both(x):
    return {"fourth": x[0] ** 4, "tail": x[0] + x[1] > 2.0}


def smooth(x):
    return jnp.exp(0.3 * x[0] + 0.1 * x[1])


def expectations_case(name: str, function: Any, law: Any, controls: Any = None, **settings: Any) -> None:
    """A case of ``expectations``."""

    @case(f"expectations/{name}")
    def run() -> dict[str, Any]:
        method = mcx.AdaptiveImportance(**{"budget": 500, "num_iterations": 3, **settings})
        return taken(
            "estimate", estimators.expectations(function, law, method=method, controls=controls, key=2)
        )


expectations_case("one law", both, LAW)
expectations_case("all samples", both, LAW, samples="all")
expectations_case("plain", both, LAW, controls=None, df=None, num_components=1)
expectations_case("many laws", smooth, LAWS)
expectations_case("own proposal", smooth, LAW, proposals=(dist.Normal(0.5, 1.5).expand([2]).to_event(1),))
expectations_case("known means", smooth, LAW, estimators.KnownMeans(lambda x: x[0], 0.0))
expectations_case(
    "estimated means", smooth, LAW, estimators.EstimatedMeans(lambda x: x[0] ** 2, num_draws=1000)
)
expectations_case("uniform", smooth, dist.Uniform(0.0, 1.0).expand([2]).to_event(1))


@case("expectations/paper")
def paper() -> dict[str, Any]:
    method = mcx.AdaptiveImportance.paper(budget=500)
    return taken("estimate", estimators.expectations(both, LAW, method=method, key=2))


@case("expectations/trained proposal")
def trained() -> dict[str, Any]:
    def build(params):
        return dist.MultivariateNormal(params["loc"], scale_tril=jnp.diag(jnp.exp(params["log_scale"])))

    start = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}
    options = {"num_updates": 6, "batch_size": 50, "key": 7}
    return {
        loss: estimators.train_proposal(build, start, smooth, LAW, loss=loss, **options)
        for loss in ("kl", "variance")
    }


def ishigami(x):
    return jnp.sin(x[0]) + 7 * jnp.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * jnp.sin(x[0])


def sobol_case(name: str, **options: Any) -> None:
    """A case of Sobol' indices."""

    @case(f"sobol/{name}")
    def run() -> dict[str, Any]:
        inputs = dist.Uniform(-np.pi, np.pi).expand([3]).to_event(1)
        return taken("estimate", estimators.sobol_indices(ishigami, inputs, budget=600, key=5, **options))


sobol_case("sobol")
sobol_case("random", design="random")
sobol_case("no controls", controls="none")


def least_squares_case(name: str, basis: Any) -> None:
    """A case of designs, fits and integrals."""

    @case(f"least squares/{name}")
    def run() -> dict[str, Any]:
        function, space, found = (lambda x: jnp.exp(x[0])), basis(), {}
        for scheme in ("volume", "dpp", "iid"):
            plan = least_squares.design(space, 2 * space.size, scheme=scheme, key=jax.random.key(0))
            fitted = least_squares.fit(plan, jax.vmap(function)(plan.points))
            found[scheme] = {
                "points": plan.points,
                "weights": plan.weights,
                "coefficients": fitted.coefficients,
                "integral": fitted.integral,
                "condition": fitted.condition,
            }
        integral = least_squares.integrate(function, space, 2 * space.size, replicates=3, key=1)
        return {**found, "integrate": taken("estimate", integral)}


least_squares_case("legendre", lambda: least_squares.legendre(2, 2))
least_squares_case("hermite", lambda: least_squares.hermite(2, 2, index_set="tensor"))
least_squares_case(
    "grid",
    lambda: least_squares.on_grid(
        lambda x: jnp.array([1.0, x[0], x[0] ** 2]), jnp.linspace(0, 1, 40)[:, None]
    ),
)


@case("psis")
def psis() -> dict[str, Any]:
    log_w = jnp.asarray(np.random.default_rng(0).standard_t(3, size=200), "float32")
    return {"psis": estimators.psis(log_w), "khat": estimators.pareto_khat(log_w)}


@case("regress")
def regress() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    h = jnp.asarray(rng.normal(size=(100, 3)), "float32")
    y = h @ jnp.array([1.0, 0.5, 0.0]) + jnp.asarray(rng.normal(size=100), "float32")
    w = jnp.asarray(rng.exponential(size=100), "float32")
    fits = ("least_squares", "cross_fit", "ridge")
    return {fit: [list(estimators.regress(y, h, weights, fit=fit)) for weights in (None, w)] for fit in fits}


_RNG = np.random.default_rng(0)


def clouds(d: int) -> tuple[Any, Any]:
    """Two clouds of points."""
    rng = np.random.default_rng(d)
    return rng.normal(size=(40, d)).astype("f4"), (1.5 * rng.normal(size=(30, d)) + 1).astype("f4")


def sliced_case(name: str, d: int, **options: Any) -> None:
    """A case of sliced Wasserstein distances."""

    @case(f"sliced/{name}")
    def run() -> dict[str, Any]:
        x, y = clouds(d)

        def pure(x: Any, y: Any, key: Any) -> Any:
            found = mcx.sliced_wasserstein(x, y, **{"num_projections": 32, "key": key, **options})
            return taken("estimate", found)

        key = jax.random.key(0)
        return {**pure(x, y, key), "program": jax.make_jaxpr(pure)(x, y, key)}


for _kind, _d in {
    "iid": 3,
    "orthogonal": 4,
    "sobol": 4,
    "fibonacci": 3,
    "spiral": 3,
    "equispaced": 2,
}.items():
    sliced_case(_kind, _d, directions=_kind)
for _d in (1, 2, 3, 6, 12):
    sliced_case(f"auto {_d}", _d)
for _controls in ("gaussian", "polynomial", "gaussian+polynomial", None):
    sliced_case(f"controls {_controls}", 4, control_variates=_controls, directions="iid", num_projections=64)
sliced_case("p 1", 3, p=1)
sliced_case("one replicate", 5, num_replicates=1, batch_size=8)
sliced_case("weights", 3, x_weights=jnp.arange(1.0, 41.0), y_weights=jnp.ones(30))


@case("sliced/variants")
def variants() -> dict[str, Any]:
    x, y = clouds(3)
    return {
        "max": taken("direction", mcx.max_sliced_wasserstein(x, y, num_starts=3, num_updates=8, key=0)),
        "exp": taken("estimate", mcx.energy_sliced_wasserstein(x, y, num_projections=32, key=0)),
        "identity": taken(
            "estimate", mcx.energy_sliced_wasserstein(x, y, num_projections=32, energy="identity", key=0)
        ),
    }


@case("sliced/target")
def target() -> dict[str, Any]:
    x, y = clouds(3)
    fixed = mcx.SlicedTarget.of(y, num_projections=32, key=3)
    slope = jax.grad(lambda x: fixed.distance(x).value)(x)
    return {**taken("estimate", fixed.distance(x)), "slope": slope}


@case("sliced/two samples")
def two_samples() -> dict[str, Any]:
    x, y = clouds(3)
    test = mcx.two_sample_test(x, y, num_projections=16, num_permutations=19, key=4)
    line = estimators.wasserstein_1d(x[:, 0], y[:, 0])
    return {**taken("two samples", test), "line": line}


@case("sliced/posteriors")
def posteriors() -> dict[str, Any]:
    one, other = short_nuts(models.a_normal()), short_nuts(models.normal(models.Y + 1))
    found = mcx.sliced_wasserstein(one, other, num_projections=16, key=0)
    test = mcx.two_sample_test(one, other, num_projections=16, num_permutations=19, key=4)
    return {**taken("estimate", found), "test": taken("two samples", test)}
