"""Integrators that draw noise: weak orders from exact moments, laws of mixtures from draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_problems import GAUSSIAN, MODES, RANDOM, slopes
from problems import slow_unless

from mcx.diffusion import (
    DPMSolver,
    GaussianMixture,
    Heun,
    PredictorCorrector,
    Teleport,
    integrate,
    levels,
    sample,
)
from mcx.errors import MethodError
from mcx.testing import check_mean

STEPS = (32, 64, 128)
CONVERGENT = [n for n in RANDOM if RANDOM[n].order > 0]


def variances(method, num, first=20.0, last=0.1):
    """Of the end point's coordinates on a Gaussian, exactly: the end is linear in the start and the noise."""
    rho = levels(first, last, num)
    mean = GAUSSIAN.means[0]

    def end(y, noise):
        return integrate(GAUSSIAN, y, rho, method=method, noise=noise)

    noise = jnp.zeros((num, method.num_draws, 2))
    of_start, of_noise = jax.jacfwd(end, (0, 1))(mean, noise)
    np.testing.assert_allclose(end(mean, noise), mean, rtol=1e-9)  # the mean is kept
    start = GAUSSIAN.variances[0] + first**2
    return np.asarray(of_start**2 @ start + (of_noise**2).sum((1, 2, 3))), np.asarray(
        GAUSSIAN.variances[0] + last**2
    )


@pytest.mark.x64
@pytest.mark.parametrize("name", slow_unless(["SDE-DPM-Solver 2M", "EDM with churn"], CONVERGENT))
def test_weak_orders(name):
    """Variances of a Gaussian converge at the claimed order."""
    method = RANDOM[name]
    # Langevin steps vanish only where steps are shorter than 0.1
    steps = (64, 128, 256) if isinstance(method, PredictorCorrector) else STEPS
    errors = [abs(np.divide(*variances(method, num)) - 1).max() for num in steps]
    found = slopes(errors, steps)
    assert (found > method.order - 0.3).all(), f"order {method.order} claimed, {found} found"
    assert found[-1] < method.order + 0.3, f"order {method.order} claimed, {found} found"


@pytest.mark.x64
@pytest.mark.slow
@pytest.mark.parametrize("method", [Heun(s_churn=10.0, s_noise=1.007), RANDOM["predictor-corrector, snr"]])
def test_biases_that_stay(method):
    """EDM's inflated noise, and Langevin steps of a fixed size: no order to claim."""
    steps = (128, 256, 512)
    errors = [abs(np.divide(*variances(method, num)) - 1).max() for num in steps]
    assert slopes(errors, steps)[-1] < 0.5 and errors[-1] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERGENT)
def test_laws_of_a_mixture(name, key):
    """Means, second moments and shares of modes; finds a twentieth of a unit. alpha 1e-6 a check."""
    draws = np.asarray(
        sample(MODES, 100_000, (2,), levels(60.0, 0.05, 400), key=key, method=RANDOM[name], batch_size=20_000)
    )
    weights, means, spread = (np.asarray(x, float) for x in (MODES.weights, MODES.means, MODES.variances))
    check_mean(draws, weights @ means, delta=0.05, independent=True)
    second = weights @ (spread + means**2) + 0.05**2
    check_mean(draws**2, second, delta=0.1, independent=True)
    check_mean(draws[:, 0] < -0.5, left_of(-0.5), delta=0.02, independent=True)


def left_of(x):
    from scipy.stats import norm

    spread = np.sqrt(np.asarray(MODES.variances[:, 0], float) + 0.05**2)
    return float(
        np.asarray(MODES.weights, float) @ norm.cdf((x - np.asarray(MODES.means[:, 0], float)) / spread)
    )


@pytest.mark.parametrize("method", slow_unless([DPMSolver()], [DPMSolver(), PredictorCorrector()]))
def test_random_integrators_draw_a_gaussian(method, key):
    """Far from the origin, from a first level that is not large: the start's moments come from the model."""
    model = GaussianMixture.of([30.0, -20.0], 0.25)
    draws = np.asarray(sample(model, 4000, (2,), levels(40.0, 0.1, 60, to_zero=True), key=key, method=method))
    check_mean(draws, [30.0, -20.0], delta=0.06, independent=True)
    check_mean((draws - draws.mean(0)) ** 2, 0.25, delta=0.05, independent=True)


# --- teleportation ---------------------------------------------------------------------------------


