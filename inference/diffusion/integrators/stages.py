"""Integrators with two calls of the model in a step, and no memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from jax import Array

from mcx.inference.diffusion.integrators.base import Position, Tabled, call
from mcx.inference.diffusion.models.arguments import Noise, Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Rule, either, number, one_of


class Row[A](NamedTuple):
    """A step: noise raises the level to ``rho``, a first stage goes to ``middle``, a second one to the end.

    ``u = first y + (1 - first) D(y, rho)``, ``y' = keep y + weights[0] D(y, rho) + weights[1] D(u, middle)``.
    Where ``twice`` is False there is no u, and the model is not called there. Tables on the host hold NumPy
    arrays with a leading axis of steps.
    """

    up: A
    rho: A
    middle: A
    first: A
    keep: A
    weights: A
    twice: A


class TwoStage(Tabled):
    """A two-stage method; subclasses give the table."""

    order: ClassVar[int] = 2

    def nfe(self, levels: np.ndarray) -> int:
        """Two calls for a step, but one for a step to level 0."""
        return 2 * (len(levels) - 1) - int(levels[-1] == 0)

    def step(self, model: Denoiser, state: Position, row: Row[Array], z: Noise | None) -> Position:
        """See :class:`Row`."""
        y = state.y
        if z is not None:
            y = y + row.up * z[0]
        denoised = call(model, y, row.rho)
        once = row.keep * y + row.weights[0] * denoised

        def again() -> Point:
            u = row.first * y + (1 - row.first) * denoised
            return once + row.weights[1] * call(model, u, row.middle)

        return Position(jax.lax.cond(row.twice, again, lambda: once))


@dataclass(frozen=True)
class Heun(TwoStage):
    """Heun's method in rho, with optional churn: EDM's samplers. Order 2.

    Attributes:
        s_churn: how much noise is added over all steps; 0 for the deterministic method.
        s_min, s_max: the levels between which noise is added.
        s_noise: standard deviation of the noise; values other than 1 bias the draws.

    With K steps, a step raises rho by a fraction of up to ``min(s_churn / K, sqrt(2) - 1)``, adds the noise
    that the rise calls for, and goes down by Heun's method. The weak order is 2 for ``s_noise = 1``, because
    adding noise is exact. The step to level 0 is Euler's. Costs two calls of the model for a step.

    Source: Karras et al. (2022), Elucidating the design space of diffusion-based generative models,
    algorithms 1 and 2.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {
            "s_churn": number(0),
            "s_min": number(0),
            "s_max": either(number(0), one_of(math.inf), expected="a number >= 0, or math.inf"),
            "s_noise": number(0),
        }

    def check(self) -> None:
        """The levels have to form an interval."""
        if self.s_min > self.s_max:
            self.refuse("s_min", f"a number <= s_max = {self.s_max:g}")

    @property
    def num_draws(self) -> int:
        """1, or 0 without churn."""
        return int(self.s_churn > 0)

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        num, after = len(rho) - 1, rho[1:]
        within = (rho[:-1] >= self.s_min) & (rho[:-1] <= self.s_max)
        rise = np.where(within, min(self.s_churn / num, math.sqrt(2) - 1), 0.0)
        before = rho[:-1] * (1 + rise)
        up = self.s_noise * rho[:-1] * np.sqrt(rise * (2 + rise))
        twice = after > 0
        ratio = after / before
        inverse = np.divide(before, after, out=np.ones(num), where=twice)
        # y + (after - before) / 2 (slope at y + slope at u), slope = (y - D) / rho, sorted by y and the Ds
        weights = np.stack([0.5 * (1 - ratio) * (2 - inverse), 0.5 * (inverse - 1)], 1)
        weights[~twice] = 1.0, 0.0
        return Row(up, before, np.where(twice, after, before), ratio, ratio, weights, twice)


@dataclass(frozen=True)
class DPMSolver2S(TwoStage):
    """DPM-Solver++, singlestep of order 2 ("2S"): the midpoint rule in lambda.

    The step to level 0 is of order 1. Costs two calls of the model for a step.

    Source: Lu et al. (2022), DPM-Solver++, with r = 1/2.
    """

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        before, after = rho[:-1], rho[1:]
        twice = after > 0
        ratio = after / before
        half = np.sqrt(ratio)
        weights = np.where(twice, 0.0, 1 - ratio), np.where(twice, 1 - ratio, 0.0)
        middle = np.where(twice, before * half, before)
        return Row(np.zeros_like(ratio), before, middle, half, ratio, np.stack(weights, 1), twice)
