"""The exact oracles: each against a second way to the same number, or a published one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mcx.errors import CapabilityError, DataError
from mcx.testing import check_mean, dense_gaussian, forward_backward, kalman, path_law, sample_paths

NILE = np.loadtxt(Path(__file__).parent / "data" / "nile.csv", delimiter=",", skiprows=1)[:, 1]


@dataclasses.dataclass(frozen=True)
class LinearGaussian:
    """A model of every complication there is: offsets, full covariances, everything varies with time."""

    T: int = 6
    d: int = 3
    p: int = 2

    def arguments(self):
        rng = np.random.default_rng(20)

        def covariance(*shape):
            root = rng.normal(size=(*shape, shape[-1]))
            return root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(shape[-1])

        T, d, p = self.T, self.d, self.p
        return {
            "initial_mean": rng.normal(size=d),
            "initial_cov": covariance(d),
            "transition_matrix": rng.normal(size=(T, d, d)) / 2,
            "transition_cov": covariance(T, d),
            "transition_offset": rng.normal(size=(T, d)),
            "observation_matrix": rng.normal(size=(T, p, d)),
            "observation_cov": covariance(T, p),
            "observation_offset": rng.normal(size=(T, p)),
        }

    def data(self):
        return 2 * np.random.default_rng(21).normal(size=(self.T, self.p))


CONSTANT = {
    "initial_mean": [1.0, -1.0],
    "initial_cov": [[2.0, 0.3], [0.3, 1.0]],
    "transition_matrix": [[0.9, 0.2], [-0.1, 0.7]],
    "transition_cov": [[0.5, 0.1], [0.1, 0.4]],
    "observation_matrix": [[1.0, 0.5], [0.0, 1.0]],
    "observation_cov": [[0.3, 0.2], [0.2, 0.6]],
    "transition_offset": 0.25,
}


def assert_same_posterior(result, dense):
    np.testing.assert_allclose(result.log_evidence, dense.log_evidence, rtol=1e-10)
    np.testing.assert_allclose(result.smoothed_means, dense.means, rtol=1e-9, atol=1e-10)
    for t, cov in enumerate(result.smoothed_covs):
        np.testing.assert_allclose(cov, dense.cov[t, :, t], rtol=1e-9, atol=1e-10)
    for t, cov in enumerate(result.cross_covs):
        np.testing.assert_allclose(cov, dense.cov[t, :, t + 1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"), [(1120, 1450, -637.775522), (1000, 1e6, -640.380541)]
)
def test_nile(mean, variance, expected):
    local_level = {
        "initial_mean": mean,
        "initial_cov": variance,
        "transition_matrix": 1,
        "transition_cov": 1469.1,
        "observation_matrix": 1,
        "observation_cov": 15099,
    }
    result = kalman(NILE, **local_level)
    assert abs(result.log_evidence - expected) < 1e-6
    assert_same_posterior(result, dense_gaussian(NILE, **local_level))


def test_kalman_is_the_dense_posterior_where_everything_varies_with_time():
    model = LinearGaussian()
    y, arguments = model.data(), model.arguments()
    assert_same_posterior(kalman(y, **arguments), dense_gaussian(y, **arguments))


def test_kalman_with_vectors_and_entries_missing():
    y = LinearGaussian(p=2).data()
    y[0] = np.nan
    y[2, 0] = y[3, 1] = y[4, 0] = np.nan
    result, dense = kalman(y, **CONSTANT), dense_gaussian(y, **CONSTANT)
    assert_same_posterior(result, dense)
    assert result.log_increments[0] == 0.0
    np.testing.assert_array_equal(result.filtered_means[0], CONSTANT["initial_mean"])


def test_kalman_with_nothing_observed_is_the_prior():
    y = np.full((4, 2), np.nan)
    result = kalman(y, **CONSTANT)
    assert result.log_evidence == 0.0
    assert_same_posterior(result, dense_gaussian(y, **CONSTANT))


def test_filtered_moments_are_those_of_a_shorter_series():
    model = LinearGaussian()
    y, arguments = model.data(), model.arguments()
    result = kalman(y, **arguments)
    for t in range(1, model.T + 1):
        short = {k: v[:t] if v.ndim == 3 or "offset" in k else v for k, v in arguments.items()}
        dense = dense_gaussian(y[:t], **short)
        np.testing.assert_allclose(result.filtered_means[t - 1], dense.means[-1], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(result.filtered_covs[t - 1], dense.cov[-1, :, -1], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(result.log_increments[:t].sum(), dense.log_evidence, rtol=1e-10)


def test_deterministic_transitions():
    """Position and velocity without noise, velocity known: all covariances are singular."""
    arguments = {
        "initial_mean": [0.0, 1.0],
        "initial_cov": [[1.0, 0.0], [0.0, 0.0]],
        "transition_matrix": [[1.0, 1.0], [0.0, 1.0]],
        "transition_cov": np.zeros((2, 2)),
        "observation_matrix": [[1.0, 0.0]],
        "observation_cov": 0.5,
    }
    y = [0.3, 1.1, 2.6]
    result = kalman(y, **arguments)
    assert_same_posterior(result, dense_gaussian(y, **arguments))
    paths = sample_paths(result, np.random.default_rng(0), 10)
    np.testing.assert_allclose(np.diff(paths[:, :, 0], axis=1), 1.0, atol=1e-12)


def test_kalman_refuses_shapes_that_do_not_fit():
    with pytest.raises(DataError, match="transition_matrix"):
        kalman(np.zeros((3, 2)), **CONSTANT | {"transition_matrix": np.eye(3)})
    with pytest.raises(DataError, match="initial_cov"):
        kalman(np.zeros((3, 2)), **CONSTANT | {"initial_cov": 1.0})
    with pytest.raises(DataError, match="observation_cov"):
        kalman(np.zeros((3, 1)), **CONSTANT | {"observation_matrix": [[1.0, 0.0]]})
    with pytest.raises(DataError, match="initial_mean"):
        kalman(np.zeros((3, 2)), **CONSTANT | {"initial_mean": np.eye(2)})


def test_sampled_paths_have_the_posterior_moments(own_name):
    y = LinearGaussian().data()
    y[2, 0] = np.nan
    dense = dense_gaussian(y, **CONSTANT)
    rng = np.random.default_rng(list(own_name.encode()))
    paths = sample_paths(kalman(y, **CONSTANT), rng, 40_000)
    flat, means = paths.reshape(len(paths), -1), dense.means.reshape(-1)
    cov = dense.cov.reshape(len(means), -1)
    sd = np.sqrt(np.diag(cov))
    z = (flat - means) / sd
    check_mean(z, np.zeros(len(means)), delta=0.04, independent=True)
    # all second moments of the whole path, so the joint law, not the marginals alone
    products = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    check_mean(products, (cov / np.outer(sd, sd)).reshape(-1), delta=0.07, independent=True)


HMM = {
    "initial": [0.5, 0.5],
    "transition": [[0.7, 0.3], [0.2, 0.8]],
    "log_likelihood": np.log([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15], [0.1, 0.9]]),
}


def test_forward_backward_on_a_published_example():
    result = forward_backward(**HMM)
    np.testing.assert_allclose(result.smoothed[:, 1], [0.1793, 0.7510, 0.4901, 0.8818], atol=5e-5)
    assert abs(result.log_evidence + 3.481979) < 1e-6


@pytest.mark.parametrize("varying", [False, True])
def test_forward_backward_is_the_sum_over_paths(varying):
    rng = np.random.default_rng(5)
    T, K = 5, 3
    initial = rng.dirichlet(np.ones(K))
    transition = rng.dirichlet(np.ones(K), size=(T, K) if varying else K)
    transition[..., 0, :] = [0.0, 1.0, 0.0]
    log_likelihood = 30 * rng.normal(size=(T, K))
    log_likelihood[2, 1] = -np.inf
    log_likelihood[3] = 0.0
    result = forward_backward(initial, transition, log_likelihood)
    law = path_law(initial, transition, log_likelihood)
    np.testing.assert_allclose(result.log_evidence, law.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(law.probabilities.sum(), 1.0, rtol=1e-12)
    state = law.paths[..., None] == np.arange(K)
    np.testing.assert_allclose(result.smoothed, np.tensordot(law.probabilities, state, 1), atol=1e-12)
    pairs = state[:, :-1, :, None] & state[:, 1:, None, :]
    np.testing.assert_allclose(result.pairwise, np.tensordot(law.probabilities, pairs, 1), atol=1e-12)
    for t in range(1, T + 1):
        short = path_law(initial, transition[:t] if varying else transition, log_likelihood[:t])
        last = short.paths[:, -1, None] == np.arange(K)
        np.testing.assert_allclose(result.filtered[t - 1], short.probabilities @ last, atol=1e-12)
        np.testing.assert_allclose(result.log_increments[:t].sum(), short.log_evidence, rtol=1e-12)


def test_an_hmm_is_refused_where_it_makes_no_sense():
    with pytest.raises(DataError, match="shapes"):
        forward_backward([0.5, 0.5], np.eye(3), np.zeros((4, 2)))
    with pytest.raises(DataError, match="sum to 1"):
        forward_backward([0.5, 0.6], np.eye(2), np.zeros((4, 2)))
    with pytest.raises(DataError, match="NaN"):
        forward_backward([0.5, 0.5], np.eye(2), np.full((4, 2), np.nan))
    for solve in forward_backward, path_law:
        with pytest.raises(DataError, match="positive probability"):
            solve([1.0, 0.0], np.eye(2), [[0.0, 0.0], [-np.inf, 0.0]])
    with pytest.raises(CapabilityError, match="too many paths"):
        path_law([0.5, 0.5], np.eye(2), np.zeros((30, 2)))
