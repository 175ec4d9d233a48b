"""Damaged and hostile checkpoints are refused."""

import json
import os
from pathlib import Path

import pytest
from checkpoint_problems import flip, interrupted, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcx.errors import (
    CheckpointCorrupt,
    CheckpointError,
)
from mcx.run.store import Store


@pytest.fixture
def begun(tmp_path):
    """A directory with an unfinished run."""
    interrupted(tmp_path / "run", 6)
    return tmp_path / "run"


# --- damage ----------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def link(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {"truncated": truncate, "flipped": flip, "missing": Path.unlink, "link": link, "fifo": fifo}


@pytest.mark.parametrize("name", ["chunk-000001.npy", "state-*.npy", "manifest.json"])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_files_are_refused(begun, name, damage):
    (path,) = begun.glob(name)
    if (name, damage) == ("manifest.json", "missing"):
        return  # nothing tells that there was a run
    DAMAGE[damage](path)
    if (name, damage) == ("manifest.json", "flipped"):
        with pytest.raises(CheckpointError):  # of the format, or of the identity, or of a hash
            walk(begun)
        return
    with pytest.raises(CheckpointCorrupt, match="to mend it"):
        walk(begun)


def listed(begun, raw, name="chunk-000001.npy"):
    """The manifest with another content of a chunk, hash and length right."""
    import hashlib

    manifest = json.loads((begun / "manifest.json").read_text())
    (begun / name).write_bytes(raw)
    entry = manifest["chunks"][1]["files"][0]
    entry |= {"file": name, "size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (begun / "manifest.json").write_text(json.dumps(manifest))


def npy(header):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


HOSTILE = {
    "pickle": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"cos\nsystem\n(S'true'\ntR.",
    "huge": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (20, 1000000000000)}"),
    "overflowing": npy(
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2305843009213693952, 8)}"
    ),
    "negative": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (-1, 2)}"),
    "code": npy("__import__('os').system('true')"),
    "deep": npy("(" * 5000 + ")" * 5000),
    "no header": b"hello",
    "another type": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (20, 2)}") + bytes(160),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile_chunks_are_refused(begun, case):
    listed(begun, HOSTILE[case])
    with pytest.raises(CheckpointCorrupt):
        walk(begun)


@pytest.mark.parametrize(
    "name",
    ["../secret.npy", "/etc/passwd", "chunk-000001.npy/../../x", "chunk-1.npy", "", 7, None, "manifest.json"],
)
def test_hostile_names_are_refused(begun, name):
    manifest = json.loads((begun / "manifest.json").read_text())
    manifest["chunks"][1]["files"][0]["file"] = name
    (begun / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointCorrupt, match="no manifest"):
        walk(begun)


@pytest.mark.parametrize(
    "raw", [b"", b"[" * 100_000, b"null", b"{}", b"\xff\xfe", b'{"format": "mcx checkpoint"}']
)
def test_hostile_manifests_are_refused(begun, raw):
    (begun / "manifest.json").write_bytes(raw)
    with pytest.raises(CheckpointCorrupt):
        walk(begun)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_or_harmless(begun, data):
    """Bytes of any file replaced, dropped or added: the reader refuses, or reads what was written."""
    store = Store(begun)
    files = {p.name: p.read_bytes() for p in begun.iterdir() if p.suffix in (".npy", ".json")}
    clean = [store.load(e).tobytes() for e in store.read().chunks]
    name = data.draw(st.sampled_from(sorted(files)))
    raw = files[name]
    start = data.draw(st.integers(0, len(raw)))
    length = data.draw(st.integers(0, 40))
    damaged = raw[:start] + data.draw(st.binary(max_size=40)) + raw[start + length :]
    (begun / name).write_bytes(damaged)
    try:
        found = [store.load(e).tobytes() for e in store.read().chunks]
        assert found == clean[: len(found)]
    except CheckpointCorrupt:
        pass
    finally:
        (begun / name).write_bytes(raw)
