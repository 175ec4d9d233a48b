"""Denoising MCMC: levels by rank tests, points by the product law's moments, denoised ones by the data's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mcx.inference.diffusion.denoising_mcmc.kernel as denoising_kernel
from mcx.diffusion import (
    DDIM,
    DenoisingMCMC,
    EulerMaruyama,
    GaussianMixture,
    Heun,
    LevelsFromClassifier,
    LevelsFromDensity,
    LevelsFromScore,
    Score,
    levels,
    ve,
)
from mcx.errors import CapabilityError, MethodError
from mcx.testing import check_mean

MODEL = GaussianMixture.of([[-1.0, 0.5], [2.0, -1.0]], [[0.3, 1.0], [0.5, 0.2]], [0.4, 0.6])
RHO = levels(5.0, 0.05, 31)  # 32 levels
CHAINS = 2048


def run(key, num_samples=1, num_chains=CHAINS, init="exact", model=MODEL, **options):
    """Chains that start from the product law itself, where the test asks for their law and not their way."""
    key_init, key_run = jax.random.split(key)
    if isinstance(init, str):
        init = MODEL.sample(key_init, num_chains)
    method = DenoisingMCMC(**{"num_samples": num_samples, "num_warmup": 8, "num_denoise": 2, **options})
    return method.run(model, (2,), RHO, key=key_run, init=init, num_chains=num_chains, progress=False)


def rank_test(rho):
    """p-value of levels, one an independent chain, against the uniform law over them."""
    counts = np.array([(np.abs(rho - r) < 1e-6 * r).sum() for r in RHO])
    assert counts.sum() == len(rho)
    return stats.chisquare(counts).pvalue


def test_the_product_law_is_left_as_it_is(key):
    """alpha 1e-6. Points: their mean, and y^2 - rho^2, whose mean does not depend on the level; finds a fifth
    of their sds."""
    found = run(key, num_chains=2 * CHAINS)
    assert rank_test(found.rho[:, -1]) > 1e-6
    y, rho = np.asarray(found.noisy[:, -1], float), found.rho[:, -1]
    mean, second = moments()
    check_mean(y, mean, delta=0.4, independent=True)
    rest = (y**2 - rho[:, None] ** 2) / (1 + rho[:, None] ** 2)
    check_mean(rest, second * np.mean(1 / (1 + RHO**2)), delta=0.5, independent=True)
    # the smallest step sizes are those of the smallest noise
    assert found.step_size[0] < 0.5 < found.step_size[-1]


def moments():
    means, variances, w = (np.asarray(x, float) for x in (MODEL.means, MODEL.variances, MODEL.weights))
    return w @ means, w @ (means**2 + variances)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["argmax", "smallest", "no Metropolis"])
def test_what_the_rank_test_finds(mutant, key, monkeypatch):
    """The most probable level, the smallest of a window, moves that nobody refuses: all change the law."""
    options = {"num_skip": 4}
    if mutant == "argmax":
        monkeypatch.setattr(
            denoising_kernel, "choose", lambda key, log_w: jnp.argmax(log_w).astype(jnp.int32)
        )
    elif mutant == "smallest":
        options["select"] = "smallest"
    else:
        options |= {"metropolis": False, "step_size": 0.8, "num_samples": 20}
    assert rank_test(run(key, **options).rho[:, -1]) < 1e-9


@pytest.mark.slow
def test_modes_are_crossed_and_denoised(key):
    """All chains start in one mode; the denoised draws have both, and the data's moments."""
    init = jnp.broadcast_to(jnp.array([2.0, -1.0]), (256, 2))
    found = run(key, 400, 256, init=init, num_warmup=200, num_denoise=12, integrator=None)
    x = np.asarray(found.x, float)
    mean, second = moments()
    check_mean(x, mean, delta=0.15)
    check_mean(x**2, second, delta=0.3)
    assert found.nfe == 2 + 12 and found.complete
    check_mean((np.linalg.norm(x - [-1.0, 0.5], axis=-1) < 1.6).astype(float), share_of_first(), delta=0.05)


def share_of_first():
    """Mass of the circle around the first mode, by a grid."""
    grid = np.linspace(-8, 8, 801)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    log_p = jax.jit(jax.vmap(lambda y: MODEL.log_density(y, 1e-4)))(jnp.asarray(points, jnp.float32))
    p = np.exp(np.asarray(log_p, float)) * (grid[1] - grid[0]) ** 2
    return p[np.linalg.norm(points - [-1.0, 0.5], axis=-1) < 1.6].sum()


@pytest.mark.slow
def test_levels_from_scores_are_those_from_densities(key):
    """The trapezoidal rule's error falls with the square of the levels' distance."""
    y = jnp.array([0.7, -0.4])
    errors = []
    for num in (40, 80):
        rho = jnp.asarray(levels(5.0, 0.05, num)[::-1].copy())
        exact, found = (law.log_density(MODEL, y, rho) for law in (LevelsFromDensity(), LevelsFromScore()))
        errors.append(float(jnp.max(jnp.abs((found - found[-1]) - (exact - exact[-1])))))
    assert errors[1] < 0.02 and 2.5 < errors[0] / errors[1] < 6
    assert LevelsFromScore().nfe(40, 2) == 120 and LevelsFromScore(1).nfe(40, 2) == 80
    # of a Gaussian of equal variances the divergence is the same along every sign
    round_ = GaussianMixture.of([0.0, 1.0], [0.5, 0.5])
    exact, found = (LevelsFromScore(n).log_density(round_, y, rho) for n in (None, 1))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("law", ["score", "classifier"])
