"""Integrators along the probability flow: measured orders, invariances, ends at no noise, counts of calls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_problems import (
    CAREFUL,
    DETERMINISTIC,
    FIRST,
    KINDS,
    LAST,
    MIXTURE,
    MODELS,
    MODES,
    POINTS,
    RANDOM,
    SCHEDULES,
    flow,
    flow_errors,
    given,
    slopes,
)
from problems import slow_unless

from mcx.diffusion import (
    DDIM,
    DEIS,
    DPMSolver,
    GaussianMixture,
    Heun,
    RungeKutta45,
    SDEDPMSolver,
    UniPC,
    integrate,
    levels,
    sample,
    vp,
)
from mcx.errors import NonFiniteError
from mcx.inference.diffusion.integrators.coefficients import exponential_weights, polynomial_weights

METHODS = DETERMINISTIC | RANDOM
x64 = pytest.mark.x64

# --- orders ----------------------------------------------------------------------------------------

STEPS = (48, 96, 192)


def check_order(name, method, both_sides, **ends):
    """The observed order is the claimed one, within 0.3 of it."""
    # polynomials in rho of degree 3 want short geometric steps
    steps = STEPS if method != CAREFUL["DEIS 4"] else (96, 192, 384)
    found = slopes(flow_errors(name, method, steps, **ends), steps)
    assert (found > method.order - 0.3).all(), f"order {method.order} claimed, {found} found"
    if both_sides:
        assert found[-1] < method.order + 0.3, f"order {method.order} claimed, {found} found"


@x64
@pytest.mark.parametrize("name", slow_unless(["DPM-Solver 3M", "Heun", "UniPC 2"], list(DETERMINISTIC)))
def test_orders(name):
    """On three modes exactly the claimed order; on a Gaussian, where errors may cancel, at least that."""
    method = DETERMINISTIC[name] if name != "DEIS 4" else CAREFUL[name]
    check_order("modes", method, both_sides=True)
    check_order("gaussian", CAREFUL.get(name, DETERMINISTIC[name]), both_sides=False)


@x64
@pytest.mark.parametrize("name", slow_unless(["UniPC 3"], [n for n in DETERMINISTIC if "bh1" not in n]))
def test_orders_from_within(name):
    """From a level where the denoiser changes as anywhere, with a careful start where there is one."""
    check_order("modes", CAREFUL.get(name, DETERMINISTIC[name]), both_sides=True, start=1.5)


@dataclasses.dataclass(frozen=True)
class Leaked(UniPC):
    """A published fault: of the new value, only the last row of the inverse matrix is used."""

    def correct(self, nodes, end):
        if len(nodes) == 1:
            return super().correct(nodes, end)
        h, p = end - nodes[0], len(nodes)
        r = np.append((nodes[1:] - nodes[0]) / h, 1.0)  # the new value last
        inverse = np.linalg.inv(r[:, None] ** np.arange(p))
        moments = [moment(h, k) for k in range(1, p + 1)]
        of_change = moments @ inverse
        np.testing.assert_allclose(self.sorted(of_change / r, h), super().correct(nodes, end), rtol=1e-6)
        of_change[-1] = moments[-1] * inverse[p - 2, -1]
        return self.sorted(of_change / r, h)

    @staticmethod
    def sorted(weights, h):
        """Weights of the new value, the current one and those before, from those of differences."""
        return np.concatenate([weights[-1:], [-np.expm1(-h) - weights.sum()], weights[:-1]])


@dataclasses.dataclass(frozen=True)
class Halved(DPMSolver):
    """Of order 3, but with half of the second difference, as in some codes."""

    def table(self, rho):
        row = super().table(rho)
        weights = row.weights.copy()
        for k in range(2, len(rho) - 1):
            nodes = -np.log(rho[k - np.arange(3)])
            linear = np.append(exponential_weights(nodes[:2], nodes[0], -np.log(rho[k + 1])), 0.0)
            weights[k] = 0.5 * (weights[k] + linear)
        return row._replace(weights=weights)


@dataclasses.dataclass(frozen=True)
class Uneven(Heun):
    """Heun's method with a hundredth of its second slope missing."""

    def table(self, rho):
        row = super().table(rho)
        wrong = 0.01 * row.weights[:, 1]
        return row._replace(weights=row.weights + np.stack([wrong, -wrong], 1))


