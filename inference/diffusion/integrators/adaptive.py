"""The probability flow with adaptive steps, as long as a tolerance allows, by diffrax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from mcx.errors import MissingExtraError
from mcx.inference.diffusion.integrators.base import call
from mcx.inference.diffusion.models.arguments import Noise, Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Rule, Settings, integer, number
from mcx.types import Key, PyTree


class Ends(NamedTuple):
    """Values of lambda to visit, and the last of them as rho if level 0 follows it, else None."""

    lam: np.ndarray
    last: float | None


@dataclass(frozen=True)
class RungeKutta45(Settings):
    """Adaptive Dormand-Prince 5(4) on the probability flow in lambda; needs ``pip install 'mcx[diffusion]'``.

    Attributes:
        rtol, atol: tolerances of the step-size control, relative and absolute, on y.
        max_steps: the result is NaN if more steps are needed.

    Only the first and the last level matter, unless the path is returned. A last level of 0 is reached by the
    denoiser from the level before it, so that ``[80.0, 0.002, 0.0]`` is a good choice. The number of calls is
    six for a step, and under ``vmap`` all points wait for the one with the most steps.

    Source: Song et al. (2021), Score-based generative modeling through SDEs, for the method; diffrax (Kidger
    2021) for the solver.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096
    order: ClassVar[int] = 5  # that of the formula; the error depends on the tolerance
    num_draws: ClassVar[int] = 0

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"rtol": number(above=0, below=1), "atol": number(above=0), "max_steps": integer(1)}

    def nfe(self, levels: np.ndarray) -> None:
        """None: the number is not known beforehand."""
        return None

    def prepare(self, levels: np.ndarray) -> Ends:
        """See :class:`Ends`."""
        if levels[-1] == 0:
            return Ends(-np.log(levels[:-1]), levels[-2])
        return Ends(-np.log(levels), None)

    def run(
        self, key: Key | None, model: Denoiser, y: Point, prepared: PyTree, noise: Noise | None, path: bool
    ) -> Point:
        """See :class:`~.base.Integrator`."""
        try:
            import diffrax
        except ImportError as error:
            remedy = "pip install 'mcx[diffusion]'"
            raise MissingExtraError("RungeKutta45 needs diffrax", remedy=remedy) from error
        lam = prepared.lam
        visited = y[None, ...][:0]
        if len(lam) > 1:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, model: call(model, y, jnp.exp(-t)) - y),
                diffrax.Dopri5(),
                t0=lam[0],
                t1=lam[-1],
                dt0=None,
                y0=y,
                args=model,
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                saveat=diffrax.SaveAt(ts=lam[1:] if path else lam[-1:]),
                max_steps=self.max_steps,
                throw=False,
            )
            successful = solution.result == diffrax.RESULTS.successful
            visited = jnp.where(successful, solution.ys, jnp.nan)
            y = visited[-1]
        if prepared.last is not None:
            y = call(model, y, prepared.last)
            visited = jnp.concatenate([visited, y[None]])
        return visited if path else y
