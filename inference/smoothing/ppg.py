"""PPG, the Parisian particle Gibbs sampler: smoothing whose bias vanishes geometrically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.conditional_smc.system import conditional, pinned
from mcx.inference.smc.engine import SMCState
from mcx.inference.smc.genealogy import trace_paths
from mcx.inference.smoothing.recursion import Recursion, forward, value
from mcx.inference.smoothing.smoother import Smoother, Swept
from mcx.ops.random import choose
from mcx.ops.validation import Rule, integer
from mcx.results.estimate import autocorrelation
from mcx.types import Index, Key, PyTree, Stats

_LOW_UPDATE_RATE = 0.02


@dataclass(frozen=True, kw_only=True)
class PPG(Smoother):
    """Parisian particle Gibbs: conditional PaRIS sweeps, averaged.

    A sweep runs PaRIS with one particle that follows a path, and draws the next path from the indices that
    the recursion drew anyway. The path is a Markov chain with the smoothing law as its own, for any N >= 2,
    and under that law a sweep's estimate has no bias. So the average after ``num_warmup`` sweeps has a bias
    that is geometric in ``num_warmup``, at the cost of as many runs of PaRIS.

    Attributes:
        num_particles: N.
        num_warmup: leading sweeps that are left out of the average.
        num_samples: sweeps that are averaged.
        num_backward: draws a particle and step, M.
        backward: "imh" (Metropolis-Hastings steps from the particle's ancestor), "exact" or "hybrid"; all
            leave the smoothing law invariant.
        num_mh_steps: Metropolis-Hastings steps of a draw; with 0 the path hardly mixes.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Cardoso, Janati El Idrissi, Le Corff, Moulines and Olsson (2023), where k0 is ``num_warmup`` and k
    is ``num_warmup + num_samples``.
    """

    num_particles: int = field(default=100, kw_only=False)
    num_warmup: int = 10
    num_samples: int = 10
    num_backward: int = 2
    backward: Literal["imh", "exact", "hybrid"] = "imh"
    num_mh_steps: int = 1
    threshold: float = 0.5

    has_path: ClassVar[bool] = True

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            **super().rules(),
            "num_particles": integer(2),
            "num_warmup": integer(0),
            "num_samples": integer(1),
            "num_backward": integer(1),
        }

    @override
    def identifiers(self) -> dict[str, Any]:
        own = {"num_iterations": self.num_sweeps, "burn_in": self.num_warmup}
        rest = {k: v for k, v in super().identifiers().items() if k not in ("num_warmup", "num_samples")}
        return {"num_particles": rest.pop("num_particles"), **own, **rest}

    @override
    def sweep(self, key: Key, recursion: Recursion, path: PyTree) -> Swept:
        return ppg_sweep(key, recursion, path)

    @override
    def notes(self, draws: PyTree, stats: Stats) -> tuple[str, ...]:
        notes = []
        rates = np.asarray(stats["updated"]).mean((0, 1))
        if rates.min() < _LOW_UPDATE_RATE:
            notes.append(
                f"the path at t = {int(rates.argmin())} was renewed in {100 * rates.min():.0f} % of the "
                "sweeps: take more particles, or more steps of backward='imh'"
            )
        leaves = [x for x in jax.tree.leaves(draws) if x[0, 0].size == 1]
        correlation = max((autocorrelation(x) for x in leaves), default=np.nan)
        if np.isfinite(correlation):
            notes.append(f"autocorrelation of successive sweeps {correlation:.2f}")
        return tuple(notes)


def ppg_sweep(key: Key, recursion: Recursion, path: PyTree) -> Swept:
    """One conditional PaRIS sweep given a path (T, ...); or an unconditional one, as at the start of a chain.

    Costs as PaRIS; memory O(T N) for particles and one index each.
    """
    key_run, key_last = jax.random.split(key)

    def keep(system: SMCState, drawn: Index) -> tuple[PyTree, Index]:
        return system.particles, drawn

    if path is None:
        trail, info, (particles, drawn) = forward(key_run, recursion, keep=keep)
    else:
        model = conditional(recursion.fk, path)
        trail, info, (particles, drawn) = forward(
            key_run,
            recursion,
            system_of=model,
            scheme=lambda state, u: pinned(model, recursion.ctx, state, u, False),
            keep=keep,
        )
    # the parents drawn on the way, traced once at the end: a register of paths would be copied at every step
    last = choose(key_last, trail.system.log_w)[None]
    slots = jnp.broadcast_to(jnp.arange(drawn.shape[1], dtype=drawn.dtype), drawn.shape)
    new, line = jax.tree.map(lambda x: x[:, 0], trace_paths(drawn, (particles, slots), last))
    return Swept(new, value(trail), line != 0, info)
