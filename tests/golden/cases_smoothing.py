"""Particle Gibbs, smoothing, maximum likelihood, score climbing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import models
import optax
from fields import taken
from registry import case, infer_case

import mcx

SWEEPS = {"num_warmup": 6, "num_samples": 4}


def gibbs_case(name: str, bound: Any, states: Any, params: Any, **options: Any) -> None:
    """A case of particle Gibbs."""
    infer_case(
        f"infer/gibbs {name}", bound, mcx.ParticleGibbs(states=states, params=params, **SWEEPS), **options
    )


NUTS = mcx.NUTS(max_tree_depth=3)
for _name, _backward in {"backward": "exact", "ancestor": "ancestor", "none": "none"}.items():
    gibbs_case(_name, models.an_ar, mcx.ConditionalSMC(8, backward=_backward), NUTS)
gibbs_case("random walk", models.an_ar, mcx.ConditionalSMC(8, threshold=1.0), mcx.RandomWalk())
gibbs_case("one chain", models.an_ar, {"x": mcx.ConditionalSMC(8)}, mcx.HMC(), num_chains=1)
gibbs_case("discrete", models.a_hidden, mcx.ConditionalSMC(8), mcx.RandomWalk())
gibbs_case("structured", models.a_trend, mcx.ConditionalSMC(8), NUTS)
gibbs_case("scan", models.a_walk, mcx.ConditionalSMC(8), mcx.RandomWalk())


def draw_scale(key: Any, values: Any) -> dict[str, Any]:
    x, rho = values["x"], values["rho"]
    residuals = jnp.sum((x[1:] - rho * x[:-1]) ** 2)
    return {"s": jnp.sqrt((1.0 + residuals / 2) / jax.random.gamma(key, 2.0 + x.shape[0] / 2))}


gibbs_case("conditional", models.an_ar, mcx.ConditionalSMC(8), (draw_scale, mcx.RandomWalk()))


@case("gibbs/numpyro block")
def numpyro_block() -> dict[str, Any]:
    from numpyro.infer import MCMC, Gibbs
    from numpyro.infer import NUTS as NumPyroNUTS

    block = mcx.PathGibbs(models.numpyro_walk, states=mcx.ConditionalSMC(8))
    rest = NumPyroNUTS(models.numpyro_walk, max_tree_depth=3)
    mcmc = MCMC(Gibbs([(block, ["x"]), (rest, None)]), num_warmup=4, num_samples=4, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.asarray(models.Y))
    return {"draws": mcmc.get_samples()}


def smooth_case(
    name: str,
    method: Any,
    functional: Any = None,
    bound: Any = models.an_ar,
    params: Any = None,
    **options: Any,
) -> None:
    """A case of ``mcx.smooth``."""

    @case(f"smooth/{name}")
    def run() -> dict[str, Any]:
        given = {"params": models.AR_PARAMS if params is None else params, "key": 0, "progress": False}
        what = (lambda x_prev, x, t: x_prev * x) if functional is None else functional
        return taken("estimate", mcx.smooth(bound(), what, method=method, **{**given, **options}))


for _backward in ("imh", "exact", "hybrid"):
    smooth_case(f"ffbs {_backward}", mcx.FFBS(num_particles=16, num_paths=16, backward=_backward))
    smooth_case(f"ppg {_backward}", mcx.PPG(8, num_warmup=2, num_samples=2, backward=_backward))
for _backward in ("imh", "exact", "hybrid", "all"):
    smooth_case(f"paris {_backward}", mcx.PaRIS(16, backward=_backward))
smooth_case("ffbs one chain", mcx.FFBS(num_particles=16, num_paths=16), num_chains=1)
smooth_case("ppg batches", mcx.PPG(8, num_warmup=2, num_samples=2), batch_size=2)
smooth_case("paris means", mcx.PaRIS(16), mcx.functionals.means())
smooth_case("ffbs covariances", mcx.FFBS(num_particles=16, num_paths=16), mcx.functionals.covariances())
smooth_case("ppg cross products", mcx.PPG(8, num_warmup=2, num_samples=2), mcx.functionals.cross_products())
smooth_case("paris score", mcx.PaRIS(16), mcx.functionals.score())
smooth_case("ffbs score", mcx.FFBS(num_particles=16, num_paths=16), mcx.functionals.score())
smooth_case(
    "paris structured",
    mcx.PaRIS(16),
    mcx.AdditiveFunctional(lambda x_prev, x, t: x["level"] - x_prev["level"], by_time=True),
    models.a_trend,
    {"drift": 0.3},
)
smooth_case(
    "ppg scan",
    mcx.PPG(8, num_warmup=2, num_samples=2),
    mcx.functionals.means(),
    models.a_walk,
    {"step_size": 0.6},
)


@case("online/smoother")
def online_smoother() -> dict[str, Any]:
    functional = lambda x_prev, x, t: x_prev * x  # noqa: E731
    online = mcx.OnlineSmoother(
        models.an_ar(), functional, params=models.AR_PARAMS, method=mcx.PaRIS(num_particles=16)
    )
    state = online.init(0, models.Y[0])
    for t in range(1, 5):
        state = online.step(t, state, models.Y[t])
    return taken("online smoothing", state)


def ascent_case(name: str, **settings: Any) -> None:
    """A case of maximum likelihood."""

    @case(f"maximize/ascent {name}")
    def run() -> dict[str, Any]:
        method = mcx.ScoreAscent(**{"num_updates": 8, "num_smoothers": 2, "num_information": 4, **settings})
        found = mcx.maximize(models.an_ar(), method=method, init=models.AR_PARAMS, key=0, progress=False)
        return taken("maximum", found)


PPG = mcx.PPG(8, num_warmup=0, num_samples=2)
ascent_case("ppg", smoother=PPG)
ascent_case("paris", smoother=mcx.PaRIS(16), optimizer=optax.adam(0.1))
ascent_case("ffbs", smoother=mcx.FFBS(num_particles=16, num_paths=8), num_information=0)


def climbing_case(name: str, bound: Any, **settings: Any) -> None:
    """A case of score climbing."""

    @case(f"maximize/climbing {name}")
    def run() -> dict[str, Any]:
        method = mcx.ScoreClimbing(**{"num_updates": 16, "num_checks": 100, **settings})
        found = mcx.maximize(bound(), method=method, num_chains=4, key=0, progress=False)
        return {**taken("approximation", found), "draws": found.sample(key=1, num=5)}


climbing_case("importance", models.a_normal)
climbing_case("mean field", models.a_schools, family="mean_field")
climbing_case("nuts", models.a_normal, kernel=mcx.NUTS(num_warmup=8, max_tree_depth=3))
climbing_case(
    "gibbs",
    models.an_ar,
    kernel=mcx.ParticleGibbs(states=mcx.ConditionalSMC(8), params=mcx.RandomWalk(), num_warmup=8),
)
