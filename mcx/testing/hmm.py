"""Hidden Markov models with finitely many states, solved exactly.

Time is counted as in :func:`mcx.markov`: the likelihood of time 0 belongs to the first state.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import CapabilityError, DataError


class HMMResult(NamedTuple):
    """The exact posterior of a hidden Markov model, in float64.

    Attributes:
        log_evidence: log probability (density) of all observations.
        log_increments: (T,), that of y_t given the past.
        filtered: (T, K), P(x_t = k | y_0 .. y_t).
        smoothed: (T, K), P(x_t = k | all of y).
        pairwise: (T - 1, K, K), P(x_t = j, x_{t+1} = k | all of y) at ``[t, j, k]``.
    """

    log_evidence: float
    log_increments: np.ndarray
    filtered: np.ndarray
    smoothed: np.ndarray
    pairwise: np.ndarray


class PathLaw(NamedTuple):
    """The posterior of whole paths.

    Attributes:
        log_evidence: log probability (density) of all observations.
        paths: (K^T, T) int, in lexicographic order.
        probabilities: (K^T,) float64.
    """

    log_evidence: float
    paths: np.ndarray
    probabilities: np.ndarray


def forward_backward(initial: ArrayLike, transition: ArrayLike, log_likelihood: ArrayLike) -> HMMResult:
    """Filter and smooth a hidden Markov model.

    Args:
        initial: P(x_0 = k), (K,).
        transition: P(x_t = k | x_{t-1} = j) at ``[j, k]``, (K, K); or (T, K, K), whose entry t leads to x_t
            and whose entry 0 is not used.
        log_likelihood: log p(y_t | x_t = k), (T, K); -inf is allowed, a row of zeros means that nothing was
            observed.

    Returns:
        The result; costs O(T K^2).

    Raises:
        DataError: if shapes do not fit, probabilities do not sum to 1, or no path has positive probability.

    Source: Rabiner (1989), with both recursions normalised.
    """
    p0, P, log_g = _model(initial, transition, log_likelihood)
    steps, states = log_g.shape
    top = log_g.max(1, keepdims=True)
    g = np.exp(log_g - np.where(np.isfinite(top), top, 0.0))
    filtered, log_increments = np.empty((steps, states)), np.empty(steps)
    for t in range(steps):
        joint = (filtered[t - 1] @ P[t] if t else p0) * g[t]
        total = joint.sum()
        if not total > 0:
            raise DataError(
                "no path of the hidden Markov model has positive probability", found=f"at t = {t}"
            )
        filtered[t], log_increments[t] = joint / total, math.log(total) + top[t, 0]
    smoothed, pairwise = filtered.copy(), np.empty((steps - 1, states, states))
    for t in range(steps - 2, -1, -1):
        joint = filtered[t][:, None] * P[t + 1]
        predicted = joint.sum(0)
        # where nothing is predicted, nothing is smoothed either
        pairwise[t] = joint * (smoothed[t + 1] / np.where(predicted > 0, predicted, 1.0))
        smoothed[t] = pairwise[t].sum(1)
    return HMMResult(float(log_increments.sum()), log_increments, filtered, smoothed, pairwise)


def path_law(
    initial: ArrayLike, transition: ArrayLike, log_likelihood: ArrayLike, *, max_paths: int = 2**20
) -> PathLaw:
    """List every path of a hidden Markov model with its posterior probability, which costs O(T K^T).

    The model is that of :func:`forward_backward`.

    Raises:
        CapabilityError: on more than ``max_paths`` paths.
        DataError: as :func:`forward_backward` does.
    """
    p0, P, log_g = _model(initial, transition, log_likelihood)
    steps, states = log_g.shape
    if states**steps > max_paths:
        raise CapabilityError("too many paths", found=str(states**steps), expected=f"at most {max_paths}")
    paths = np.asarray(list(itertools.product(range(states), repeat=steps)))
    with np.errstate(divide="ignore"):
        log_p = np.log(p0)[paths[:, 0]] + log_g[0, paths[:, 0]]
        for t in range(1, steps):
            log_p = log_p + np.log(P[t])[paths[:, t - 1], paths[:, t]] + log_g[t, paths[:, t]]
    top = log_p.max()
    if not top > -math.inf:
        raise DataError("no path has positive probability")
    p = np.exp(log_p - top)
    return PathLaw(float(top + math.log(p.sum())), paths, p / p.sum())


def _model(
    initial: ArrayLike, transition: ArrayLike, log_likelihood: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p0, P, log_g = (np.asarray(v, np.float64) for v in (initial, transition, log_likelihood))
    if log_g.ndim != 2 or not log_g.size:
        raise DataError("log_likelihood does not fit", expected="(T, K)", found=str(log_g.shape))
    steps, states = log_g.shape
    if p0.shape != (states,) or P.shape not in ((states, states), (steps, states, states)):
        raise DataError(
            "the hidden Markov model's shapes do not fit",
            expected=f"initial ({states},), transition ({states}, {states}) or with {steps} first",
            found=f"{p0.shape}, {P.shape}",
        )
    if not (log_g < np.inf).all():
        raise DataError(
            "log_likelihood is NaN or infinite", remedy="a row of zeros stands for a missing observation"
        )
    used = P if P.ndim == 2 else P[1:]
    # inputs may come from float32
    if min(p0.min(), used.min(initial=0)) < 0 or not (
        np.allclose(p0.sum(), 1, atol=1e-5) and np.allclose(used.sum(-1), 1, atol=1e-5)
    ):
        raise DataError("initial and the rows of transition have to be probabilities that sum to 1")
    return p0, np.broadcast_to(P, (steps, states, states)), log_g
