"""Do many short chains agree? A test that allows for the differences of their means by chance.

The split r-hat of chains of 100 effective draws is 1.01 although nothing is wrong. Here the variance that
chance explains is subtracted, and the rest has to be both large and unlikely.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MANY = 16  # from so many chains on, the variance between them is known well enough


class Spread(NamedTuple):
    """How far apart chains are in one scalar.

    r_hat: split r-hat without the variance that chance explains; 1 where chains agree.
    ratio: variance between half chains over its expectation, with both degrees of freedom.
    """

    r_hat: float
    ratio: float
    freedom: tuple[float, float]

    def disagree(self, r_hat: float, false_alarms: float) -> bool:
        """Whether chains differ by more than ``r_hat``, and chance explains that at most so rarely."""
        from scipy.stats import f

        return bool(self.r_hat > r_hat and f.sf(self.ratio, *self.freedom) < false_alarms)


def spread_between(x: np.ndarray) -> Spread:
    """The variance between half chains of ranks of ``x`` (chain x draw), compared with its expectation.

    That comes from autocovariances within half chains, averaged over all. Costs O(chains x draws x log
    draws).
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    half = x.shape[1] // 2
    halves = np.concatenate([x[:, :half], x[:, x.shape[1] - half :]])
    z = ndtri((rankdata(halves).reshape(halves.shape) - 0.375) / (halves.size + 0.25))
    means = z.mean(1)
    within = float(z.var(axis=1, ddof=1).mean())
    between = float(means.var(ddof=1))
    expected, freedom = _variance_of_mean(z - means[:, None])
    excess = max(0.0, between - expected) / within
    return Spread(float(np.sqrt(1 + excess)), between / expected, (halves.shape[0] - 1, freedom))


def _variance_of_mean(centred: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of a short series, from many centred ones (series x draw), and degrees of freedom.

    The sum of autocovariances up to three autocorrelation times (Sokal 1997, section 3), a quarter of the
    series at most. Centred at its own mean, a series lacks the variance of that mean at every lag, so that
    ``v = (sum of the window's + (2 window + 1) v) / length``.
    """
    count, length = centred.shape
    spectrum = np.abs(np.fft.rfft(centred, 2 * length, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum.mean(0), 2 * length)[:length] / length
    lags = np.arange(1, length // 4 + 1)
    sums = covariance[0] + 2 * np.cumsum(covariance[lags])
    enough = np.flatnonzero((lags >= 3 * sums / covariance[0]) & (lags >= min(10, length // 8)))
    window = int(lags[enough[0] if enough.size else -1])
    used = 2 * window + 1
    variance = max(sums[window - 1], covariance[0] / length) / (length - used)
    return float(variance), count * (length - used) ** 2 / (length * used)


class Groups(NamedTuple):
    """Chains that are elsewhere than the others.

    mean, rest: mean of the scalar in the chains that are ``apart``, and in the others.
    log_density: mean of theirs less that of the others, None where it is not known.
    """

    apart: np.ndarray
    mean: float
    rest: float
    log_density: float | None


def groups(x: np.ndarray, log_density: np.ndarray | None) -> Groups | None:
    """The smaller of two groups of chains by their means of ``x`` (chain x draw); None if there is one group.

    The split is that of least variance within groups, which are 3 standard deviations of the means apart.
    """
    means = x.mean(1)
    order = np.argsort(means)
    ordered = means[order]

    def rest_of(cut: int) -> float:
        return float(sum(part.var() * part.size for part in (ordered[:cut], ordered[cut:])))

    cut = min(range(1, ordered.size), key=rest_of)
    low, high = order[:cut], order[cut:]
    if means[high].mean() - means[low].mean() < 3 * (means[low].std() + means[high].std()):
        return None
    apart, rest = (low, high) if low.size <= high.size else (high, low)
    lp = None if log_density is None else log_density.mean(1)
    lower = None if lp is None else float(lp[apart].mean() - lp[rest].mean())
    return Groups(np.sort(apart), float(means[apart].mean()), float(means[rest].mean()), lower)
