"""``mcx.ScorePrior`` as a distribution and as a site: draws, densities, tables, refusals, products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from guided_problems import Mixture, linear, problem, score_alone

import mcx
import mcx.dist as dist
from mcx.diffusion import Composition, GaussianMixture, Score, levels, ve, vp
from mcx.errors import CapabilityError, MethodError
from mcx.testing import check_mean

GAUSSIAN = GaussianMixture.of([1.0, -2.0], 0.5)
ALONE = score_alone(GAUSSIAN)


@mcx.model
def noisy(prior, y=None):
    x = mcx.sample("x", prior)
    mcx.deterministic("size", jnp.sum(x**2))
    mcx.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def test_score_prior_draws_a_gaussian(key):
    """Steps are exact where variances are equal, whatever their number; alpha 1e-6, a tenth of an sd."""
    prior = mcx.ScorePrior(ALONE, event_shape=2, num_steps=12)
    x = np.asarray(jax.jit(lambda k: prior.sample(k, (20_000,)))(key))
    check_mean(x, [1.0, -2.0], delta=0.05, independent=True)
    check_mean(x**2, [1.5, 4.5], delta=0.2, independent=True)
    shapes = [jax.eval_shape(lambda k, s=s: prior.sample(k, s), key).shape for s in ((), (2, 3))]
    assert shapes == [(2,), (2, 3, 2)]


@pytest.mark.slow
def test_draws_of_a_mixture(key):
    """Two modes keep their shares, and their own variances, up to an error of the number of steps."""
    mixture = GaussianMixture.of([[-3.0, 0.0], [3.0, 1.0]], [0.3, 1.0], [0.7, 0.3])
    x = np.asarray(mcx.ScorePrior(mixture, num_steps=300).sample(key, (40_000,)))
    right = x[:, 0] > 0
    check_mean(right, 0.3, delta=0.02, independent=True)
    check_mean((x[right] - [3.0, 1.0]) ** 2, [1.0, 1.0], delta=0.1, independent=True)
    check_mean((x[~right] - [-3.0, 0.0]) ** 2, [0.3, 0.3], delta=0.03, independent=True)


def test_density():
    prior = mcx.ScorePrior(GAUSSIAN)
    x = jnp.array([[[0.3, -1.0], [2.0, 0.1]]])
    exact = dist.Normal(jnp.array([1.0, -2.0]), 0.5**0.5).to_event(1).log_prob(x)
    np.testing.assert_allclose(prior.log_prob(x), exact, atol=1e-3)  # the smallest level is not 0
    assert prior.log_prob(x).shape == (1, 2)
    with pytest.raises(CapabilityError, match=r"mcx\.GuidedDiffusion"):
        mcx.ScorePrior(ALONE, event_shape=2).log_prob(x)


def test_a_site_without_a_density():
    """Tables, checks and pictures take it; what needs a density says why not."""
    y = np.array([1.0, -1.0], np.float32)
    bound = noisy(mcx.ScorePrior(ALONE, event_shape=2, num_steps=12), y)
    site = bound.sites()["x"]
    assert site.kind == "latent" and site.distribution == "ScorePrior" and site.event_shape == (2,)
    assert "no density" in str(bound.sites())
    report = bound.check()
    assert report.ok and "GuidedDiffusion" in str(report)
    assert "x ~ ScorePrior" in bound.render()
    for method in (mcx.NUTS(), mcx.TemperedSMC()):
        with pytest.raises(CapabilityError, match="score alone") as error:
            mcx.infer(bound, method, key=0)
        assert error.value.site == "x" and "mcx.GuidedDiffusion" in error.value.remedy
    with pytest.raises(CapabilityError, match="score alone"):
        bound.log_density({"x": y})
    with pytest.raises(CapabilityError, match="observed ScorePrior"):
        mcx.infer(linear(mcx.ScorePrior(ALONE, event_shape=2), np.eye(2), 1.0, y).condition({"x": y}),
                  mcx.NUTS(), key=0)  # fmt: skip


@pytest.mark.slow
def test_simulations():
    """Simulations, prior and posterior predictions, and results in ArviZ's form."""
    y = np.array([1.0, -1.0], np.float32)
    bound = noisy(mcx.ScorePrior(ALONE, event_shape=2, num_steps=12), y)
    assert bound.simulate(key=0)["y"].shape == (2,)
    drawn = mcx.predict(None, bound, key=0, num_draws=10)
    assert drawn["x"].shape == (1, 10, 2) and np.ptp(drawn["x"]) > 0
    post = mcx.infer(bound, mcx.GuidedDiffusion(64), key=0, num_chains=2, warnings="ignore")
    again = mcx.predict(post, bound, key=1)
    assert again["y"].shape == (2, 64, 2) and "x" not in again
    tree = post.to_datatree(posterior_predictive=again)
    assert "y" in tree["log_likelihood"] and "x" not in tree["log_prior"]
    assert tree["smc_stats"]["ess"].shape == (2, 13)
    assert "log evidence" in repr(post)


