"""Predictor-corrector sampling: a step of another integrator, then Langevin steps at the new level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.inference.diffusion.integrators.base import Position, Tabled, call
from mcx.inference.diffusion.integrators.linear import DDIM, EulerMaruyama, Multistep
from mcx.inference.diffusion.integrators.linear import Row as LinearRow
from mcx.inference.diffusion.models.arguments import Noise, Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Rule, instance, integer, number, one_of, optional


class Row[A](NamedTuple):
    """The predictor's row; the level after it, and the Langevin step there in units of the level's square.

    Tables on the host hold NumPy arrays with a leading axis of steps.
    """

    predictor: LinearRow[A]
    after: A
    step: A
    corrects: A


@dataclass(frozen=True)
class PredictorCorrector(Tabled):
    """A one-step predictor, and Langevin steps at the level where it arrives.

    Attributes:
        predictor: :class:`~mcx.diffusion.EulerMaruyama` or :class:`~mcx.diffusion.DDIM`.
        num_corrections: Langevin steps at each level.
        snr: None for Langevin steps of variance ``2 gain h rho^2``, where h is the step in lambda, or 0.1 if
            that is smaller: they vanish with the steps, and the weak order is 1. A number is Song's
            signal-to-noise ratio r, for a variance of ``4 r^2 rho^2``, the same at every level: a bias
            proportional to r^2 remains however many levels there are, and the claimed order is 0.
        gain: see ``snr``.
        norms: the norm of the score that ``snr`` refers to: "expected", which is ``sqrt(d) / rho``, or
            "particle", that of the particle's own score. Means over a batch, as in the paper, would make
            particles depend on each other.

    Points at level 0 are not corrected. Costs a call of the model for the predictor and one for each
    correction.

    Source: Song et al. (2021), Score-based generative modeling through SDEs, predictor-corrector sampling.
    """

    predictor: EulerMaruyama | DDIM = field(default_factory=EulerMaruyama)
    num_corrections: int = 1
    snr: float | None = None
    gain: float = 1.0
    norms: str = "expected"

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        one_step = "EulerMaruyama(...) or DDIM(...), which have no memory and one stage"
        return {
            "predictor": instance((EulerMaruyama, DDIM), one_step),
            "num_corrections": integer(1),
            "snr": optional(number(most=0.5, above=0), "for steps that vanish"),
            "gain": number(most=5, above=0),
            "norms": one_of("expected", "particle"),
        }

    def check(self) -> None:
        """Norms matter only with a signal-to-noise ratio."""
        if self.snr is None and self.norms == "particle":
            self.refuse("norms", "'expected' without snr", remedy="PredictorCorrector(snr=0.16, ...)")

    @property
    def order(self) -> int:
        """1, or 0 with ``snr``."""
        return 1 if self.snr is None else 0

    @property
    def num_draws(self) -> int:
        """One for each correction, and the predictor's."""
        return self.num_corrections + self.predictor.num_draws

    def nfe(self, levels: np.ndarray) -> int:
        """One call for a step and for each correction."""
        num = len(levels) - 1
        return num + self.num_corrections * (num - int(levels[-1] == 0))

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        before, after = rho[:-1], rho[1:]
        corrects = after > 0
        h = np.log(before / np.where(corrects, after, before))
        step = self.gain * np.minimum(h, 0.1) if self.snr is None else np.full(len(h), 2 * self.snr**2)
        return Row(self.predictor.table(rho), np.where(corrects, after, before), step, corrects)

    def step(self, model: Denoiser, state: Position, row: Row[Array], z: Noise | None) -> Position:
        """Predict, then correct."""
        assert z is not None
        predictor: Multistep = self.predictor
        y = predictor.step(model, predictor.init(state.y), row.predictor, z[self.num_corrections :]).y
        corrected = jax.lax.cond(row.corrects, lambda: self._correct(model, y, row, z), lambda: y)
        return Position(corrected)

    def _correct(self, model: Denoiser, y: Point, row: Row[Array], z: Noise) -> Point:
        for i in range(self.num_corrections):
            pull = call(model, y, row.after) - y  # rho^2 times the score
            step = row.step
            if self.norms == "particle":
                norm = jnp.sqrt(jnp.sum(pull**2) / y.size) / row.after
                step = step / jnp.maximum(norm, 0.5) ** 2  # the norm may be tiny by chance if d is small
            y = y + step * pull + math.sqrt(2) * jnp.sqrt(step) * row.after * z[i]
        return y
