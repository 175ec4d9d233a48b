"""Integrators with two calls of the model a step, and no memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from mcx.inference.diffusion.integrators.base import Position, Tabled, call
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.checks import check_fields

__all__ = ["DPMSolver2S", "Heun"]


class Row(NamedTuple):
    """A step: up to ``rho`` by noise, a first stage to ``middle``, a second one to the end.

    ``u = first y + (1 - first) D(y, rho)``, ``y' = keep y + weights[0] D(y, rho) + weights[1] D(u, middle)``.
    Where ``twice`` is False there is no u, and the model is not called there.
    """

    up: Any
    rho: Any
    middle: Any
    first: Any
    keep: Any
    weights: Any
    twice: Any


class TwoStage(Tabled):
    """A two-stage method; subclasses give the table."""

    def nfe(self, levels: Any) -> int:
        """Two calls a step, one for a step to level 0."""
        return 2 * (len(levels) - 1) - int(levels[-1] == 0)

    def step(self, model: Denoiser, state: Position, row: Row, z: Any) -> Position:
        """See :class:`Row`."""
        y = state.y
        if self.num_draws:
            y = y + row.up * z[0]
        said = call(model, y, row.rho)
        once = row.keep * y + row.weights[0] * said

        def again() -> Any:
            u = row.first * y + (1 - row.first) * said
            return once + row.weights[1] * call(model, u, row.middle)

        return Position(jax.lax.cond(row.twice, again, lambda: once))


@dataclass(frozen=True)
class Heun(TwoStage):
    """Heun's method in rho, with optional churn: EDM's samplers. Order 2.

    Attributes:
        s_churn: how much noise is added, over all steps; 0 for the deterministic method.
        s_min, s_max: levels between which it is.
        s_noise: standard deviation of what is added; other than 1 it is biased.

    With K steps a step raises rho by a factor of up to ``min(s_churn / K, sqrt(2) - 1)``, adds the noise that
    belongs to the rise, and goes down by Heun's method. Weak order 2 for ``s_noise = 1``, as adding noise is
    exact. The step to level 0 is Euler's. Source: Karras et al. (2022), algorithms 1 and 2.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            ("s_churn", 0 <= self.s_churn < math.inf, "a number >= 0"),
            ("s_min", 0 <= self.s_min <= self.s_max, "0 <= s_min <= s_max"),
            ("s_noise", 0 <= self.s_noise < math.inf, "a number >= 0"),
        )

    @property
    def order(self) -> int:
        """2."""
        return 2

    @property
    def num_draws(self) -> int:
        """1, or 0 without churn."""
        return int(self.s_churn > 0)

    def table(self, rho: np.ndarray) -> Row:
        """See :class:`Row`."""
        num, after = len(rho) - 1, rho[1:]
        within = (rho[:-1] >= self.s_min) & (rho[:-1] <= self.s_max)
        rise = np.where(within, min(self.s_churn / num, math.sqrt(2) - 1), 0.0)
        before = rho[:-1] * (1 + rise)
        up = self.s_noise * rho[:-1] * np.sqrt(rise * (2 + rise))
        twice = after > 0
        ratio = after / before
        inverse = np.divide(before, after, out=np.ones(num), where=twice)
        # y + (after - before) / 2 (slope at y + slope at u), the slope (y - D) / rho, sorted by y and D's
        weights = np.stack([0.5 * (1 - ratio) * (2 - inverse), 0.5 * (inverse - 1)], 1)
        weights[~twice] = 1.0, 0.0
        return Row(up, before, np.where(twice, after, before), ratio, ratio, weights, twice)


@dataclass(frozen=True)
class DPMSolver2S(TwoStage):
    """DPM-Solver++, singlestep of order 2 ("2S"): the midpoint rule in lambda.

    The step to level 0 is of order 1. Source: Lu et al. (2022), DPM-Solver++, with r = 1/2.
    """

    @property
    def order(self) -> int:
        """2."""
        return 2

    def table(self, rho: np.ndarray) -> Row:
        """See :class:`Row`."""
        before, after = rho[:-1], rho[1:]
        twice = after > 0
        ratio = after / before
        half = np.sqrt(ratio)
        weights = np.where(twice, 0.0, 1 - ratio), np.where(twice, 1 - ratio, 0.0)
        middle = np.where(twice, before * half, before)
        return Row(np.zeros_like(ratio), before, middle, half, ratio, np.stack(weights, 1), twice)
