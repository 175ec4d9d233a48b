"""Particle Gibbs: starting points, the pure function, warnings, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from gibbs_problems import T, Y, chain_model, forecasting_scan, innovations_scan, two_chains, walk

import mcx
import mcx.dist as dist
from mcx.errors import (
    CapabilityError,
    InferenceWarning,
    InitializationError,
    MethodError,
    MissingExtraError,
    SupportError,
)


@pytest.mark.slow
def test_pure_function():
    method = mcx.ParticleGibbs(num_warmup=20, num_samples=30, params=mcx.RandomWalk())
    fit = mcx.program(walk(Y[0]), method, num_chains=2)
    posts = jax.jit(jax.vmap(lambda k, y: fit(k, walk(y))))(jax.random.split(jax.random.key(0), 2), Y)
    assert posts["x"].shape == (2, 2, 30, T) and np.isfinite(posts["x"]).all()
    assert not np.allclose(posts["x"][0].mean((0, 1)), posts["x"][1].mean((0, 1)), atol=0.2)


@pytest.mark.slow
def test_starting_points(key):
    short = mcx.ParticleGibbs(num_warmup=0, num_samples=2, params=mcx.RandomWalk())
    x = np.linspace(-1, 1, T)
    for init in ("prior", {"phi": 0.3, "s": [0.4, 0.5]}, {"phi": 0.3, "s": 0.4, "x": x}):
        post = mcx.infer(
            walk(Y[0]), short, key=key, num_chains=2, init=init, progress=False, warnings="ignore"
        )
        assert np.isfinite(post["x"]).all()
    with pytest.raises(InitializationError, match="site 'x'.*wrong shape"):
        mcx.infer(walk(Y[0]), short, key=key, init={"phi": 0.3, "s": 0.4, "x": x[1:]})
    narrow = chain_model(emission=lambda x, u: dist.Uniform(0.0, 1.0))
    with pytest.raises(SupportError, match="x_obs"):
        mcx.infer(narrow, short, key=key, progress=False)
    weightless = chain_model(extra=lambda: mcx.factor("never", -jnp.inf))
    with pytest.raises(InitializationError, match="never"):
        mcx.infer(weightless, short, key=key, progress=False)


@pytest.mark.slow
def test_one_line_of_descent_is_warned_about(key):
    states = mcx.ConditionalSMC(num_particles=2, backward="none")
    method = mcx.ParticleGibbs(states=states, num_warmup=50, num_samples=200, params=mcx.RandomWalk())
    with pytest.warns(InferenceWarning, match='MCX-W008.*backward="exact"'):
        mcx.infer(walk(np.tile(Y[0], 5)), method, key=key, progress=False)


def dynamic_support():
    mcx.sample("part", dist.Uniform(0.0, mcx.sample("whole", dist.Uniform(0.0, 1.0))))


def no_chain():
    mcx.sample("a", dist.Normal(0.0, 1.0))


REAL_LINE = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
PLANE = {
    "initial": lambda u: REAL_LINE,
    "transition": lambda x, u: dist.MultivariateNormal(x, jnp.eye(2)),
    "emission": lambda x, u: dist.Normal(x[0], 1.0),
}


@pytest.mark.parametrize(
    ("bound", "changes", "message"),
    [
        (mcx.model(no_chain)(), {}, "no_chain has no Markov chain(.|\n)*mcx.NUTS"),
        (mcx.model(innovations_scan)(Y[0]), {}, "site 'e': .*backward(.|\n)*backward='none'"),
        (chain_model(**PLANE), {}, "site 'x': the initial state has no law to draw from"),
        (chain_model(obs=None, length=5), {}, "site 'x_obs': the emission is not observed"),
        (
            chain_model(extra=lambda: mcx.sample("k", dist.Bernoulli(0.5))),
            {},
            "site 'k': a discrete parameter",
        ),
        (two_chains(Y), {"params": lambda key, values: {}}, "site 'phi': nothing draws"),
        (
            chain_model(extra=dynamic_support),
            {"params": (lambda key, values: {"whole": values["whole"]}, mcx.NUTS())},
            "site 'part': the support",
        ),
    ],
)
def test_models_that_particle_gibbs_cannot_take(bound, changes, message):
    with pytest.raises(CapabilityError, match=message):
        mcx.infer(bound, mcx.ParticleGibbs(**changes), key=0, progress=False)


def test_settings_of_particle_gibbs_that_make_no_sense():
    for bad in (
        {"num_samples": 0}, {"num_warmup": -1}, {"states": 3}, {"states": {}}, {"params": 3},
        {"params": (mcx.NUTS(), mcx.NUTS())},
    ):  # fmt: skip
        with pytest.raises(MethodError):
            mcx.ParticleGibbs(**bad)
    for bad, message in (
        ({"states": {"c": mcx.ConditionalSMC()}}, "'c', which is no Markov chain"),
        ({"params": lambda key, values: {"a": values["a"]}}, "'a', which is no parameter"),
        ({"params": lambda key, values: {"phi": values["a"]}}, "'phi' the wrong shape"),
        ({"params": lambda key, values: values["phi"]}, "returned no mapping"),
    ):
        with pytest.raises(MethodError, match=message):
            mcx.infer(two_chains(Y), mcx.ParticleGibbs(**bad), key=0, progress=False)


def test_numpyro_block_refusals(monkeypatch):
    if hasattr(numpyro.infer, "Gibbs"):
        from numpyro.infer import MCMC, NUTS, Gibbs

        kernel = Gibbs([(mcx.PathGibbs(forecasting_scan), ["phi", "x"]), (NUTS(forecasting_scan), None)])
        with pytest.raises(CapabilityError, match="site 'phi': .*given everything else"):
            MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(jax.random.key(0), Y[0])
        monkeypatch.delattr(numpyro.infer, "Gibbs")
    with pytest.raises(MissingExtraError, match="numpyro >= 0.22"):
        mcx.PathGibbs(forecasting_scan)
