"""Feynman-Kac correctors against closed forms of Gaussians, for several noise gains and resampling rules."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_problems import KINDS, MIXTURE, SCHEDULES, given
from problems import slow_unless

import mcx
from mcx.diffusion import (
    Composition,
    GaussianMixture,
    Score,
    anneal,
    correct,
    corrector,
    discrete,
    geometric,
    levels,
    product,
    ve,
    vp,
)
from mcx.errors import CapabilityError, CheckpointMismatch, InferenceWarning, MethodError
from mcx.testing import check_mean

FIRST = GaussianMixture.of([0.0], 1.0)
SECOND = GaussianMixture.of([1.0], 0.25)
RHO = levels(8.0, 0.01, 300)
REPLICATES = 32


def reward(y):
    return -2 * jnp.sum((y - 1) ** 2)


def gaussian_integral(*terms):
    """Mean, variance and log integral of a product of densities; (power, mean, variance) each."""
    precision = sum(p / v for p, _, v in terms)
    mean = sum(p * m / v for p, m, v in terms) / precision
    log_z = 0.5 * math.log(2 * math.pi / precision)
    for p, m, v in terms:
        log_z += p * (-0.5 * (mean - m) ** 2 / v - 0.5 * math.log(2 * math.pi * v))
    return mean, 1 / precision, log_z


# exp(-2 (y - 1)^2) is the density of N(1, 1/4) times this
REWARD = 0.5 * math.log(2 * math.pi * 0.25)
CASES = {
    "anneal": (anneal(SECOND, 2.5), gaussian_integral((2.5, 1.0, 0.25))),
    "heat": (anneal(SECOND, 0.5), gaussian_integral((0.5, 1.0, 0.25))),
    "guidance": (geometric(FIRST, SECOND, 2.0), gaussian_integral((-1.0, 0.0, 1.0), (2.0, 1.0, 0.25))),
    "product": (product(FIRST, SECOND), gaussian_integral((1.0, 0.0, 1.0), (1.0, 1.0, 0.25))),
    "reward": (anneal(FIRST, 1.0).tilt(reward), gaussian_integral((1.0, 0.0, 1.0), (1.0, 1.0, 0.25))),
    "all": (
        (geometric(FIRST, SECOND, 1.5) ** 1.2).tilt(reward, 0.5),
        gaussian_integral((-0.6, 0.0, 1.0), (1.8, 1.0, 0.25), (0.5, 1.0, 0.25)),
    ),
}
STRENGTH = {"reward": 1.0, "all": 0.5}


def run(model, key, num=2000, threshold=0.5, replicates=REPLICATES):
    def one(key):
        return mcx.smc(key, model, num_particles=num, threshold=threshold, resampling="systematic")

    return jax.jit(jax.vmap(one))(jax.random.split(key, replicates))


def moments(result):
    """Of replicates: weighted mean and second moment, log evidence."""
    y, w = result.state.particles.position, jnp.exp(result.state.log_w)[..., None]
    return np.asarray((w * y).sum(1)), np.asarray((w * y**2).sum(1)), np.asarray(result.log_evidence)


CHECKED = [(name, gain) for name in CASES for gain in (1.0, 2.0, 4.0)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CHECKED)
def test_gaussians(case, key):
    """Mean, variance and evidence; refreshed steps are exact but for Heun's error of order 1 / K^2.

    alpha 1e-6 a check; finds a fifth of a standard deviation, and an evidence that is off by 0.4.
    """
    name, gain = case
    composition, (mean, variance, log_z) = CASES[name]
    model = corrector(composition, jnp.zeros(1), RHO, noise_gain=gain, refresh=True)
    m, second, found = moments(run(model, key, replicates=REPLICATES if gain > 1 else 3 * REPLICATES))
    log_z += STRENGTH.get(name, 0.0) * REWARD
    check_mean(m, [mean], delta=0.2 * math.sqrt(variance), independent=True)
    check_mean(second, [variance + mean**2], delta=0.3 * variance + 0.1, independent=True)
    check_mean(np.exp(found - log_z), 1.0, delta=0.4, independent=True)


def short(key, **options):
    """Everything at once, in 64 replicates of 100 levels."""
    options = {"num_particles": 400, "num_chains": 64, "noise_gain": 2.0, **options}
    return correct(CASES["all"][0], (1,), levels(8.0, 0.01, 100), key=key, progress=False, **options)


def test_correct(key):
    """Draws and evidence of replicates, weighted by their evidences; finds a fifth of an sd."""
    mean, variance, log_z = CASES["all"][1]
    found = short(key, warnings="ignore")
    share = len(found.x) * np.exp(found.weights).sum(1)
    x = np.asarray(found.x, float)[..., 0]
    check_mean(share * (x.mean(1) - mean), 0.0, delta=0.2 * math.sqrt(variance), independent=True)
    check_mean(share * ((x**2).mean(1) - variance - mean**2), 0.0, delta=0.5 * variance, independent=True)
    log_z += STRENGTH["all"] * REWARD
    check_mean(np.exp(found.stats["log_evidence"][:, -1] - log_z), 1.0, delta=0.4, independent=True)
    assert abs(found.log_evidence - log_z) < 6 * found.log_evidence_se < 0.5
    assert found.complete and "64 replicates x 400" in repr(found)
    assert (found.stats["acceptance"] > 0.5).all() and found.stats["increment_sd"].max() < 1
    assert 0.05 < found.unique_starts.min() <= found.unique_starts.max() < 1
    tree = found.to_datatree()
    assert tree["posterior"]["x"].shape == (64, 400, 1) and tree["smc_stats"]["ess"].shape == (64, 100)


def test_correct_says_what_cannot_be_relied_on():
    """Without resampling and noise the weights of a power of 8 are a few particles'."""
    with pytest.warns(InferenceWarning, match=r"effective sample size is 0\.[0-9]%") as said:
        correct(
            anneal(SECOND, 8.0), (1,), levels(8.0, 0.01, 100), key=0, num_particles=400, num_chains=64,
            noise_gain=0.1, threshold=0.0, progress=False, refresh=True,
        )  # fmt: skip
    assert "larger noise_gain" in str(said[0].message)
    for field, value in (("num_particles", 1), ("event_shape", (0,)), ("refresh", 3), ("warnings", "no"),
                         ("num_chains", 0), ("threshold", 2.0), ("resampling", "no")):  # fmt: skip
        with pytest.raises(MethodError, match=field):
            correct(anneal(SECOND, 2.0), **{"event_shape": (1,), "rho": RHO, "key": 0, field: value})


