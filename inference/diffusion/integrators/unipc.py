"""UniPC: a multistep predictor, and a corrector that costs no call of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.inference.diffusion.integrators.base import Tabled, call, graded, step_orders
from mcx.inference.diffusion.integrators.coefficients import exponential_weights
from mcx.inference.diffusion.integrators.linear import ratios, two_step_weights
from mcx.inference.diffusion.models.arguments import Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Rule, boolean, integer, one_of


class Row[A](NamedTuple):
    """A step: correct the point that the last step predicted, then predict the next.

    back, corrector: ``y = back y_before + sum_j corrector[j] D_j``, (K, p + 1); D_0 is at the predicted y.
    keep, predictor: ``y' = keep y + sum_j predictor[j] D_j``, (K, p).
    """

    rho: A
    back: A
    corrector: A
    keep: A
    predictor: A


class State(NamedTuple):
    """Predicted point, corrected point at the level before, and p denoised values before, newest first."""

    y: Point
    before: Point
    history: tuple[Point, ...]


@dataclass(frozen=True)
class UniPC(Tabled):
    """UniPC-p: exponential Adams predictor with p nodes, and a corrector with p + 1 that costs no call.

    Attributes:
        steps: p, 1, 2 or 3. The claimed global order is p + 1.
        variant: "bh1" or "bh2" for B(h) = h or exp(h) - 1, which matters where a two-node rule is simplified:
            the first corrector, and the predictor of p = 2. All else solves for its coefficients exactly.
        lower_order_final: whether the last steps fall to one node, which may be steadier with fewer than 10
            steps.
        careful_start: whether p = 3 divides the first step, for one call more.

    The model is called only at predicted points; its value there corrects them, and then predicts the next.
    The last point is a predicted one. The first steps have fewer nodes, which costs p = 3 its order unless
    levels start at large noise, where the denoiser hardly changes, or with ``careful_start``. A step to level
    0 is of order 1. Costs one call of the model for a step.

    Source: Zhao et al. (2023), UniPC: a unified predictor-corrector framework for fast sampling of diffusion
    models.
    """

    steps: int = 2
    variant: str = "bh2"
    lower_order_final: bool = False
    careful_start: bool = False

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {
            "steps": integer(1, 3),
            "variant": one_of("bh1", "bh2"),
            "lower_order_final": boolean(),
            "careful_start": boolean(),
        }

    @property
    def order(self) -> int:
        """One more than p."""
        return self.steps + 1

    def nfe(self, levels: np.ndarray) -> int:
        """One call for a step."""
        return len(levels) - 1 + self.num_extra

    @property
    def num_extra(self) -> int:
        """Calls that a careful start costs."""
        return max(self.steps - 2, 0) if self.careful_start else 0

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        rho = graded(rho, self.num_extra)
        num, p = len(rho) - 1, self.steps
        lam = -np.log(np.where(rho > 0, rho, 1.0))  # that of level 0 is not used
        ratio = ratios(rho)
        back, corrector, predictor = np.ones(num), np.zeros((num, p + 1)), np.zeros((num, p))
        for k, order in enumerate(step_orders(rho, p, self.lower_order_final)):
            nodes = lam[k - np.arange(order)]
            predictor[k, :order] = 1 - ratio[k]
            if order > 1:
                predictor[k, :order] = self.predict(nodes, lam[k + 1])
            if k + 1 < num:  # at the next step, after the model was called there
                back[k + 1] = ratio[k]
                corrector[k + 1, : order + 1] = self.correct(nodes, lam[k + 1])
        # the first point needs no correction
        return Row(rho[:-1], back, corrector, ratio, predictor)

    def predict(self, nodes: np.ndarray, end: float) -> np.ndarray:
        """Weights of D at nodes, newest first, in a step to ``end``."""
        if len(nodes) == 2:
            return two_step_weights(nodes, end, self._scale(end - nodes[0]))
        return exponential_weights(nodes, nodes[0], end)

    def correct(self, nodes: np.ndarray, end: float) -> np.ndarray:
        """Weights of D at ``end`` and at nodes."""
        if len(nodes) == 1:
            h = end - nodes[0]
            half = 0.5 * self._scale(h)
            return np.array([half, -np.expm1(-h) - half])
        return exponential_weights(np.concatenate([[end], nodes]), nodes[0], end)

    def _scale(self, h: float) -> float:
        """B(h) up to sign; with data prediction the paper's h is negative."""
        return float(h if self.variant == "bh1" else -np.expm1(-h))

    def init(self, y: Point) -> State:
        """No history."""
        return State(y, y, (jnp.zeros_like(y),) * self.steps)

    def step(self, model: Denoiser, state: State, row: Row[Array], z: Point | None) -> State:
        """See :class:`Row`."""
        history = (call(model, state.y, row.rho), *state.history)
        y = row.back * state.before + sum(row.corrector[j] * history[j] for j in range(self.steps + 1))
        ahead = row.keep * y + sum(row.predictor[j] * history[j] for j in range(self.steps))
        return State(ahead, y, history[:-1])
