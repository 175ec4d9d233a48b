"""Linear Gaussian state-space models, solved exactly: Kalman filter, smoother, posterior path draws.

The model, with time counted as in :func:`mcx.markov`: ``x_0 ~ N(initial_mean, initial_cov)``, then
``x_t = A_t x_{t-1} + a_t + N(0, Q_t)`` and ``y_t = C_t x_t + c_t + N(0, R_t)``; y_0 belongs to x_0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import DataError


class KalmanResult(NamedTuple):
    """The exact posterior of a linear Gaussian state-space model, in float64.

    Attributes:
        log_evidence: log density of all that was observed.
        log_increments: (T,), log density of y_t given the past; 0 where all of y_t is missing.
        predicted_means: (T, d), of x_t given y before t.
        predicted_covs: (T, d, d).
        filtered_means: (T, d), of x_t given y up to and including t.
        filtered_covs: (T, d, d).
        smoothed_means: (T, d), of x_t given all of y.
        smoothed_covs: (T, d, d).
        cross_covs: (T - 1, d, d), entry t is Cov(x_t, x_{t+1} | y), with x_t along the rows.
        backward_gains: (T - 1, d, d); the mean of x_t given x_{t+1} and y is
            ``smoothed_means[t] + backward_gains[t] @ (x_{t+1} - smoothed_means[t + 1])``.
        backward_covs: (T - 1, d, d), Cov(x_t | x_{t+1}, y).
    """

    log_evidence: float
    log_increments: np.ndarray
    predicted_means: np.ndarray
    predicted_covs: np.ndarray
    filtered_means: np.ndarray
    filtered_covs: np.ndarray
    smoothed_means: np.ndarray
    smoothed_covs: np.ndarray
    cross_covs: np.ndarray
    backward_gains: np.ndarray
    backward_covs: np.ndarray


class DenseGaussian(NamedTuple):
    """The exact posterior of a whole path as one Gaussian vector.

    Attributes:
        log_evidence: log density of all that was observed.
        means: (T, d).
        cov: (T, d, T, d), Cov(x_s, x_t | y) at ``[s, :, t, :]``.
    """

    log_evidence: float
    means: np.ndarray
    cov: np.ndarray


class _Model(NamedTuple):
    """All of the model at all times: every array has the leading axis T."""

    y: np.ndarray
    mean: np.ndarray  # (d,), of x_0
    cov: np.ndarray  # (d, d)
    A: np.ndarray
    a: np.ndarray
    Q: np.ndarray
    C: np.ndarray
    c: np.ndarray
    R: np.ndarray


def kalman(
    y: ArrayLike,
    *,
    initial_mean: ArrayLike,
    initial_cov: ArrayLike,
    transition_matrix: ArrayLike,
    transition_cov: ArrayLike,
    observation_matrix: ArrayLike,
    observation_cov: ArrayLike,
    transition_offset: ArrayLike = 0,
    observation_offset: ArrayLike = 0,
) -> KalmanResult:
    """Filter and smooth a linear Gaussian state-space model.

    Covariances are updated in Joseph's form, a sum of squares, so that they stay positive semi-definite;
    they may be singular (deterministic transitions), but what is observed must have a density.

    Args:
        y: observations, (T, p); (T,) where p = 1. NaN marks what is missing, whole vectors or entries.
        initial_mean: mean of x_0, (d,); like all vectors a number where d = 1.
        initial_cov: covariance of x_0, (d, d); like all matrices a number where it is 1 x 1.
        transition_matrix: (d, d), or (T, d, d) if it varies: then entry t leads from x_{t-1} to x_t, and
            entry 0 is not used. So with the other two of the transition.
        transition_cov: (d, d) or (T, d, d).
        observation_matrix: (p, d) or (T, p, d).
        observation_cov: (p, p) or (T, p, p).
        transition_offset: a number, (d,) or (T, d).
        observation_offset: a number, (p,) or (T, p).

    Returns:
        The result; costs O(T (d^3 + p^3)).

    Raises:
        DataError: if the shapes do not fit.

    Source: Anderson & Moore (1979), Optimal Filtering; Rauch, Tung & Striebel (1965) for the smoother.
    """
    initial, transition = (initial_mean, initial_cov), (transition_matrix, transition_offset, transition_cov)
    m = _model(y, *initial, *transition, observation_matrix, observation_offset, observation_cov)
    steps, d = len(m.y), len(m.mean)
    log_increments = np.zeros(steps)
    predicted_means, filtered_means = np.empty((2, steps, d))
    predicted_covs, filtered_covs = np.empty((2, steps, d, d))
    for t in range(steps):
        if t == 0:
            mean, cov = m.mean, m.cov
        else:
            mean = m.A[t] @ filtered_means[t - 1] + m.a[t]
            cov = _symmetric(m.A[t] @ filtered_covs[t - 1] @ m.A[t].T + m.Q[t])
        predicted_means[t], predicted_covs[t] = mean, cov
        seen = ~np.isnan(m.y[t])
        if seen.any():
            C, R = m.C[t][seen], m.R[t][np.ix_(seen, seen)]
            residual = m.y[t][seen] - C @ mean - m.c[t][seen]
            S = C @ cov @ C.T + R
            log_increments[t] = _log_normal(residual, S)
            gain = np.linalg.solve(S, C @ cov).T
            left = np.eye(d) - gain @ C
            mean = mean + gain @ residual
            cov = _symmetric(left @ cov @ left.T + gain @ R @ gain.T)
        filtered_means[t], filtered_covs[t] = mean, cov

    smoothed_means, smoothed_covs = filtered_means.copy(), filtered_covs.copy()
    cross_covs, gains, backward_covs = np.empty((3, steps - 1, d, d))
    for t in range(steps - 2, -1, -1):
        A, P = m.A[t + 1], filtered_covs[t]
        # in directions where the predicted covariance is singular, the state is known for certain
        gain = P @ A.T @ np.linalg.pinv(predicted_covs[t + 1], hermitian=True)
        left = np.eye(d) - gain @ A
        gains[t] = gain
        backward_covs[t] = _symmetric(left @ P @ left.T + gain @ m.Q[t + 1] @ gain.T)
        cross_covs[t] = gain @ smoothed_covs[t + 1]
        smoothed_means[t] += gain @ (smoothed_means[t + 1] - predicted_means[t + 1])
        smoothed_covs[t] = _symmetric(backward_covs[t] + cross_covs[t] @ gain.T)
    return KalmanResult(
        float(log_increments.sum()),
        log_increments,
        predicted_means,
        predicted_covs,
        filtered_means,
        filtered_covs,
        smoothed_means,
        smoothed_covs,
        cross_covs,
        gains,
        backward_covs,
    )


def sample_paths(result: KalmanResult, rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw independent paths (n, T, d), float64, from the exact posterior that :func:`kalman` gave.

    Backwards in time, at a cost of O(n T d^2).

    Source: Fruehwirth-Schnatter (1994), with the smoothed in place of the filtered moments.
    """
    means = result.smoothed_means
    steps, d = means.shape
    noise = rng.standard_normal((n, steps, d))
    paths = np.empty((n, steps, d))
    for t in range(steps - 1, -1, -1):
        if t == steps - 1:
            centre, cov = means[t], result.smoothed_covs[t]
        else:
            centre = means[t] + (paths[:, t + 1] - means[t + 1]) @ result.backward_gains[t].T
            cov = result.backward_covs[t]
        values, vectors = np.linalg.eigh(cov)  # Cholesky would refuse singular covariances
        paths[:, t] = centre + noise[:, t] @ (vectors * np.sqrt(np.maximum(values, 0))).T
    return paths


