"""What ``mcx.GuidedDiffusion`` and ``mcx.GuidedGibbs`` tell checkpoints, and their advice."""

from types import SimpleNamespace

import numpy as np

import mcx


def test_checkpoints_know_the_methods_as_one():
    """Runs of the time when one class ran both go on: their checkpoints compare what it printed."""
    rest = "params=None, num_warmup=500, num_samples=1000)"
    text = (
        "GuidedDiffusion(num_particles={}, num_steps={}, guidance='auto', num_children=4, "
        "lookahead='denoised', fade=None, threshold=0.5, resampling='systematic', num_pilot=256, "
        "batch_size=None, max_nonfinite=0.5, "
    )
    assert mcx.GuidedDiffusion().identity() == text.format(None, None) + rest
    assert mcx.GuidedDiffusion(64, num_reverse_steps=9).identity() == text.format(64, 9) + rest
    found = mcx.GuidedGibbs(params=mcx.HMC(), num_warmup=7).identity()
    assert (
        found == text.format(None, None) + f"params={mcx.HMC().identity()}, num_warmup=7, num_samples=1000)"
    )


def advised(method, settings, **stats):
    """Codes of what a method says about statistics by level."""
    posterior = SimpleNamespace(
        smc_stats=stats, stats={}, num_draws=100, num_chains=2, info=SimpleNamespace(settings=settings)
    )
    return [found.code for found in method.advice(posterior)]


def test_advice():
    rho, few, many = np.array([[9.0, 3.0, 1.0]] * 2), np.array([[90, 2, 80]] * 2), np.full((2, 3), 90)
    for survivors, lineages, codes in (
        (few, many, ["MCX-W013"]),
        (many, few, ["MCX-W015"]),
        (many, few[:, ::2].repeat([2, 1], 1), []),
    ):
        stats = {"rho": rho, "unique_ancestors": survivors, "lineages": lineages}
        assert advised(mcx.GuidedDiffusion(), {"half": 1}, **stats) == codes
    for rate, codes in ((0.05, ["MCX-W008"]), (0.2, [])):
        rates = np.array([[rate, 0.9]] * 2)
        assert advised(mcx.GuidedGibbs(), {}, **{"x.update_rate": rates, "x.ess": rates}) == codes
