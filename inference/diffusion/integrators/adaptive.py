"""The probability flow with steps as long as a tolerance allows, by diffrax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mcx.errors import MissingExtraError
from mcx.inference.diffusion.integrators.base import call
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.checks import check_fields, is_count

__all__ = ["RungeKutta45"]


class Ends(NamedTuple):
    """Values of lambda that are visited; the last of them as rho where level 0 comes after it, else None."""

    lam: Any
    last: Any


@dataclass(frozen=True)
class RungeKutta45:
    """Adaptive Dormand-Prince 5(4) on the probability flow in lambda; needs ``pip install 'mcx[diffusion]'``.

    Attributes:
        rtol, atol: tolerances of the step-size control, on y.
        max_steps: more steps than these give NaN.

    Of the levels only the first and the last matter, unless the path is asked for; a last level of 0 is
    reached by the denoiser from the level before, so that ``[80.0, 0.002, 0.0]`` is a good choice. Under
    ``vmap`` all points wait for the one with the most steps. Source: Song et al. (2021) for the method;
    diffrax (Kidger 2021) for the solver.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096

    def __post_init__(self) -> None:
        check_fields(
            self,
            ("rtol", 0 < self.rtol < 1, "a number in (0, 1)"),
            ("atol", 0 < self.atol, "a positive number"),
            ("max_steps", is_count(self.max_steps), "an int >= 1"),
        )

    @property
    def order(self) -> int:
        """5, of the formula; the tolerance decides."""
        return 5

    @property
    def num_draws(self) -> int:
        """None."""
        return 0

    def nfe(self, levels: Any) -> None:
        """Not known ahead."""
        return None

    def prepare(self, levels: np.ndarray) -> Ends:
        """See :class:`Ends`."""
        if levels[-1] == 0:
            return Ends(-np.log(levels[:-1]), levels[-2])
        return Ends(-np.log(levels), None)

    def run(self, key: Any, model: Denoiser, y: Any, prepared: Ends, noise: Any, path: bool) -> Any:
        """See :class:`~.base.Integrator`."""
        diffrax = _diffrax()
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
            fine = solution.result == diffrax.RESULTS.successful
            visited = jnp.where(fine, solution.ys, jnp.nan)
            y = visited[-1]
        if prepared.last is not None:
            y = call(model, y, prepared.last)
            visited = jnp.concatenate([visited, y[None]])
        return visited if path else y


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise MissingExtraError(
            "RungeKutta45 needs diffrax", remedy="pip install 'mcx[diffusion]'"
        ) from error
    return diffrax
