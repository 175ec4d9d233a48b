"""Runs survive: kills, damage, full disks; what is read is what was written, or is refused."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_problems import STEPS, Walk, interrupted, normal, same, walk
from problems import level

import mcx
from mcx import dist
from mcx.errors import (
    CheckpointError,
    CheckpointInUse,
    CheckpointMismatch,
    InferenceWarning,
)
from mcx.run.directory import Directory
from mcx.run.records import from_records, record_type, to_records
from mcx.run.store import Store

SCRIPT = """
import sys, jax, numpy as np, mcx
sys.path.insert(0, sys.argv[1])
from checkpoint_problems import Walk
done = mcx.run(Walk(), key=3, num_steps=60_000, num_chains=2, num_discard=500, chunk_size=30, progress=False,
               checkpoint=mcx.Checkpoint(sys.argv[2], interval=0.0))
print("steps", done.num_steps)
"""


@pytest.mark.parametrize("chunks", [1, 3, 9])
def test_a_resumed_run_has_the_same_bits(tmp_path, chunks):
    """Stopped in the warm-up, at its end, and in the sampling."""
    whole = walk(None)
    interrupted(tmp_path, chunks)
    steps = Store(tmp_path).read().steps
    assert 0 < steps < STEPS
    resumed = walk(tmp_path, chunk_size=17)
    assert resumed.complete and same(whole, resumed)
    assert resumed.draws["count"].dtype == whole.draws["count"].dtype
    again = walk(tmp_path)  # nothing is left to do
    assert same(whole, again)
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.glob("state-*"))) == 1


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """SIGKILL while it writes; every listed chunk is whole each time, and the end has the same bits."""
    path, luck = tmp_path / "run", random.Random(kills)
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)]
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        store, before = Store(path), Store(path).read() if path.exists() else None
        steps = before.steps if before else 0
        while process.poll() is None:
            now = store.read() if path.exists() else None
            if now is not None and now.steps > steps:
                time.sleep(luck.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        killed += process.wait() == -signal.SIGKILL
        manifest = store.read()
        assert manifest.steps >= steps
        for entry in [*manifest.chunks, manifest.state]:
            store.load(entry)
    assert killed >= min(5, kills)
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    options = {"key": 3, "num_steps": 60_000, "num_chains": 2, "num_discard": 500, "progress": False}
    whole = mcx.run(Walk(), **options)
    resumed = mcx.run(Walk(), checkpoint=path, **options)
    for a, b in zip(
        jax.tree.leaves(whole.draws["state"]["x"]), jax.tree.leaves(resumed.draws["state"]["x"]), strict=True
    ):
        assert a.tobytes() == b.tobytes()


def test_runs_without_draws_go_on(tmp_path):
    """What is kept may be statistics alone, as of filters without a history."""
    options = {"key": 0, "params": {"s": 0.5}, "history": "none", "progress": False}
    bound = level(np.arange(6.0, dtype=np.float32))
    whole = mcx.filter(bound, **options)
    for _ in range(2):
        found = mcx.filter(bound, checkpoint=tmp_path / "filter", **options)
        np.testing.assert_array_equal(found.stats["log_evidence"], whole.stats["log_evidence"])


def test_inference_goes_on(tmp_path):
    method = mcx.RandomWalk(num_warmup=50, num_samples=60)
    options = {"key": 0, "progress": False, "warnings": "ignore"}
    whole = mcx.infer(normal(np.arange(3.0)), method, **options)
    for _ in range(2):
        post = mcx.infer(normal(np.arange(3.0)), method, checkpoint=tmp_path, **options)
        np.testing.assert_array_equal(post["mu"], whole["mu"])
        np.testing.assert_array_equal(post.stats["lp"], whole.stats["lp"])


def test_another_run_is_refused(tmp_path):
    """Model, data, method, key and counts: each is named."""
    short = mcx.RandomWalk(num_warmup=5, num_samples=6)

    def infer(model=normal, y=0.0, method=short, key=0, **options):
        bound = model(np.full(3, y, np.float32))
        mcx.infer(bound, method, key=key, checkpoint=tmp_path, progress=False, warnings="ignore", **options)

    @mcx.model
    def wider(y):
        mu = mcx.sample("mu", dist.Normal(0, 6))
        mcx.sample("y", dist.Normal(mu, 1.0), obs=y)

    infer()
    for change, name in (
        ({"model": wider}, "model"),
        ({"y": 1.0}, "data"),
        ({"method": mcx.RandomWalk(num_warmup=5, num_samples=6, step_size=0.5)}, "method"),
        ({"key": 1}, "key"),
        ({"num_chains": 2}, "chains"),
    ):
        with pytest.raises(CheckpointMismatch, match=f"another.* {name}"):
            infer(**change)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["identity"]["versions"] = "mcx 0.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointMismatch, match="another versions"):
        infer()


# --- the directory -----------------------------------------------------------------------------------


def test_one_run_a_directory(tmp_path):
    with Store(tmp_path).locked(), pytest.raises(CheckpointInUse, match="another run writes"):
        walk(tmp_path)


def test_a_directory_that_cannot_be_written_is_told_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="nothing can be written"):
        walk(tmp_path / "file" / "run")


def test_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    """A warning, the whole result, and what was written can be resumed."""
    append, count = Store.append, []

    def full(self, *args):
        count.append(args)
        if len(count) > 1:
            raise OSError(28, "No space left on device")
        append(self, *args)

    monkeypatch.setattr(Store, "append", full)
    with pytest.warns(InferenceWarning, match="No space left on device") as warned:
        found = walk(tmp_path)
    assert len(warned) == 1
    whole = walk(None)
    assert found.complete and same(whole, found)
    monkeypatch.undo()
    assert 0 < Store(tmp_path).read().steps < STEPS
    assert same(whole, walk(tmp_path))


@pytest.mark.parametrize("part", ["chunk", "state", "manifest"])
def test_a_disk_that_has_room_again_gets_everything(tmp_path, monkeypatch, part):
    """Whichever file had no room."""
    write, count = Directory.write, []

    def full_once(self, name, *pieces):
        if name.startswith(part):
            count.append(name)
            if len(count) == (2 if part == "manifest" else 1):  # its first one begins the run
                raise OSError(28, "No space left on device")
        write(self, name, *pieces)

    monkeypatch.setattr(Directory, "write", full_once)
    with pytest.warns(InferenceWarning, match="No space left"):
        walk(tmp_path)
    assert Store(tmp_path).read().complete
    monkeypatch.undo()
    assert same(walk(None), walk(tmp_path))


def test_records_hold_any_array():
    tree = {
        "key": jax.random.split(jax.random.key(1), 4),
        "half": jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2),
        "flag": jnp.array([True, False, True, True]),
        "nested": (jnp.zeros((4, 2, 3)), np.arange(4, dtype=np.int8)),
        "nothing": jnp.zeros((4, 0)),
    }
    records = to_records(tree, (4,))
    assert records.shape == (4,) and records.dtype == record_type(tree, 1)
    again = from_records(records, tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
