"""Thirty minutes of kills, full disks, damage, odd systems and many models: ``make soak``.

Prints a table of what was tried and what was found; docs/reliability.md holds the last one. Exits with 1 if
anything promised was not kept. ``soak.py work JOB DIRECTORY`` is one run, which the others start.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import mcx
import mcx.diffusion as diffusion
from mcx import dist
from mcx.errors import CheckpointError, McxError

Y = np.array([0.3, -0.5, 1.2, 0.4, -1.1, 0.8, 0.1, -0.2], np.float32)


@mcx.model
def supports(y):
    """Sites of several supports, whose draws have to have the same bits after every kill."""
    scale = mcx.sample("scale", dist.HalfNormal(1.0))
    share = mcx.sample("share", dist.Beta(2.0, 2.0))
    weights = mcx.sample("weights", dist.Dirichlet(np.ones(3, np.float32)))
    factor = mcx.sample("factor", dist.LKJCholesky(2, 2.0))
    mcx.sample("y", dist.Normal(weights[0] + factor[1, 0], scale * (0.5 + share)), obs=y)


@mcx.model
def series(y):
    phi = mcx.sample("phi", dist.Beta(8.0, 2.0))
    sd = mcx.sample("sd", dist.HalfNormal(1.0))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0.0, 1.0),
        transition=lambda x, u: dist.Normal(phi * x, sd),
        emission=lambda x, u: dist.Normal(x, 1.0),
        obs=y,
    )


MIXTURE = diffusion.GaussianMixture(
    np.array([[-1.0, 0.0], [2.0, 1.0]], np.float32), np.ones((2, 2), np.float32), np.full(2, 0.5, np.float32)
)


def infer(bound: mcx.BoundModel, method: object, **more: object) -> Callable[[object], object]:
    def job(checkpoint: object) -> object:
        found = mcx.infer(
            bound, method, key=1, progress=False, warnings="ignore", checkpoint=checkpoint, **more
        )
        return found.draws, found.stats

    return job


def smooth(checkpoint: object) -> object:
    method = mcx.PPG(num_particles=50, num_warmup=50, num_samples=4000)
    params = {"phi": 0.8, "sd": 0.5}
    found = mcx.smooth(
        series(Y),
        lambda a, b, t: a * b,
        params=params,
        method=method,
        key=1,
        progress=False,
        checkpoint=checkpoint,
    )
    return found.value, found.se


def maximize(checkpoint: object) -> object:
    method = mcx.ScoreAscent(num_updates=300)
    found = mcx.maximize(series(Y), method=method, key=1, progress=False, checkpoint=checkpoint)
    return found.params, found.se


def correct(checkpoint: object) -> object:
    rho = diffusion.levels(10.0, 0.05, 400)
    composition = diffusion.anneal(MIXTURE, 1.5)
    found = diffusion.correct(
        composition, (2,), rho, num_particles=4000, key=1, progress=False, checkpoint=checkpoint
    )
    return found.x, found.stats


JOBS: dict[str, Callable[[object], object]] = {
    "NUTS": infer(supports(Y), mcx.NUTS(num_warmup=300, num_samples=6000)),
    "ChEES": infer(supports(Y), mcx.ChEES(num_warmup=300, num_samples=1500)),
    "PMMH": infer(series(Y), mcx.PMMH(num_particles=64, num_warmup=300, num_samples=4000)),
    "ParticleGibbs": infer(series(Y), mcx.ParticleGibbs(num_warmup=200, num_samples=1500)),
    "TemperedSMC": infer(supports(Y), mcx.TemperedSMC(num_particles=4000)),
    "SMC2": infer(series(np.tile(Y, 4)), mcx.SMC2(num_particles=128)),
    "smooth": smooth,
    "maximize": maximize,
    "correct": correct,
}


def digest(tree: object) -> str:
    import jax

    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


# --- what is tried -----------------------------------------------------------------------------------


def start(job: str, path: Path, cache: Path, **more: object) -> subprocess.Popen[str]:
    """A process that does a job; ``more`` are environment variables."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **{name: str(value) for name, value in more.items()},
    }
    return subprocess.Popen(
        [sys.executable, __file__, "work", job, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], timeout: float = 600) -> str:
    out, err = process.communicate(timeout=timeout)
    if process.returncode:
        raise AssertionError(err[-2000:])
    return out.split()[-1]