@pytest.mark.slow
def test_ways_to_correct(key, tmp_path):
    """On devices, from a checkpoint, by the jump process, of a single replicate."""
    options = {"num_chains": 4, "warnings": "ignore"}
    plain = short(key, **options)
    for other in (
        short(key, devices=2, **options),
        short(key, checkpoint=tmp_path, **options),
        short(key, checkpoint=tmp_path, **options),
    ):
        np.testing.assert_allclose(other.x.mean(1), plain.x.mean(1), atol=0.05)
    one = short(key, num_chains=1, warnings="ignore", resampling="birth_death", threshold=1.0, refresh=False)
    assert one.weights is None and np.isnan(one.log_evidence_se) and one.x.shape == (1, 400, 1)
    with pytest.raises(CheckpointMismatch, match="resampling"):
        short(key, checkpoint=tmp_path, resampling="birth_death", **options)


@pytest.mark.slow
def test_scores_alone(key):
    """Without densities: Euler steps, whose error is of order 1 / K; finds three tenths of an sd."""
    schedule = ve(0.01, 8.0)

    def score(x, t):
        return (SECOND.denoise(x, schedule.sigma(t)) - x) / schedule.sigma(t) ** 2

    model = corrector(anneal(Score(score, schedule), 2.0), jnp.zeros(1), levels(8.0, 0.01, 1000))
    mean, variance, log_z = gaussian_integral((2.0, 1.0, 0.25))
    m, second, found = moments(run(model, key))
    check_mean(m, [mean], delta=0.3 * math.sqrt(variance), independent=True)
    check_mean(second, [variance + mean**2], delta=0.3, independent=True)
    check_mean(np.exp(found - log_z), 1.0, delta=0.4, independent=True)


def annealed_in_steps(variance, power, rho):
    """Variance and log integral by coordinate that Euler's steps give for a Gaussian, in closed form.

    Weights are exponentials of squares, so that what particles stand for stays a Gaussian times a number.
    """
    total = variance + rho[0] ** 2
    found = total / power
    log_z = 0.5 * math.log(2 * math.pi * found) - 0.5 * power * math.log(2 * math.pi * total)
    for now, after in zip(rho, rho[1:], strict=False):
        total, delta = variance + now**2, now**2 - after**2
        weighted = 1 / (1 / found - delta * power * (power - 1) / total**2)
        log_z += 0.5 * math.log(weighted / found)
        found = (1 - 0.5 * delta * power * (1 + power) / total) ** 2 * weighted + power * delta
    return found, log_z


