"""Integrators with one call of the model a step, linear in what the model said there and before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.diffusion.integrators.base import Tabled, call, graded, step_orders
from mcx.inference.diffusion.integrators.coefficients import exponential_weights, polynomial_weights
from mcx.inference.diffusion.models.schedules import Schedule
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.checks import check_fields, is_count

__all__ = ["DDIM", "DEIS", "DPMSolver", "EulerMaruyama", "Row", "SDEDPMSolver"]


class Row(NamedTuple):
    """``y' = keep y + sum_j weights[j] D_j + noise z``, D_0 at the level ``rho``, D_1 before it, ...

    With K in front of each; weights are (K, p).
    """

    rho: Any
    keep: Any
    weights: Any
    noise: Any


class State(NamedTuple):
    """The point, and a tuple of what the model said at the p - 1 levels before, the newest first."""

    y: Any
    history: Any


class Multistep(Tabled):
    """A linear multistep method; subclasses give the table, and ``memory``, its p."""

    @property
    def memory(self) -> int:
        """Number of levels whose values a step uses."""
        return 1

    @property
    def in_noise(self) -> bool:
        """Whether they are the noise (y - D) / rho instead of D."""
        return False

    def init(self, y: Any) -> State:
        """No history."""
        return State(y, (jnp.zeros_like(y),) * (self.memory - 1))

    def step(self, model: Denoiser, state: State, row: Row, z: Any) -> State:
        """See :class:`Row`."""
        said = call(model, state.y, row.rho)
        if self.in_noise:
            said = (state.y - said) / row.rho
        history = (said, *state.history)
        y = row.keep * state.y + sum(row.weights[j] * history[j] for j in range(self.memory))
        if self.num_draws:
            y = y + row.noise * z[0]
        return State(y, history[:-1])

    def nfe(self, levels: Any) -> int:
        """One call a step."""
        return len(levels) - 1 + self.num_extra


class OfOrder(Multistep):
    """A multistep method whose order can be chosen, and whose start can take short steps of lower order."""

    order: int
    careful_start: bool

    @property
    def memory(self) -> int:
        """The order."""
        return self.order

    @property
    def num_extra(self) -> int:
        """Calls that a careful start costs."""
        return max(self.order - 2, 0) if self.careful_start else 0


def ratios(rho: np.ndarray) -> np.ndarray:
    """``rho_t / rho_s`` of the steps, which is ``exp(-h)``."""
    return rho[1:] / rho[:-1]


@dataclass(frozen=True)
class EulerMaruyama(Multistep):
    """Euler-Maruyama on the reverse equation with any noise strength. Weak order 1.

    ``dy = -(1 + b) / 2 s d(rho^2)`` and noise of variance ``b d(rho^2)``, s the score: every b has the same
    laws at all levels. b = 1 is the reverse of the noising process, b = 0 Euler's method in rho^2 on the
    probability flow.

    Attributes:
        noise: b >= 0, a number or a function ``rho -> b``, called on the host.

    A step to level 0 gives the denoiser's value and adds no noise. Source: Song et al. (2021).
    """

    noise: float | Callable[[float], float] = 1.0

    def __post_init__(self) -> None:
        fine = callable(self.noise) or self.noise >= 0
        check_fields(self, ("noise", fine, "a number >= 0, or a function of rho"))

    @property
    def order(self) -> int:
        """1."""
        return 1

    @property
    def num_draws(self) -> int:
        """1, or 0 where b = 0."""
        return int(callable(self.noise) or self.noise > 0)

    def table(self, rho: np.ndarray) -> Row:
        """See :class:`Row`."""
        before, after = rho[:-1], rho[1:]
        gain = np.array([self.noise(r) if callable(self.noise) else self.noise for r in before], float)
        if not (np.isfinite(gain) & (gain >= 0)).all():
            raise MethodError(
                "EulerMaruyama(noise=...) gives noise strengths out of range",
                expected="finite numbers >= 0",
                found=np.array2string(gain, threshold=6),
            )
        fall = before**2 - after**2
        moved = np.where(after == 0, 1.0, 0.5 * (1 + gain) * fall / before**2)
        spread = np.where(after == 0, 0.0, np.sqrt(gain * np.maximum(fall, 0)))
        return Row(before, 1 - moved, moved[:, None], spread)


@dataclass(frozen=True)
class DDIM(Multistep):
    """DDIM, which is DPM-Solver of order 1: the denoiser is taken for constant along a step.

    Attributes:
        eta: noise from 0, deterministic, to 1, ancestral sampling.

    Order 1, with noise weak order 1. Exact in one step where data are a single point. Source: Song, Meng and
    Ermon (2021), Denoising diffusion implicit models; in these coordinates the noise of variance preserving
    models, ``eta^2 rho_t^2 (1 - rho_t^2 / rho_s^2)``, is the same for all schedules.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, ("eta", 0 <= self.eta <= 1, "a number from 0 to 1"))

    @property
    def order(self) -> int:
        """1."""
        return 1

    @property
    def num_draws(self) -> int:
        """1, or 0 where eta = 0."""
        return int(self.eta > 0)

    def table(self, rho: np.ndarray) -> Row:
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
        lower_order_final: the last steps fall to order 1, which may be steadier with fewer than 10 steps.
        careful_start: whether order 3 divides the first step, for one call more.

    The first steps are of lower order for want of a history. That does not show where levels start at large
    noise, where the denoiser hardly changes; elsewhere order 3 needs ``careful_start``. A step to level 0 is
    of order 1. Order 2 is the formula of the
    paper; order 3 has the exact integral of the quadratic. Source: Lu et al. (2022), DPM-Solver++.
    """

    order: int = 2
    lower_order_final: bool = False
    careful_start: bool = False

    def __post_init__(self) -> None:
        check_fields(self, ("order", is_count(self.order) and self.order <= 3, "1, 2 or 3"))

    def table(self, rho: np.ndarray) -> Row:
        """See :class:`Row`."""
        rho = graded(rho, self.num_extra)
        orders = step_orders(rho, self.order, self.lower_order_final)
        return _denoised_table(rho, self.order, orders, _dpm_weights)


@dataclass(frozen=True)
class SDEDPMSolver(Multistep):
    """SDE-DPM-Solver++: exact for a constant denoiser, with the noise of the reverse process.

    Attributes:
        steps: 1, or 2 for the multistep variant ("2M SDE"), which extrapolates the denoiser.

    Weak orders 1 and 2. What the second extrapolates holds the noise of the step before, which stands for
    that of the step itself: as the noise is additive, laws at the end do not tell them apart to this order.
    The first step, and one to level 0, which gives the denoiser's value, are of order 1. Source: Lu et al.
    (2022), DPM-Solver++.
    """

    steps: int = 2

    def __post_init__(self) -> None:
        check_fields(self, ("steps", is_count(self.steps) and self.steps <= 2, "1 or 2"))

    @property
    def order(self) -> int:
        """The number of steps."""
        return self.steps

    @property
    def num_draws(self) -> int:
        """1."""
        return 1

    @property
    def memory(self) -> int:
        """The number of steps."""
        return self.steps

    def table(self, rho: np.ndarray) -> Row:
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
        schedule: the polynomial is in its time t; None for one in rho ("rho AB").
        careful_start: whether orders 3 and 4 divide the first step, for one and two calls more; see
            :class:`DPMSolver`.

    A step to level 0 is of full order in rho,
    of order 1 in time, which need not be finite there. Source: Zhang and Chen (2023), Fast sampling of
    diffusion models with exponential integrator; coefficients by Gauss-Legendre quadrature in float64.
    """

    order: int = 3
    schedule: Schedule | None = None
    careful_start: bool = False

    def __post_init__(self) -> None:
        check_fields(self, ("order", is_count(self.order) and self.order <= 4, "1, 2, 3 or 4"))

    @property
    def in_noise(self) -> bool:
        """True."""
        return True

    def table(self, rho: np.ndarray) -> Row:
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


