"""Integrators: counts of calls and traces, keys, shapes, refusals."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_problems import DETERMINISTIC, MIXTURE, RANDOM, SCHEDULES, given
from problems import slow_unless

from mcx.diffusion import (
    DDIM,
    DEIS,
    DPMSolver,
    DPMSolver2S,
    EulerMaruyama,
    GaussianMixture,
    Heun,
    PredictorCorrector,
    RungeKutta45,
    SDEDPMSolver,
    UniPC,
    integrate,
    levels,
    sample,
)
from mcx.errors import KeyTypeError, MethodError, MissingExtraError, NonFiniteError

METHODS = DETERMINISTIC | RANDOM | {"careful": UniPC(3, careful_start=True)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counting:
    """A mixture that counts its calls, where they run and where they are traced."""

    model: GaussianMixture
    calls: list = dataclasses.field(metadata={"static": True})

    def denoise(self, y, rho):
        self.calls[0] += 1
        jax.debug.callback(self.count, rho, y[0])  # y, so that every point counts under vmap
        return self.model.denoise(y, rho)

    def count(self, rho, y):
        assert rho > 0, "called at no noise"
        self.calls[1] += 1


class Calls(list):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


COUNTED = ["Heun"]


@pytest.mark.parametrize("name", slow_unless(COUNTED, list(METHODS)))
def test_calls_are_counted(name):
    """As many calls as ``nfe`` says, never at level 0, also under vmap; one trace for new levels."""
    method = METHODS[name]
    calls = Calls([0, 0])
    model, y = Counting(MIXTURE, calls), jnp.ones((3, 2))
    traced = None
    for rho in (levels(9.0, 0.1, 5, to_zero=True), levels(8.0, 0.2, 5, to_zero=True), levels(9.0, 0.1, 6)):
        calls[1] = 0
        end = jax.vmap(lambda y, rho=rho: integrate(model, y, rho, key=jax.random.key(0), method=method))(y)
        jax.block_until_ready(end)
        jax.effects_barrier()
        assert calls[1] == 3 * method.nfe(rho)
        traced = calls[0] if traced is None else traced
    assert calls[0] == traced


def test_numbers_of_calls():
    rho, to_zero = levels(9.0, 0.1, 5), levels(9.0, 0.1, 4, to_zero=True)
    for method, positive, zero in (
        (DPMSolver(3), 5, 5),
        (UniPC(3), 5, 5),
        (DEIS(4, careful_start=True), 7, 7),
        (Heun(), 10, 9),
        (DPMSolver2S(), 10, 9),
        (PredictorCorrector(num_corrections=2), 15, 13),
    ):
        assert (method.nfe(rho), method.nfe(to_zero)) == (positive, zero)


def test_draws_do_not_depend_on_their_number(key):
    """Nor on how many are drawn at once; given noise is used, and the path ends where the point does."""
    rho = levels(20.0, 0.1, 5, to_zero=True)
    method = SDEDPMSolver()
    many = sample(MIXTURE, 6, (2,), rho, key=key, method=method, batch_size=4)
    np.testing.assert_allclose(
        sample(MIXTURE, 4, (2,), rho, key=key, method=method), many[:4], rtol=2e-5, atol=2e-5
    )
    assert len(np.unique(np.round(many, 4), axis=0)) == 6
    end = integrate(MIXTURE, np.ones(2, np.float32), rho, key=key, method=method)
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(key, k), (1, 2)))(np.arange(6))
    path = integrate(MIXTURE, np.ones(2, np.float32), rho, method=method, noise=noise, path=True)
    assert path.shape == (7, 2)
    np.testing.assert_allclose(path[-1], end, rtol=1e-5)


@pytest.mark.slow
def test_events_of_other_shapes():
    """An image, in the points' dtype; starts that are given."""
    model = given("denoised", SCHEDULES["rectified_flow"], Shrinking())
    y = sample(model, 3, (2, 4), levels(20.0, 0.1, 4), key=0, init="noise")
    assert y.shape == (3, 2, 4)
    again = sample(model, 3, (2, 4), levels(20.0, 0.1, 4), key=0, init=np.ones((3, 2, 4)))
    assert np.ptp(again) < 1e-6
    half = integrate(model, jnp.ones((2, 4), jnp.bfloat16), levels(20.0, 0.1, 4), method=DDIM())
    assert half.dtype == jnp.bfloat16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shrinking:
    """A standard Gaussian of any shape."""

    def denoise(self, y, rho):
        return y / (1 + rho**2)

    def log_density(self, y, rho):
        return -0.5 * jnp.sum(y**2) / (1 + rho**2)


