"""The particle system: faults, and what its interface promises."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless
from test_smc import lg, lg_params, log

from mcx.errors import MethodError, ModelError, NonFiniteError, WeightCollapse
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.genealogy import fixed_lag_means
from mcx.inference.smc.history import weighted_quantiles
from mcx.inference.smc.smc import smc
from mcx.target import FeynmanKac

# --- faults ------------------------------------------------------------------------------------------


def faulty(step, when, then):
    """A walk with potentials that go wrong at one step."""
    return FeynmanKac(
        lambda key, ctx, u: jax.random.normal(key),
        lambda key, ctx, x, u: x + jax.random.normal(key),
        lambda ctx, xp, x, u: jnp.where((u == step) & when(x), then, -0.1 * jnp.abs(x)),
        6,
        inputs=jnp.arange(6),
    )


@pytest.mark.parametrize("bad", [jnp.nan, pytest.param(jnp.inf, marks=pytest.mark.slow)])
def test_potentials_that_are_no_numbers_count_as_zero(key, bad):
    got, same = (
        smc(key, faulty(2, lambda x: x > 1.0, v), num_particles=64, history="full") for v in (bad, -jnp.inf)
    )
    count = int(jnp.sum(same.history.log_w[2] == -jnp.inf))
    assert 0 < count < 32
    np.testing.assert_array_equal(got.history.info.num_nonfinite, [0, 0, count, 0, 0, 0])
    assert not same.history.info.num_nonfinite.any()
    np.testing.assert_array_equal(got.history.log_w, same.history.log_w)
    np.testing.assert_array_equal(got.log_evidence, same.log_evidence)
    assert np.isfinite(got.log_evidence)


@pytest.mark.slow
def test_too_many_nonfinite_potentials_are_an_error(key):
    fk = faulty(2, lambda x: x > 0.0, jnp.nan)
    with pytest.raises(NonFiniteError, match=r"step 2.*NaN or \+inf for \d+ of 64"):
        smc(key, fk, num_particles=64, max_nonfinite=0.1)
    assert np.isfinite(smc(key, fk, num_particles=64, max_nonfinite=1.0).log_evidence)
    with pytest.raises(NonFiniteError, match="step 0"):
        smc(key, faulty(0, lambda x: x > -jnp.inf, jnp.nan), num_particles=64)


def test_look_aheads_that_are_no_numbers_are_counted(key):
    fk = dataclasses.replace(
        faulty(9, lambda x: x > 0, 0.0), log_lookahead=lambda ctx, x, u: jnp.where(u == 3, jnp.nan, 0.0)
    )
    with pytest.raises(NonFiniteError, match="step 3"):
        smc(key, fk, num_particles=16)


@pytest.mark.parametrize("threshold", slow_unless([0.5], [0.0, 0.5, 1.0]))
def test_a_collapse_is_an_error(key, threshold):
    fk = faulty(3, lambda x: x > -jnp.inf, -jnp.inf)
    with pytest.raises(WeightCollapse, match=r"step 3: all 16 .*largest log weight -inf") as error:
        smc(key, fk, num_particles=16, threshold=threshold)
    assert error.value.step == 3
    assert np.isfinite(error.value.result.history.log_evidence[2])


def test_a_collapse_by_weights_that_were_zero_before(key):
    """Without resampling: those that could explain step 1 cannot explain step 2, which nobody else can."""
    fk = FeynmanKac(
        lambda key, ctx, u: jax.random.normal(key),
        lambda key, ctx, x, u: x,
        lambda ctx, xp, x, u: jnp.where(x * u >= 0, 0.25, -jnp.inf),
        3,
        inputs=jnp.asarray([0.0, 1.0, -1.0]),
    )
    with pytest.raises(WeightCollapse, match=r"step 2.*largest log weight -inf") as error:
        smc(key, fk, num_particles=16, threshold=0.0)
    assert error.value.step == 2


@pytest.mark.parametrize("kind", slow_unless(["plain"], ["plain", "auxiliary"]))
@pytest.mark.parametrize("threshold", slow_unless([0.5], [0.0, 0.5, 1.0]))
@pytest.mark.slow
def test_a_collapse_under_jit_shows_at_every_later_step(key, threshold, kind):
    """Nothing can be raised: so the evidence stays zero and no moment is a number, ever after."""
    fk = faulty(3, lambda x: x > -jnp.inf, -jnp.inf)
    if kind == "auxiliary":
        fk = dataclasses.replace(fk, log_lookahead=lambda ctx, x, u: -0.1 * jnp.abs(x))
    options = {"num_particles": 16, "threshold": threshold, "history": "full", "quantiles": (0.5,)}
    run = jax.vmap(lambda k: smc(k, fk, **options))
    result = jax.tree_util.tree_map(lambda x: x[0], jax.jit(run)(jax.random.split(key, 2)))
    kept = result.history
    assert np.isfinite(kept.log_evidence[:3]).all() and np.isfinite(kept.mean[:3]).all()
    assert (kept.log_evidence[3:] == -np.inf).all() and result.log_evidence == -np.inf
    assert (kept.info.log_increment[3:] == -np.inf).all() and (kept.info.ess[3:] == 0).all()
    assert (kept.log_w[3:] == -np.inf).all()
    for moment in (kept.mean, kept.sd, kept.quantiles):
        assert np.isnan(moment[3:]).all()
    assert np.isnan(fixed_lag_means(kept.ancestors, kept.log_w, kept.particles, 1)[2:]).all()
    assert np.isnan(result.log_evidence_se)


def test_particles_of_weight_zero_may_be_anywhere(key):
    """An infinite or undefined state of weight zero does not reach the moments."""
    fk = FeynmanKac(
        lambda key, ctx, u: jax.random.normal(key),
        lambda key, ctx, x, u: jnp.where(x > 0.5, jnp.where(x > 1.0, jnp.nan, jnp.inf), x),
        lambda ctx, xp, x, u: jnp.where(xp is None, 0.0, jnp.where(jnp.isfinite(x), 0.0, -jnp.inf)),
        2,
    )
    kept = smc(key, fk, num_particles=64, threshold=0.0, history="full", quantiles=(0.0, 0.5, 1.0)).history
    alive = np.asarray(kept.particles[1])[np.isfinite(kept.particles[1])]
    assert 0 < alive.size < 64
    np.testing.assert_allclose(kept.mean[1], alive.mean(), rtol=1e-5)
    np.testing.assert_allclose(kept.sd[1], alive.std(), rtol=1e-5)
    expected = [alive.min(), np.quantile(alive, 0.5, method="inverted_cdf"), alive.max()]
    np.testing.assert_array_equal(kept.quantiles[1], expected)
    smoothed = fixed_lag_means(kept.ancestors, kept.log_w, kept.particles, 0)
    np.testing.assert_allclose(smoothed, kept.mean, rtol=1e-6)


@pytest.mark.slow
def test_weighted_quantiles_against_numpy(key):
    rng = np.random.default_rng(jax.random.bits(key).item())
    x, counts = rng.normal(size=(40, 2, 3)).astype(np.float32), rng.integers(0, 4, 40)
    # no multiple of one over the number of repeats: there, rounding decides between two neighbours
    p = np.asarray([0.0, 0.013, 0.31, 0.4991, 0.977, 1.0], np.float32)
    found = weighted_quantiles(jnp.asarray(x), log(counts), jnp.asarray(p))
    expected = np.quantile(np.repeat(x, counts, 0), p, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found, expected)


# --- transformations ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_vmap_equals_a_loop(key):
    """Over keys, parameters and data. Random bits are the same; XLA sums in another order."""

    def run(key, phi, y):
        fk = dataclasses.replace(lg(12), inputs=y)
        return smc(key, fk, lg_params() | {"phi": phi}, num_particles=40, history="moments")

    keys, phi = jax.random.split(key, 3), jnp.asarray([0.2, 0.5, 0.9])
    y = lg(12).inputs + jnp.asarray([0.0, 0.3, -0.4])[:, None]
    single = jax.jit(run)
    alone = [single(keys[i], phi[i], y[i]) for i in range(3)]
    for batched, j in (
        (jax.vmap(run)(keys, phi, y), (0, 1, 2)),
        (jax.vmap(run, (None, 0, None))(keys[0], phi, y[0]), None),
    ):
        for i in range(3):
            expected = alone[i] if j else single(keys[0], phi[i], y[0])
            found = jax.tree_util.tree_map(lambda x, i=i: x[i], batched)
            np.testing.assert_array_equal(found.state.ancestors, expected.state.ancestors)
            np.testing.assert_array_equal(found.history.info.resampled, expected.history.info.resampled)
            np.testing.assert_allclose(found.log_evidence, expected.log_evidence, rtol=1e-5)
            np.testing.assert_allclose(found.history.mean, expected.history.mean, rtol=1e-4, atol=1e-5)


def test_new_data_and_keys_do_not_trace_anew(key):
    traced = []

    def initial(key, ctx, u):
        traced.append(1)
        return jax.random.normal(key)

    def model(y):
        fk = FeynmanKac(initial, transition, potential, 5, inputs=y)
        return smc(key, fk, jnp.mean(y), num_particles=8).log_evidence

    transition = lambda key, ctx, x, u: ctx * x + jax.random.normal(key)  # noqa: E731
    potential = lambda ctx, xp, x, u: -((u - x) ** 2)  # noqa: E731
    first, second = model(jnp.zeros(5)), model(jnp.ones(5))
    assert len(traced) == 1 and first != second


@pytest.mark.slow
def test_a_run_is_a_prefix_of_a_longer_one(key):
    """Keys of a step depend on its number alone, so adding data changes nothing before."""
    short, long = (
        smc(key, lg(t), lg_params(), num_particles=40, history="moments").history for t in (12, 13)
    )
    np.testing.assert_allclose(short.mean, long.mean[:12], rtol=1e-5)
    np.testing.assert_allclose(short.log_evidence, long.log_evidence[:12], rtol=1e-5)


def test_one_step_and_one_particle(key):
    result = smc(key, lg(1), lg_params(), num_particles=40, history="full", quantiles=(0.5,))
    assert result.history.mean.shape == (1,) and result.history.quantiles.shape == (1, 1)
    assert result.history.particles.shape == (1, 40)
    np.testing.assert_array_equal(result.history.log_evidence[0], result.log_evidence)
    alone = smc(key, lg(4), lg_params(), num_particles=1, history="moments")
    np.testing.assert_array_equal(alone.history.sd, np.zeros(4))
    assert np.isnan(alone.log_evidence_se)


def test_keys_may_be_ints():
    a, b = (smc(k, lg(2), lg_params(), num_particles=4).log_evidence for k in (3, jax.random.key(3)))
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_particles_are_any_pytree(key):
    """Ints, floats, vectors; no inputs; flat potentials that are plain numbers."""
    fk = FeynmanKac(
        lambda key, ctx, u: {"n": jnp.int32(0), "x": (jax.random.normal(key, (2,)), jnp.asarray(False))},
        lambda key, ctx, z, u: {"n": z["n"] + 1, "x": (z["x"][0] * 0.5, ~z["x"][1])},
        lambda ctx, zp, z, u: 0.0,
        4,
    )
    fk.check()
    result = smc(key, fk, num_particles=8, history="full", quantiles=(0.5,), threshold=1.0)
    np.testing.assert_allclose(result.history.log_evidence, 0.0, atol=1e-6)
    assert result.state.particles["n"].dtype == jnp.int32 and result.state.particles["x"][1].dtype == bool
    np.testing.assert_allclose(result.history.mean["n"], [0, 1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(result.history.mean["x"][1], [0, 1, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(result.history.quantiles["n"][:, 0], [0, 1, 2, 3])
    assert result.history.mean["x"][0].shape == (4, 2) and result.history.particles["n"].shape == (4, 8)


@pytest.mark.slow
def test_adapt_sees_the_weighted_population_before_the_step(key):
    """A scale taken from the population equals the same scale given from outside, step by step."""

    def transition(key, ctx, x, u):
        return x + ctx["scale"][u] * jax.random.normal(key)

    def potential(ctx, xp, x, u):
        return -0.5 * jnp.square(x - 1.0) / ctx["scale"][u]

    def adapt(ctx, particles, log_w, u):
        w = jnp.exp(log_w)
        mean = jnp.sum(w * particles)
        spread = jnp.sqrt(jnp.sum(w * (particles - mean) ** 2))
        return {"scale": ctx["scale"].at[u].set(spread)}

    fk = FeynmanKac(
        lambda key, ctx, u: jax.random.normal(key), transition, potential, 5, jnp.arange(5), adapt=adapt
    )
    start = {"scale": jnp.ones(5)}
    adapted = smc(key, fk, start, num_particles=50, history="moments")
    scale = jnp.concatenate([jnp.ones(1), adapted.history.sd[:-1]])
    fixed = dataclasses.replace(fk, adapt=None)
    given = smc(key, fixed, {"scale": scale}, num_particles=50, history="moments")
    np.testing.assert_allclose(adapted.history.mean, given.history.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adapted.log_evidence, given.log_evidence, rtol=1e-4)
    assert abs(float(adapted.history.sd[1]) - 1) > 1e-3


@pytest.mark.slow
def test_a_transition_of_all_particles_with_one_key(key):
    """Each particle drawn with a key split from it: the same bits as a transition of one."""
    alone = faulty(9, lambda x: x > 0, 0.0)

    def together(key, ctx, particles, u):
        keys = jax.random.split(key, len(particles))
        return jax.vmap(lambda k, x: alone.transition(k, ctx, x, u))(keys, particles)

    both = [
        smc(key, fk, num_particles=32, history="full")
        for fk in (alone, dataclasses.replace(alone, transition=together, population=True))
    ]
    np.testing.assert_array_equal(both[0].history.particles, both[1].history.particles)
    np.testing.assert_array_equal(both[0].log_evidence, both[1].log_evidence)


def test_settings_of_smc_that_make_no_sense(key):
    for options, match in (
        ({"num_particles": 0}, "num_particles"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"history": "everything"}, "history"),
        ({"quantiles": (1.2,)}, "quantiles"),
        ({"resampling": "magic"}, "resampling scheme"),
        ({"max_nonfinite": -0.1}, "max_nonfinite"),
    ):
        with pytest.raises(MethodError, match=match):
            smc(key, lg(3), lg_params(), **({"num_particles": 4} | options))
    with pytest.raises(MethodError, match="lag"):
        SMCSettings(4, lag=0)


def test_models_that_make_no_sense(key):
    for fk, match in (
        (dataclasses.replace(lg(3), num_times=0), "num_times"),
        (dataclasses.replace(lg(3), num_times=4), "leading axis of 4"),
        (dataclasses.replace(lg(3), inputs={"y": jnp.zeros(3), "u": 1.0}), "'u'.*leading|'u'"),
    ):
        with pytest.raises((ModelError, MethodError), match=match):
            smc(key, fk, lg_params(), num_particles=4)
