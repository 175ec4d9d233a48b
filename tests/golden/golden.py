"""Bits that a change of the code must not change.

``python tests/golden/golden.py [PATTERN ...]`` runs small cases of every method with fixed keys and compares
hashes of draws, statistics and evidences with those in ``golden.json``; ``--record`` writes them anew, those
of the cases that were asked for. A pattern is a glob (``infer/*``) or a part of a case's name.

Bits depend on the processor and on versions. Elsewhere than recorded only fingerprints of programs are
compared: of jaxprs without names. On the machine that recorded them bits decide, and a program that differs
in spite of equal bits is only told of.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).with_name("golden.json")

# Compiling is what cases spend their time on; these must not differ between recording and comparing.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
sys.path.insert(0, str(ROOT))

Leaves = dict[str, str]


def environment() -> dict[str, str]:
    """What bits depend on besides the code."""
    import blackjax
    import jax
    import jaxlib
    import numpy
    import numpyro

    versions = {m.__name__: m.__version__ for m in (jax, jaxlib, numpy, numpyro, blackjax)}
    return {"processor": processor(), "python": platform.python_version(), **versions}


def processor() -> str:
    """The processor's model and the number of cores."""
    parts = [platform.processor() or platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", info.read_text().split("\n\n")[0], re.MULTILINE))
        parts += [f"{k} {first[k]}" for k in ("model name", "cpu family", "model", "stepping") if k in first]
    return ", ".join([*parts, f"{os.cpu_count()} cores"])


def forget_programs() -> None:
    """Forget compiled programs where there are many: Linux gives a process 65530 memory maps."""
    import jax

    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 12_000:
        jax.clear_caches()
        gc.collect()


def compare(old: Leaves, new: Leaves, programs_only: bool) -> tuple[list[str], list[str]]:
    """What differs in bits, and what differs in programs or in names alone."""
    wrong, told = [], []
    same = {value: name for name, value in old.items() if name not in new}
    for name in sorted({**old, **new}):
        before, after = old.get(name), new.get(name)
        is_program = (before or after or "").startswith("program")
        if before == after or (programs_only and not is_program):
            continue
        if before is None and after in same:
            told.append(f"{same[after]} is now {name}, with the same bits")
        elif after is None and before in new.values():
            continue  # renamed
        else:
            (told if is_program else wrong).append(f"{name}: {before or 'nothing'} -> {after or 'nothing'}")
    return wrong, told


def main() -> int:
    """Run the cases; the exit status is 1 where bits differ or a case fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("patterns", nargs="*", help="cases to run: globs or parts of names; all by default")
    parser.add_argument("--record", action="store_true", help="write golden.json anew for these cases")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    args = parser.parse_args()
    from cases import CASES

    names = [n for n in CASES if not args.patterns or any(_fits(n, p) for p in args.patterns)]
    if args.list:
        print("\n".join(names))
        return 0
    stored: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {"cases": {}}
    recorded, here = stored.get("environment", {}), environment()
    elsewhere = {k: v for k, v in recorded.items() if here.get(k) != v} if not args.record else {}
    if elsewhere:
        print("Recorded elsewhere, so that programs alone are compared:")
        print("\n".join(f"  {k}: {v}, here {here.get(k)}" for k, v in elsewhere.items()))
        names = [n for n in names if not n.startswith("checkpoints/")]
    failed, noted, begun = [], [], time.perf_counter()
    for name in names:
        start = time.perf_counter()
        found, wrong, told = leaves(CASES[name]), [], []
        if isinstance(found, str):
            wrong = [found]
        elif args.record:
            stored["cases"][name] = found
            write(stored["cases"], here)
        elif name not in stored["cases"]:
            told = ["not recorded"]
        else:
            wrong, told = compare(stored["cases"][name], found, bool(elsewhere))
        state = "DIFFERS" if wrong else "note" if told else "ok"
        print(f"{state:8}{name:48}{time.perf_counter() - start:6.1f} s")
        print("".join(f"          {line[:600]}\n" for line in [*wrong, *told]), end="", flush=True)
        failed += [name] if wrong else []
        noted += [name] if told else []
        forget_programs()
    seconds = time.perf_counter() - begun
    print(f"{len(names)} cases in {seconds:.0f} s: {len(failed)} differ, {len(noted)} with notes")
    return 1 if failed else 0


def write(cases: dict[str, Leaves], here: dict[str, str]) -> None:
    """Write what was recorded, as it comes: without cases that are no more."""
    from cases import CASES

    known = {name: cases[name] for name in sorted(CASES) if name in cases}
    content = {"environment": here, "date": time.strftime("%Y-%m-%d"), "cases": known}
    DATA.write_text(json.dumps(content, indent=0) + "\n")


def leaves(function: Callable[[], dict[str, Any]]) -> Leaves | str:
    """What a case gives, by name; or the error that it ends with."""
    from bits import leaves_of

    try:
        return {k: v for part, tree in function().items() for k, v in leaves_of(tree, part).items()}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"


def _fits(name: str, pattern: str) -> bool:
    return pattern in name or fnmatch.fnmatch(name, pattern)


if __name__ == "__main__":
    sys.exit(main())