def steps_saved(path: Path) -> int:
    """Steps in all manifests of a run and of its parts."""
    total = 0
    for manifest in path.rglob("manifest.json"):
        try:
            total += json.loads(manifest.read_text())["steps"]
        except (OSError, ValueError):
            continue
    return total


def kills(job: str, count: int, cache: Path, sign: signal.Signals, luck: random.Random) -> str:
    """Interrupt a run at random moments after its first save, go on, and compare the bits at its end."""
    with tempfile.TemporaryDirectory() as folder:
        finished(start(job, Path(folder, "warm"), cache))  # fills the cache
        begun = time.monotonic()
        whole = finished(start(job, Path(folder, "whole"), cache))
        length = time.monotonic() - begun
        done, runs, path = 0, 0, Path(folder, "run")
        while done < count:
            process, before = start(job, path, cache), steps_saved(path)
            deadline = time.monotonic() + 4 * length
            while process.poll() is None and steps_saved(path) <= before and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(luck.uniform(0, 0.1 * length))
            ended = process.poll() is not None
            if not ended:
                process.send_signal(sign)
                done += 1
                process.communicate(timeout=120)
            if ended and process.returncode == 0:
                if finished(process) != whole:
                    raise AssertionError("other bits")
                runs += 1
                shutil.rmtree(path)
        if path.exists():
            runs += 1
            if finished(start(job, path, cache)) != whole:
                raise AssertionError("other bits")
    return f"{done} interrupted, {runs} completions, all with the bits of an undisturbed run"


def full_disk(cache: Path) -> str:
    """Files that cannot grow beyond some size: the run goes on, warns, and its end is right."""

    with tempfile.TemporaryDirectory() as folder:
        whole = finished(start("NUTS", Path(folder, "whole"), cache))
        process = start("NUTS", Path(folder, "run"), Path(folder, "none"), _LARGEST_FILE=60_000)
        out, err = process.communicate(timeout=600)
        if process.returncode or out.split()[-1] != whole or "could not be written" not in err:
            raise AssertionError(err[-1000:])
        if finished(start("NUTS", Path(folder, "run"), cache)) != whole:
            raise AssertionError("other bits")
    return "warned, complete in memory, resumed with the same bits"


def damage(cache: Path, luck: random.Random, count: int = 200) -> str:
    """Bytes changed in files of a complete run: refused, or what was written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        finished(start("NUTS", path, cache))
        clean = digest(mcx.load(path).draws)
        refused = 0
        for _ in range(count):
            file = luck.choice([p for p in path.iterdir() if p.suffix in (".npy", ".json")])
            raw = file.read_bytes()
            at = luck.randrange(len(raw))
            file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << luck.randrange(8))]) + raw[at + 1 :])
            try:
                if digest(mcx.load(path).draws) != clean:
                    raise AssertionError(f"{file.name} was damaged, and read")
            except CheckpointError:
                refused += 1
            file.write_bytes(raw)
    return f"{refused} of {count} flipped bits refused, {count - refused} harmless (text of the identity)"


def memory() -> float:
    """Resident memory, MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def many_models(count: int) -> str:
    """Models with new shapes, one after the other: memory stays bounded."""
    sizes = []
    for i in range(count):

        @mcx.model
        def fresh(y, i=i):
            mcx.sample("y", dist.Normal(mcx.sample("m", dist.Normal(0.0, 1.0 + i)), 1.0), obs=y)

        method = mcx.RandomWalk(num_warmup=5, num_samples=5)
        mcx.infer(fresh(np.zeros(i + 2, np.float32)), method, key=0, progress=False, warnings="ignore")
        sizes.append(memory())
    third = count // 3
    growth = (sizes[-1] - sizes[2 * third]) / (count - 2 * third)
    if growth > 2.0:
        raise AssertionError(f"{growth:.1f} MiB a model")
    return (
        f"{count} models: {sizes[0]:.0f} -> {sizes[-1]:.0f} MiB, {growth:.2f} MiB a model in the last third"
    )


SHORT = mcx.RandomWalk(num_warmup=50, num_samples=200)


def short(seed: int) -> str:
    return digest(mcx.infer(supports(Y), SHORT, key=seed, progress=False, warnings="ignore").draws)


