"""PaRIS: expectations of additive functionals, computed on the way with memory for one time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, override

from mcx.inference.smoothing.recursion import Recursion, forward, value
from mcx.inference.smoothing.smoother import Smoother, Swept
from mcx.ops.validation import Rule, integer, one_of
from mcx.types import Key, PyTree


@dataclass(frozen=True, kw_only=True)
class PaRIS(Smoother):
    """Particle-based, rapid incremental smoother.

    A filter whose particles carry the functional's conditional expectation given themselves, updated at
    every step from a few draws of the particle's possible parents. Runs forward only, with memory O(N); its
    bias is O(T / N), and 2 draws a particle are enough for a variance that grows no faster than T.

    Attributes:
        num_particles: N.
        num_backward: draws a particle and step, M; 1 degenerates as genealogies do.
        backward: "imh" (Metropolis-Hastings steps from the particle's ancestor: O(N) a step), "exact" (draws
            from the backward kernel: O(N^2)), "hybrid" (the same by rejection as long as that pays: O(N) to
            O(N^2); needs transitions whose largest density is known), or "all" (its expectation instead of
            draws: O(N^2), the forward form of forward-filtering backward-smoothing).
        num_mh_steps: Metropolis-Hastings steps of a draw.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Olsson and Westerborn (2017); "imh": Dau and Chopin (2023); "all": Del Moral, Doucet
    and Singh (2010).
    """

    num_particles: int = field(default=1000, kw_only=False)
    num_backward: int = 2
    backward: Literal["imh", "exact", "hybrid", "all"] = "imh"
    num_mh_steps: int = 1
    threshold: float = 0.5

    @override
    def rules(self) -> Mapping[str, Rule]:
        every = one_of("imh", "exact", "hybrid", "all")
        return {**super().rules(), "backward": every, "num_backward": integer(1)}

    @override
    def sweep(self, key: Key, recursion: Recursion, path: PyTree) -> Swept:
        trail, info, _ = forward(key, recursion)
        return Swept(None, value(trail), None, info)