@pytest.mark.slow
@pytest.mark.parametrize("program", ["mcx", "the loop of benchmarks"])
def test_a_gaussian_in_steps(program, key, monkeypatch):
    """Not the limit of short steps, but what these very steps give: the evidence has no bias at all.

    alpha 1e-6 a check; finds a tenth of the variance, and an evidence that is off by 0.1, where steps
    as long as these are off by more than 2.
    """
    mean, variance, power, rho = np.array([[3.0, -1.0]]), 0.5, 3, levels(8.0, 0.01, 150)
    num = 1000
    if program == "mcx":
        model = corrector(anneal(GaussianMixture.of(mean, variance), float(power)), jnp.zeros(2), rho)
        m, second, found = moments(run(model, key, num=num, threshold=1.0, replicates=400))
        spread = second - 2 * mean * m + mean**2
    else:
        monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        from _corrector_numpy import anneal_by_loop

        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        each = [anneal_by_loop(rng, mean, variance, power, rho, num) for _ in range(400)]
        m, found = np.stack([y.mean(0) for y, _ in each]), np.array([log_z for _, log_z in each])
        spread = np.stack([((y - mean) ** 2).mean(0) for y, _ in each])
    end, log_z = annealed_in_steps(variance, power, rho)
    assert 2 * log_z - 2 * gaussian_integral((power, 3.0, variance))[2] > 2
    check_mean(m, mean[0], delta=0.1 * math.sqrt(end), independent=True)
    check_mean(spread, end, delta=0.1 * end, independent=True)
    check_mean(np.exp(found - 2 * log_z), 1.0, delta=0.1, independent=True)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_law_does_not_depend_on_when_particles_are_resampled(threshold, key):
    composition, (mean, variance, log_z) = CASES["product"]
    model = corrector(composition, jnp.zeros(1), RHO, refresh=True)
    m, _, found = moments(run(model, key, threshold=threshold))
    check_mean(m, [mean], delta=0.15 * math.sqrt(variance), independent=True)
    check_mean(np.exp(found - log_z), 1.0, delta=0.4, independent=True)


@pytest.mark.slow
def test_two_modes_keep_their_shares(key):
    """Annealing a mixture: weights of components become w^beta sd^(1 - beta), and not w."""
    model = GaussianMixture.of([[-4.0, 0.0], [4.0, 1.0]], [0.5, 2.0], [0.7, 0.3])
    result = run(corrector(anneal(model, 2.0), jnp.zeros(2), levels(30.0, 0.01, 300), refresh=True), key)
    # of the integral of q^2: w_k^2 (4 pi v_k)^(-d / 2), as the modes do not overlap
    mass = np.array([0.7, 0.3]) ** 2 / (4 * np.pi * np.array([0.5, 2.0]))
    overlap = 2 * 0.21 * math.exp(-0.5 * (64 + 1) / 2.5) / (2 * np.pi * 2.5)
    w, y = np.exp(result.state.log_w), result.state.particles.position
    share = (w * (y[..., 0] > 0)).sum(1)
    check_mean(share, mass[1] / mass.sum(), delta=0.1, independent=True)
    ratio = np.exp(np.asarray(result.log_evidence)) / (mass.sum() + overlap)
    check_mean(ratio, 1.0, delta=0.3, independent=True)


# --- schedules and parametrisations ----------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(["rectified_flow"], list(SCHEDULES)))
def test_parametrisations(name):
    """All say the same; rho and time are each other's inverse."""
    schedule = SCHEDULES[name]
    t = jnp.linspace(schedule.t_min, schedule.t_max, 7)[1:-1]
    np.testing.assert_allclose(jax.vmap(lambda t: schedule.time(schedule.rho(t)))(t), t, rtol=1e-3)
    y = jnp.array([0.3, -0.2])
    for kind in KINDS:
        found = jax.vmap(lambda r, kind=kind: given(kind, schedule).denoise(y, r))(schedule.rho(t))
        exact = jax.vmap(lambda r: MIXTURE.denoise(y, r))(schedule.rho(t))
        np.testing.assert_allclose(found, exact, rtol=5e-3, atol=5e-3)


