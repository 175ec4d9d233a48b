"""Predictor-corrector sampling: Langevin steps at every level, after a step of another integrator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.diffusion.integrators.base import Position, Tabled, call
from mcx.inference.diffusion.integrators.linear import DDIM, EulerMaruyama, Multistep
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.checks import check_fields, is_count

__all__ = ["PredictorCorrector"]


class Row(NamedTuple):
    """The predictor's row; the level after it, and the Langevin step there in units of its square."""

    predictor: Any
    after: Any
    step: Any
    corrects: Any


@dataclass(frozen=True)
class PredictorCorrector(Tabled):
    """A one-step predictor, and Langevin steps at the level where it arrives.

    Attributes:
        predictor: :class:`~mcx.diffusion.EulerMaruyama` or :class:`~mcx.diffusion.DDIM`.
        num_corrections: Langevin steps a level.
        snr: None for Langevin steps of variance ``2 gain h rho^2``, h the step in lambda (0.1 at most is
            counted): they vanish with the steps, weak order 1. A number is Song's signal-to-noise ratio r,
            for a variance of ``4 r^2 rho^2``: the same at every level, so that a bias in proportion to
            r^2 stays however many levels there are, and the claimed order is 0.
        gain: see ``snr``.
        norms: with ``snr``, of the score: "expected", ``sqrt(d) / rho``, or "particle", that of the
            particle's own score. Means over a batch, as in the paper, would make particles depend on each
            other.

    Nothing is corrected at level 0. Costs a call for the predictor and one a correction. Source: Song et al.
    (2021), algorithms of predictor-corrector sampling.
    """

    predictor: EulerMaruyama | DDIM = field(default_factory=EulerMaruyama)
    num_corrections: int = 1
    snr: float | None = None
    gain: float = 1.0
    norms: str = "expected"

    def __post_init__(self) -> None:
        check_fields(
            self,
            ("num_corrections", is_count(self.num_corrections), "an int >= 1"),
            ("snr", self.snr is None or 0 < self.snr <= 0.5, "None, or a number in (0, 0.5]"),
            ("gain", 0 < self.gain <= 5, "a number in (0, 5]"),
            ("norms", self.norms in ("expected", "particle"), "'expected' or 'particle'"),
        )
        if not isinstance(self.predictor, EulerMaruyama | DDIM):
            raise MethodError(
                "PredictorCorrector(predictor=...) has a memory, or several stages",
                expected="EulerMaruyama or DDIM",
                found=type(self.predictor).__name__,
            )
        if self.snr is None and self.norms == "particle":
            raise MethodError("norms='particle' goes with snr", remedy="give snr, 0.16 say")

    @property
    def order(self) -> int:
        """1; 0 with ``snr``."""
        return 1 if self.snr is None else 0

    @property
    def num_draws(self) -> int:
        """One a correction, and the predictor's."""
        return self.num_corrections + self.predictor.num_draws

    def nfe(self, levels: Any) -> int:
        """One call a step and correction."""
        num = len(levels) - 1
        return num + self.num_corrections * (num - int(levels[-1] == 0))

    def table(self, rho: np.ndarray) -> Row:
        """See :class:`Row`."""
        before, after = rho[:-1], rho[1:]
        corrects = after > 0
        h = np.log(before / np.where(corrects, after, before))
        step = self.gain * np.minimum(h, 0.1) if self.snr is None else np.full(len(h), 2 * self.snr**2)
        return Row(self.predictor.table(rho), np.where(corrects, after, before), step, corrects)

    def step(self, model: Denoiser, state: Position, row: Row, z: Any) -> Position:
        """Predict, and correct."""
        predictor: Multistep = self.predictor
        y = predictor.step(model, predictor.init(state.y), row.predictor, z[self.num_corrections :]).y
        corrected = jax.lax.cond(row.corrects, lambda: self._correct(model, y, row, z), lambda: y)
        return Position(corrected)

    def _correct(self, model: Denoiser, y: Any, row: Row, z: Any) -> Any:
        for i in range(self.num_corrections):
            pull = call(model, y, row.after) - y  # rho^2 times the score
            step = row.step
            if self.norms == "particle":
                norm = jnp.sqrt(jnp.sum(pull**2) / y.size) / row.after
                step = step / jnp.maximum(norm, 0.5) ** 2  # it may vanish by chance where d is small
            y = y + step * pull + math.sqrt(2) * jnp.sqrt(step) * row.after * z[i]
        return y
