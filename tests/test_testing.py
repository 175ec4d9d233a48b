"""The statistical check itself: its level and its power."""

import jax
import numpy as np
import pytest

from mcx.testing import StatisticalFailure, check_mean, key_for


def replicates(key, n, bias=0.0):
    return np.asarray(jax.random.normal(key, (n,))) + bias


def test_level(key):
    """At alpha = 5 %, 2,000 correct samplers fail 100 times, give or take 3.3 sd of 9.7 (alpha 1e-3)."""
    failures = 0
    for k in jax.random.split(key, 2000):
        try:
            check_mean(replicates(k, 64), 0.0, delta=1.0, alpha=0.05, power=0.9, independent=True)
        except StatisticalFailure:
            failures += 1
    # 64 draws: Student's tails add a tenth to the normal level
    assert 68 <= failures <= 152


def test_power(key):
    """A bias of delta is found in at least 99 % of runs (all of 200 but at most 9: alpha 1e-4)."""
    missed = 0
    for k in jax.random.split(key, 200):
        try:
            check_mean(replicates(k, 2500, bias=0.15), 0.0, delta=0.15, alpha=1e-6, independent=True)
            missed += 1
        except StatisticalFailure as error:
            assert "off by" in str(error)
    assert missed <= 9


def test_too_few_draws_are_refused(key):
    with pytest.raises(StatisticalFailure, match="too few draws"):
        check_mean(replicates(key, 100), 0.0, delta=0.1, independent=True)


def test_nan_is_refused():
    with pytest.raises(StatisticalFailure, match="not finite"):
        check_mean(np.array([0.0, np.nan, 1.0]), 0.5, delta=10.0, independent=True)


def test_autocorrelation_is_taken_into_account(key):
    """The mean of a chain of correlation 0.95 is six times as uncertain as that of independent draws."""
    noise = np.asarray(jax.random.normal(key, (8, 4000)))
    chain = np.zeros_like(noise)
    for t in range(1, 4000):
        chain[:, t] = 0.95 * chain[:, t - 1] + noise[:, t]
    scale = 1 / np.sqrt(1 - 0.95**2)
    check_mean(chain[:, 100:], 0.0, delta=0.6 * scale)
    with pytest.raises(StatisticalFailure, match="too few"):
        check_mean(chain[:, 100:], 0.0, delta=0.1 * scale)


def test_keys_follow_names():
    a, b = key_for("test_a"), key_for("test_b")
    assert not np.array_equal(jax.random.key_data(a), jax.random.key_data(b))
    assert np.array_equal(jax.random.key_data(a), jax.random.key_data(key_for("test_a")))
