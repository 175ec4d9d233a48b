"""Unusual runs give the right result, or an error that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_problems import normal
from problems import level, slow_unless

import mcx
from mcx import dist
from mcx.errors import MethodError, ModelError
from mcx.testing import check_mean

Y = np.arange(3, dtype=np.float32)
NOTHING = np.zeros(0, np.float32)
QUIET = {"progress": False, "warnings": "ignore"}
VARIANCE = 1 / (1 / 25 + 3)  # of the posterior of `normal`; its mean is VARIANCE * sum(y)


@pytest.mark.parametrize("num_chains", slow_unless([1], [1, 4]))
def test_one_draw(num_chains):
    post = mcx.infer(normal(Y), mcx.NUTS(num_warmup=20, num_samples=1), key=0, num_chains=num_chains, **QUIET)
    assert post["mu"].shape == (num_chains, 1) and np.isfinite(post["mu"]).all()
    assert "mu" in repr(post) and "mu" in str(post.summary())
    assert post.to_datatree()["posterior"]["mu"].shape == (num_chains, 1)
    assert mcx.predict(post, normal(Y), key=1) is not None


@pytest.mark.slow
def test_ten_thousand_chains(key):
    """All at once, and in batches; each gives an independent draw."""
    method = mcx.RandomWalk(num_warmup=150, num_samples=1)
    for batch_size in (None, 1000):
        post = mcx.infer(normal(Y), method, key=key, num_chains=10_000, batch_size=batch_size, **QUIET)
        assert post["mu"].shape == (10_000, 1)
        check_mean(post["mu"][:, 0], VARIANCE * 3, delta=0.1 * VARIANCE**0.5, independent=True)


def test_a_model_without_latent_sites():
    @mcx.model
    def known(y):
        mcx.sample("y", dist.Normal(0.0, 1.0), obs=y)

    post = mcx.infer(known(Y), mcx.NUTS(), key=0, **QUIET)
    assert not post.draws and post.log_evidence == known(Y).log_density({})


def test_a_model_without_data_gives_its_prior(key):
    @mcx.model
    def prior():
        mcx.sample("x", dist.Gamma(2.0, 1.0))

    post = mcx.infer(prior(), mcx.MALA(num_warmup=300, num_samples=8000), key=key, num_chains=8, **QUIET)
    check_mean(post["x"], 2.0, delta=0.2)


def test_no_observations_leave_the_prior(key):
    method = mcx.MALA(num_warmup=300, num_samples=8000)
    post = mcx.infer(normal(NOTHING), method, key=key, num_chains=8, **QUIET)
    check_mean(post["mu"] ** 2, 25.0, delta=5.0)


def test_plates_without_members_are_refused():
    @mcx.model
    def grouped(y):
        with mcx.plate("group", len(y)):
            mcx.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="plate 'group' has no members"):
        mcx.infer(grouped(NOTHING), mcx.NUTS(), key=0, **QUIET)


def test_series_of_no_length_are_refused():
    with pytest.raises(ModelError, match="'x'"):
        mcx.filter(level(NOTHING), params={"s": 1.0}, key=0, progress=False)


def test_series_of_one_time(key):
    """y = 0 and x ~ N(0, 1): the evidence is a Gaussian density."""
    common = {"params": {"s": 1.0}, "key": key, "progress": False}
    found = mcx.filter(level(Y[:1]), num_chains=64, **common)
    evidence = np.exp(found.stats["log_evidence"][:, -1])
    check_mean(evidence, 1 / np.sqrt(4 * np.pi), delta=0.005, independent=True)


@pytest.mark.slow
def test_a_path_of_one_time_has_no_transitions():
    common = {"params": {"s": 1.0}, "key": 0, "progress": False}
    assert mcx.smooth(level(Y[:1]), lambda xp, x, t: xp * x, **common).value == 0


def traced():
    """Calls within functions that JAX traces: data, keys, parameters, and nothing at all are tracers."""
    short = mcx.NUTS(num_warmup=5, num_samples=5)
    params = {"s": 1.0}

    def product(xp, x, t):
        return xp * x

    yield "infer", lambda: jax.jit(lambda y: mcx.infer(normal(y), short, key=0)["mu"])(Y)
    yield "infer", lambda: jax.vmap(lambda y: mcx.infer(normal(y), short, key=0)["mu"])(np.stack([Y, Y]))
    yield "infer", lambda: jax.jit(lambda k: mcx.infer(normal(Y), short, key=k)["mu"])(jax.random.key(0))
    yield "infer", lambda: jax.jit(lambda: mcx.infer(normal(Y), short, key=0)["mu"])()
    yield "filter", lambda: jax.grad(lambda s: mcx.filter(level(Y), params={"s": s}, key=0).log_evidence)(1.0)
    yield "smooth", lambda: jax.jit(lambda: mcx.smooth(level(Y), product, params=params, key=0).value)()
    yield "maximize", lambda: jax.jit(lambda y: mcx.maximize(level(y), key=0).params)(Y)
    yield "a run", lambda: jax.jit(lambda: mcx.run(short.kernel, key=0, num_steps=1).draws)()


@pytest.mark.parametrize(("name", "call"), list(traced()))
def test_runs_within_traced_functions_are_refused(name, call):
    with pytest.raises(MethodError, match=rf"{name}.* within a function that JAX traces"):
        call()


def test_programs_run_within_traced_functions():
    """What `infer` refuses, `program` is for."""
    program = mcx.program(normal(Y), mcx.RandomWalk(num_warmup=50, num_samples=20), num_chains=2)
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(lambda key: program(key).draws["mu"]))(keys)
    assert many.shape == (3, 2, 20) and jnp.isfinite(many).all()


def test_particles_in_batches(key):
    """The law is the same: the estimated evidence agrees with the exact one, and batches differ."""
    bound, params = level(Y), {"s": 1.0}
    method = mcx.ParticleFilter(kind="bootstrap", batch_size=30)
    found = mcx.filter(
        bound,
        params=params,
        num_particles=100,
        method=method,
        key=key,
        num_chains=512,
        history="full",
        progress=False,
    )
    # x is a Gaussian random walk from N(0, 1), so y is Gaussian
    times = np.arange(3.0)
    covariance = 1.0 + np.minimum(times[:, None], times) + np.eye(3)
    truth = -0.5 * (Y @ np.linalg.solve(covariance, Y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    check_mean(np.exp(found.stats["log_evidence"][:, -1] - truth), 1.0, delta=0.1, independent=True)
    first = jax.tree.leaves(found.record.particles)[0][0, 0]
    assert len(np.unique(first)) == 100


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batches_of_no_particles_are_refused(batch_size):
    with pytest.raises(MethodError, match="batch_size"):
        mcx.ParticleFilter(batch_size=batch_size)
