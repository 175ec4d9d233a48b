"""The examples run from anywhere, say what they found, draw their pictures, and give no warning."""

import subprocess
import sys
from pathlib import Path

import pytest
from problems import slow_unless


def run(example, folder):
    script = Path(__file__).parent.parent / "examples" / f"{example}.py"
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("linear_gaussian_learning", "maximum likelihood"),
        ("chaotic_rnn", "maximum likelihood"),
        ("boarding_school_flu", "infected by the first"),
        ("digits_inpainting", "of the hidden pixels"),
    ],
)
def test_examples_that_learn(example, said, tmp_path):
    done = run(example, tmp_path)
    assert said in done.stdout and "nan" not in done.stdout
    assert "MCX-W" not in done.stderr  # nothing to warn of
    assert (tmp_path / "out" / f"{example}.png").stat().st_size > 10_000


@pytest.mark.parametrize("example", slow_unless([], ["nile", "stochastic_volatility"]))
def test_examples(example, tmp_path):
    done = run(example, tmp_path)
    assert "log evidence" in done.stdout and "Warning" not in done.stderr
    for suffix in ("nc", "png"):
        assert (tmp_path / "out" / f"{example}.{suffix}").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("gradient_flow", "sliced Wasserstein distance"),
        ("compare_posteriors", "p-value"),
        ("uncertainty_quantification", "Sobol' indices"),
        ("tempering", "P(period < 2 days)"),
        ("denoising_mcmc", "by chains"),
        ("feynman_kac_correctors", "log evidence"),
    ],
)
def test_examples_that_print_tables(example, said, tmp_path):
    done = run(example, tmp_path)
    assert said in done.stdout and "nan" not in done.stdout