def threads() -> str:
    alone = [short(i) for i in range(8)]
    found: dict[int, str] = {}
    workers = [threading.Thread(target=lambda i=i: found.update({i: short(i)})) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    if [found.get(i) for i in range(8)] != alone:
        raise AssertionError("other bits")
    return "8 threads at once, the bits of runs one by one"


_COMPILING = """
import numpy as np, mcx
from mcx import dist
@mcx.model
def m(y):
    x = mcx.sample("x", dist.Normal(0, 1).expand([5]).to_event(1))
    mcx.sample("y", dist.Normal(x.sum(), mcx.sample("s", dist.HalfNormal(1))), obs=y)
def draws():
    method = mcx.NUTS(num_warmup=100, num_samples=100)
    return mcx.infer(m(np.zeros(9)), method, key=0, progress=False, warnings="ignore").draws["x"]
print("begun", flush=True)
try:
    draws()
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("equal" if (draws() == draws()).all() else "other bits")
"""


def while_compiling(count: int, luck: random.Random) -> str:
    """Interrupt a process whose programs are not compiled yet; it goes on and makes the same call again."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    waits: list[float] = []
    for _ in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", _COMPILING], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(luck.uniform(0.2, 2.5))
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        first = process.stdout.readline().strip()
        if first == "interrupted":
            waits.append(time.monotonic() - sent)
        said = first + process.communicate(timeout=300)[0]
        if "equal" not in said:
            raise AssertionError(f"after Ctrl-C: {said!r}")
    longest = max(waits, default=0.0)
    return f"{len(waits)} of {count} interrupted, after {longest:.1f} s at most; the same call then ran"


def event_loop() -> str:
    async def several() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(short, i) for i in range(4)))

    if asyncio.run(several()) != [short(i) for i in range(4)]:
        raise AssertionError("other bits")
    return "4 runs by asyncio.to_thread, the same bits"


def spawn() -> str:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        if pool.map(short, range(4)) != [short(i) for i in range(4)]:
            raise AssertionError("other bits")
    return "4 runs in a spawned pool, the same bits"


def notebook() -> str:
    try:
        import nbclient
        import nbformat
    except ImportError:
        return "left out: pip install nbclient ipykernel"
    code = "import numpy as np, mcx\nfrom mcx import dist\n@mcx.model\ndef m(y):\n"
    code += "    mcx.sample('y', dist.Normal(mcx.sample('x', dist.Normal(0., 1.)), 1.), obs=y)\n"
    code += "post = mcx.infer(m(np.zeros(3, np.float32)), mcx.NUTS(), key=0)\npost.summary()"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=300).execute()
    return "a cell run twice, progress shown"


def items(minutes: float, cache: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    luck = random.Random(time.time_ns())
    count = max(2, round(minutes))
    for job in JOBS:
        yield f"SIGKILL, {job}", lambda job=job: kills(job, count, cache, signal.SIGKILL, luck)
    for job in ("NUTS", "TemperedSMC", "smooth"):
        yield f"Ctrl-C, {job}", lambda job=job: kills(job, max(2, count // 3), cache, signal.SIGINT, luck)
    yield "Ctrl-C while compiling, NUTS", lambda: while_compiling(max(2, count // 6), luck)
    yield "disk full", lambda: full_disk(cache)
    yield "damaged files", lambda: damage(cache, luck)
    yield "many models", lambda: many_models(max(30, round(10 * minutes)))
    yield "threads", threads
    yield "asyncio", event_loop
    yield "spawn", spawn
    yield "notebook", notebook


def work(job: str, path: str) -> int:
    """One run; prints the digest of its result."""
    if largest := int(os.environ.get("_LARGEST_FILE", "0")):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        print(digest(JOBS[job](mcx.Checkpoint(path, interval=0.0))))
    except KeyboardInterrupt:
        return 130
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="how long, about")
    parser.add_argument("--only", default="", help="those items whose name holds this")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        print("| What | Found | Seconds |\n| --- | --- | --- |", flush=True)
        for name, attempt in items(options.minutes, Path(cache)):
            if options.only not in name:
                continue
            begun = time.monotonic()
            try:
                found = attempt()
            except (AssertionError, McxError, subprocess.TimeoutExpired) as error:
                found, failed = f"FAILED: {error}", failed + 1
            print(f"| {name} | {found} | {time.monotonic() - begun:.0f} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(work(*sys.argv[2:]) if sys.argv[1:2] == ["work"] else main())