def dense_gaussian(
    y: ArrayLike,
    *,
    initial_mean: ArrayLike,
    initial_cov: ArrayLike,
    transition_matrix: ArrayLike,
    transition_cov: ArrayLike,
    observation_matrix: ArrayLike,
    observation_cov: ArrayLike,
    transition_offset: ArrayLike = 0,
    observation_offset: ArrayLike = 0,
) -> DenseGaussian:
    """Solve a linear Gaussian state-space model as one multivariate normal, without any recursion.

    An independent check of :func:`kalman`, whose arguments it takes, for small models.

    Returns:
        The posterior of the path; costs O(T^3 (d^3 + p^3)).

    Raises:
        DataError: if the shapes do not fit.
    """
    initial, transition = (initial_mean, initial_cov), (transition_matrix, transition_offset, transition_cov)
    m = _model(y, *initial, *transition, observation_matrix, observation_offset, observation_cov)
    steps, p = m.y.shape
    d = len(m.mean)
    size = steps * d
    # the path solves (I - shifted A) x = noise with mean (m_0, a_1, a_2, ...)
    system, noise = np.eye(size), np.zeros((size, size))
    H, R = np.zeros((steps * p, size)), np.zeros((steps * p, steps * p))
    for t in range(steps):
        here, seen = slice(t * d, (t + 1) * d), slice(t * p, (t + 1) * p)
        noise[here, here] = m.Q[t] if t else m.cov
        H[seen, here], R[seen, seen] = m.C[t], m.R[t]
        if t:
            system[here, (t - 1) * d : t * d] = -m.A[t]
    inverse = np.linalg.inv(system)
    mean = inverse @ np.concatenate([m.mean, m.a[1:].reshape(-1)])
    cov = inverse @ noise @ inverse.T
    known = ~np.isnan(m.y.reshape(-1))
    log_evidence = 0.0
    if known.any():
        H, R = H[known], R[np.ix_(known, known)]
        residual = (m.y - m.c).reshape(-1)[known] - H @ mean
        S = H @ cov @ H.T + R
        log_evidence = _log_normal(residual, S)
        gain = np.linalg.solve(S, H @ cov).T
        mean = mean + gain @ residual
        cov = _symmetric(cov - gain @ S @ gain.T)
    return DenseGaussian(log_evidence, mean.reshape(steps, d), cov.reshape(steps, d, steps, d))


