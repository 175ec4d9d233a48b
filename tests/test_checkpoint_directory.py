"""A checkpoint directory from somebody else: nothing outside of it is written to, whatever lies in it."""

import os
import shutil
import stat

import numpy as np
import pytest
from checkpoint_problems import STEPS, interrupted, same, walk

import mcx
from mcx.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch, InferenceWarning, MethodError
from mcx.run.store import Store

NAMES = (
    ["probe", ".probe", ".probe.tmp", "manifest.json", "manifest.json.tmp"]
    + [f"{kind}-00000{i}.npy{end}" for kind in ("chunk", "state") for i in range(4) for end in ("", ".tmp")]
    + [f"draws-0000-00{i}.npy" for i in range(3)]
)
SECRET = b"precious"


def symbolic(path, secret):
    path.symlink_to(secret)


def dangling(path, secret):
    path.symlink_to(secret.parent / f"made through {path.name}")


def hard(path, secret):
    os.link(secret, path)


def pipe(path, secret):
    os.mkfifo(path)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def untouched(secret):
    made = [p.name for p in secret.parent.iterdir() if p.name.startswith("made through")]
    return secret.read_bytes() == SECRET and not made


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("trap", [symbolic, dangling, hard, pipe])
def test_names_that_lead_elsewhere(tmp_path, secret, trap, in_memory):
    """Whatever bears a name that a run writes is replaced or left alone, and the run is right."""
    path = tmp_path / "run"
    path.mkdir()
    for name in NAMES:
        if name != "manifest.json":
            trap(path / name, secret)
    assert same(walk(path, in_memory=in_memory), walk(None))
    assert untouched(secret)


@pytest.mark.parametrize("trap", [symbolic, dangling, hard, pipe])
def test_a_manifest_that_leads_elsewhere(tmp_path, secret, trap):
    """It is refused, and nothing was written before."""
    path = tmp_path / "run"
    path.mkdir()
    trap(path / "manifest.json", secret)
    with pytest.raises(CheckpointCorrupt):
        walk(path)
    assert untouched(secret) and os.listdir(path) == ["manifest.json"]


@pytest.mark.parametrize("trap", [symbolic, dangling, pipe])
def test_a_lock_that_is_none(tmp_path, secret, trap):
    path = tmp_path / "run"
    path.mkdir()
    trap(path / "lock", secret)
    with pytest.raises(CheckpointError, match="nothing can be written"):
        walk(path)
    assert untouched(secret) and os.listdir(path) == ["lock"]


def test_a_lock_that_is_a_hard_link(tmp_path, secret):
    path = tmp_path / "run"
    path.mkdir()
    hard(path / "lock", secret)
    assert walk(path).complete and untouched(secret)


def test_nothing_is_written_before_the_manifest_is_accepted(tmp_path):
    path = tmp_path / "run"
    walk(path, key=1)
    (path / "lock").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    with pytest.raises(CheckpointMismatch):
        walk(path, key=2)
    (path / "manifest.json").write_bytes(b"{}")
    before["manifest.json"] = (path / "manifest.json").stat().st_mtime_ns
    with pytest.raises(CheckpointCorrupt):
        walk(path, key=1)
    assert {p.name: p.stat().st_mtime_ns for p in path.iterdir()} == before


def test_a_directory_that_is_swapped_while_the_run_goes_on(tmp_path, secret):
    """What comes after stays with the directory that was opened."""
    path, elsewhere, moved = tmp_path / "run", tmp_path / "elsewhere", tmp_path / "moved"
    elsewhere.mkdir()

    def swap(state):
        path.rename(moved)
        path.symlink_to(elsewhere)

    found = walk(path, on_start=swap)
    assert found.complete and os.listdir(elsewhere) == []
    assert Store(moved).read().complete


def test_a_complete_run_is_read_from_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "run"
    whole = walk(path)
    (path / "lock").unlink()
    opened = os.open

    def read_only(name, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return opened(name, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    before = sorted(os.listdir(path))
    assert same(walk(path), whole) and sorted(os.listdir(path)) == before
    with pytest.raises(CheckpointError, match="Read-only"):
        walk(tmp_path / "another")


def test_what_killed_writers_left_is_removed(tmp_path):
    path = tmp_path / "run"
    interrupted(path, 3)
    (path / ".chunk-000009.npy.0123456789abcdef").write_bytes(bytes(100))
    (path / ".mine").write_bytes(b"kept")
    assert walk(path).num_steps == STEPS
    assert [p.name for p in path.glob(".*")] == [".mine"]


def test_draws_in_files_can_be_opened_by_numpy(tmp_path):
    found = walk(tmp_path / "run", in_memory=False)
    files = [np.load(p, mmap_mode="r") for p in sorted((tmp_path / "run").glob("draws-*"))]
    assert any(np.array_equal(f, found.draws["x"]) for f in files if f.shape == found.draws["x"].shape)
    mode = (tmp_path / "run" / "manifest.json").stat().st_mode
    assert not mode & (stat.S_IWGRP | stat.S_IWOTH)


@pytest.mark.parametrize("path", ["", 3, None, b"run", ["run"]])
def test_paths_that_are_none(path):
    with pytest.raises(MethodError, match="Checkpoint"):
        mcx.Checkpoint(path)
    with pytest.raises(MethodError, match="load"):
        mcx.load(path)


@pytest.mark.parametrize("interval", [float("nan"), -1, "5", None, float("inf")])
def test_intervals_that_are_none(tmp_path, interval):
    with pytest.raises(MethodError, match="interval"):
        mcx.Checkpoint(tmp_path, interval)


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="directory"):
        walk(tmp_path / "file")
    with pytest.raises(CheckpointError, match="no directory"):
        mcx.load(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_a_directory_that_is_gone(tmp_path, monkeypatch):
    """Before the first step that is an error; later the run goes on in memory, and says so."""
    path, append = tmp_path / "run", Store.append
    with pytest.raises(CheckpointError, match="nothing can be written"):
        walk(path, on_start=lambda state: shutil.rmtree(path))

    def append_to_nothing(self, *args):
        if self.manifest.chunks and path.exists():
            shutil.rmtree(path)
        append(self, *args)

    monkeypatch.setattr(Store, "append", append_to_nothing)
    with pytest.warns(InferenceWarning, match="could not be written"):
        found = walk(path)
    assert same(found, walk(None))