def test_teleport_is_the_flow_of_a_gaussian():
    """Exact between any levels, along rotated axes."""
    cov = np.array([[2.0, 0.9], [0.9, 1.0]])
    model = GaussianMixture.of([1.0, 2.0], cov)
    law = Teleport.of([1.0, 2.0], cov)

    @jax.jit
    def compared(y):
        down = law.jump(y, 20.0, 0.5)
        flow = integrate(model, y, levels(20.0, 0.5, 100), method=Heun())
        denoised, exact = law.denoise(y, 3.0), model.denoise(y, 3.0)
        densities = law.log_density(y, 3.0), model.log_density(y, 3.0)
        return (down, flow), (denoised, exact), densities, (law.jump(down, 0.5, 20.0), y)

    flows, *others = compared(np.array([14.0, -9.0], np.float32))
    np.testing.assert_allclose(*flows, rtol=2e-3, atol=2e-3)
    for pair in others:
        np.testing.assert_allclose(*pair, rtol=1e-4)


@pytest.mark.slow
def test_teleport_of_few_images():
    """Data of rank 2: off their span noise alone is scaled, and none is left at level 0."""
    draws = np.random.default_rng(0).normal(size=(3, 2))
    images = np.stack([draws, 2 * draws, -draws, draws + 1], 2)[..., None]  # (3, 2, 4, 1)
    law = Teleport.from_data(images)
    np.testing.assert_allclose(law.mean, images.mean(0).ravel(), rtol=1e-5, atol=1e-6)
    y = jnp.asarray(images[0] + 0.1 * np.random.default_rng(1).normal(size=(2, 4, 1)), jnp.float32)
    up = law.jump(y, 0.1, 5.0)
    assert up.shape == (2, 4, 1)
    np.testing.assert_allclose(law.jump(up, 5.0, 0.1), y, rtol=1e-3, atol=1e-3)
    flat = images.reshape(3, -1) - images.mean(0).ravel()

    def off(y):
        apart = np.asarray(y, float).ravel() - images.mean(0).ravel()
        return apart - flat.T @ np.linalg.lstsq(flat.T, apart, rcond=1e-6)[0]

    np.testing.assert_allclose(off(up), 50 * off(y), rtol=1e-2, atol=1e-2)
    assert np.abs(off(law.jump(up, 5.0, 0.0))).max() < 1e-2


@pytest.mark.slow
def test_moments_of_a_mixture(key):
    cov = np.array([[[2.0, 0.9], [0.9, 1.0]], [[0.5, 0.0], [0.0, 0.3]]])
    model = GaussianMixture.of([[0.0, 1.0], [3.0, -1.0]], cov, [0.3, 0.7])
    law = Teleport.from_mixture(model)
    draws = np.asarray(model.sample(key, 200_000), float)
    check_mean(draws, law.mean, delta=0.05, independent=True)
    axes, exact = np.asarray(law.axes, float), np.asarray(law.variances, float)
    check_mean(((draws - np.asarray(law.mean)) @ axes) ** 2, exact, delta=0.1, independent=True)


def test_reach():
    """The model is Gaussian down to a few spreads; a Gaussian is everywhere; other moments nowhere."""
    law = Teleport.from_mixture(MODES)
    rho = levels(80.0, 0.01, 60, to_zero=True)
    found = law.reach(MODES, rho, (2,), key=0)
    assert 1.0 < found / float(law.spread) < 4.0
    assert law.reach(MODES, rho, (2,), key=0, tolerance=0.01) > found
    assert law.reach(law, rho, (2,), key=0) == pytest.approx(0.01)
    with pytest.raises(MethodError, match="not this Gaussian"):
        Teleport.of([3.0, 0.0], 1.0).reach(MODES, rho, (2,), key=0)


@pytest.mark.slow
def test_start_from_the_teleport(key):
    """A start at three spreads, and few steps, have the moments of a start from noise."""
    law = Teleport.from_mixture(MODES)
    rho = levels(3 * float(law.spread), 0.05, 60)
    draws = np.asarray(sample(MODES, 50_000, (2,), rho, key=key, init=law))
    weights, means, spread = (np.asarray(x, float) for x in (MODES.weights, MODES.means, MODES.variances))
    check_mean(draws, weights @ means, delta=0.06, independent=True)
    check_mean(draws**2, weights @ (spread + means**2) + 0.05**2, delta=0.12, independent=True)


def test_refusals_of_random_integrators():
    for bad in (
        ([0.0, 1.0], -1.0),
        ([0.0, 1.0], np.ones(3)),
        ([0.0, np.nan], 1.0),
        ([0.0, 1.0], [[1.0, 2.0], [2.0, 1.0]]),
    ):
        with pytest.raises(MethodError):
            Teleport.of(*bad)
    with pytest.raises(MethodError):
        Teleport.from_data(np.ones((1, 3)))
