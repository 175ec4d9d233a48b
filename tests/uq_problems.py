"""Problems of uncertainty quantification whose answers are known: beams, moments, sensitivities."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import mcx.dist as dist

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from uncertainty_quantification import gaussians, of_gaussians

beam = of_gaussians  # the deflection, of (log F_X, log F_Y, log E, w, t, L)


def even_powers(x):
    """x^2, x^4 .. x^20."""
    return x[0] ** (2 * jnp.arange(1, 11))


MOMENTS = np.array([math.prod(range(1, 2 * j, 2)) for j in range(1, 11)], float)  # E x^2j = (2j - 1)!!


def perturbed_beams(count=100, seed=0):
    """Locations (count, 6) and covariances of the Gaussian coordinates: nominal means and correlations vary.

    A Latin hypercube, as in Demange-Chryst, Bachoc and Morio (2022); theirs is another draw of it.
    """
    low = [525, 425, 175e9, 0.06, 0.09, 4, -0.6, 0, 0]
    high = [575, 475, 225e9, 0.07, 0.1, 5, 0, 0.5, 0.5]
    unit = scipy.stats.qmc.LatinHypercube(9, rng=np.random.default_rng(seed)).random(count)
    drawn = scipy.stats.qmc.scale(unit, low, high)
    loc, sd = gaussians(drawn[:, :6])
    correlation = np.broadcast_to(np.eye(6), (count, 6, 6)).copy()
    for column, (i, j) in zip(drawn[:, 6:].T, ((3, 4), (3, 5), (4, 5)), strict=True):
        correlation[:, i, j] = correlation[:, j, i] = column
    return loc, correlation * sd[:, :, None] * sd[:, None, :]


def _hypot_moments(loc, tril, of, nodes=24):
    """Gauss-Hermite quadrature over (log F_X, log F_Y, w, t): the values of ``of`` and the weights."""
    z, weight = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(z, z, z, z, indexing="ij"), -1)
    w = np.ones([nodes] * 4)
    for axis in range(4):
        w = w * np.expand_dims(weight / weight.sum(), [a for a in range(4) if a != axis])
    return of(loc + grid @ tril.T), w


def _shape(y):
    w, t = y[..., 2], y[..., 3]
    return np.hypot(np.exp(y[..., 0]) / w**2, np.exp(y[..., 1]) / t**2) / (w * t)


_BENT = [0, 1, 3, 4]


def beam_mean(loc, cov):
    """Mean deflection under Gaussian coordinates, by quadrature: L given (w, t) and E in closed form."""
    tril = np.linalg.cholesky(cov[np.ix_(_BENT, _BENT)])
    slope = np.linalg.solve(cov[3:5, 3:5], cov[3:5, 5])
    rest = cov[5, 5] - slope @ cov[3:5, 5]

    def of(y):
        m = loc[5] + (y[..., 2:] - loc[3:5]) @ slope
        return (m**3 + 3 * m * rest) * _shape(y)

    value, w = _hypot_moments(loc[_BENT], tril, of, nodes=12)
    return 4 * math.exp(cov[2, 2] / 2 - loc[2]) * (w * value).sum()


def beam_truth():
    """Mean, variance, first-order and total Sobol' indices of the nominal beam, by quadrature."""
    loc, sd = gaussians()
    h, weight = _hypot_moments(loc[_BENT], np.diag(sd[_BENT]), _shape)
    cubed = [scipy.stats.norm(loc[5], sd[5]).moment(k) for k in (3, 6)]
    inverse = [math.exp(k * k * sd[2] ** 2 / 2 - k * loc[2]) for k in (1, 2)]
    one = [4 * cubed[0] * inverse[0], 16 * cubed[1] * inverse[1]]  # moments of 4 L^3 / E
    mean = one[0] * (weight * h).sum()
    second = one[1] * (weight * h**2).sum()
    variance = second - mean**2

    def square_of_mean(over):  # E (E[h | other axes])^2
        w = weight.sum(over, keepdims=True)
        given = (weight * h).sum(over, keepdims=True) / w
        return (w * given**2).sum()

    first, total = np.zeros(6), np.zeros(6)
    for axis, i in enumerate(_BENT):
        others = tuple(a for a in range(4) if a != axis)
        first[i] = one[0] ** 2 * square_of_mean(others) - mean**2
        total[i] = second - one[1] * square_of_mean((axis,))
    for i, moments in ((5, cubed), (2, inverse)):
        ratio = moments[0] ** 2 / moments[1]
        first[i] = mean**2 / ratio - mean**2
        total[i] = second - second * ratio
    return mean, variance, first / variance, total / variance


