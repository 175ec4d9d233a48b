"""Checkpoints of unfinished runs, written once and for all: what was begun before a change goes on after it.

``checkpoints.tar.gz`` is written where it is missing, by ``golden.py --record``; delete it to write it anew.
"""

from __future__ import annotations

import signal
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax.numpy as jnp
import models
import numpy as np
from cases_chains import Walk
from cases_diffusion import COLDER, a_seen
from fields import taken
from registry import case

import mcx
from mcx import diffusion

ARCHIVE = Path(__file__).with_name("checkpoints.tar.gz")
QUIET: dict[str, Any] = {"warnings": "ignore", "num_chains": 2}
LONG = np.random.default_rng(6).normal(size=20).astype(np.float32)
RHO = diffusion.levels(30.0, 0.05, 20)
GIBBS = mcx.ParticleGibbs(states=mcx.ConditionalSMC(8), params=mcx.RandomWalk(), num_warmup=0, num_samples=20)
PPG = mcx.PPG(8, num_warmup=2, num_samples=18)
ASCENT = mcx.ScoreAscent(smoother=mcx.PPG(8, num_warmup=0, num_samples=2), num_updates=20, num_information=0)
CLIMBING = mcx.ScoreClimbing(num_updates=20, num_checks=100)
TEMPERED = mcx.TemperedSMC(
    num_particles=16, move=mcx.RandomWalk(), levels=tuple((k + 1) / 20 for k in range(20)), max_moves=3
)


def infer(bound: Any, method: Any) -> tuple[str, Callable[..., Any]]:
    """A call of ``mcx.infer``."""
    return "posterior", partial(mcx.infer, bound, method, key=0, **QUIET)


# kinds of results and calls, which are stopped when the host looks at them first, after 16 steps at most
RUNS: dict[str, tuple[str, Callable[..., Any]]] = {
    "nuts": infer(models.normal(LONG), mcx.NUTS(num_warmup=0, num_samples=20, max_tree_depth=3)),
    "nuts warm-up": infer(models.normal(LONG), mcx.NUTS(num_warmup=20, num_samples=4, max_tree_depth=3)),
    "chees": infer(models.normal(LONG), mcx.ChEES(num_warmup=20, num_samples=4)),
    "random walk": infer(models.normal(LONG), mcx.RandomWalk(num_warmup=20, num_samples=4)),
    "tempered": infer(models.normal(LONG), TEMPERED),
    "pmmh": infer(models.ar(LONG), mcx.PMMH(8, num_warmup=20, num_samples=4)),
    "smc2": infer(models.ar(LONG), mcx.SMC2(num_params=8, num_particles=8)),
    "gibbs": infer(models.ar(LONG), GIBBS),
    "guided": infer(a_seen(), mcx.GuidedDiffusion(num_particles=8, num_reverse_steps=20, num_pilot=16)),
    "filter": (
        "filtered",
        partial(
            mcx.filter, models.ar(LONG), params=models.AR_PARAMS, num_particles=16, history="full", key=0
        ),
    ),
    "smooth": (
        "estimate",
        partial(
            mcx.smooth, models.ar(LONG), mcx.functionals.means(), params=models.AR_PARAMS, method=PPG, key=0
        ),
    ),
    "ascent": (
        "maximum",
        partial(mcx.maximize, models.ar(LONG), method=ASCENT, init=models.AR_PARAMS, key=0),
    ),
    "climbing": (
        "approximation",
        partial(mcx.maximize, models.normal(LONG), method=CLIMBING, num_chains=2, key=0),
    ),
    "correct": (
        "corrections",
        partial(diffusion.correct, COLDER, (2,), RHO, num_particles=16, key=0, **QUIET),
    ),
    "run": (
        "run",
        partial(mcx.run, Walk(), jnp.float32(0.3), num_steps=20, inputs=jnp.linspace(0.5, 1.0, 20), key=0),
    ),
}


class Stop:
    """A display that presses Ctrl-C when it hears of the first steps."""

    def compiling(self) -> None: ...

    def started(self) -> None: ...

    def update(self, done: int, phase: str, report: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def close(self, complete: bool) -> None: ...


def write() -> None:
    """Write the archive of unfinished runs."""
    steps = patch("mcx.inference.filtering.filter._PARTICLE_STEPS_PER_CHUNK", 160)  # a filter is too fast
    with tempfile.TemporaryDirectory() as folder, steps:
        for name, (_, run) in RUNS.items():
            with suppress(KeyboardInterrupt):  # raised where there are no draws yet
                run(checkpoint=Path(folder) / name, progress=Stop())
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            archive.add(folder, arcname=".")


def checkpoint_case(name: str, kind: str, run: Callable[..., Any]) -> None:
    """A case that goes on with a run, next to the same run without an interruption."""

    @case(f"checkpoints/{name}")
    def go_on() -> dict[str, Any]:
        if not ARCHIVE.exists():
            write()
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(folder, filter="data")
            saved = mcx.load(Path(folder) / name)
            if saved.complete:
                raise ValueError(f"{name} was not interrupted")
            before = {"draws": saved.draws, "stats": saved.stats}
            resumed = taken(kind, run(checkpoint=Path(folder) / name, progress=False))
        return {"saved": before, "resumed": resumed, "whole": taken(kind, run(progress=False))}


for _name, (_kind, _run) in RUNS.items():
    checkpoint_case(_name, _kind, _run)