def test_discrete():
    """At the steps it is the continuous schedule that the numbers are from, and nearly so between them."""
    smooth, num = vp(), 1000
    k = np.arange(num)
    alpha2 = np.exp(-0.1 * (k + 1) / num - 9.95 * ((k + 1) / num) ** 2)  # of vp() at (k + 1) / num
    schedule = discrete(alpha2)
    t = jnp.concatenate([k[::111], k[20:-1:111] + 0.37])
    for name in ("alpha", "sigma"):  # interpolation: log rho is nearly log(k) / 2, so 1 / (16 k^2) at most
        expected = getattr(smooth, name)((t + 1) / num)
        np.testing.assert_allclose(getattr(schedule, name)(t), expected, rtol=2e-4)
    np.testing.assert_allclose(schedule.alpha(k), np.sqrt(alpha2), rtol=2e-5)
    np.testing.assert_allclose(schedule.sigma(k), np.sqrt(1 - alpha2), rtol=2e-5)
    beyond = jnp.array([-0.8, num + 3.0])  # and further
    for times in (t, beyond):
        np.testing.assert_allclose(schedule.time(schedule.rho(times)), times, atol=2e-3)
        np.testing.assert_allclose(schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedule.rho_range, [smooth.rho(0.001), smooth.rho(1.0)], rtol=1e-4)
    assert hash(schedule) == hash(discrete(list(alpha2))) and schedule == discrete(list(alpha2))
    assert schedule != discrete(alpha2[:-1])
    for bad in ([0.9], [0.9, 0.0], [1.0, 0.5], [0.5, 0.9], [0.9, 0.9], [[0.9, 0.5]], [np.nan, 0.5], []):
        with pytest.raises(MethodError, match="alphas_cumprod"):
            discrete(bad)


def test_mixture():
    """Its score is the gradient of its density, also along rotated axes; draws have its moments."""
    rotated = GaussianMixture.of([1.0, 2.0], [[2.0, 0.9], [0.9, 1.0]])
    y = jnp.array([0.4, -1.0])
    for model in (MIXTURE, rotated):
        slope = jax.grad(model.log_density)(y, 0.7)
        np.testing.assert_allclose((model.denoise(y, 0.7) - y) / 0.49, slope, rtol=1e-4)
    exact = -0.5 * y @ jnp.linalg.inv(jnp.array([[2.0, 0.9], [0.9, 1.0]]) + 0.49 * jnp.eye(2)) @ y
    centred = dataclasses.replace(rotated, means=jnp.zeros((1, 2)))
    np.testing.assert_allclose(
        centred.log_density(y, 0.7) - centred.log_density(jnp.zeros(2), 0.7), exact, rtol=1e-5
    )
    draws = np.asarray(rotated.sample(jax.random.key(0), 100_000))
    np.testing.assert_allclose(np.cov(draws.T), [[2.0, 0.9], [0.9, 1.0]], atol=0.05)


def test_the_start_is_that_of_a_gaussian():
    """Where models are Gaussian the start's law is exact, and so is its integral."""
    composition = anneal(GaussianMixture.of([3.0, -1.0], [0.5, 2.0]), 2.0)
    mean, variance, log_z = composition.initial_law(20.0, jnp.zeros(2))
    for i, (m, v) in enumerate(((3.0, 0.5 + 400), (-1.0, 2.0 + 400))):
        assert mean[i] == pytest.approx(m, rel=1e-2) and variance[i] == pytest.approx(v / 2, rel=1e-3)
    exact = sum(gaussian_integral((2.0, m, v))[2] for m, v in ((3.0, 400.5), (-1.0, 402.0)))
    assert log_z == pytest.approx(exact, abs=1e-3)


def test_refusals_of_correctors():
    like = jnp.zeros(1)
    for bad in ([1.0], [1.0, 2.0], [1.0, 0.0]):
        with pytest.raises(MethodError, match="noise levels"):
            corrector(anneal(FIRST, 2.0), like, bad)
    with pytest.raises(MethodError, match="noise_gain"):
        corrector(anneal(FIRST, 2.0), like, RHO, noise_gain=-1.0)
    alone = Composition((Score(lambda x, t: -x, ve()),), (1.0,))
    with pytest.raises(CapabilityError, match="refresh"):
        corrector(alone, like, RHO, refresh=True)
    with pytest.raises(MethodError, match="kind"):
        Score(lambda x, t: x, ve(), "epsilon")
    with pytest.raises(MethodError, match="another shape"):
        Score(lambda x, t: x.sum(), ve()).denoise(like, 1.0)
    with pytest.raises(MethodError, match="reward"):
        anneal(FIRST, 1.0).tilt(reward).tilt(reward)
    with pytest.raises(MethodError, match="mixture"):
        GaussianMixture.of([0.0, 1.0], [[1.0, 0.0, 0.0]])