def _denoised_table(rho: np.ndarray, memory: int, orders: list[int], weights_of: Callable[..., Any]) -> Row:
    """A table of a deterministic method, from ``(lambdas, newest first; next lambda) -> weights``."""
    num = len(rho) - 1
    weights = np.zeros((num, memory))
    lam = -np.log(np.where(rho > 0, rho, 1.0))  # that of level 0 is not used
    for k, order in enumerate(orders):
        if order == 1:
            weights[k, 0] = 1 - rho[k + 1] / rho[k]
        else:
            weights[k, :order] = weights_of(lam[k - np.arange(order)], lam[k + 1])
    return Row(rho[:-1], ratios(rho), weights, np.zeros(num))


def _dpm_weights(nodes: np.ndarray, end: float) -> np.ndarray:
    if len(nodes) == 2:
        return two_step_weights(nodes, end, -np.expm1(nodes[0] - end))
    return exponential_weights(nodes, nodes[0], end)


def two_step_weights(nodes: np.ndarray, end: float, slope: float) -> np.ndarray:
    """Weights of D and of the one before it: slope / 2 times the change, extrapolated over the step."""
    h = end - nodes[0]
    r = (nodes[0] - nodes[1]) / h
    change = 0.5 * slope / r
    return np.array([-np.expm1(-h) + change, -change])