def _model(y: ArrayLike, mean: ArrayLike, *others: ArrayLike) -> _Model:
    y = np.asarray(y, np.float64)
    y = y[:, None] if y.ndim == 1 else y
    mean = np.atleast_1d(np.asarray(mean, np.float64))
    if y.ndim != 2 or not len(y) or mean.ndim != 1:
        raise DataError(
            "kalman takes y of shape (T, p) and initial_mean of shape (d,)", found=f"{y.shape}, {mean.shape}"
        )
    (steps, p), d = y.shape, len(mean)
    shapes = {
        "initial_cov": (d, d),
        "transition_matrix": (steps, d, d),
        "transition_offset": (steps, d),
        "transition_cov": (steps, d, d),
        "observation_matrix": (steps, p, d),
        "observation_offset": (steps, p),
        "observation_cov": (steps, p, p),
    }
    return _Model(y, mean, *(_fit(name, x, shapes[name]) for name, x in zip(shapes, others, strict=True)))


def _fit(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """``value`` at every time. A number is fine as an offset or as a 1 x 1 matrix, else it is ambiguous."""
    value = np.asarray(value, np.float64)
    number = value.ndim == 0 and (name.endswith("offset") or math.prod(shape[-2:]) == 1)
    if not number and value.shape not in (shape, shape[1:] if len(shape) == 3 or "offset" in name else shape):
        raise DataError(f"{name} does not fit the model", expected=str(shape), found=str(value.shape))
    return np.broadcast_to(value, shape)


def _log_normal(residual: np.ndarray, cov: np.ndarray) -> float:
    log_det = np.linalg.slogdet(cov)[1]
    quadratic = residual @ np.linalg.solve(cov, residual)
    return float(-0.5 * (quadratic + log_det + len(residual) * math.log(2 * math.pi)))


def _symmetric(cov: np.ndarray) -> np.ndarray:
    return (cov + cov.T) / 2
