"""Log densities that rounding hides are told of by every method; others are not."""

import jax.numpy as jnp
import numpy as np
import pytest

import mcx
import mcx.dist as dist
from mcx.errors import InferenceWarning
from mcx.results.precision import rounding_noise


@mcx.model
def constant(c):
    x = mcx.sample("x", dist.Normal(0.0, 1.0))
    mcx.factor("c", c - 0.1 * x**2, kind="likelihood")


@mcx.model
def counts(n, y):
    """The density's terms are of size n, and cancel; lp itself is small."""
    mcx.sample("y", dist.Binomial(n, logits=mcx.sample("a", dist.Normal(0.0, 10.0))), obs=y)


@mcx.model
def series(y):
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(0.5 * x, 1.0),
        emission=lambda x, u: dist.Normal(x, 1.0),
        obs=y,
    )


METHODS = {
    "RandomWalk": mcx.RandomWalk(num_warmup=100, num_samples=300),
    "NUTS": mcx.NUTS(num_warmup=100, num_samples=200),
    "TemperedSMC": mcx.TemperedSMC(num_particles=64),
}


def warned(bound, name):
    with pytest.warns(InferenceWarning) as found:
        mcx.infer(bound, METHODS[name], key=0, progress=False)
    return "\n".join(str(w.message) for w in found)


@pytest.mark.parametrize(
    "name", ["RandomWalk", *(pytest.param(n, marks=pytest.mark.slow) for n in list(METHODS)[1:])]
)
def test_constants_that_hide_differences(name):
    """12 nats at 1e8, which is the spacing of float32 there."""
    assert "MCX-W016  rounding moves log densities by 12 nats" in warned(constant(1e8), name)


def test_terms_that_cancel():
    text = warned(counts(jnp.float32(5e6), jnp.float32(1e6)), "RandomWalk")
    assert "MCX-W016" in text and "float64" in text


@pytest.mark.parametrize("bound", [constant(1e3), counts(jnp.float32(50.0), jnp.float32(20.0))])
def test_what_rounding_does_not_hide(bound):
    """Values nearby lie on a straight line, up to a few units in the last place of the largest term."""
    posterior = mcx.infer(bound, METHODS["RandomWalk"], key=0, progress=False, warnings="ignore")
    assert 0 <= rounding_noise(posterior) < 1e-3
    assert "MCX-W016" not in {a.code for a in METHODS["RandomWalk"].diagnose(posterior)}


def test_state_space_verbs(recwarn):
    """Observations 3000 standard deviations away have densities of -4.5e6."""
    near, far = (series(np.full(5, y, np.float32)) for y in (1.0, 3000.0))
    options = {"key": 0, "progress": False}
    for bound, told in ((near, False), (far, True)):
        mcx.filter(bound, num_particles=50, **options)
        found = mcx.smooth(bound, lambda a, b, t: b, method=mcx.FFBS(num_particles=20), **options)
        texts = ["\n".join(str(w.message) for w in recwarn), "\n".join(found.warnings)]
        assert [("MCX-W016" in text) for text in texts] == [told, told]
