"""Diffusion models: sampling, densities, correctors, posteriors, denoising MCMC."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from fields import taken
from registry import case, infer_case

import mcx
from mcx import diffusion, dist

MIXTURE = diffusion.GaussianMixture.of(
    means=[[-3.0, 0.0], [3.0, 1.0]], covariances=[0.5, 2.0], weights=[0.7, 0.3]
)
OTHER = diffusion.GaussianMixture.of([0.0, 0.0], 4.0)
VE = diffusion.ve(0.01, 30.0)
SCORE = diffusion.Score(
    jax.tree_util.Partial(lambda scale, x, t: -x / (scale + VE.sigma(t) ** 2), jnp.float32(1.0)),
    VE,
    kind="score",
)
RHO = diffusion.levels(80.0, 0.01, 8, to_zero=True)
SHORT = diffusion.levels(30.0, 0.05, 12)

INTEGRATORS = {
    "ddim": diffusion.DDIM(),
    "ddim eta": diffusion.DDIM(1.0),
    "dpm 2": diffusion.DPMSolver(2),
    "dpm 3": diffusion.DPMSolver(3, lower_order_final=True),
    "unipc 2": diffusion.UniPC(2),
    "unipc 3": diffusion.UniPC(3, variant="bh1"),
    "deis 3": diffusion.DEIS(3),
    "deis vp": diffusion.DEIS(2, diffusion.vp()),
    "heun": diffusion.Heun(),
    "heun churn": diffusion.Heun(s_churn=4.0),
    "dpm 2s": diffusion.DPMSolver2S(),
    "sde dpm": diffusion.SDEDPMSolver(),
    "euler": diffusion.EulerMaruyama(),
    "euler strong": diffusion.EulerMaruyama(1.5),
    "corrector": diffusion.PredictorCorrector(),
    "corrector ddim": diffusion.PredictorCorrector(diffusion.DDIM(), num_corrections=2, snr=0.1),
    "runge kutta": diffusion.RungeKutta45(rtol=1e-3, atol=1e-3),
}


def integrator_case(name: str, method: Any) -> None:
    """A case of ``sample`` and ``integrate`` with one method."""

    @case(f"diffusion/{name}")
    def run() -> dict[str, Any]:
        def drawn(key: Any, model: Any) -> Any:
            return diffusion.sample(model, 6, (2,), RHO, method=method, key=key)

        def carried(key: Any, model: Any) -> Any:
            start = 80.0 * jax.random.normal(jax.random.key(1), (2,))
            return diffusion.integrate(model, start, RHO, method=method, path=True, key=key)

        key, found = jax.random.key(0), {}
        for part, pure in (("sample", drawn), ("path", carried)):
            try:
                found[part] = pure(key, MIXTURE)
            except mcx.errors.MethodError:  # a method without a path
                continue
            found[f"{part} program"] = jax.make_jaxpr(pure)(key, MIXTURE)
        return found


for _name, _method in INTEGRATORS.items():
    integrator_case(_name, _method)


@case("diffusion/starts")
def starts() -> dict[str, Any]:
    law = diffusion.Teleport.from_mixture(MIXTURE)
    fitted = diffusion.Teleport.from_data(MIXTURE.sample(jax.random.key(2), 200))
    first = law.reach(MIXTURE, RHO, (2,), key=jax.random.key(3))
    rest = diffusion.levels(float(first), 0.01, 4, to_zero=True)
    points = jnp.ones((6, 2))
    options = {"num": 6, "event_shape": (2,), "key": jax.random.key(0)}
    return {
        "first": first,
        "teleport": diffusion.sample(MIXTURE, levels=rest, init=law, **options),
        "jump": fitted.jump(points[0], 80.0, 20.0),
        "noise": diffusion.sample(MIXTURE, levels=RHO, init="noise", **options),
        "points": diffusion.sample(MIXTURE, levels=RHO, init=80 * points, batch_size=4, **options),
        "score": diffusion.sample(SCORE, levels=SHORT, **options),
    }


@case("diffusion/back")
def back() -> dict[str, Any]:
    rising = RHO[-2::-1]
    return {"heun": diffusion.integrate(MIXTURE, jnp.ones(2), rising, method=diffusion.Heun())}


@case("diffusion/schedules")
def schedules() -> dict[str, Any]:
    made = {
        "vp": diffusion.vp(),
        "cosine": diffusion.vp_cosine(),
        "edm": diffusion.edm(),
        "flow": diffusion.rectified_flow(),
        "discrete": diffusion.discrete(jnp.linspace(0.99, 0.01, 20)),
    }
    found = {}
    for name, schedule in made.items():
        for kind in ("score", "noise", "denoised", "velocity", "flow", "energy"):
            reduce = (lambda v: jnp.sum(v**2)) if kind == "energy" else (lambda v: v)
            model = diffusion.Score(lambda x, t, reduce=reduce: reduce(0.5 * x), schedule, kind=kind)
            found[f"{name} {kind}"] = model.denoise(jnp.array([0.3, -1.0]), 0.7)
    return {"denoised": found}


@case("diffusion/log likelihood")
def log_likelihood() -> dict[str, Any]:
    rho = diffusion.levels(300.0, 0.01, 12)
    x = jnp.array([-3.0, 0.3])
    exact = diffusion.log_likelihood(MIXTURE, x, rho)
    probes = diffusion.log_likelihood(MIXTURE, x, rho, key=jax.random.key(0), num_probes=4)
    program = jax.make_jaxpr(lambda m, v: diffusion.log_likelihood(m, v, rho).value)(MIXTURE, x)
    return {"exact": taken("estimate", exact), "probes": taken("estimate", probes), "program": program}


def correct_case(name: str, composition: Any, **options: Any) -> None:
    """A case of Feynman-Kac correctors."""

    @case(f"correct/{name}")
    def run() -> dict[str, Any]:
        given = {"key": 0, "num_particles": 32, "num_chains": 2, "progress": False, "warnings": "ignore"}
        return taken("corrections", diffusion.correct(composition, (2,), SHORT, **{**given, **options}))


COLDER = diffusion.anneal(MIXTURE, 2.0)
correct_case("power", COLDER)
correct_case("power one chain", COLDER, num_chains=1)
correct_case("gain", COLDER, noise_gain=1.5, refresh=False)
correct_case("geometric", diffusion.geometric(MIXTURE, OTHER, 1.5))
correct_case("product", diffusion.product(MIXTURE, OTHER))
correct_case(
    "tilt", (diffusion.product(MIXTURE, OTHER) ** 0.5).tilt(lambda x: -jnp.sum((x - 1) ** 2), strength=0.3)
)
correct_case("score", diffusion.anneal(SCORE, 2.0))
for _scheme in ("multinomial", "stratified", "residual", "ssp", "killing", "birth_death"):
    correct_case(_scheme, COLDER, resampling=_scheme, threshold=1.0 if _scheme == "birth_death" else 0.5)


@case("correct/by hand")
def correct_by_hand() -> dict[str, Any]:
    model = diffusion.corrector(COLDER, jnp.zeros(2), SHORT)

    def pure(key: Any) -> Any:
        return taken("smc", mcx.smc(key, model, num_particles=16, resampling="systematic"))

    return {**pure(jax.random.key(0)), "program": jax.make_jaxpr(pure)(jax.random.key(0))}


def denoising_case(name: str, model: Any, **settings: Any) -> None:
    """A case of denoising MCMC."""

    @case(f"denoising/{name}")
    def run() -> dict[str, Any]:
        method = diffusion.DenoisingMCMC(**{"num_samples": 4, "num_warmup": 6, "num_denoise": 3, **settings})
        return taken("denoised", method.run(model, (2,), SHORT, key=0, num_chains=4, progress=False))


denoising_case("density", MIXTURE)
denoising_case("score", SCORE, step_size=0.2)
denoising_case("probes", SCORE, step_size=0.2, level_law=diffusion.LevelsFromScore(num_probes=1))
denoising_case("smallest", MIXTURE, select="smallest", num_skip=3, integrator=diffusion.Heun())
denoising_case(
    "classifier",
    MIXTURE,
    level_law=diffusion.LevelsFromClassifier(lambda y: -jnp.linspace(0.0, 1.0, 13) * jnp.sum(y**2)),
)


@mcx.model
def seen(prior, matrix, y):
    x = mcx.sample("x", prior)
    mcx.sample("y", dist.Normal(matrix @ x, 0.2).to_event(1), obs=y)


@mcx.model
def above(prior, y):
    x = mcx.sample("x", prior)
    mcx.sample("y", dist.Bernoulli(jnp.where(x[0] > 0.5, 0.9, 0.1)), obs=y)


@mcx.model
def unknown_noise(prior, y):
    scale = mcx.sample("scale", dist.HalfNormal(1.0))
    x = mcx.sample("x", prior)
    mcx.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


PRIOR = mcx.ScorePrior(SCORE, event_shape=2)
MIXED = mcx.ScorePrior(MIXTURE, num_steps=10)


def a_seen(prior: Any = PRIOR) -> Any:
    return seen(prior, jnp.array([[1.0, 1.0]]), jnp.array([1.5]))


def guided_case(name: str, bound: Any, **settings: Any) -> None:
    """A case of guided diffusion."""
    options = {"program": settings.pop("program", True), "num_chains": settings.pop("num_chains", 2)}
    kind = mcx.GuidedGibbs if "params" in settings else mcx.GuidedDiffusion
    method = kind(**{"num_particles": 16, "num_reverse_steps": 8, "num_pilot": 16, **settings})
    infer_case(f"guided/{name}", bound, method, **options)


guided_case("linear gaussian", a_seen, guidance="linear_gaussian")
guided_case("linear gaussian noised", a_seen, guidance="linear_gaussian", lookahead="noised")
guided_case("linear gaussian one chain", a_seen, guidance="linear_gaussian", num_chains=1)
guided_case("mixture", lambda: a_seen(MIXED))
guided_case("twisted", a_seen, guidance="twisted")
guided_case(
    "twisted fade", a_seen, guidance="twisted", fade=lambda rho: 1 / (1 + rho**2), resampling="multinomial"
)
guided_case("soft value", lambda: above(PRIOR, jnp.array(1)), num_children=3)
guided_case("composition", lambda: a_seen(mcx.ScorePrior(SCORE, event_shape=2) ** 2), guidance="twisted")
for _guidance in ("twisted", "soft_value"):
    guided_case(
        f"params {_guidance}",
        lambda: unknown_noise(PRIOR, jnp.array([1.5, -0.5])),
        guidance=_guidance,
        params=mcx.NUTS(max_tree_depth=3),
        num_particles=6,
        num_warmup=4,
        num_samples=4,
    )
infer_case("guided/nuts", lambda: a_seen(MIXED), mcx.NUTS(num_warmup=8, num_samples=4, max_tree_depth=3))