def moment(h, k):
    """Integral of exp(-h (1 - u)) h u^k over (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = 0.5 * (nodes + 1)
    return 0.5 * weights @ (h * np.exp(-h * (1 - u)) * u**k)


MUTANTS = {"leaked 2": Leaked(2), "leaked 3": Leaked(3), "halved": Halved(3), "uneven": Uneven()}


@x64
@pytest.mark.parametrize("name", slow_unless(["leaked 2"], list(MUTANTS)))
def test_orders_find_a_broken_coefficient(name):
    with pytest.raises(AssertionError, match="claimed"):
        check_order("modes", MUTANTS[name], both_sides=True)


def test_coefficients():
    """Integrals of polynomials in lambda and in rho are exact, and of one node DDIM's and Euler's."""
    nodes, end = np.array([0.3, -0.5, -0.9]), 1.1
    found = exponential_weights(nodes, nodes[0], end)
    for degree in range(3):
        h = end - nodes[0]
        exact = sum(
            np.polynomial.polynomial.polyfit(
                [0.0, 0.5, 1.0], (nodes[0] + h * np.array([0, 0.5, 1])) ** degree, 2
            )[k]
            * (moment(h, k) if k else -np.expm1(-h))
            for k in range(3)
        )
        assert found @ nodes**degree == pytest.approx(exact, rel=1e-12)
    rho = np.array([3.0, 5.0, 9.0, 20.0])
    for after, rtol in ((1.2, 1e-12), (0.0, 1e-12)):
        weights = polynomial_weights(rho, rho[0], after)
        for k in range(4):
            assert weights @ rho**k == pytest.approx((after ** (k + 1) - 3.0 ** (k + 1)) / (k + 1), rel=rtol)
    in_time = polynomial_weights(rho[:2], 3.0, 1.2, lambda r: jnp.log(r))
    # the integral of log rho, by parts
    assert in_time @ np.log(rho[:2]) == pytest.approx(
        1.2 * np.log(1.2) - 1.2 - 3 * np.log(3.0) + 3, rel=1e-12
    )
    assert in_time.sum() == pytest.approx(-1.8, rel=1e-12)


# --- identities ------------------------------------------------------------------------------------


def run(method, model=MIXTURE, rho=None, key=0, y=(12.0, -9.0)):
    rho = levels(20.0, 0.1, 10, to_zero=True) if rho is None else rho
    return integrate(model, jnp.asarray(y, float), rho, key=jax.random.key(key), method=method)


def test_ddim_is_dpm_solver_of_order_one():
    for other in (DPMSolver(1), DEIS(1)):
        np.testing.assert_allclose(run(DDIM()), run(other), rtol=1e-5)
    np.testing.assert_allclose(run(DDIM(1.0)), run(SDEDPMSolver(1)), rtol=1e-5)


@pytest.mark.slow
def test_unipc_without_corrector_is_dpm_solver():
    """Of two nodes: the predictor has the paper's 2M formula with bh2."""
    rho = levels(20.0, 0.1, 10)
    np.testing.assert_allclose(UniPC(2).table(rho).predictor, DPMSolver(2).table(rho).weights, rtol=1e-12)
    np.testing.assert_allclose(UniPC(3).table(rho).predictor, DPMSolver(3).table(rho).weights, rtol=1e-12)


POINT = GaussianMixture(jnp.array([[3.0, -2.0]]), jnp.zeros((1, 2)), jnp.ones(1))


def test_a_point_mass_is_hit():
    """Data that are one point, variance 0: DDIM in one step, every method in the end."""
    one = run(DDIM(), POINT, [30.0, 0.0])
    np.testing.assert_allclose(one, [3.0, -2.0], rtol=1e-6)
    half = run(DDIM(), POINT, [30.0, 15.0])
    np.testing.assert_allclose(half, 0.5 * np.array([3.0 + 12, -2.0 - 9]), rtol=1e-6)


