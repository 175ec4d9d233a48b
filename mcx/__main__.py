"""Command line: ``python -m mcx doctor``, ``inspect DIR``, ``verify DIR``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
import time
from pathlib import Path

from mcx.errors import CheckpointError, McxError
from mcx.results.saved import opened
from mcx.run.store import Store

_PACKAGES = "jax jaxlib numpyro blackjax optax arviz-base arviz-stats numpy scipy xarray".split()
_OPTIONAL = ("arviz-plots", "diffrax", "hypothesis", "matplotlib", "netcdf4", "zarr")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status, 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m mcx", description="Look after mcx and what it saved.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="versions, devices, precision and cache, and whether they work")
    for name, text in (
        ("inspect", "what a checkpoint holds, without reading its draws"),
        ("verify", "read every file of a checkpoint and compare it with its SHA-256"),
    ):
        commands.add_parser(name, help=text).add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "doctor":
            return doctor()
        return (inspect if options.command == "inspect" else verify)(options.directory)
    except McxError as error:
        print(error, file=sys.stderr)
        return 1


def doctor() -> int:
    """Print what mcx runs on; returns 1 if something is missing, too old, or does not compute."""
    import jax
    import jax.numpy as jnp

    from mcx import __version__

    print(f"mcx       {__version__}, Python {platform.python_version()}, {platform.platform()}")
    problems = _packages()
    begun = time.perf_counter()
    devices = jax.devices()
    for device in devices:
        memory = (device.memory_stats() or {}).get("bytes_limit")
        size = "" if memory is None else f", {memory / 2**30:.1f} GiB"
        print(f"device    {device.id}: {device.device_kind} ({device.platform}{size})")
    print(f"processes {jax.process_count()}, CPU cores {os.cpu_count()}")
    x64 = jax.config.jax_enable_x64
    print("precision " + ("float64" if x64 else "float32; JAX_ENABLE_X64=1 makes it float64"))
    cache = jax.config.jax_compilation_cache_dir
    print(f"cache     {cache or 'none: mcx.enable_compilation_cache() keeps compiled programs on disk'}")
    total = float(jax.jit(lambda x: jnp.sum(x * x))(jnp.arange(1000.0)))
    if abs(total - 332833500.0) > 100.0:
        problems.append(f"{devices[0].device_kind} computes wrongly: {total} for 332833500")
    else:
        print(f"computing works: started, compiled and run in {time.perf_counter() - begun:.1f} s")
    for problem in problems:
        print(f"PROBLEM   {problem}")
    return 1 if problems else 0


def _packages() -> list[str]:
    """Print the packages' versions; returns what is wrong with them."""
    bounds: dict[str, str] = {}
    for line in importlib.metadata.requires("mcx") or ():
        found = re.match(r"([\w.-]+)>=([\d.]+)(?=$|,|;)", line)
        if found and "extra" not in line:
            bounds[found[1]] = found[2]
    problems, shown = [], []
    for name in (*_PACKAGES, *_OPTIONAL):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name not in _OPTIONAL:
                problems.append(f"{name} is not installed")
            continue
        shown.append(f"{name} {version}")
        if name in bounds and _numbers(version) < _numbers(bounds[name]):
            problems.append(f"{name} {version} is older than {bounds[name]}, which mcx needs")
    print("packages  " + ", ".join(shown))
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def inspect(directory: Path) -> int:
    """Print what a checkpoint is, how far it came, and what it holds."""
    store = Store(directory)
    manifest = opened(store)
    for name, value in manifest.identity.items():
        print(f"{name}: {value}")
    wanted = manifest.identity.get("steps", "?")
    size = sum(e.size for e in manifest.chunks) + (manifest.state.size if manifest.state else 0)
    state = "complete" if manifest.complete else "unfinished: the same call again goes on with it"
    print(
        f"saved: {manifest.steps} of {wanted} steps in {len(manifest.chunks)} chunks, {size / 2**20:.1f} MiB"
    )
    print(f"state: {state}")
    return 0


def verify(directory: Path) -> int:
    """Read every file of a checkpoint; returns 1 if one is damaged."""
    store = Store(directory)
    manifest = opened(store)
    files = [*manifest.chunks, *([manifest.state] if manifest.state else [])]
    bad = 0
    for entry in files:
        try:
            store.load(entry)
        except CheckpointError as error:
            print(error)
            bad += 1
    print(f"{len(files) - bad} of {len(files)} files are what was written")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
