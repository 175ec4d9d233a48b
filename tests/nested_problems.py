"""What tests of SMC^2 share: how it is run, its exact evidences, and a run that is interrupted."""

import signal

import numpy as np
from gibbs_problems import GRID, autoregression, persistence_truths

import mcx
from mcx.testing import check_mean


def run(bound, method, key, **options):
    return mcx.infer(bound, method, key=key, progress=False, warnings="ignore", **options)


def log_evidences(y):
    """Of y_0, ..., y_t for all t, over the uniform prior of phi."""
    each = np.array([np.cumsum(autoregression(y, phi).log_increments) for phi in GRID])
    top = each.max(0)
    return top + np.log(np.mean(np.exp(each - top), 0))


def check_weighted(post, y, finds):
    """Parameters and paths of replicates, weighted by the estimated evidence, are unbiased.

    alpha 1e-6 a check, finds ``finds`` posterior standard deviations.
    """
    weight = np.exp(post.smc_stats["log_evidence"][:, -1] - log_evidences(y)[-1])
    for name, values, truth, scale in persistence_truths(post.draws, y):
        mean = values.mean(1)
        weighted = weight.reshape(-1, *(1,) * (mean.ndim - 1)) * (mean - truth)
        check_mean(weighted, 0.0, delta=finds * scale, independent=True, name=name)


class StopsAfter:
    """A display that ends the run at one of its reports, as Ctrl-C does."""

    def __init__(self, reports=1):
        self.left = reports

    def compiling(self):
        pass

    started = close = lambda self, *args: None

    def update(self, *args):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