FAST_ENDS = ["Heun", "UniPC 3"]


@pytest.mark.parametrize("name", slow_unless(FAST_ENDS, list(METHODS)))
def test_the_end_at_no_noise(name):
    """Finite for few steps and many, and on the manifold: a circle of near-points, of variance 1e-12.

    The first levels are coarse, and every draw ends within a thousandth of a point of the circle.
    """
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    model = GaussianMixture.of(circle, 1e-12)
    method = METHODS[name]
    for rho in (np.array([20.0, 0.0]), levels(20.0, 0.002, 24, power=7.0, to_zero=True)):
        found = np.asarray(sample(model, 32, (2,), rho, key=jax.random.key(1), method=method))
        assert np.isfinite(found).all()
    distance = np.sqrt(((found[:, None] - circle) ** 2).sum(-1)).min(1)
    assert np.median(distance) < 1e-3
    if name in DETERMINISTIC:
        assert distance.max() < 0.1


def test_levels_to_zero():
    rho = levels(20.0, 0.1, 3, to_zero=True)
    assert rho.shape == (5,) and rho[-1] == 0 and rho[-2] == pytest.approx(0.1)


@pytest.mark.slow
@x64
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n not in ("DEIS 3 in t", "DEIS 2 in t")])
def test_schedules_and_parametrisations(name):
    """The same model under every schedule and as anything a network may give: the same end."""
    method = DETERMINISTIC[name]
    rho = levels(20.0, 0.1, 12)
    exact = run(method, rho=rho)
    for schedule in SCHEDULES.values():
        np.testing.assert_allclose(run(method, given("denoised", schedule), rho), exact, rtol=1e-9)
    for kind in KINDS:
        np.testing.assert_allclose(run(method, given(kind, vp()), rho), exact, rtol=1e-9)


def test_a_trained_score_and_its_mixture(key):
    """In float32, through another schedule and parametrisation."""
    rho = levels(20.0, 0.1, 10, to_zero=True)
    found = run(UniPC(3), given("velocity", SCHEDULES["rectified_flow"]), rho)
    np.testing.assert_allclose(found, run(UniPC(3), rho=rho), rtol=1e-3, atol=1e-3)


@x64
@pytest.mark.parametrize("name", slow_unless(["UniPC 3"], ["DPM-Solver 2M", "Heun", "UniPC 3", "DEIS 3"]))
def test_there_and_back(name):
    """Down and up again: errors of both ways, which fall at the claimed order."""
    method = DETERMINISTIC[name]
    apart = []
    for num in (60, 120):
        rho = levels(10.0, LAST, num)
        there = run(method, MODES, rho, y=(4.0, -3.0))
        back = run(method, MODES, rho[::-1], y=there)
        apart.append(float(jnp.abs(back - jnp.array([4.0, -3.0])).max()))
    assert apart[1] < 0.02 and apart[1] < 2.0 ** (0.4 - method.order) * apart[0]


# --- steps of any length ---------------------------------------------------------------------------


@pytest.mark.slow
@x64
def test_runge_kutta():
    """To its tolerance on three modes; ends at no noise, and at the same place on a path."""
    pytest.importorskip("diffrax")
    method = RungeKutta45(1e-8, 1e-8)
    start = jnp.asarray(FIRST * POINTS)
    for name in MODELS:
        found = jax.vmap(lambda y, name=name: integrate(MODELS[name], y, [FIRST, LAST], method=method))(start)
        np.testing.assert_allclose(found, flow(name), atol=1e-6)
    rho = [FIRST, 1.0, 0.001, 0.0]
    path = integrate(MODES, start[0], rho, method=method, path=True)
    end = integrate(MODES, start[0], [FIRST, 0.001, 0.0], method=method)
    assert path.shape == (4, 2)
    np.testing.assert_allclose(path[-1], end, atol=1e-6)
    np.testing.assert_allclose(path[1], flow("modes", FIRST, 1.0)[0], atol=1e-6)
    with pytest.raises(NonFiniteError):
        integrate(MODES, start[0], rho, method=RungeKutta45(1e-8, 1e-8, max_steps=3))
