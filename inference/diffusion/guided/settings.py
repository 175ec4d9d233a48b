"""Settings that the methods for posteriors under diffusion priors share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, override

from mcx.inference.diffusion.guided.calibration import Guidance
from mcx.inference.diffusion.guided.diffusion_posterior import DiffusionPosterior, diffusion_posterior
from mcx.inference.diffusion.guided.likelihood_kind import KINDS, LikelihoodKind, suitable_guidance
from mcx.model.bound import BoundModel
from mcx.ops.validation import Rule, Settings, fraction, function, integer, one_of, optional
from mcx.target import Target
from mcx.types import Scalar


@dataclass(frozen=True, kw_only=True)
class GuidedSettings(Settings):
    """How particles are guided down the reverse process; see :class:`~.guided_diffusion.GuidedDiffusion`."""

    num_particles: int = field(default=512, kw_only=False)
    num_reverse_steps: int | None = None
    guidance: str = "auto"
    num_children: int = 4
    fade: Callable[[Scalar], Scalar] | None = None
    threshold: float = 0.5
    num_pilot: int = 256

    # checkpoints were written when one class, whose num_particles was None by default, ran both algorithms
    _recorded: ClassVar[Mapping[str, Any]] = {
        "num_particles": None,
        "num_reverse_steps": None,
        "guidance": "auto",
        "num_children": 4,
        "lookahead": "denoised",
        "fade": None,
        "threshold": 0.5,
        "resampling": "systematic",
        "num_pilot": 256,
        "batch_size": None,
        "max_nonfinite": 0.5,
        "params": None,
        "num_warmup": 500,
        "num_samples": 1000,
    }
    former: ClassVar[Mapping[str, str]] = {"num_reverse_steps": "num_steps"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            **super().rules(),
            "num_particles": integer(2),
            "num_reverse_steps": optional(integer(1)),
            "guidance": one_of(*KINDS),
            "num_children": integer(1),
            "fade": optional(function("a function of the noise level")),
            "threshold": fraction(),
            "num_pilot": integer(16),
        }

    @override
    def identifiers(self) -> dict[str, Any]:
        found = {name: getattr(self, name, value) for name, value in self._recorded.items()}
        if self.num_particles == type(self).num_particles:
            found["num_particles"] = None
        return {self.former.get(name, name): value for name, value in found.items()}

    @override
    def identity(self) -> str:
        return super().identity().replace(type(self).__qualname__, "GuidedDiffusion", 1)

    def posterior(
        self, bound: BoundModel, *, noised: bool = False, with_params: bool = False
    ) -> DiffusionPosterior:
        """The posterior of a model with a diffusion prior, and how particles are guided to it."""

        def guidance(target: Target, site: str, likelihood: LikelihoodKind) -> Guidance:
            kind = suitable_guidance(self.guidance, likelihood, site)
            linear = kind == "linear_gaussian"
            return Guidance(
                target.functions,
                site,
                kind,
                num_children=self.num_children if kind == "soft_value" else 1,
                noised=noised and linear,
                curved=likelihood.smooth,
                fade=None if linear else self.fade,
                num_pilot=self.num_pilot,
            )

        return diffusion_posterior(bound, guidance, self.num_reverse_steps, with_params=with_params)
