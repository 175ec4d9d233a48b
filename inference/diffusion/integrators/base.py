"""What an integrator is, and the loop that all with fixed steps share.

In the coordinates ``y = x / alpha``, ``rho = sigma / alpha`` and with ``lambda = -log rho`` the probability
flow of every diffusion model is ``dy / d lambda = D(y) - y``, D the denoiser, with the solution

    y_t = (rho_t / rho_s) y_s + rho_t * integral of exp(lambda) D d lambda, from lambda_s to lambda_t.

Integrators differ in how they approximate the integral. Their coefficients depend on the levels alone: they
are computed once in float64, and the loop reads them from a table.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import KeyTypeError, MethodError, NonFiniteError
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.keys import as_key
from mcx.ops.tracing import is_traced

__all__ = [
    "Integrator",
    "Tabled",
    "as_levels",
    "call",
    "cast",
    "default_method",
    "finite",
    "graded",
    "integrate",
    "step_orders",
]


class Integrator(Protocol):
    """A way to carry a point from one noise level to another: a frozen dataclass of options; hashable."""

    @property
    def order(self) -> int:
        """Global order in the length of steps in lambda: of the end point; of its law where it is random."""
        ...

    @property
    def num_draws(self) -> int:
        """Draws of noise of the point's shape a step; 0 of deterministic integrators."""
        ...

    def nfe(self, levels: Any) -> int | None:
        """Calls of the model for a point along the levels; None where they are not known ahead."""
        ...

    def prepare(self, levels: np.ndarray) -> Any:
        """What :meth:`run` needs of the levels, arrays in float64."""
        ...

    def run(self, key: Any, model: Denoiser, y: Any, prepared: Any, noise: Any, path: bool) -> Any:
        """The end for one point; with ``path`` the points after every step, (K, *event)."""
        ...


class Tabled:
    """Base of integrators with fixed steps: ``lax.scan`` over a table of coefficients.

    A subclass is a frozen dataclass. It has ``table(rho)``, a pytree of arrays with K in front, from levels
    (K + 1,); ``init(y)``, a state with a field ``y``; and ``step(model, state, row, z)``, where z are
    ``num_draws`` standard normal arrays of y's shape.
    """

    @property
    def num_draws(self) -> int:
        """None."""
        return 0

    @property
    def num_extra(self) -> int:
        """Levels that the table has more, all in the first step; see :func:`graded`."""
        return 0

    def table(self, rho: np.ndarray) -> Any:
        """Coefficients of the steps, in float64."""
        raise NotImplementedError

    def init(self, y: Any) -> Any:
        """State at the first level."""
        return Position(y)

    def step(self, model: Denoiser, state: Any, row: Any, z: Any) -> Any:
        """State at the next level."""
        raise NotImplementedError

    def prepare(self, levels: np.ndarray) -> Any:
        """The table; see :class:`Integrator`."""
        return self.table(levels)

    def run(self, key: Any, model: Denoiser, y: Any, prepared: Any, noise: Any, path: bool) -> Any:
        """See :class:`Integrator`. The noise of step k comes from ``fold_in(key, k)``."""
        shape = (self.num_draws, *y.shape)
        num_steps = jax.tree_util.tree_leaves(prepared)[0].shape[0]

        def one(state: Any, at: Any) -> Any:
            k, row, z = at
            if self.num_draws and z is None:
                z = jax.random.normal(jax.random.fold_in(key, k), shape, y.dtype)
            state = self.step(model, state, row, z)
            return state, state.y if path else None

        state, visited = jax.lax.scan(one, self.init(y), (jnp.arange(num_steps), prepared, noise))
        return visited[self.num_extra :] if path else state.y


class Position(NamedTuple):
    """The state of integrators without a memory."""

    y: Any


def integrate(
    key: Any,
    model: Denoiser,
    y: Any,
    levels: Any,
    *,
    method: Integrator | None = None,
    noise: Any = None,
    path: bool = False,
) -> Any:
    """Carry a point from the first noise level to the last.

    Args:
        key: a random key; None for deterministic methods, and with ``noise``.
        model: a denoiser: :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Score`.
        y: one point, in the coordinates ``y = x / alpha``; ``jax.vmap`` for more.
        levels: noise levels rho, (K + 1,), known when the program is traced: strictly falling to a positive
            number or to 0, or strictly rising, which deterministic methods can do.
        method: an integrator; by default ``DPMSolver(order=2)``.
        noise: standard normal draws to use, (K, method.num_draws, *y.shape).
        path: all points on the way.

    Returns:
        The point at the last level, of y's shape and dtype, or (K + 1, *y.shape) with ``path``. Costs
        ``method.nfe(levels)`` calls of the model, one program for all levels of one length. At a last level
        of 0 it is the denoiser's value of the step before or, with methods of :class:`~mcx.diffusion.DEIS`,
        extrapolated; no noise is added there.

    Raises:
        MethodError: if levels make no sense.
        KeyTypeError: if a method that draws has no key.
        NonFiniteError: if the result is not finite (where arrays are concrete).
    """
    method = default_method(method)
    rho = as_levels(levels, rising=method.num_draws == 0)
    y = jnp.asarray(y)
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
    if noise is not None:
        noise = jnp.asarray(noise, y.dtype)
        expected = (len(rho) - 1, method.num_draws, *y.shape)
        if noise.shape != expected or not method.num_draws:
            raise MethodError(
                f"integrate(noise=...) does not fit {type(method).__name__}",
                expected=f"shape {expected}" if method.num_draws else "None: the method draws nothing",
                found=f"shape {noise.shape}",
            )
        key = None
    elif method.num_draws:
        key = needs_key(key, method)
    else:
        key = None
    prepared = cast(method.prepare(rho), y.dtype)
    return finite(_integrate(key, model, y, prepared, noise, method=method, path=path), "integrate(...)")


