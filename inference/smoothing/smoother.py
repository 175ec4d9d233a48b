"""What particle smoothers have in common: settings, and sweeps over all times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, override

from mcx.inference.smc.engine import SMCInfo, SMCSettings
from mcx.inference.smoothing.recursion import Recursion, Smoothing
from mcx.ops.validation import Rule, Settings, fraction, integer, one_of
from mcx.types import Array, Bool, Key, PyTree, Stats


class Swept(NamedTuple):
    """What one sweep of a smoother gives.

    path: for the next sweep of smoothers that go on from one; None otherwise.
    value: the estimate.
    updated: whether the path left the one before at each time, (T,); None without a path.
    info: what happened at each time.
    """

    path: PyTree
    value: PyTree
    updated: Bool[Array, " T"] | None
    info: SMCInfo


class Smoother(Settings):
    """A particle smoother; a subclass is a frozen dataclass of the attributes below and its own.

    Attributes:
        num_particles: N.
        backward: how a particle's possible parents are drawn.
        num_mh_steps: Metropolis-Hastings steps of a draw.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.
        num_backward: draws a particle and step.
        num_warmup: leading sweeps whose estimates do not count.
        num_samples: sweeps that count.
        has_path: whether a sweep goes on from the path that the one before has drawn.
    """

    num_particles: int
    backward: str
    num_mh_steps: int
    threshold: float
    num_backward: int = 1
    num_warmup: int = 0
    num_samples: int = 1
    has_path: ClassVar[bool] = False
    former: ClassVar[Mapping[str, str]] = {"num_mh_steps": "num_steps"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "num_particles": integer(1),
            "backward": one_of("imh", "exact", "hybrid"),
            "num_mh_steps": integer(0),
            "threshold": fraction(),
        }

    @property
    def num_sweeps(self) -> int:
        """Number of all sweeps."""
        return self.num_warmup + self.num_samples

    @property
    def smoothing(self) -> Smoothing:
        """Settings of the recursion."""
        system = SMCSettings(self.num_particles, self.threshold)
        return Smoothing(system, self.backward, self.num_backward, self.num_mh_steps)

    def sweep(self, key: Key, recursion: Recursion, path: PyTree) -> Swept:
        """One sweep over all times; ``path`` is that of smoothers that go on from one, (T, ...)."""
        raise NotImplementedError

    def notes(self, draws: PyTree, stats: Stats) -> tuple[str, ...]:
        """What to be wary of, from estimates and statistics of the sweeps that count, chain x sweep x ..."""
        biased = f"a bias of order T / N remains; N = {self.num_particles}"
        few = stats["ess"].shape[0] < 4
        return (biased, "no standard error from less than 4 chains") if few else (biased,)
