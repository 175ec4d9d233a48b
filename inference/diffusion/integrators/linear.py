"""Integrators with one call of the model in a step, linear in the denoised values there and before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.errors import MethodError
from mcx.inference.diffusion.integrators.base import Tabled, call, graded, step_orders
from mcx.inference.diffusion.integrators.coefficients import exponential_weights, polynomial_weights
from mcx.inference.diffusion.models.arguments import Noise, Point
from mcx.inference.diffusion.models.schedules import Schedule
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Rule, boolean, either, fraction, function, instance, integer, number, optional


class Row[A](NamedTuple):
    """``y' = keep y + sum_j weights[j] D_j + noise z``, D_0 at the level ``rho``, D_1 at the one before, ...

    Tables on the host hold NumPy arrays with a leading axis of K steps; weights are (K, p).
    """

    rho: A
    keep: A
    weights: A
    noise: A


class State(NamedTuple):
    """The point, and the denoised values at the p - 1 levels before, newest first."""

    y: Point
    history: tuple[Point, ...]


class Multistep(Tabled):
    """A linear multistep method, which uses the values at p levels, its order; subclasses give the table."""

    in_noise: ClassVar[bool] = False  # whether these values are the noise (y - D) / rho instead of D

    @property
    def order(self) -> int:
        """1."""
        return 1

    def init(self, y: Point) -> State:
        """No history."""
        return State(y, (jnp.zeros_like(y),) * (self.order - 1))

    def step(self, model: Denoiser, state: State, row: Row[Array], z: Noise | None) -> State:
        """See :class:`Row`."""
        value = call(model, state.y, row.rho)
        if self.in_noise:
            value = (state.y - value) / row.rho
        history = (value, *state.history)
        y = row.keep * state.y + sum(row.weights[j] * history[j] for j in range(self.order))
        if self.num_draws:
            assert z is not None
            y = y + row.noise * z[0]
        return State(y, history[:-1])

    def nfe(self, levels: np.ndarray) -> int:
        """One call for a step."""
        return len(levels) - 1 + self.num_extra


class OfOrder(Multistep):
    """A multistep method with a choice of its order, and of short first steps of lower order."""

    order: int
    careful_start: bool

    @property
    def num_extra(self) -> int:
        """The number of calls that a careful start costs."""
        return max(self.order - 2, 0) if self.careful_start else 0


def ratios(rho: np.ndarray) -> np.ndarray:
    """The ratios ``rho_t / rho_s`` of the steps, which are ``exp(-h)``."""
    return rho[1:] / rho[:-1]


@dataclass(frozen=True)
class EulerMaruyama(Multistep):
    """Euler-Maruyama on the reverse equation with any noise strength. Weak order 1.

    The equation is ``dy = -(1 + b) / 2 s d(rho^2)`` with noise of variance ``b d(rho^2)``, where s is the
    score: every b gives the same laws at all levels. b = 1 is the reverse of the noising process, b = 0
    Euler's method in rho^2 on the probability flow.

    Attributes:
        noise: b >= 0, a number or a function ``rho -> b``, which is called on the host.

    A step to level 0 gives the denoiser's value and adds no noise. Costs one call of the model for a step.

    Source: Song et al. (2021), Score-based generative modeling through SDEs.
    """

    noise: float | Callable[[float], float] = 1.0

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"noise": either(number(0), function("a function of rho"))}

    @property
    def num_draws(self) -> int:
        """1, or 0 where b = 0."""
        return int(callable(self.noise) or self.noise > 0)

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        before, after = rho[:-1], rho[1:]
        gain = np.array([self.noise(r) if callable(self.noise) else self.noise for r in before], float)
        if not (np.isfinite(gain) & (gain >= 0)).all():
            raise MethodError(
                "EulerMaruyama(noise=...) returns noise strengths that are out of range",
                expected="finite numbers >= 0",
                found=np.array2string(gain, threshold=6),
            )
        fall = before**2 - after**2
        moved = np.where(after == 0, 1.0, 0.5 * (1 + gain) * fall / before**2)
        spread = np.where(after == 0, 0.0, np.sqrt(gain * np.maximum(fall, 0)))
        return Row(before, 1 - moved, moved[:, None], spread)


@dataclass(frozen=True)
class DDIM(Multistep):
    """DDIM, which is DPM-Solver of order 1: the denoiser is taken to be constant along a step.

    Attributes:
        eta: strength of the noise from 0, deterministic, to 1, ancestral sampling.

    The order is 1, with noise the weak order. Data that are a single point are reached in one step. In these
    coordinates the noise that the paper has for variance preserving models, of variance
    ``eta^2 rho_t^2 (1 - rho_t^2 / rho_s^2)``, is the same for all schedules. Costs one call of the model
    for a step.

    Source: Song, Meng and Ermon (2021), Denoising diffusion implicit models.
    """

    eta: float = 0.0

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"eta": fraction()}

    @property
    def num_draws(self) -> int:
        """1, or 0 where eta = 0."""
        return int(self.eta > 0)

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        ratio = ratios(rho)
        share = self.eta**2 * (1 - ratio**2) if self.eta else np.zeros_like(ratio)  # of rho_t^2
        keep = ratio * np.sqrt(1 - share)
        return Row(rho[:-1], keep, (1 - keep)[:, None], rho[1:] * np.sqrt(share))


@dataclass(frozen=True)
class DPMSolver(OfOrder):
    """DPM-Solver++, multistep: the denoiser is extrapolated along a step by a polynomial in lambda.

    Attributes:
        order: 1 (DDIM), 2 ("2M") or 3 ("3M"), which is also the claimed global order.
        lower_order_final: whether the last steps fall to order 1, which may be steadier with fewer than 10
            steps.
        careful_start: whether order 3 divides the first step, for one call more.

    The first steps are of lower order because they have no history. That does not matter if levels start at
    large noise, where the denoiser hardly changes; elsewhere order 3 needs ``careful_start``. A step to level
    0 is of order 1. Order 2 is the formula of the paper; order 3 has the exact integral of the quadratic.
    Costs one call of the model for a step.

    Source: Lu et al. (2022), DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models.
    """

    order: int = 2
    lower_order_final: bool = False
    careful_start: bool = False

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"order": integer(1, 3), "lower_order_final": boolean(), "careful_start": boolean()}

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        rho = graded(rho, self.num_extra)
        num = len(rho) - 1
        weights = np.zeros((num, self.order))
        lam = -np.log(np.where(rho > 0, rho, 1.0))  # that of level 0 is not used
        for k, order in enumerate(step_orders(rho, self.order, self.lower_order_final)):
            nodes, end = lam[k - np.arange(order)], lam[k + 1]
            if order == 1:
                weights[k, 0] = 1 - rho[k + 1] / rho[k]
            elif order == 2:
                weights[k, :2] = two_step_weights(nodes, end, -np.expm1(nodes[0] - end))
            else:
                weights[k] = exponential_weights(nodes, nodes[0], end)
        return Row(rho[:-1], ratios(rho), weights, np.zeros(num))


@dataclass(frozen=True)
class SDEDPMSolver(Multistep):
    """SDE-DPM-Solver++: exact for a constant denoiser, with the noise of the reverse process.

    Attributes:
        steps: 1, or 2 for the multistep variant ("2M SDE"), which extrapolates the denoiser.

    The weak orders are 1 and 2. The values that the second variant extrapolates contain the noise of the step
    before in place of the step's own: as the noise is additive, the law at the end is the same to this order.
    The first step, and a step to level 0, which gives the denoiser's value, are of order 1. Costs one call of
    the model for a step.

    Source: Lu et al. (2022), DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models.
    """

    steps: int = 2
    num_draws: ClassVar[int] = 1

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {"steps": integer(1, 2)}

    @property
    def order(self) -> int:
        """The number of steps."""
        return self.steps

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        ratio = ratios(rho)
        weights = np.zeros((len(ratio), self.steps))
        moved = 1 - ratio**2
        weights[:, 0] = moved
        for k, order in enumerate(step_orders(rho, self.steps)):
            if order == 2:
                r = np.log(ratio[k - 1]) / np.log(ratio[k])  # h_prev / h
                weights[k] += 0.5 * moved[k] / r * np.array([1.0, -1.0])
        return Row(rho[:-1], ratio**2, weights, rho[1:] * np.sqrt(moved))


@dataclass(frozen=True)
class DEIS(OfOrder):
    """DEIS "tAB": the noise (y - D) / rho is extrapolated by a polynomial in time, or in rho.

    Attributes:
        order: number of values that the polynomial goes through, 1 to 4, and the claimed global order;
            "tAB-k" has the order k + 1.
        schedule: whose time the polynomial is in; None for one in rho ("rho AB").
        careful_start: whether orders 3 and 4 divide the first step, for one and two calls more; see
            :class:`DPMSolver`.

    A step to level 0 is of full order with a polynomial in rho, and of order 1 with one in time, which need
    not be finite there. Coefficients come from Gauss-Legendre quadrature in float64. Costs one call of the
    model for a step.

    Source: Zhang and Chen (2023), Fast sampling of diffusion models with exponential integrator.
    """

    order: int = 3
    schedule: Schedule | None = None
    careful_start: bool = False
    in_noise: ClassVar[bool] = True

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        return {
            "order": integer(1, 4),
            "schedule": optional(instance(Schedule, "a Schedule"), "for a polynomial in rho"),
            "careful_start": boolean(),
        }

    def table(self, rho: np.ndarray) -> Row[np.ndarray]:
        """See :class:`Row`."""
        rho = graded(rho, self.num_extra)
        orders = step_orders(rho, self.order)
        if self.schedule is None:
            orders[-1] = min(self.order, len(orders))
        variable = None if self.schedule is None else self.schedule.time
        num = len(rho) - 1
        weights = np.zeros((num, self.order))
        for k, order in enumerate(orders):
            nodes = rho[k - np.arange(order)]
            weights[k, :order] = polynomial_weights(nodes, rho[k], rho[k + 1], variable)
        return Row(rho[:-1], np.ones(num), weights, np.zeros(num))


def two_step_weights(nodes: np.ndarray, end: float, slope: float) -> np.ndarray:
    """Weights of D and of the D before it, whose change is extrapolated over the step with ``slope / 2``."""
    h = end - nodes[0]
    r = (nodes[0] - nodes[1]) / h
    change = 0.5 * slope / r
    return np.array([-np.expm1(-h) + change, -change])
