"""What is traced, compiled and loaded, and how often."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import regression_data

import mcx
import mcx.dist as dist

METHOD = mcx.NUTS(num_warmup=30, num_samples=20)
QUIET = {"progress": False, "warnings": "ignore"}


def counted_model():
    """A model that counts how often its Python runs."""
    calls = []

    @mcx.model
    def model(x, y=None):
        calls.append(None)
        slope = mcx.sample("slope", dist.Normal(0, 2))
        noise = mcx.sample("noise", dist.HalfNormal(1))
        with mcx.plate("row", len(x)):
            mcx.sample("y", dist.Normal(slope * x, noise), obs=y)

    return model, calls


def test_nothing_is_traced_twice():
    model, calls = counted_model()
    x, y = regression_data()
    first = mcx.infer(model(x, y=y), METHOD, key=0, **QUIET)
    traced = len(calls)
    assert traced > 0
    again = mcx.infer(model(x, y=y), METHOD, key=0, **QUIET)
    np.testing.assert_array_equal(first.draws["slope"], again.draws["slope"])
    other = mcx.infer(model(*regression_data(seed=1)), METHOD, key=0, **QUIET)
    assert not np.array_equal(first.draws["slope"], other.draws["slope"])  # the data are not baked in
    mcx.infer(model(x, y=y), mcx.NUTS(num_warmup=50, num_samples=40), key=1, **QUIET)  # nor the lengths
    mcx.infer(model(jnp.asarray(x), y=y.astype(np.float64)), METHOD, key=0, **QUIET)  # one dtype after JAX
    assert len(calls) == traced


@pytest.mark.slow
def test_what_changes_the_program_is_traced_anew():
    model, calls = counted_model()
    x, y = regression_data()
    mcx.infer(model(x, y=y), METHOD, key=0, **QUIET)
    traced = len(calls)
    mcx.infer(model(x[:5], y=y[:5]), METHOD, key=0, **QUIET)
    assert len(calls) > traced


def test_the_density_is_in_the_loop_once():
    """One gradient for starting points, one for the chunk, one forward run for the draws."""
    model, calls = counted_model()
    x, y = regression_data()
    bound = model(x, y=y)
    bound.sites()
    structure = len(calls)
    assert structure == 1
    mcx.infer(bound, METHOD, key=0, **QUIET)
    # BlackJAX's leapfrog holds one gradient; everything else replays the program once
    assert len(calls) - structure <= 4


@pytest.mark.slow
def test_results_keep_for_new_data_too():
    model, calls = counted_model()
    x, y = regression_data()
    posts = [mcx.infer(model(*regression_data(seed=s)), METHOD, key=0, **QUIET) for s in (0, 1)]
    trees = [posts[0].to_datatree()]
    mcx.predict(posts[0], posts[0].bound, key=0)
    traced = len(calls)
    trees.append(posts[1].to_datatree())
    mcx.predict(posts[1], posts[1].bound, key=0)
    assert len(calls) == traced
    assert not np.array_equal(trees[0]["observed_data"]["y"], trees[1]["observed_data"]["y"])


class TestProgram:
    @pytest.mark.slow
    def test_agrees_with_infer(self):
        model, _ = counted_model()
        bound = model(*regression_data())
        post = jax.jit(mcx.program(bound, METHOD))(jax.random.key(3))
        reference = mcx.infer(bound, METHOD, key=jax.random.key(3), **QUIET)
        np.testing.assert_allclose(post.draws["slope"], reference.draws["slope"], rtol=1e-4, atol=1e-5)
        assert set(post.draws) == set(reference.draws)

    @pytest.mark.slow
    def test_vmap_over_data_sets(self, key):
        """A thousand data sets in one program, each against its closed form."""

        @mcx.model
        def normal(y):
            mu = mcx.sample("mu", dist.Normal(0.0, 2.0))
            with mcx.plate("n", len(y)):
                mcx.sample("y", dist.Normal(mu, 1.0), obs=y)

        y = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32) * 2
        fn = mcx.program(normal(y[0]), mcx.HMC(num_warmup=100, num_samples=100), num_chains=1)
        keys = jax.random.split(key, 1000)
        draws = jax.jit(jax.vmap(lambda k, y: fn(k, normal(y)).draws["mu"]))(keys, y)
        assert draws.shape == (1000, 1, 100)
        exact = y.sum(1) / (5 + 0.25)
        z = (np.asarray(draws)[:, 0].mean(1) - exact) * np.sqrt(5.25)
        # the errors of the 1000 means are independent, so their spread is its own yardstick
        mcx.testing.check_mean(z, 0.0, delta=0.1, independent=True)
        assert np.abs(z).max() < 1.5

    @pytest.mark.slow
    def test_a_hopeless_start_gives_nan(self):
        @mcx.model
        def hopeless(y):
            x = mcx.sample("x", dist.Normal(0, 1))
            mcx.factor("never", jnp.where(y > 0, x, jnp.nan))

        fn = jax.jit(mcx.program(hopeless(jnp.ones(())), METHOD, num_chains=2))
        assert np.isfinite(fn(jax.random.key(0), hopeless(jnp.ones(()))).draws["x"]).all()
        assert np.isnan(fn(jax.random.key(0), hopeless(-jnp.ones(()))).draws["x"]).all()


HEAVY = [
    "blackjax",
    "arviz",
    "arviz_base",
    "arviz_stats",
    "xarray",
    "pandas",
    "scipy.stats",
    "matplotlib",
    "hypothesis",
]


def test_import_is_light():
    code = (
        "import sys, jax, numpyro; before = set(sys.modules); import mcx, mcx.dist; "
        f"print([m for m in {HEAVY!r} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_arviz_may_be_imported_first():
    """It leaves a lazy module in place of numpyro, half of which would be missing later."""
    code = "import arviz_base, mcx; from numpyro import distributions; print(distributions.distribution.Unit)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Unit" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["inference", "estimators"])
def test_second_copies_are_refused(name):
    code = f"import sys; sys.path.insert(0, '.'); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"mcx.{name}" in done.stderr


def test_public_names_exist():
    for name in mcx.__all__:
        assert getattr(mcx, name) is not None
    assert set(mcx.__all__) <= set(dir(mcx))
    with pytest.raises(AttributeError, match="nothing"):
        mcx.nothing  # noqa: B018


def test_submodules_import_beside_the_functions_of_their_name():
    from mcx.model import BoundModel
    from mcx.run import Run
    from mcx.verbs.infer import program

    assert callable(mcx.infer) and callable(mcx.model) and callable(mcx.run)
    assert program is mcx.program and BoundModel is mcx.BoundModel and Run is mcx.Run


def test_compilation_cache_is_one_line(tmp_path):
    code = (
        "import mcx, jax; print(mcx.enable_compilation_cache(__import__('sys').argv[1])); "
        "jax.jit(lambda x: x * 3 + 1)(2.0)"
    )
    env = {k: v for k, v in __import__("os").environ.items() if not k.startswith("JAX_")}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")], check=True, env=env, capture_output=True
    )
    assert any((tmp_path / "c").iterdir())
