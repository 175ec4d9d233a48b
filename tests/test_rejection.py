"""Backward draws by rejection have the exact law; largest densities are those that a search finds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless
from scipy import stats

import mcx
from mcx import FeynmanKac, dist
from mcx.errors import CapabilityError
from mcx.inference.smc.backward import backward_weights, parents
from mcx.model.series.density_bounds import _MODES, has_density_bound, log_density_bound

LAWS = [
    dist.Normal(0.3, 2.0),
    dist.StudentT(3.0, -1.0, 0.5),
    dist.Cauchy(1.0, 0.3),
    dist.Laplace(0.5, 2.0),
    dist.Logistic(0.5, 0.7),
    dist.Gumbel(-1.0, 0.7),
    dist.HalfNormal(0.4),
    dist.HalfCauchy(3.0),
    dist.Exponential(2.5),
    dist.Uniform(-1.0, 3.0),
    dist.LogNormal(0.4, 0.9),
    dist.Gamma(2.5, 3.0),
    dist.Gamma(1.0, 3.0),
    dist.Beta(2.0, 3.5),
    dist.Beta(1.0, 3.0),
    dist.Beta(3.0, 1.0),
    dist.InverseGamma(2.0, 1.5),
    dist.TruncatedNormal(0.5, 1.0, low=1.0),
    dist.TruncatedNormal(2.0, 1.0, high=1.0),
    dist.TruncatedNormal(0.5, 1.0, low=-1.0, high=4.0),
    dist.Poisson(3.7),
    dist.Binomial(7, probs=0.3),
    dist.Bernoulli(probs=0.3),
    dist.Bernoulli(logits=0.3),
    dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])),
    dist.Categorical(logits=jnp.array([0.2, 0.5, 0.7])),
    dist.MultivariateNormal(jnp.array([0.3, -1.0]), jnp.array([[1.0, 0.4], [0.4, 2.0]])),
    dist.LowRankMultivariateNormal(jnp.array([0.3, -1.0]), jnp.array([[1.0], [0.5]]), jnp.array([0.3, 0.8])),
]


def candidates(law):
    """Points of the support, the mode among them to 1e-3."""
    if law.is_discrete:
        upper = {dist.Poisson: 30, dist.BinomialProbs: 7, dist.CategoricalProbs: 2, dist.CategoricalLogits: 2}
        return jnp.arange(upper.get(type(law), 1) + 1)
    line = jnp.linspace(-5, 10, 15001)
    if law.event_shape:
        line = jnp.linspace(-2, 1, 301)
        return jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return line[np.asarray(law.support(line))]


@pytest.mark.parametrize("law", slow_unless(LAWS[::6], LAWS), ids=lambda law: type(law).__name__)
def test_largest_densities(law):
    found = jnp.max(law.log_prob(candidates(law)))
    assert has_density_bound(law)
    assert log_density_bound(law) == pytest.approx(float(found), abs=5e-3)
    assert log_density_bound(law) >= found - 1e-5


def test_every_family_is_tried():
    assert {type(law) for law in LAWS} == set(_MODES)


def test_largest_densities_of_many_entries():
    """Independent entries add up, whether expanded, independent or a batch; a pole is a bound, too."""
    one = log_density_bound(dist.Normal(0.0, 2.0))
    assert log_density_bound(dist.Normal(jnp.zeros(3), 2.0)) == pytest.approx(3 * one)
    assert log_density_bound(dist.Normal(jnp.zeros(3), 2.0).to_event(1)) == pytest.approx(3 * one)
    assert log_density_bound(dist.Normal(0.0, 2.0).expand([4]).to_event(1)) == pytest.approx(4 * one)
    assert log_density_bound(dist.Normal(jnp.zeros(2), 2.0).to_event(1).expand([3])) == pytest.approx(6 * one)
    assert log_density_bound(dist.Gamma(0.5, 1.0)) == np.inf
    assert not has_density_bound(dist.Dirichlet(jnp.ones(3)))
    with pytest.raises(CapabilityError, match="largest density of Dirichlet"):
        log_density_bound(dist.Dirichlet(jnp.ones(3)))


def chain(scale, peak):
    """Scales that differ by particle: the bound is that of the narrowest."""
    return FeynmanKac(
        initial=lambda key, ctx, u: 0.0,
        transition=lambda key, ctx, x, u: x,
        log_potential=lambda ctx, x_prev, x, u: -0.5 * x**2,
        num_times=2,
        log_transition=lambda ctx, x_prev, x, u: dist.Normal(0.8 * x_prev, scale(x_prev)).log_prob(x),
        log_transition_bound=lambda ctx, x_prev, u: peak - jnp.log(scale(x_prev)),
    )


PEAK = -0.5 * np.log(2 * np.pi)


BOUNDS = {"tight": PEAK, "loose": PEAK + 2.0, "hopeless": PEAK + 30.0, "none": np.inf}


@pytest.mark.parametrize("bound", slow_unless(["tight"], list(BOUNDS)))
def test_the_law_is_exact(bound, key):
    """Pearson's test of 4 x 60000 draws; alpha 1e-6, finds probabilities off by 0.015."""
    fk = chain(lambda x: 0.4 + 0.2 * jnp.abs(x), BOUNDS[bound])
    x_prev = jnp.array([-1.5, -0.4, 0.1, 0.9, 2.0, 0.3])
    log_w = jnp.log(jnp.array([0.1, 0.3, 0.15, 0.25, 0.2, 0.0]))  # the last one cannot be
    x, num = jnp.array([-1.0, 0.2, 0.7, 3.0]), 60000

    @jax.jit
    def draw(key):
        return parents(
            key, fk, None, (x_prev, log_w), (x, jnp.zeros(4, jnp.int32)), None,
            num_draws=num, kind="hybrid", num_mh_steps=0,
        )  # fmt: skip

    drawn = np.asarray(draw(key))
    for row, state in zip(drawn, x, strict=True):
        p = np.exp(np.asarray(backward_weights(fk, None, (x_prev, log_w), state, None), float))
        counts = np.bincount(row, minlength=6)
        assert counts[p == 0].sum() == 0
        kept = p > 0
        assert stats.chisquare(counts[kept], num * p[kept] / p.sum()).pvalue > 1e-6


