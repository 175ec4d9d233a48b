"""Whether many short chains agree: false alarms, power, and who sits elsewhere."""

import jax
import numpy as np
import pytest
from scipy.stats import kstest

from mcx.results.agreement import groups, spread_between

R_HAT, RATE = 1.01, 1e-4


def autoregressive(rng, num_chains, num_draws, phi):
    noise = rng.normal(size=(num_chains, num_draws))
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0] / np.sqrt(1 - phi**2)
    for t in range(1, num_draws):
        x[:, t] = phi * x[:, t - 1] + noise[:, t]
    return x * np.sqrt(1 - phi**2)


@pytest.fixture
def rng(key):
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


@pytest.mark.parametrize(
    ("num_chains", "num_draws", "phi"), [(16, 200, 0.0), (64, 500, 0.5), (64, 500, 0.9), (128, 200, -0.3)]
)
def test_no_false_alarm(num_chains, num_draws, phi, rng):
    """The ratio is about 1 whatever the autocorrelation; 400 series that agree: no alarm (4 % by chance)."""
    spreads = [spread_between(autoregressive(rng, num_chains, num_draws, phi)) for _ in range(100)]
    assert not any(s.disagree(R_HAT, RATE) for s in spreads)
    assert abs(np.mean([s.ratio for s in spreads]) - 1) < 0.15


def test_plain_r_hat_would_misfire(rng):
    from arviz_stats.base import array_stats

    x = autoregressive(rng, 64, 200, 0.5)
    assert array_stats.rhat(x) > R_HAT
    assert spread_between(x).r_hat < 1.005


def test_one_chain_elsewhere_is_found(rng):
    x = autoregressive(rng, 64, 500, 0.5)
    x[17] += 5.0
    assert spread_between(x).disagree(R_HAT, RATE)
    found = groups(x, -0.5 * x**2)
    assert found is not None
    np.testing.assert_array_equal(found.apart, [17])
    assert found.mean - found.rest == pytest.approx(5.0, abs=0.5)
    assert found.log_density == pytest.approx(-12.5, abs=3.0)


def test_a_trend_is_found(rng):
    """All chains on their way to the same place: half chains differ, chains do not."""
    x = autoregressive(rng, 64, 500, 0.5) + np.linspace(-0.5, 0.5, 500)
    assert spread_between(x).disagree(R_HAT, RATE)
    assert groups(x, None) is None


def test_monotone_transformations_do_not_matter(rng):
    x = autoregressive(rng, 64, 200, 0.5)
    assert spread_between(np.exp(3 * x)) == spread_between(x)


@pytest.mark.slow
def test_probabilities_are_what_they_say(rng):
    from scipy.stats import f

    spreads = [spread_between(autoregressive(rng, 64, 500, 0.3)) for _ in range(500)]
    p = [f.sf(s.ratio, *s.freedom) for s in spreads]
    assert kstest(p, "uniform").pvalue > 1e-6
