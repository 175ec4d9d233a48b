"""Circles and spheres: chains cross what an interval would cut, moments and evidence by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate

import mcx
from mcx.model.bijections import bijection, radius_log_density
from mcx.model.compile import compile_model
from mcx.testing import check_mean

ANGLES = np.linspace(-np.pi, np.pi, 2000, endpoint=False)


@mcx.model
def direction(y):
    x = numpyro.sample("x", dist.VonMises(3.1, 2.0))
    numpyro.sample("y", dist.VonMises(x, 3.0), obs=y)


BOUND = direction(jnp.array([-2.9, 3.0]))


def quadrature():
    """(E exp(ix), log evidence) of BOUND on a grid, which is exact to rounding for periodic functions."""
    log_p = np.asarray(jax.vmap(lambda x: BOUND.log_density({"x": x}))(jnp.asarray(ANGLES)), float)
    p = np.exp(log_p - log_p.max())
    mass = p.mean() * 2 * np.pi
    return (p * np.exp(1j * ANGLES)).sum() / p.sum(), np.log(mass) + log_p.max()


@pytest.mark.parametrize("run", range(4))
def test_chains_cross_the_end_of_the_interval(key, run):
    """In all of 4 runs; chains that cannot cross find E sin x = .446 or -.45 for -.025, with r_hat 1."""
    moment, _ = quadrature()
    posterior = mcx.infer(BOUND, mcx.NUTS(), key=key, progress=False)
    x = posterior.draws["x"]
    check_mean(np.sin(x), moment.imag, delta=0.1)
    check_mean(np.cos(x), moment.real, delta=0.1)
    assert (np.sign(x) != np.sign(x[:, :1])).any(1).all()  # every chain was on both sides


def test_summary_is_circular():
    moment, _ = quadrature()
    posterior = mcx.infer(BOUND, mcx.NUTS(), key=0, progress=False)
    row = posterior.summary()["x"]
    assert abs(np.angle(np.exp(1j * row["mean"]) / moment)) < 5 * row["mcse_mean"]
    assert abs(row["sd"] - np.sqrt(-2 * np.log(abs(moment)))) < 0.03
    assert row["5%"] < row["mean"] < row["95%"] < row["5%"] + 2
    assert row["r_hat"] < 1.01 and row["mcse_mean"] < 0.02 and row["ess_bulk"] > 400


def test_evidence():
    posterior = mcx.infer(BOUND, mcx.TemperedSMC(num_particles=500), key=1, progress=False)
    error = float(posterior.log_evidence) - quadrature()[1]
    assert abs(error) < 4 * float(posterior.log_evidence_se) < 0.3


def test_chains_apart_on_the_circle_are_noticed():
    @mcx.model
    def two_ways():
        x = numpyro.sample("x", dist.VonMises(0.0, 0.01))
        numpyro.factor("two", 60 * jnp.cos(2 * x))

    init = {"x": jnp.array([0.0, 0.0, 3.1, 3.1])}
    with pytest.warns(mcx.errors.InferenceWarning, match="cos x"):
        mcx.infer(two_ways(), mcx.NUTS(), key=0, init=init, progress=False)


@pytest.mark.parametrize("dim, degrees", [(2, 10), (3, 10), (5, 13)])
def test_the_length_integrates_to_one(dim, degrees):
    """Over r^(n-1) dr, along any direction."""

    def density(r):
        point = jnp.zeros(dim).at[0].set(r)
        return float(jnp.exp(radius_log_density(point, degrees))) * r ** (dim - 1)

    total, _ = scipy.integrate.quad(density, 0, 6, epsabs=1e-5)
    assert abs(total - 1) < 1e-5


@pytest.mark.parametrize(
    "law",
    [
        dist.VonMises(jnp.array([3.0, -1.0]), 2.0),
        dist.VonMises(jnp.array([3.0, -1.0]), 2.0).to_event(1),
        dist.SineBivariateVonMises(0.5, -3.0, 2.0, 2.0, 0.5),
        dist.ProjectedNormal(jnp.array([0.5, 2.0])),
        dist.ProjectedNormal(jnp.ones((4, 3))),
        dist.ImproperUniform(dist.constraints.circular, (), ()),
    ],
    ids=["batch", "event", "torus", "circle", "spheres", "improper circle"],
)
def test_points_go_there_and_back(law):
    @mcx.model
    def model():
        numpyro.sample("x", law)

    target = compile_model(model())
    z = target.unravel(jax.random.normal(jax.random.key(0), (target.dim,)))
    x = target.constrain(z)["x"]
    assert x.shape == law.shape() and bool(jnp.all(law.support(x)))
    back = target.constrain(target.unconstrain({"x": x}))["x"]
    np.testing.assert_allclose(back, x, atol=1e-6)
    assert np.isfinite(target.log_density(z))
    at_origin = jax.grad(lambda u: target.log_density(target.unravel(u)))(jnp.zeros(target.dim))
    assert np.isfinite(at_origin).all()


def test_a_sphere(key):
    """Mean direction of a projected normal: E x = m I(|m|), by quadrature over the sphere."""
    mean = jnp.array([0.3, -0.5, 1.0])

    @mcx.model
    def model():
        numpyro.sample("x", dist.ProjectedNormal(mean))

    heights = np.linspace(-1, 1, 4001)
    heights = (heights[1:] + heights[:-1]) / 2  # the height along the mean is uniform on the sphere
    length = float(jnp.linalg.norm(mean))
    points = np.stack([np.sqrt(1 - heights**2), 0 * heights, heights], -1)
    density = np.exp(dist.ProjectedNormal(jnp.array([0.0, 0.0, length])).log_prob(jnp.asarray(points)))
    np.testing.assert_allclose(density.mean() * 4 * np.pi, 1, rtol=1e-4)
    expected = np.asarray(mean) / length * (density * heights).sum() / density.sum()
    posterior = mcx.infer(model(), mcx.NUTS(), key=key, progress=False)
    check_mean(posterior.draws["x"], expected, delta=0.1)


def test_other_supports_keep_numpyros_maps():
    for support in (dist.constraints.simplex, dist.constraints.interval(-np.pi, np.pi)):
        assert type(bijection(support)) is type(dist.biject_to(support))