@partial(jax.jit, static_argnames=("method", "path"))
def _integrate(
    key: Any, model: Denoiser, y: Any, prepared: Any, noise: Any, *, method: Integrator, path: bool
) -> Any:
    end = method.run(key, model, y, prepared, noise, path)
    return jnp.concatenate([y[None], end]) if path else end


def default_method(method: Integrator | None) -> Integrator:
    """``DPMSolver(order=2)`` in place of None."""
    if method is None:
        from mcx.inference.diffusion.integrators.linear import DPMSolver

        return DPMSolver()
    return method


def needs_key(key: Any, method: Integrator) -> Any:
    """The key, typed; an error that names the method where there is none."""
    if key is None:
        raise KeyTypeError(
            f"{type(method).__name__} draws noise and needs a random key",
            expected="key=jax.random.key(0), or an int",
            found="None",
        )
    return as_key(key)


def as_levels(levels: Any, *, rising: bool = False) -> np.ndarray:
    """Check noise levels, and give them as float64.

    Args:
        levels: (K + 1,), K >= 1, strictly falling, positive but for the last.
        rising: whether strictly rising positive ones will do, too.
    """
    expected = "(K + 1,) numbers, K >= 1, strictly falling and positive; the last may be 0"
    if rising:
        expected += "; or strictly rising and positive"
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(levels)):
        raise MethodError(
            "the noise levels are traced, and coefficients are computed from them beforehand",
            expected=expected,
            remedy="make them with numpy, outside of jit and vmap",
        )
    rho = np.asarray(levels, float)
    steps = np.diff(rho) if rho.ndim == 1 else np.zeros(0)
    fine = len(steps) > 0 and bool(np.isfinite(rho).all())
    falling = fine and bool((steps < 0).all() and rho[-1] >= 0)
    if not (falling or (fine and rising and bool((steps > 0).all()) and rho[0] > 0)):
        raise MethodError(
            "the noise levels are none to integrate along",
            expected=expected,
            found=f"shape {rho.shape}, {np.array2string(rho, threshold=6)}",
            remedy="a level that is there twice leaves noise in the samples: see mcx.diffusion.levels",
        )
    return rho


def graded(rho: np.ndarray, num: int) -> np.ndarray:
    """Levels with ``num`` more in the first step: 0, 1 or 2.

    Multistep methods begin with steps of order 1, 2, ..., whose errors are of the method's order only if they
    are short enough: of length h^2 and h^(4/3), where the others have h.
    """
    if num == 0:
        return rho
    h = -np.log(rho[1] / rho[0]) if rho[1] > 0 else 1.0
    lengths = h * np.minimum([0.1, 0.4], np.abs(h) ** np.array([1, 1 / 3]) * 0.4)
    added = rho[0] * np.exp(-lengths[:num])
    return np.concatenate([rho[:1], added, rho[1:]])


def step_orders(rho: np.ndarray, order: int, lower_end: bool = False) -> list[int]:
    """Order of each step of a multistep method: rising from 1, and 1 for a step to no noise.

    Args:
        rho: levels, (K + 1,).
        order: that of the method.
        lower_end: whether the last steps fall to order 1, as they may want to where steps are few.
    """
    num = len(rho) - 1
    orders = [min(order, k + 1, num - k if lower_end else order) for k in range(num)]
    if rho[-1] == 0:
        orders[-1] = 1
    return orders


def call(model: Denoiser, y: Any, rho: Any) -> Any:
    """The denoiser's value in y's dtype, as networks may compute in another."""
    return jnp.asarray(model.denoise(y, rho), y.dtype)


def cast(tree: Any, dtype: Any) -> Any:
    """Float leaves as ``dtype``, others as they are."""
    return jax.tree_util.tree_map(
        lambda x: jnp.asarray(x, dtype if np.issubdtype(np.asarray(x).dtype, np.floating) else None), tree
    )


def finite(found: Any, what: str) -> Any:
    """The same, after an error where concrete values are not finite."""
    if not is_traced(found) and not bool(jnp.isfinite(found).all()):
        bad = int((~jnp.isfinite(found)).sum())
        raise NonFiniteError(
            f"{what} gave values that are not finite",
            found=f"{bad} of {found.size} numbers",
            remedy="look at the model at the first and the last positive level; more steps if they diverged",
        )
    return found
