"""PPG, the Parisian particle Gibbs sampler: smoothing whose bias vanishes geometrically."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.inference.conditional_smc.system import conditional, pinned
from mcx.inference.smc.backward import check_kind
from mcx.inference.smc.engine import SMCInfo, SMCSettings
from mcx.inference.smc.genealogy import trace_paths
from mcx.inference.smoothing.paris import Recursion, Smoothing, check_numbers, forward, value
from mcx.ops.random import choose

__all__ = ["PPG", "ppg_sweep"]


@dataclass(frozen=True, kw_only=True)
class PPG:
    """Parisian particle Gibbs: conditional PaRIS sweeps, averaged.

    A sweep runs PaRIS with one particle nailed to a path, and draws the next path from the indices that the
    recursion drew anyway. The path is a Markov chain with the smoothing law as its own, for any N >= 2, and
    under that law a sweep's estimate has no bias. So the average after ``burn_in`` sweeps has a bias that is
    geometric in ``burn_in``, at the cost of as many runs of PaRIS.

    Attributes:
        num_particles: N.
        num_iterations: sweeps, k.
        burn_in: leading sweeps left out of the average, k0.
        num_backward: draws a particle and step, M.
        backward: "imh" (Metropolis-Hastings steps from the particle's ancestor), "exact" or "hybrid"; all
            leave the smoothing law invariant.
        num_steps: Metropolis-Hastings steps of a draw; with 0 the path hardly mixes.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Cardoso, Janati El Idrissi, Le Corff, Moulines and Olsson (2023).
    """

    num_particles: int = field(default=100, kw_only=False)
    num_iterations: int = 20
    burn_in: int = 10
    num_backward: int = 2
    backward: str = "imh"
    num_steps: int = 1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_kind("PPG", self.backward)
        check_numbers(self, num_particles=2, num_iterations=1, burn_in=0, num_backward=1, num_steps=0)
        if self.burn_in >= self.num_iterations:
            raise MethodError(
                "PPG(burn_in=...) leaves nothing to average",
                expected=f"less than num_iterations={self.num_iterations}",
                found=repr(self.burn_in),
            )
        SMCSettings(self.num_particles, self.threshold)  # checks the threshold

    @property
    def smoothing(self) -> Smoothing:
        """Settings of the recursion."""
        settings = SMCSettings(self.num_particles, self.threshold)
        return Smoothing(settings, self.backward, self.num_backward, self.num_steps)


def ppg_sweep(key: Any, recursion: Recursion, path: Any | None) -> tuple[Any, Any, Any, SMCInfo]:
    """One conditional PaRIS sweep.

    Args:
        key: a typed key.
        recursion: model, functional and settings.
        path: the path to condition on, a pytree of (T, ...); None for none, as at the start of a chain.

    Returns:
        The new path; the estimate; whether the new path left the old one at each time, (T,); what happened
        at each time. Costs as PaRIS; memory O(T N) for particles and one index each.
    """
    key_run, key_last = jax.random.split(key)

    def keep(system: Any, drawn: Any) -> tuple[Any, Any]:
        return system.particles, drawn

    if path is None:
        trail, info, (particles, drawn) = forward(key_run, recursion, keep=keep)
    else:
        nailed = conditional(recursion.fk, path)
        trail, info, (particles, drawn) = forward(
            key_run,
            recursion,
            system_of=nailed,
            scheme=lambda state, u: pinned(nailed, recursion.ctx, state, u, False),
            keep=keep,
        )
    # the parents drawn on the way, traced once at the end: a register of paths would be copied at every step
    last = choose(key_last, trail.system.log_w)[None]
    slots = jnp.broadcast_to(jnp.arange(drawn.shape[1], dtype=drawn.dtype), drawn.shape)
    new, line = jax.tree_util.tree_map(lambda x: x[:, 0], trace_paths(drawn, (particles, slots), last))
    return new, value(trail), line != 0, info
