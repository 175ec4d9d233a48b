"""Checkpoints, opened without the model that they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcx.errors import CheckpointError
from mcx.ops.validation import validated
from mcx.run.checkpoint import DIRECTORY_PATH
from mcx.run.manifest import Entry, Manifest
from mcx.run.store import Store
from mcx.sites import safe_name
from mcx.types import PyTree

if TYPE_CHECKING:
    import xarray as xr

_STEP = re.compile(r"\['((?:[^'\\]|\\.)*)'\]|\[(\d+)\]|\.(\w+)")


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint.

    Attributes:
        draws: kept draws as nested dictionaries of arrays, chain x draw x event; by site for
            :func:`mcx.infer`. Empty if the run was still in its warm-up.
        stats: statistics of the same steps by name, chain x draw.
        warmup_stats: those of the discarded steps before, chain x step.
        identity: of the run, as text by name: hashes of model and data, the method, the key, versions.
        num_steps: steps that were saved, discarded ones included.
        complete: whether the run came to its end.
        path: the directory.
    """

    draws: dict[str, Any]
    stats: dict[str, np.ndarray]
    warmup_stats: dict[str, np.ndarray]
    identity: Mapping[str, str]
    num_steps: int
    complete: bool
    path: Path

    def to_datatree(self) -> xr.DataTree:
        """The draws and their statistics in ArviZ's schema.

        Densities and names of dimensions are missing, because they need the model; to have them, make the
        call that wrote the checkpoint again, which resumes the run.
        """
        from arviz_base import from_dict

        content = {
            "posterior": {safe_name(name): x for name, x in _flat(self.draws)},
            "sample_stats": self.stats,
            "warmup_sample_stats": self.warmup_stats,
        }
        attrs = {"complete": int(self.complete), **self.identity}
        return from_dict({k: v for k, v in content.items() if v}, save_warmup=True, attrs={"/": attrs})

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        lines = [f"Saved run in {self.path}: {self.num_steps} steps, {state}"]
        lines += [f"  {name}: {value}" for name, value in self.identity.items()]
        for name, x in _flat(self.draws):
            lines.append(f"  draws of {name}: chains x draws x event = {x.shape}, {x.dtype}")
        return "\n".join(lines)


def load(path: str | Path) -> Saved:
    """Open the checkpoint of a run, finished or not, without its model.

    Every file is checked against its SHA-256; nothing that is read is executed. The directory is not written
    to, and a run that writes to it is not disturbed.

    Args:
        path: the directory given to ``checkpoint=``.

    Returns:
        Its content; see :class:`Saved`.

    Raises:
        CheckpointError: if there is no checkpoint.
        CheckpointCorrupt: if a file is damaged.
    """
    path = validated("load", "path", path, DIRECTORY_PATH)
    store = Store(path)
    manifest = opened(store)
    discard = int(manifest.identity.get("discarded steps", "0"))
    chunks = [(entry, store.load(entry)) for entry in manifest.chunks]
    kept = _tree(store, [(e, records) for e, records in chunks if e.first >= discard])
    discarded = _tree(store, [(e, records) for e, records in chunks if e.first < discard])
    return Saved(
        draws=_sites(kept.get("1", {})),
        stats=dict(_flat(kept.get("0", {}))),
        warmup_stats=dict(_flat(discarded.get("0", {}))),
        identity=dict(manifest.identity),
        num_steps=manifest.steps,
        complete=manifest.complete,
        path=Path(path),
    )


def opened(store: Store) -> Manifest:
    """The manifest of a directory; raises CheckpointError, naming those within, if it has none."""
    manifest = store.read()
    if manifest is None:
        within = sorted(str(path.parent) for path in store.path.glob("*/manifest.json"))
        raise CheckpointError(
            f"there is no checkpoint in {store.path}",
            expected="a directory that was given to checkpoint=",
            found=(
                "parts of a run in directories of their own"
                if within
                else "no manifest.json"
                if store.path.is_dir()
                else "no directory"
            ),
            remedy=f"open one of them: {', '.join(within)}" if within else None,
        )
    return manifest


def _tree(store: Store, chunks: list[tuple[Entry, np.ndarray]]) -> dict[str, Any]:
    """Records of steps x chains as nested dictionaries of arrays, chains x steps x event."""
    tree: dict[str, Any] = {}
    for entry, chunk in chunks:
        like = chunks[0][1]
        if (chunk.dtype, chunk.shape[1]) != (like.dtype, like.shape[1]):
            raise store.corrupt(entry.files[0].file, "differs from the chunks before", str(chunk.dtype))
    names = (chunks[0][1].dtype.names or ()) if chunks else ()
    for name in (n for n in names if _path(n)):
        joined = np.concatenate([chunk[name] for _, chunk in chunks])
        *path, last = _path(name)
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
            if not isinstance(branch, dict):
                raise store.corrupt(chunks[0][0].files[0].file, "has a leaf within a leaf", name)
        branch[last] = np.ascontiguousarray(np.swapaxes(joined, 0, 1))
    return tree


def _path(name: str) -> list[str]:
    """Steps of a leaf's path within a pytree, from its text."""
    return [next(g for g in found.groups() if g is not None) for found in _STEP.finditer(name)]


def _sites(draws: PyTree) -> dict[str, Any]:
    """Draws by site: what :func:`mcx.infer` keeps is a pair of these and of the unconstrained point."""
    if isinstance(draws, np.ndarray):
        return {"value": draws}
    pair = set(draws) == {"0", "1"} and isinstance(draws["0"], dict)
    return dict(draws["0"] if pair else draws)


def _flat(tree: PyTree, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """Leaves of nested dictionaries, their names joined by dots."""
    if isinstance(tree, np.ndarray):
        return [(prefix or "value", tree)]
    return [
        leaf for name, x in tree.items() for leaf in _flat(x, f"{prefix}.{name}" if prefix else str(name))
    ]
