"""Odd but legal things: starts of some sites, loops without gradients, forks, sizes, half precision."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcx
import mcx.diffusion as diffusion
import mcx.dist as dist
from mcx.errors import CapabilityError, InitializationError, MethodError, NonFiniteError
from mcx.estimators.least_squares.designs import design
from mcx.estimators.least_squares.fit import fit
from mcx.estimators.least_squares.polynomials import hermite, legendre
from mcx.methods.initial_points import DEFAULT_RADIUS, as_initial_points
from mcx.model.compile import compile_model


@mcx.model
def two(y=None):
    low = mcx.sample("low", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    high = mcx.sample("high", dist.LogNormal(0.0, 1.0))
    mcx.sample("y", dist.Normal(low.sum(), high), obs=y)


def test_starts_of_some_sites():
    """Named sites start at their values in all chains, the others as by default."""
    target = compile_model(two(np.float32(1.0)))
    given = as_initial_points(target, {"high": 2.0}, 3, jax.random.key(0))
    np.testing.assert_allclose(given.position, np.array([[0, 0, np.log(2.0)]] * 3), rtol=1e-6)
    np.testing.assert_array_equal(given.radius, np.array([[DEFAULT_RADIUS, DEFAULT_RADIUS, 0.0]] * 3))
    assert (given.tries > 1).all()
    by_chain = as_initial_points(target, {"high": [1.0, 2.0, 4.0]}, 3, jax.random.key(0))
    np.testing.assert_allclose(by_chain.position[:, 2], np.log([1.0, 2.0, 4.0]), atol=1e-6)
    nothing = as_initial_points(target, {}, 3, jax.random.key(0))
    assert (nothing.position == 0).all() and (nothing.radius == DEFAULT_RADIUS).all()
    whole = as_initial_points(target, {"low": np.zeros(2), "high": 1.0}, 3, jax.random.key(0))
    assert (whole.radius == 0).all() and (whole.tries == 1).all()


def test_starts_of_some_sites_in_a_run():
    found = mcx.infer(
        two(np.float32(1.0)),
        mcx.RandomWalk(num_warmup=1, num_samples=1),
        init={"high": 2.0},
        key=0,
        num_chains=50,
        progress=False,
        warnings="ignore",
    )
    # most chains have not moved yet
    assert np.isclose(found["high"], 2.0).mean() > 0.2 and np.std(found["low"]) > 0.5
    with pytest.raises(InitializationError, match="no latent site") as caught:
        mcx.infer(two(np.float32(1.0)), mcx.NUTS(), init={"higher": 2.0}, key=0, progress=False)
    assert caught.value.site == "higher"


@mcx.model
def halving(y):
    """A density with a loop whose length depends on a latent."""
    x = mcx.sample("x", dist.Normal(0.0, 1.0))
    n, last = jax.lax.while_loop(lambda s: jnp.abs(s[1]) > 0.5, lambda s: (s[0] + 1.0, s[1] / 2), (0.0, x))
    mcx.sample("y", dist.Normal(n + last, 1.0), obs=y)


def test_loops_without_a_gradient(key):
    """Refused by methods that need one, with a remedy that works; quadrature knows the answer."""
    bound = halving(np.float32(1.5))
    for method in (mcx.NUTS(), mcx.MALA()):
        with pytest.raises(CapabilityError, match="while_loop") as caught:
            mcx.infer(bound, method, key=0, progress=False)
        assert "RandomWalk" in caught.value.remedy
    report = bound.check()
    assert report.ok and "RandomWalk" in str(report)
    found = mcx.infer(
        bound,
        mcx.RandomWalk(num_warmup=300, num_samples=4000),
        key=key,
        num_chains=16,
        progress=False,
        warnings="ignore",
    )
    x = np.linspace(-6, 6, 100_001)
    n = np.maximum(0, np.ceil(np.log2(np.maximum(np.abs(x), 1e-9) / 0.5)))
    w = np.exp(-0.5 * x**2 - 0.5 * (1.5 - n - x / 2**n) ** 2)
    mcx.testing.check_mean(found["x"].mean(1), (x * w).sum() / w.sum(), delta=0.2, independent=True)


FORKED = """
import multiprocessing, sys
import numpy as np, mcx
from mcx import dist
from mcx.errors import MethodError

@mcx.model
def m(y):
    mcx.sample("y", dist.Normal(mcx.sample("x", dist.Normal(0, 1)), 1), obs=y)

def work(i):
    try:
        m(np.float32(1)).log_density({"x": 0.0})
        return "computed"
    except MethodError as error:
        return "refused: " + str(error)

if sys.argv[1] == "after":
    m(np.float32(1)).log_density({"x": 0.0})
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(work, [0])[0])
"""


@pytest.mark.parametrize(("when", "found"), [("after", "refused"), ("before", "computed")])
def test_forks(when, found):
    """A fork of a process in which JAX runs is refused instead of waiting forever; one before is fine."""
    done = subprocess.run([sys.executable, "-c", FORKED, when], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(found), done
    assert when == "before" or "spawn" in done.stdout


@pytest.mark.parametrize("make", [lambda: legendre(50, 50), lambda: hermite(9, 9, index_set="tensor")])
def test_bases_that_nobody_can_fit(make):
    with pytest.raises(MethodError, match="too many functions"):
        make()


def test_draws_that_no_machine_holds():
    with pytest.raises(MethodError, match="more memory than there is"):
        mcx.infer(
            two(np.float32(1.0)), mcx.RandomWalk(num_warmup=1, num_samples=2 * 10**9), key=0, progress=False
        )
    with pytest.raises(MethodError, match="below 2"):
        mcx.RandomWalk(num_samples=10**15)


def test_half_precision_data():
    """Data of float16 are numbers like others: they do not lower the precision of what is computed."""
    y = np.array([1.0, 2.0, 0.5], np.float16)
    values = {"low": np.zeros(2, np.float32), "high": np.float32(1.0)}
    assert two(y).log_density(values).dtype == jnp.float32
    np.testing.assert_allclose(two(y).log_density(values), two(y.astype(np.float32)).log_density(values))


NANS = diffusion.GaussianMixture(jnp.full((2, 2), jnp.nan), jnp.ones((2, 2)), jnp.ones(2) / 2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda levels: diffusion.sample(NANS, 4, (2,), levels, key=0),
        lambda levels: diffusion.integrate(NANS, jnp.ones(2), levels),
        lambda levels: diffusion.log_likelihood(NANS, jnp.ones(2), levels),
        lambda levels: diffusion.correct(diffusion.anneal(NANS, 1.0), (2,), levels, num_particles=8, key=0),
    ],
)
def test_mixtures_of_nan(ask):
    with pytest.raises(NonFiniteError):
        ask(diffusion.levels(10.0, 0.1, 4))


def test_fits_of_nan():
    """A function that is not finite at a point of a design."""
    points = design(legendre(2), 10, key=0)
    values = np.ones(10, np.float32)
    values[3] = np.nan
    with pytest.raises(NonFiniteError, match="1 of 10 points"):
        fit(points, values)
