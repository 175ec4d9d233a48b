"""Settings of particle filters: bootstrap, guided and auxiliary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, override

from mcx.errors import CapabilityError
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.resampling import Resampling, as_resampling, multinomial, resampling_rule
from mcx.inference.smc.variance import default_lag
from mcx.model.bound import BoundModel
from mcx.model.series.state_space import state_space
from mcx.ops.validation import Rule, Settings, fraction, integer, one_of, optional
from mcx.target import StateSpace


@dataclass(frozen=True, kw_only=True)
class ParticleFilter(Settings):
    """Particle filter of a Markov block.

    Attributes:
        kind: "bootstrap" (draw from the transition), "guided" (from the block's ``proposal``), "auxiliary"
            (resample by its ``lookahead``, draw from the proposal if there is one), or "auto": whatever the
            block offers.
        resampling: a scheme by name ("multinomial", "stratified", "systematic", "residual", "ssp", "killing",
            "birth_death") or a function ``(key, log_w, num) -> ancestors``. Multinomial resampling is the one
            whose error can be told from a single run; the others have less of it, which takes replicates to
            see.
        threshold: resample where the effective sample size falls below this fraction of the particles.
        max_nonfinite: largest tolerated share of a step's potentials that are NaN or +inf.
        batch_size: particles moved and weighted at once, where all of them would need too much memory for
            intermediate values; the law is the same.

    Costs O(T N). Source: Gordon, Salmond and Smith (1993); Pitt and Shephard (1999); Chopin and
    Papaspiliopoulos (2020), chapter 10.
    """

    kind: Literal["auto", "bootstrap", "guided", "auxiliary"] = "auto"
    resampling: str | Resampling = "multinomial"
    threshold: float = 0.5
    max_nonfinite: float = 0.5
    batch_size: int | None = None

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "kind": one_of("auto", "bootstrap", "guided", "auxiliary"),
            "resampling": resampling_rule(),
            "threshold": fraction(),
            "max_nonfinite": fraction(),
            "batch_size": optional(integer(1)),
        }

    def state_space(self, bound: BoundModel, block: str | None = None, *, whole: bool = False) -> StateSpace:
        """The Feynman-Kac model that the filter runs on a block; ``whole`` is for methods on whole paths.

        Raises:
            CapabilityError: if the block lacks the proposal or look-ahead that ``kind`` asks for.
        """
        guided, auxiliary = self.kind != "bootstrap", self.kind in ("auto", "auxiliary")
        space = state_space(bound, block, guided=guided, auxiliary=auxiliary, whole=whole)
        for kind, there, argument in (
            ("guided", space.guided, "proposal"),
            ("auxiliary", space.feynman_kac.log_lookahead is not None, "lookahead"),
        ):
            if self.kind == kind and not there:
                raise CapabilityError(
                    f"ParticleFilter(kind={kind!r}) needs {argument}=",
                    site=space.name,
                    expected=f"mcx.markov({space.name!r}, ..., {argument}=...)",
                    remedy=f"give the Markov block a {argument} (NumPyro's scan takes none), or use "
                    "kind='bootstrap'",
                )
        return space

    def settings(self, num_particles: int) -> SMCSettings:
        """Settings of the particle system."""
        scheme = as_resampling(self.resampling)
        traced = scheme is multinomial and num_particles > 1
        lag = default_lag(num_particles) if traced else None
        return SMCSettings(num_particles, self.threshold, scheme, None, lag, self.batch_size)
