"""Damaged and hostile checkpoints are refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_problems import flip, interrupted, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mcx
from mcx.__main__ import main
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


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["0", "-1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(node, path=()):
    """All paths into a JSON document."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_manifest_is_refused_or_harmless(begun, data):
    """Parts dropped, repeated, or replaced by anything: an error of mcx, or what was written."""
    raw = (begun / "manifest.json").read_bytes()
    whole = mcx.load(begun)
    changed = json.loads(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([p for p in places(changed) if p]))
        inner = changed
        for name in path:
            inner = inner[name]
        how = data.draw(st.sampled_from(["drop", "replace", "repeat", "count"]))
        if how == "drop":
            del inner[last]
        elif how == "repeat" and isinstance(inner, list):
            inner.insert(data.draw(st.integers(0, len(inner))), inner[last])
        elif how == "count" and isinstance(inner[last], int):
            inner[last] += data.draw(st.integers(-40, 40))
        else:
            inner[last] = data.draw(JUNK)
        if not isinstance(changed, dict) or not changed:
            break
    (begun / "manifest.json").write_text(json.dumps(changed))
    try:
        found = mcx.load(begun)
        assert found.num_steps == whole.num_steps
        if found.identity.get("discarded steps") == whole.identity["discarded steps"]:
            np.testing.assert_array_equal(found.draws["x"], whole.draws["x"])
        assert main(["inspect", str(begun)]) == 0
        # draws are loaded without the state, which verify reads, too
        assert main(["verify", str(begun)]) == 0 or changed["state"] != json.loads(raw)["state"]
    except CheckpointError:
        assert main(["inspect", str(begun)]) in (0, 1) and main(["verify", str(begun)]) in (0, 1)
    finally:
        (begun / "manifest.json").write_bytes(raw)


FORGED = {
    "no chains": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (20, 0)}"),
    "no bytes": npy("{'descr': [('a', '<V0')], 'fortran_order': False, 'shape': (20, 2)}"),
    "text": npy("{'descr': [('a', '<U1')], 'fortran_order': False, 'shape': (20, 2)}") + bytes(160),
    "other fields": npy("{'descr': [('b', '<f4')], 'fortran_order': False, 'shape': (20, 2)}") + bytes(160),
    "no fields": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (20, 2)}") + bytes(160),
    "nested": npy("{'descr': [('a', [('b', '<f4')])], 'fortran_order': False, 'shape': (20, 2)}")
    + bytes(160),
    "leaf within a leaf": npy(
        "{'descr': [(\"['a']\", '<f4'), (\"['a']['b']\", '<f4')], 'fortran_order': False, 'shape': (20, 2)}"
    )
    + bytes(320),
}


@pytest.mark.parametrize("case", list(FORGED) + list(HOSTILE))
def test_forged_chunks_are_refused_without_the_model(begun, case):
    """Right lengths and hashes: neither the reader nor the command line ends in an error of another kind."""
    listed(begun, {**HOSTILE, **FORGED}[case])
    with pytest.raises(CheckpointCorrupt):
        mcx.load(begun)
    with pytest.raises(CheckpointCorrupt):
        walk(begun)


def drop(manifest):
    """The last chunk, with the steps as they would be."""
    gone = manifest["chunks"].pop()
    manifest["steps"] -= gone["count"]


def drop_all(manifest):
    drop(manifest)
    manifest["state"]["first"] = manifest["steps"]


def list_often(manifest):
    manifest["chunks"][-1]["files"] *= 100_000


def count_differently(manifest):
    manifest["chunks"][-1]["count"] += 10**9
    manifest["steps"] += 10**9
    manifest["state"]["first"] += 10**9


def words(manifest):
    manifest["identity"]["discarded steps"] = "many"


@pytest.mark.parametrize("forge", [drop, drop_all, list_often, count_differently, words])
def test_forged_manifests_are_refused(begun, forge):
    manifest = json.loads((begun / "manifest.json").read_text())
    forge(manifest)
    (begun / "manifest.json").write_text(json.dumps(manifest))
    for read in (walk, mcx.load):
        with pytest.raises(CheckpointCorrupt, match="no manifest"):
            read(begun)


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