def test_refusals_of_integrators():
    y = jnp.ones(2)
    for bad in (
        [1.0],
        [2.0, 1.0, 1.0],
        [1.0, 0.0, -1.0],
        [0.0, 1.0],
        [np.inf, 1.0],
        [[2.0, 1.0]],
        [1.0, 2.0, 1.0],
    ):
        with pytest.raises(MethodError, match="noise levels"):
            integrate(MIXTURE, y, bad)
    with pytest.raises(MethodError, match="noise levels"):
        integrate(MIXTURE, y, [1.0, 2.0], key=0, method=SDEDPMSolver())
    with pytest.raises(MethodError, match="traced"):
        jax.jit(lambda rho: integrate(MIXTURE, y, rho))(jnp.array([2.0, 1.0]))
    with pytest.raises(KeyTypeError, match="SDEDPMSolver draws"):
        integrate(MIXTURE, y, [2.0, 1.0], method=SDEDPMSolver())
    with pytest.raises(MethodError, match="noise"):
        integrate(MIXTURE, y, [2.0, 1.0], noise=jnp.ones((1, 1, 2)))
    with pytest.raises(MethodError, match="num"):
        sample(MIXTURE, 0, (2,), [2.0, 1.0], key=0)
    with pytest.raises(MethodError, match="init"):
        sample(MIXTURE, 3, (2,), [2.0, 1.0], key=0, init="zero")
    with pytest.raises(MethodError, match="init"):
        sample(MIXTURE, 3, (2,), [2.0, 1.0], key=0, init=jnp.zeros((2, 2)))
    for make in (
        lambda: DPMSolver(4),
        lambda: DEIS(0),
        lambda: UniPC(2, "bh3"),
        lambda: DDIM(1.5),
        lambda: EulerMaruyama(-1.0),
        lambda: Heun(s_churn=-1.0),
        lambda: SDEDPMSolver(3),
        lambda: PredictorCorrector(Heun()),
        lambda: PredictorCorrector(norms="particle"),
        lambda: DPMSolver(True),
        lambda: UniPC(2.0),
        lambda: SDEDPMSolver("2"),
    ):
        with pytest.raises(MethodError):
            make()
    assert DPMSolver(np.int64(3)) == DPMSolver(jnp.int32(3)) == DPMSolver(3)
    with pytest.raises(MethodError, match=r"integrate\(model=\.\.\.\)"):
        integrate(lambda y, rho: y, y, [2.0, 1.0])
    with pytest.raises(MethodError, match=r"sample\(method=\.\.\.\)"):
        sample(MIXTURE, 3, (2,), [2.0, 1.0], key=0, method=DPMSolver)
    with pytest.raises(KeyTypeError):
        sample(MIXTURE, 3, (2,), [2.0, 1.0], key=None)
    with pytest.raises(NonFiniteError, match="not finite"):
        integrate(dataclasses.replace(MIXTURE, weights=jnp.array([jnp.nan, 0.5])), y, [2.0, 1.0])


def test_without_diffrax(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(MissingExtraError, match=r"mcx\[diffusion\]"):
        integrate(MIXTURE, jnp.ones(2), [2.0, 1.0], method=RungeKutta45(rtol=1e-3))