def test_other_laws_of_levels(law, key):
    """With Metropolis moves, as the law alone is in question."""
    rho = jnp.asarray(np.sort(RHO), jnp.float32)
    classifier = LevelsFromClassifier(lambda y: LevelsFromDensity().log_density(MODEL, y, rho))
    found = run(key, num_skip=2, level_law=classifier if law == "classifier" else LevelsFromScore())
    assert rank_test(found.rho[:, -1]) > 1e-6
    assert found.nfe == 2 * (2 + (32 * 3 if law == "score" else 0)) + 2


@pytest.mark.slow
def test_scores_alone_and_stochastic_integrators(key):
    """Without densities: small steps, and no refusals; a sampler of its own noise for every draw."""
    schedule = ve(0.05, 5.0)
    alone = Score(lambda x, t: MODEL.denoise(x, schedule.sigma(t)), schedule, "denoised")
    assert not alone.has_density
    method = DenoisingMCMC(
        num_samples=20, num_warmup=50, num_skip=4, step_size=0.02, num_denoise=40, integrator=EulerMaruyama()
    )
    found = method.run(alone, (2,), RHO, key=key, num_chains=1024, progress=False)
    mean, second = moments()
    x = np.asarray(found.x, float)
    check_mean(x.mean(1), mean, delta=0.35, independent=True)
    check_mean((x**2).mean(1), second, delta=0.6, independent=True)
    assert len(np.unique(found.x.reshape(-1, 2), axis=0)) == 1024 * 20


@pytest.mark.slow
def test_conditions_of_integrators_stay_conditions(key):
    """Heun's last step has one call; as selections of vmap conditions would copy a network for every draw."""
    calls = []

    def fn(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return MODEL.denoise(x, t)

    alone = Score(fn, ve(0.05, 5.0), "denoised")
    method = DenoisingMCMC(
        num_samples=3, num_warmup=0, step_size=0.02, num_denoise=2, integrator=Heun(),
        level_law=LevelsFromClassifier(lambda y: jnp.zeros(32)),
    )  # fmt: skip
    found = method.run(alone, (2,), RHO, key=key, init=jnp.zeros((4, 2)), num_chains=4, progress=False)
    jax.effects_barrier()
    assert found.nfe == 1 + 3
    assert len(calls) == 3 + 3  # of all chains at once in three steps, of all draws at once in the end


@pytest.mark.slow
def test_a_prior_of_levels(key):
    """More of small noise; the denoised points stay the data's."""
    init = MODEL.sample(key, CHAINS)
    prior = np.where(RHO < 0.5, 1.0, 0.0)
    method = DenoisingMCMC(num_samples=1, num_warmup=8)
    options = {"key": key, "init": init, "num_chains": CHAINS, "progress": False}
    found = method.run(MODEL, (2,), RHO, log_prior=prior, **options)
    share = np.exp(prior)[RHO < 0.5].sum() / np.exp(prior).sum()
    check_mean((found.rho < 0.5).astype(float)[:, 0], share, delta=0.08, independent=True)
    turned = method.run(MODEL, (2,), RHO[::-1], log_prior=prior[::-1], **options)
    np.testing.assert_array_equal(turned.rho, found.rho)


def test_results_of_denoising_mcmc(key):
    found = run(key, 3, 8)
    assert found.x.shape == found.noisy.shape == (8, 3, 2) and found.rho.shape == (8, 3)
    assert found.acceptance.shape == (8, 11) and "8 chains x 3 draws" in repr(found)
    tree = found.to_datatree()
    assert tree["posterior"]["x"].shape == (8, 3, 2) and tree["sample_stats"]["rho"].shape == (8, 3)


def test_refusals_of_denoising_mcmc():
    alone = Score(lambda x, t: -x, ve())
    good = DenoisingMCMC(num_samples=1, num_warmup=0)
    options = {"key": 0, "num_chains": 2, "progress": False}
    for field, value in (("select", "first"), ("num_skip", 0), ("step_size", -1.0), ("level_law", 3)):
        with pytest.raises(MethodError, match=field):
            DenoisingMCMC(**{field: value})
    with pytest.raises(CapabilityError, match="score alone"):
        dataclasses.replace(good, metropolis=True).run(alone, (2,), RHO, **options)
    with pytest.raises(CapabilityError, match="no density"):
        dataclasses.replace(good, level_law=LevelsFromDensity(), step_size=0.1).run(
            alone, (2,), RHO, **options
        )
    with pytest.raises(MethodError, match="step sizes"):
        good.run(alone, (2,), RHO, **options)
    for rho in ([1.0], [1.0, 1.0], [2.0, 0.0], [1.0, 3.0, 2.0]):
        with pytest.raises(MethodError, match="noise levels"):
            good.run(MODEL, (2,), rho, **options)
    with pytest.raises(MethodError, match="init="):
        good.run(MODEL, (2,), RHO, init=jnp.zeros((3, 2)), **options)
    with pytest.raises(MethodError, match="log_prior"):
        good.run(MODEL, (2,), RHO, log_prior=[0.0], **options)
    with pytest.raises(MethodError, match="classes"):
        law = LevelsFromClassifier(lambda y: jnp.zeros(3))
        dataclasses.replace(good, level_law=law, integrator=DDIM()).run(MODEL, (2,), RHO, **options)