def test_a_pytree_of_parameters():
    """A network's parameters are leaves; other ones compile nothing."""
    schedule, traced = ve(0.01, 20.0), []

    def network(params, x, t):
        traced.append(1)
        return -x / (params + schedule.sigma(t) ** 2)

    def prior(params):
        fn = jax.tree_util.Partial(network, jnp.float32(params))
        return mcx.ScorePrior(fn, schedule, event_shape=(3,), num_steps=8)

    leaves = jax.tree_util.tree_leaves(prior(0.7))
    assert any(np.ndim(x) == 0 and x == np.float32(0.7) for x in leaves)
    draw = jax.jit(lambda p: p.sample(jax.random.key(0)))
    first, count = draw(prior(1.0)), len(traced)
    second = draw(prior(4.0))
    assert len(traced) == count and not np.allclose(first, second)
    assert jax.jit(lambda p: p)(prior(1.0)).event_shape == (3,)


def test_leaves_have_the_same_order_in_every_process():
    """NumPyro's is that of a set of strings, which hashing randomises: a checkpoint was refused by chance."""
    prior = mcx.ScorePrior(GaussianMixture.of([0.0], 1.0), num_steps=8)
    assert jax.tree_util.tree_leaves(prior)[0] is prior.rho


def test_plates_and_shapes():
    @mcx.model
    def images():
        with mcx.plate("image", 3):
            mcx.sample("x", mcx.ScorePrior(lambda x, t: -x, vp(), event_shape=(2, 2), num_steps=4))

    assert images().sites()["x"].shape == (3, 2, 2) and images().sites()["x"].dims[0] == "image"
    assert images().simulate(key=0)["x"].shape == (3, 2, 2)


def test_products_and_powers():
    other = GaussianMixture.of([0.0, 0.0], 2.0)
    first, second = mcx.ScorePrior(GAUSSIAN), mcx.ScorePrior(other)
    both = (first * second) ** 0.5
    assert isinstance(both.model, Composition) and both.model.powers == (0.5, 0.5)
    x = jnp.array([0.5, 0.5])
    halves = 0.5 * (GAUSSIAN.log_density(x, both.rho[-1]) + other.log_density(x, both.rho[-1]))
    assert both.log_prob(x) == pytest.approx(float(halves), rel=1e-5)
    with pytest.raises(MethodError, match="different shapes"):
        first * mcx.ScorePrior(ALONE, event_shape=3)


@pytest.mark.slow
def test_draws_of_a_power(key):
    """Chosen among weighted particles; finds a fifth of an sd."""
    prior = mcx.ScorePrior(GAUSSIAN, num_steps=200) ** 2
    x = np.asarray(prior.sample(key, (2000,)))
    check_mean(x, [1.0, -2.0], delta=0.1, independent=True)
    check_mean((x - [1.0, -2.0]) ** 2, [0.25, 0.25], delta=0.06, independent=True)


@pytest.mark.slow
def test_nuts_where_there_is_a_density():
    """NUTS on a mixture in 3 dimensions against the exact posterior; finds a tenth of an sd."""
    mixture, matrix, scale, y = problem(3, 2, 2, scale=0.5)
    mixture = Mixture(mixture.weights, mixture.means / 4, mixture.covariances)  # modes that chains can leave
    exact, _ = mixture.given(matrix, scale, y)
    post = mcx.infer(
        linear(mcx.ScorePrior(mixture.model), matrix, scale, y),
        mcx.NUTS(num_samples=20_000),
        key=0,
        warnings="ignore",
    )
    sd = np.sqrt(np.diag(exact.covariance))
    check_mean(post["x"], exact.mean, delta=0.1 * sd)
    check_mean((post["x"] - exact.mean) ** 2, sd**2, delta=0.15 * sd**2)


def test_refusals_of_score_prior():
    for wrong, what in (
        ({"model": 3.0}, "no diffusion model"),
        ({"model": lambda x, t: x, "event_shape": 2}, "how much noise"),
        ({"model": ALONE}, "shape of its draws"),
        ({"model": GAUSSIAN, "levels": [1.0, 2.0]}, "no noise levels"),
        ({"model": GAUSSIAN, "levels": [1.0]}, "no noise levels"),
        ({"model": mcx.ScorePrior(GAUSSIAN)}, "of a ScorePrior"),
    ):
        with pytest.raises(MethodError, match=what):
            mcx.ScorePrior(**wrong)
    assert mcx.ScorePrior(GAUSSIAN, levels=levels(10.0, 0.1, 5)).rho.shape == (6,)
    assert isinstance(mcx.ScorePrior(lambda x, t: x, vp(), 2).model, Score)