def ishigami(x):
    """Of three uniform variables on [-pi, pi]."""
    return jnp.sin(x[0]) + 7 * jnp.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * jnp.sin(x[0])


def ishigami_truth(a=7.0, b=0.1):
    """First-order and total indices."""
    pi4 = math.pi**4
    v1 = (1 + b * pi4 / 5) ** 2 / 2
    v2 = a**2 / 8
    v13 = b**2 * pi4**2 * (1 / 18 - 1 / 50)
    v = v1 + v2 + v13
    return np.array([v1, v2, 0]) / v, np.array([v1 + v13, v2, v13]) / v


G_COEFFICIENTS = np.array([0.0, 1.0, 4.5, 9.0, 99.0, 99.0])


def g_function(x):
    """Sobol's g-function of uniform variables on [0, 1]: products of functions with a kink."""
    a = jnp.asarray(G_COEFFICIENTS, x.dtype)
    return jnp.prod((jnp.abs(4 * x - 2) + a) / (1 + a))


def g_truth(a=G_COEFFICIENTS):
    """First-order and total indices."""
    one = 1 / (3 * (1 + a) ** 2)
    v = np.prod(1 + one) - 1
    return one / v, one * np.prod(1 + one) / (1 + one) / v


UNIFORM = dist.Uniform(-math.pi, math.pi).expand([3]).to_event(1)


def beam_products():
    """Functions of 12 standard normals whose means give first-order indices; their law, and the means.

    The deflections at two points that share one coordinate, multiplied; the deflection, and its square.
    """
    loc, sd = (jnp.asarray(a) for a in gaussians())

    def products(z):
        a, b = z.reshape(2, 6)
        frozen = jnp.where(jnp.eye(6, dtype=bool), a, b)
        value, *others = jax.vmap(beam)(loc + sd * jnp.concatenate([a[None], frozen]))
        return jnp.stack([*(value * other for other in others), value, value**2])

    mean, variance, first, _ = beam_truth()
    truth = np.r_[first * variance + mean**2, mean, variance + mean**2]
    return products, dist.Normal(0.0, 1.0).expand([12]).to_event(1), truth


def _lognormal(x):
    # times two a lognormal density, whose mass on [0, 1] is one half
    return jnp.prod(jnp.sqrt(2 / jnp.pi) * jnp.exp(-(jnp.log(x) ** 2) / 2) / x)


# Integrals of 1 over the unit cube, and root mean square errors of 5000 and 50,000 draws that Leluc, Portier,
# Segers and Zhuman (2022) store, without control variates and with them.
CUBE = {
    ("sine", 4): (
        lambda x: 1 + jnp.sin(jnp.pi * (2 * jnp.mean(x) - 1)),
        {"AIS": (1.7e-2, 6.1e-3), "AISCV": (9.9e-3, 2.1e-3)},
    ),
    ("lognormal", 4): (_lognormal, {"AIS": (1.8e-2, 5.6e-3), "AISCV": (5.6e-3, 1.2e-3)}),
    ("exponential", 4): (
        lambda x: jnp.prod(jnp.log(2.0) * 2 ** (1 - x)),
        {"AIS": (1.4e-2, 4.1e-3), "AISCV": (1.2e-3, 2.4e-4)},
    ),
}
CUBE |= {
    (name, 8): (CUBE[name, 4][0], stored)
    for name, stored in {
        "sine": {"AIS": (3.0e-2, 1.0e-2), "AISCV": (1.8e-2, 1.6e-3)},
        "lognormal": {"AIS": (3.7e-2, 1.3e-2), "AISCV": (1.7e-1, 2.7e-2)},
        "exponential": {"AIS": (4.0e-2, 1.4e-2), "AISCV": (1.3e-2, 1.4e-3)},
    }.items()
}