def volatility(y, proposal=None):
    @mcx.model
    def model(y):
        s = mcx.sample("s", dist.HalfNormal(1.0))
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0.0, 1.0),
            transition=lambda x, u: dist.Normal(0.9 * x, s),
            emission=lambda x, u: dist.Normal(x, 0.5),
            obs=y,
            **({} if proposal is None else {"proposal": proposal}),
        )

    return model(y)


Y = np.array([0.3, -0.2, 0.7, 1.1, 0.4], np.float32)


@pytest.mark.parametrize("method", [mcx.FFBS, mcx.PaRIS, mcx.PPG])
@pytest.mark.slow
def test_smoothers_by_rejection(method, key):
    """Against Kalman; 16 runs of 300 particles, alpha 1e-6 of two-sided normal errors."""
    exact = mcx.testing.kalman(
        Y, initial_mean=0.0, initial_cov=1.0, transition_matrix=0.9, transition_cov=0.16,
        observation_matrix=1.0, observation_cov=0.25,
    )  # fmt: skip
    found = mcx.smooth(
        volatility(Y), mcx.functionals.means(), params={"s": 0.4}, num_chains=16, key=key, progress=False,
        method=method(num_particles=300, backward="hybrid"),
    )  # fmt: skip
    (value,), (se,) = jax.tree.leaves(found.value), jax.tree.leaves(found.se)
    np.testing.assert_array_less(np.abs(value - exact.smoothed_means[:, 0]), 6 * se + 0.01)
    assert np.all(se < 0.05)


def test_refusals_of_rejection(key):
    bound = volatility(Y, proposal=lambda x, u, y: dist.Normal(y, 0.5))
    with pytest.raises(CapabilityError, match="needs the largest value of the transition's density"):
        mcx.smooth(
            bound, mcx.functionals.means(), params={"s": 0.4}, key=key, method=mcx.FFBS(backward="hybrid")
        )
    fk = replace(chain(lambda x: 1.0, PEAK), log_potential=lambda ctx, x_prev, x, u: x_prev * x)
    system, after = (jnp.zeros(3), jnp.zeros(3)), (jnp.zeros(3), jnp.zeros(3, jnp.int32))
    with pytest.raises(CapabilityError, match="bounds the transition's density alone"):
        parents(key, fk, None, system, after, None, num_draws=1, kind="hybrid", num_mh_steps=0)
