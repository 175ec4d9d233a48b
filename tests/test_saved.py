"""Checkpoints opened without their model, and the command line."""

import subprocess
import sys

import numpy as np
import pytest
from checkpoint_problems import flip, interrupted, normal, walk

import mcx
from mcx.__main__ import main
from mcx.errors import CheckpointCorrupt, CheckpointError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A posterior and its checkpoint."""
    path = tmp_path_factory.mktemp("saved") / "run"
    method = mcx.RandomWalk(num_warmup=50, num_samples=60)
    post = mcx.infer(
        normal(np.arange(3.0)), method, key=0, progress=False, warnings="ignore", checkpoint=path
    )
    return post, path


def test_what_is_there_is_opened(run):
    post, path = run
    saved = mcx.load(path)
    assert saved.complete and saved.num_steps == 110
    assert list(saved.draws) == ["mu"]
    np.testing.assert_array_equal(saved.draws["mu"], post["mu"])
    assert set(saved.stats) == set(post.stats) and set(saved.warmup_stats) == set(post.warmup_stats)
    np.testing.assert_array_equal(saved.stats["lp"], post.stats["lp"])
    np.testing.assert_array_equal(saved.warmup_stats["lp"], post.warmup_stats["lp"])
    assert "RandomWalk" in saved.identity["method"]
    assert "draws of mu" in repr(saved) and "complete" in repr(saved)


def test_arviz_takes_it(run):
    import arviz_stats

    tree = mcx.load(run[1]).to_datatree()
    assert "warmup_sample_stats" in tree
    assert arviz_stats.summary(tree).loc["mu", "mean"] is not None


def test_unfinished_and_nested(tmp_path):
    interrupted(tmp_path, 6)
    saved = mcx.load(tmp_path)
    whole = walk(None)
    assert not saved.complete and 50 < saved.num_steps < 300
    kept = saved.draws["x"].shape[1]
    assert kept == saved.num_steps - 50
    np.testing.assert_array_equal(saved.draws["x"], whole.draws["x"][:, :kept])
    assert "unfinished" in repr(saved)


def test_in_the_warm_up(tmp_path):
    interrupted(tmp_path, 1)
    saved = mcx.load(tmp_path)
    assert saved.draws == {} and saved.num_steps <= 50


def test_nothing_to_open(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        mcx.load(tmp_path)
    with pytest.raises(CheckpointError, match="no directory"):
        mcx.load(tmp_path / "elsewhere")
    interrupted(tmp_path / "part-1", 1)
    with pytest.raises(CheckpointError, match="parts of a run(.|\n)*open one of them: .*part-1"):
        mcx.load(tmp_path)


def test_damage_is_told(tmp_path, capsys):
    interrupted(tmp_path, 6)
    flip(tmp_path / "chunk-000001.npy")
    with pytest.raises(CheckpointCorrupt):
        mcx.load(tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "chunk-000001.npy is not what was written" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path)]) == 0
    assert "unfinished" in capsys.readouterr().out


def test_commands(run, capsys, tmp_path):
    assert main(["verify", str(run[1])]) == 0
    assert "files are what was written" in capsys.readouterr().out
    assert main(["inspect", str(run[1])]) == 0
    out = capsys.readouterr().out
    assert "110 of 110 steps" in out and "RandomWalk" in out
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_doctor():
    done = subprocess.run([sys.executable, "-m", "mcx", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mcx.__version__ in done.stdout and "device" in done.stdout and "works" in done.stdout
