"""Particle systems that grow on the way: the law of the wider ones, and SMC^2 with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs_problems import (
    T,
    Y,
    autoregression,
    check_two_chains,
    persistence,
    two_chains,
)
from nested_problems import StopsAfter, check_weighted, log_evidences, run
from problems import slow_unless

import mcx
from mcx.errors import MethodError
from mcx.inference.pmmh.marginal import marginal_model
from mcx.inference.smc2.nested import Context, Times, nest, nested_filters, populate
from mcx.inference.smc2.nested_paths import grow, nested_path
from mcx.testing import check_mean

STEPS, PHI = 5, 0.6
SYSTEMS = 50_000


def nested(threshold, *sizes):
    """Settings of systems of these sizes on a short series; its data; the point."""
    particle_filter = mcx.ParticleFilter(threshold=threshold)
    model = marginal_model(persistence(Y[0][:STEPS]), particle_filter)
    pairs = [nested_filters(model, size, particle_filter) for size in sizes]
    point = model.marginal.ravel(model.marginal.unconstrain({"phi": jnp.float32(PHI)}))
    return [nesting for nesting, _ in pairs], pairs[0][1], point


def filled(nesting, data, key, point, t):
    run = jax.vmap(lambda k: populate(nesting, data, k, point, t))
    return jax.jit(run)(jax.random.split(key, SYSTEMS))


def stepped(nesting, data, key, particles, t):
    fk = nest(nesting, data)
    ctx, u = Context(data), Times(jnp.int32(t), jnp.asarray(False))
    run = jax.vmap(lambda k, x: fk.transition(k, ctx, x, u))
    return jax.jit(run)(jax.random.split(key, SYSTEMS), particles)


def grown(threshold, key):
    """Systems of 2 at time 1, of 3 from there to time 3, of 5 from there on; weights of the first."""
    keys = jax.random.split(key, 6)
    (two, three, five), data, point = nested(threshold, 2, 3, 5)
    particles = filled(two, data, keys[0], point, 1)
    weight = np.exp(np.asarray(particles.log_evidence, float) - exact()[1])
    first = grow(two, three, data, keys[1], particles, 2)
    later = stepped(three, data, keys[3], stepped(three, data, keys[2], first, 2), 3)
    second = grow(three, five, data, keys[4], later, 4)
    return weight, first, later, second, stepped(five, data, keys[5], second, 4), (three, five, data, point)


def exact():
    return np.cumsum(autoregression(Y[0][:STEPS], PHI).log_increments)


@pytest.mark.parametrize("threshold", slow_unless([0.8], [0.8, 1.0]))
def test_wider_systems_follow_their_extended_law(threshold, key):
    """That of free systems weighted by their own evidence, of which the inverse has the mean 1 / Z.

    alpha 1e-6 a check. New systems that took no notice of the old ones would miss the inverse by 0.5.
    """
    weight, first, later, second, last, (three, five, data, point) = grown(threshold, key)
    assert first.systems["x"].log_w.shape == (SYSTEMS, 3) and last.systems["x"].log_w.shape == (SYSTEMS, 5)
    truth = np.exp(exact())
    at = {1: first, 3: later, "again": second, 4: last}
    z = {t: np.exp(np.asarray(x.log_evidence, float)) for t, x in at.items()}

    def check(values, delta, name):
        check_mean(weight * values, 0.0, delta=delta, independent=True, name=name)

    check_mean(weight, 1.0, delta=0.05, independent=True)
    check(truth[1] / z[1] - 1, 0.2, "inverse evidence")
    on = z[3] / z[1] * truth[1] / truth[3]
    check(on - 1, 0.06, "evidence goes on")
    check(on * z[4] / z["again"] * truth[3] / truth[4] - 1, 0.06, "evidence goes on again")
    for nesting, t, new, so_far in ((three, 1, z[1], 1.0), (five, 3, z["again"], on)):
        free = filled(nesting, data, jax.random.fold_in(key, t), point, t)
        free = np.exp(np.asarray(free.log_evidence, float)) / truth[t]
        for level in (0.5, 1.0, 1.5):
            values = weight * so_far * (new / truth[t] < level) - free * (free < level)
            check_mean(values, 0.0, delta=0.05, independent=True, name=f"{level} at {t}")


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_paths_of_systems_that_grew(threshold, key):
    """They come from the same systems, run once more given what these were given; alpha 1e-6.

    Weighted by the evidence they follow the smoothing law; finds 0.05 of a mean of order 1.
    """
    weight, first, later, second, last, (three, five, data, point) = grown(threshold, key)
    smoothed = autoregression(Y[0][:STEPS], PHI)
    drawn = jax.jit(jax.vmap(lambda k, x: nested_path(five, data, k, x)))
    paths, again = drawn(jax.random.split(key, SYSTEMS), last)
    np.testing.assert_allclose(again, last.log_evidence, atol=1e-3)
    ratio = [
        np.exp(np.asarray(a.log_evidence - b.log_evidence, float))
        for a, b in ((later, first), (last, second))
    ]
    ratio = weight * ratio[0] * ratio[1] * np.exp(exact()[1] - exact()[4])
    for power, truth in (
        (1, smoothed.smoothed_means[:, 0]),
        (2, smoothed.smoothed_means[:, 0] ** 2 + smoothed.smoothed_covs[:, 0, 0]),
    ):
        values = ratio[:, None] * (np.asarray(paths["x"], float) ** power - truth)
        check_mean(values, 0.0, delta=0.06, independent=True, name=f"x^{power}")


# --- SMC^2 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """64 replicates of 64 parameters, with 2 particles each in the beginning."""
    method = mcx.SMC2(64, 2, grow=True, least_acceptance=0.95)
    return run(persistence(Y[0]), method, mcx.testing.key_for("growth"), num_chains=64)


@pytest.mark.slow
def test_evidence_while_filters_grow(many):
    """Of every stretch; unbiased but for what moves learn from the cloud, of order 1 / 64; alpha 1e-6."""
    number = many.smc_stats["num_particles"]
    assert (np.diff(number) >= 0).all() and (number == number[0]).all()
    assert len(np.unique(number)) > 2 and many.info.settings["num_particles"] == number[0, -1]
    exact = log_evidences(Y[0])
    check_mean(
        np.exp(many.smc_stats["log_evidence"] - exact), 1.0, delta=np.linspace(0.2, 1.0, T), independent=True
    )


@pytest.mark.slow
def test_parameters_and_paths_after_filters_grew(many):
    """Weighted by the estimated evidence they are unbiased; alpha 1e-6, finds 0.7 posterior sds."""
    assert many.info.settings["paths_that_differ"] < 0.01
    check_weighted(many, Y[0], finds=0.7)


@pytest.mark.slow
def test_two_chains_that_grow(key):
    method = mcx.SMC2(1000, 8, grow=True, least_acceptance=0.95)
    post = run(two_chains(Y), method, key, num_chains=20)
    assert post.info.settings["num_particles"] > 8
    check_two_chains(post)


@pytest.mark.slow
def test_filters_that_grow_go_on_from_a_checkpoint(tmp_path):
    """After an interruption in any part, with the same bits; on one device or several."""
    bound, method = persistence(Y[0]), mcx.SMC2(64, 2, grow=True, least_acceptance=0.95)
    plain = run(bound, method, 3, num_chains=4)
    assert len(np.unique(plain.smc_stats["num_particles"])) > 1
    looks = 0
    for stop in (2, 9):
        part = mcx.infer(
            bound, method, key=3, num_chains=4, warnings="ignore", checkpoint=tmp_path / str(stop),
            progress=StopsAfter(stop),
        )  # fmt: skip
        assert not part.complete and list(part.draws) == ["phi"]
        seen = np.isfinite(part.smc_stats["log_evidence"]).all(0).sum()
        assert 1 < seen < T and seen > looks
        looks = seen
        whole = run(bound, method, 3, num_chains=4, checkpoint=tmp_path / str(stop))
        assert whole.complete
        np.testing.assert_array_equal(whole["x"], plain["x"])
        np.testing.assert_array_equal(whole.smc_stats["num_particles"], plain.smc_stats["num_particles"])
    spread = run(bound, method, 3, num_chains=4, devices=2)
    np.testing.assert_allclose(spread["phi"], plain["phi"], atol=1e-3)
    one = run(bound, method, 5, num_chains=1, devices=4)
    assert one["x"].shape == (1, 64, T) and one.info.settings["num_particles"] > 2


@pytest.mark.slow
def test_moves_refused_for_other_reasons():
    """No particles are added where the evidence has no noise to speak of."""
    post = run(persistence(Y[0][:4]), mcx.SMC2(16, 512, grow=True, least_acceptance=0.99), 0, num_chains=2)
    assert post.complete and (post.smc_stats["num_particles"] == 512).all()
    assert (post.smc_stats["acceptance"][np.isfinite(post.smc_stats["acceptance"])] < 0.99).any()


def test_refusals_of_growth():
    systematic = mcx.ParticleFilter(resampling="systematic")
    with pytest.raises(MethodError, match="independent draws of ancestors(.|\n)*num_particles="):
        mcx.SMC2(filter=systematic)
    with pytest.raises(MethodError, match="independent draws"):
        mcx.SMC2(64, 8, grow=True, filter=systematic)
    mcx.SMC2(64, 8, filter=systematic)
    with pytest.raises(MethodError, match="cannot grow(.|\n)*pure function"):
        mcx.program(persistence(Y[0]), mcx.SMC2(64, 8, grow=True))
