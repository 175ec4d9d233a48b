"""Diffusion models with known flows: Gaussians in closed form, mixtures by a tight reference solution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from mcx.diffusion import (
    DDIM,
    DEIS,
    DPMSolver,
    DPMSolver2S,
    EulerMaruyama,
    GaussianMixture,
    Heun,
    PredictorCorrector,
    Score,
    SDEDPMSolver,
    UniPC,
    discrete,
    integrate,
    levels,
    rectified_flow,
    ve,
    vp,
    vp_cosine,
)

DETERMINISTIC = {
    "Euler": EulerMaruyama(noise=0.0),
    "DDIM": DDIM(),
    "DPM-Solver 2M": DPMSolver(2),
    "DPM-Solver 3M": DPMSolver(3),
    "DPM-Solver 2S": DPMSolver2S(),
    "Heun": Heun(),
    "DEIS 1": DEIS(1),
    "DEIS 2": DEIS(2),
    "DEIS 3": DEIS(3),
    "DEIS 4": DEIS(4),
    "DEIS 2 in t": DEIS(2, vp()),
    "DEIS 3 in t": DEIS(3, vp()),
    "UniPC 1": UniPC(1),
    "UniPC 2": UniPC(2),
    "UniPC 2 bh1": UniPC(2, "bh1"),
    "UniPC 3": UniPC(3),
    "UniPC 3 bh1": UniPC(3, "bh1"),
}
CAREFUL = {
    "DPM-Solver 3M": DPMSolver(3, careful_start=True),
    "DEIS 3": DEIS(3, careful_start=True),
    "DEIS 4": DEIS(4, careful_start=True),
    "DEIS 3 in t": DEIS(3, vp(), careful_start=True),
    "UniPC 3": UniPC(3, careful_start=True),
}
RANDOM = {
    "Euler-Maruyama": EulerMaruyama(),
    "Euler-Maruyama, other noise": EulerMaruyama(noise=lambda rho: 2.0 / (1.0 + rho)),
    "DDIM, eta 1": DDIM(1.0),
    "DDIM, eta 0.5": DDIM(0.5),
    "SDE-DPM-Solver": SDEDPMSolver(1),
    "SDE-DPM-Solver 2M": SDEDPMSolver(2),
    "EDM with churn": Heun(s_churn=10.0, s_min=0.05, s_max=10.0),
    "predictor-corrector": PredictorCorrector(num_corrections=2),
    "predictor-corrector, snr": PredictorCorrector(DDIM(), snr=0.16),
    "predictor-corrector, norms": PredictorCorrector(DDIM(), snr=0.16, norms="particle"),
}

MIXTURE = GaussianMixture.of([[-1.0, 0.5], [2.0, 1.0]], [[0.3, 1.0], [0.5, 0.2]], [0.4, 0.6])
STEPS = discrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))  # of DDPM
SCHEDULES = {s.name: s for s in (vp(), vp_cosine(), ve(), rectified_flow(), STEPS)}
KINDS = ("score", "noise", "denoised", "velocity", "flow", "energy")


def given(kind, schedule, model=MIXTURE):
    """A mixture as a function of (x, t) of a kind."""

    def fn(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        d = model.denoise(x / alpha, sigma / alpha)
        noise = (x - alpha * d) / sigma
        slopes = [jax.grad(f)(jnp.asarray(t)) for f in (schedule.alpha, schedule.sigma)]
        return {
            "score": -noise / sigma,
            "noise": noise,
            "denoised": d,
            "velocity": alpha * noise - sigma * d,
            "flow": slopes[0] * d + slopes[1] * noise,
            "energy": -model.log_density(x / alpha, sigma / alpha) + x.size * jnp.log(alpha),
        }[kind]

    return Score(fn, schedule, kind)


GAUSSIAN = GaussianMixture.of([0.7, -0.4], [0.5, 1.5])
MODES = GaussianMixture.of(
    [[-1.6, 0.0], [1.0, 1.2], [0.9, -1.4]], [[0.4, 0.6], [0.5, 0.3], [0.7, 0.5]], [0.3, 0.4, 0.3]
)
MODELS = {"gaussian": GAUSSIAN, "modes": MODES}
FIRST, LAST = 40.0, 0.05
# where the flow goes from: a point for each direction and mode, in units of the first level
POINTS = np.array([[0.8, 0.3], [-0.7, 0.9], [0.1, -1.2], [-1.1, -0.4], [0.2, 0.1], [1.5, -0.6]])


@functools.cache
def flow(name, start=FIRST, end=LAST):
    """Points of the first level carried to the last along the probability flow, (6, 2)."""
    y = start * POINTS
    if name == "gaussian":
        mean, variances = np.asarray(GAUSSIAN.means[0], float), np.asarray(GAUSSIAN.variances[0], float)
        return mean + np.sqrt((variances + end**2) / (variances + start**2)) * (y - mean)
    model = MODELS[name]
    denoise = jax.jit(jax.vmap(model.denoise, (0, None)))

    def field(lam, flat):
        at = flat.reshape(-1, 2)
        return (np.asarray(denoise(at, np.exp(-lam))) - at).ravel()

    ends = (-np.log(start), -np.log(end))
    found = scipy.integrate.solve_ivp(field, ends, y.ravel(), "DOP853", rtol=1e-12, atol=1e-13)
    return found.y[:, -1].reshape(-1, 2)


def flow_errors(name, method, steps, start=FIRST, end=LAST):
    """Root mean square errors of a deterministic method with geometric levels."""
    exact = flow(name, start, end)
    errors = []
    for num in steps:
        rho = levels(start, end, num)
        found = jax.vmap(lambda y, rho=rho: integrate(MODELS[name], y, rho, method=method))(
            jnp.asarray(start * POINTS)
        )
        errors.append(float(np.sqrt(np.mean((np.asarray(found) - exact) ** 2))))
    return np.array(errors)


def slopes(errors, steps):
    """Observed orders from one number of steps to the next."""
    return np.array(
        [
            np.log(a / b) / np.log(m / n)
            for (a, b), (n, m) in zip(itertools.pairwise(errors), itertools.pairwise(steps), strict=True)
        ]
    )
