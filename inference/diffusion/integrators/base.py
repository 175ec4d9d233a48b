"""What an integrator is, and the loop that all integrators with fixed steps share.

In the coordinates ``y = x / alpha``, ``rho = sigma / alpha``, and with ``lambda = -log rho``, the probability
flow of every diffusion model is ``dy / d lambda = D(y) - y``, where D is the denoiser. Its solution is

    y_t = (rho_t / rho_s) y_s + rho_t * integral of exp(lambda) D d lambda, from lambda_s to lambda_t.

Integrators differ in how they approximate the integral. Their coefficients depend only on the levels: they
are computed once, in float64, and the loop reads them from a table.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.diffusion.models.arguments import Level, Noise, Point
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.validation import Settings
from mcx.types import Key, PyTree, Scalar


class Integrator(Protocol):
    """A way to carry a point from one noise level to another: a hashable frozen dataclass of settings."""

    @property
    def order(self) -> int:
        """Global order in the length of steps in lambda: of the end point, or of its law if it is random."""

    @property
    def num_draws(self) -> int:
        """Number of noise draws of the point's shape in a step; 0 for deterministic integrators."""

    def nfe(self, levels: np.ndarray) -> int | None:
        """Number of calls of the model for a point along the levels; None if it is not known beforehand."""

    def prepare(self, levels: np.ndarray) -> PyTree:
        """What :meth:`run` needs of the levels; arrays in float64."""

    def run(
        self, key: Key | None, model: Denoiser, y: Point, prepared: PyTree, noise: Noise | None, path: bool
    ) -> Point:
        """The end for one point; with ``path`` the points after every step, (K, *event)."""


class Tabled(Settings):
    """Base of integrators with fixed steps: ``lax.scan`` over a table of coefficients with leading axis K.

    A state has a field ``y``; the z of a step holds ``num_draws`` standard normal arrays of y's shape.
    """

    @property
    def num_draws(self) -> int:
        """0."""
        return 0

    @property
    def num_extra(self) -> int:
        """Number of levels that the table adds to the first step; see :func:`graded`."""
        return 0

    def table(self, rho: np.ndarray) -> PyTree:
        """Coefficients of the steps, in float64."""
        raise NotImplementedError

    def init(self, y: Point) -> PyTree:
        """State at the first level."""
        return Position(y)

    def step(self, model: Denoiser, state: PyTree, row: PyTree, z: Noise | None) -> PyTree:
        """State at the next level."""
        raise NotImplementedError

    def prepare(self, levels: np.ndarray) -> PyTree:
        """The table; see :class:`Integrator`."""
        return self.table(levels)

    def run(
        self, key: Key | None, model: Denoiser, y: Point, prepared: PyTree, noise: Noise | None, path: bool
    ) -> Point:
        """See :class:`Integrator`. The noise of step k comes from ``fold_in(key, k)``."""
        shape = (self.num_draws, *y.shape)
        num_steps = jax.tree_util.tree_leaves(prepared)[0].shape[0]

        def one(state: PyTree, at: tuple[Scalar, PyTree, Point | None]) -> tuple[PyTree, Point | None]:
            k, row, z = at
            if self.num_draws and z is None:
                assert key is not None
                z = jax.random.normal(jax.random.fold_in(key, k), shape, y.dtype)
            state = self.step(model, state, row, z)
            return state, state.y if path else None

        state, visited = jax.lax.scan(one, self.init(y), (jnp.arange(num_steps), prepared, noise))
        return state.y if visited is None else visited[self.num_extra :]


class Position(NamedTuple):
    """The state of integrators without memory."""

    y: Point


def graded(rho: np.ndarray, num: int) -> np.ndarray:
    """Levels with ``num`` more in the first step, 0, 1 or 2: steps of h^2 and h^(4/3), where others are h.

    Multistep methods begin with steps of lower order, which would otherwise spoil the method's.
    """
    if num == 0:
        return rho
    h = -np.log(rho[1] / rho[0]) if rho[1] > 0 else 1.0
    lengths = h * np.minimum([0.1, 0.4], np.abs(h) ** np.array([1, 1 / 3]) * 0.4)
    added = rho[0] * np.exp(-lengths[:num])
    return np.concatenate([rho[:1], added, rho[1:]])


def step_orders(rho: np.ndarray, order: int, lower_end: bool = False) -> list[int]:
    """Order of each step of a multistep method, rising from 1; 1 for a step to level 0."""
    num = len(rho) - 1
    orders = [min(order, k + 1, num - k if lower_end else order) for k in range(num)]
    if rho[-1] == 0:
        orders[-1] = 1
    return orders


def call(model: Denoiser, y: Point, rho: Level) -> Point:
    """The denoiser's value in y's dtype; networks may compute in another one."""
    return jnp.asarray(model.denoise(y, rho), y.dtype)
