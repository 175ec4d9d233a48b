"""Scans that particles cannot be weighted in are refused, and the rewrite is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from scan_problems import QUIET, Y, bound, linear

import mcx
from mcx.errors import CapabilityError, DataError, ModelError
from mcx.model.series.state_space import state_space

# --- refusals --------------------------------------------------------------------------------------


def emit(x_prev, y_t):
    x = numpyro.sample("x", dist.Normal(x_prev, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    return x, x


def latent_only(x_prev, _):
    x = numpyro.sample("x", dist.Normal(x_prev, 1.0))
    return x, x


def after(y):
    _, path = scan(latent_only, 0.0, None, length=len(y))
    numpyro.sample("late", dist.Normal(path, 1.0), obs=y)


def after_too(y):
    last, _ = scan(emit, 0.0, y)
    numpyro.sample("late", dist.Normal(last, 1.0), obs=0.0)


def later_latent(y):
    last, _ = scan(emit, 0.0, y)
    numpyro.sample("next", dist.Normal(last, 1.0))


def silent(y):
    scan(latent_only, 0.0, None, length=len(y))


def observed_only(y):
    def body(past, y_t):
        numpyro.sample("y", dist.Normal(past, 1.0), obs=y_t)
        return y_t, None

    scan(body, 0.0, y)


def backwards(y):
    scan(emit, 0.0, y, reverse=True)


def long_memory(y):
    scan(emit, 0.0, y, history=2)


def choosing(y):
    def body(x_prev, y_t):
        def draw(a):
            return numpyro.sample("w", dist.Normal(a, 1.0))

        x, _ = emit(x_prev, y_t)
        w = cond(y_t > 0, draw, draw, x)
        return w, None

    scan(body, 0.0, y)


def plated(y):
    with numpyro.plate("n", 2):
        scan(emit, jnp.zeros(2), y)


def subsampled(y):
    def body(x_prev, y_t):
        x, _ = emit(x_prev, y_t)
        with numpyro.plate("many", 6, subsample_size=2):
            numpyro.sample("w", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(body, 0.0, y)


def subsampled_outside(y):
    scan(emit, 0.0, y)
    with numpyro.plate("many", 6, subsample_size=2):
        numpyro.sample("w", dist.Normal(0.0, 1.0))


def masked_around(y):
    with handlers.mask(mask=False):
        scan(emit, 0.0, y)


def masked_state(y):
    def body(x_prev, y_t):
        with handlers.mask(mask=y_t > 0):
            return emit(x_prev, y_t)

    scan(body, 0.0, y)


def scaled_data(y):
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    scan(emit, 0.0, y / s)


def residual(y):
    def body(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(x_prev, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y_t - x)
        return x, x

    scan(body, 0.0, y)


def flat_start(y):
    scan(emit, numpyro.sample("x0", dist.ImproperUniform(dist.constraints.real, (), ())), y)


def random_body(y):
    def body(x_prev, y_t):
        noise = jax.random.normal(numpyro.prng_key())
        return emit(x_prev + noise, y_t)

    scan(body, 0.0, y)


def half_known(y):
    with handlers.substitute(data={"x": y}):
        scan(emit, 0.0, y)


def too_few(y):
    with handlers.condition(data={"w": y[:3]}):
        scan(lambda x, _: (numpyro.sample("w", dist.Normal(latent_only(x, None)[0], 1.0)), None), 0.0, y)


def in_turn(y):
    _, path = scan(emit, 0.0, y)

    def body(v_prev, now):
        y_t, x = now
        v = numpyro.sample("v", dist.Normal(v_prev, 1.0))
        numpyro.sample("z", dist.Normal(v + x, 1.0), obs=y_t)
        return v, None

    scan(body, 0.0, (y, path))


REFUSED = [
    (after, "late|no observed site", "obs=y_t"),
    (
        after_too,
        "'late'.*depends on the results of the scan over 'x'",
        "numpyro.sample('late', ..., obs=y_t)",
    ),
    (later_latent, "'next'.*depends on the results", "forecast"),
    (silent, "'x'.*no observed site", "obs=y_t"),
    (observed_only, "no latent site", "mcx.infer"),
    (backwards, "'x'.*backwards", "xs[::-1]"),
    (long_memory, "'x'.*more than one step", "(x, x_before)"),
    (choosing, "a cond within the body", "jax.lax"),
    (plated, "within a plate", "with numpyro.plate"),
    (subsampled, "'many'.*2 of 6", "subsample_size"),
    (subsampled_outside, "'many'.*2 of 6", "subsample_size"),
    (masked_around, "(?s)'x'.*handlers around the scan.*mask", "def body"),
    (masked_state, "'x'.*no distribution to draw from", "observed sites alone"),
    (scaled_data, "'s'.*computed from this site", "body of the scan"),
    (residual, "'y'.*computed from the state", "distribution"),
    (flat_start, "'x0'.*no law to draw from", "proper prior"),
    (random_body, "asks for a random key", "numpyro.sample"),
    (half_known, "(?s)'x'.*by substitution", "obs=y_t"),
    (too_few, "'w'.*3 observations for 10 steps", "forecast"),
]


@pytest.mark.parametrize(("program", "message", "remedy"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_refusals_of_scan(program, message, remedy, key):
    with pytest.raises((CapabilityError, ModelError), match=message) as caught:
        mcx.filter(bound(program, Y), params={}, num_particles=10, key=key, **QUIET)
    assert remedy in caught.value.remedy


def test_scans_that_need_each_other():
    with pytest.raises(CapabilityError, match="another scan depends on the results of the scan over 'x'"):
        state_space(bound(in_turn, Y), "x")
    with pytest.raises(CapabilityError, match="'v': the scan depends on the results of another"):
        state_space(bound(in_turn, Y), "v")


def test_nested_scans_are_refused():
    def program(y):
        def body(x_prev, y_t):
            x, _ = emit(x_prev, y_t)
            scan(lambda c, _: (c + 1, None), 0, None, length=2)
            return x, None

        scan(body, 0.0, y)

    with pytest.raises(CapabilityError, match="a scan within the body of a scan"):
        state_space(bound(program, Y))


def test_missing_observations_are_refused():
    y = Y.copy()
    y[2:4] = np.nan
    with pytest.raises(DataError, match="(?s)'y': 2 of the observed values are NaN.*mask"):
        state_space(bound(linear, y))
