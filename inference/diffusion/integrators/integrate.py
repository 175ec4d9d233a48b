"""One point carried from one noise level to another, and the checks that all uses of integrators share."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import KeyTypeError, MethodError, NonFiniteError
from mcx.inference.diffusion.integrators.base import Integrator
from mcx.inference.diffusion.integrators.linear import DPMSolver
from mcx.inference.diffusion.models.arguments import (
    DENOISER,
    Noise,
    Point,
    having,
    noise_levels,
    refuse_scalar,
)
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.arrays import array_argument
from mcx.ops.keys import as_key
from mcx.ops.logspace import as_float
from mcx.ops.tracing import is_traced
from mcx.ops.validation import validated
from mcx.types import Key, KeyLike, PyTree

INTEGRATOR = having("prepare", "an integrator, such as mcx.diffusion.DPMSolver()")


def integrate(
    model: Denoiser,
    y: Point,
    levels: ArrayLike,
    *,
    key: KeyLike | None = None,
    method: Integrator | None = None,
    noise: Noise | None = None,
    path: bool = False,
) -> Point:
    """Carry a point from the first noise level to the last.

    Args:
        model: a denoiser: :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Score`.
        y: one point, in the coordinates ``y = x / alpha``; use ``jax.vmap`` for several.
        levels: noise levels rho, (K + 1,), known when the program is traced: strictly falling to a positive
            number or to 0, or, for deterministic methods, strictly rising.
        key: a typed JAX key or an int, for methods that draw noise; not needed with ``noise``.
        method: an integrator; by default ``DPMSolver(order=2)``.
        noise: standard normal draws to use, (K, method.num_draws, *y.shape).
        path: whether to return all points on the way.

    Returns:
        The point at the last level, of y's shape and dtype, or (K + 1, *y.shape) with ``path``. At a last
        level of 0 it is the denoiser's value of the step before or, with :class:`~mcx.diffusion.DEIS`,
        extrapolated; no noise is added there. Costs ``method.nfe(levels)`` calls of the model, in one program
        for all levels of one length.

    Raises:
        MethodError: if an argument makes no sense.
        KeyTypeError: if a method that draws noise has no key.
        NonFiniteError: if the result is not finite (where arrays are concrete).
    """
    model = validated("integrate", "model", model, DENOISER)
    method = checked_integrator("integrate", "method", method)
    rho = noise_levels("integrate", "levels", levels, rising=method.num_draws == 0, zero=True)
    y = as_float(array_argument("integrate", "y", y))
    refuse_scalar("integrate", "y", y)
    if noise is not None:
        noise = jnp.asarray(array_argument("integrate", "noise", noise), y.dtype)
        expected = (len(rho) - 1, method.num_draws, *y.shape)
        if noise.shape != expected or not method.num_draws:
            raise MethodError(
                f"integrate(noise=...) does not fit {type(method).__name__}",
                expected=f"shape {expected}" if method.num_draws else "None: the method draws no noise",
                found=f"shape {noise.shape}",
            )
    draws = method.num_draws > 0 and noise is None
    run_key = required_key(key, f"{type(method).__name__} draws noise") if draws else None
    prepared = cast(method.prepare(rho), y.dtype)
    return finite(_integrate(run_key, model, y, prepared, noise, method=method, path=path), "integrate(...)")


@partial(jax.jit, static_argnames=("method", "path"))
def _integrate(
    key: Key | None,
    model: Denoiser,
    y: Point,
    prepared: PyTree,
    noise: Noise | None,
    *,
    method: Integrator,
    path: bool,
) -> Point:
    end = method.run(key, model, y, prepared, noise, path)
    return jnp.concatenate([y[None], end]) if path else end


def checked_integrator(owner: str, name: str, method: Integrator | None) -> Integrator:
    """The integrator that an argument names, ``DPMSolver(order=2)`` by default."""
    return DPMSolver() if method is None else validated(owner, name, method, INTEGRATOR)


def required_key(key: KeyLike | None, reason: str) -> Key:
    """The typed key, or an error that says why one is needed."""
    if key is None:
        raise KeyTypeError(
            f"{reason} and needs a random key", expected="key=jax.random.key(0), or an int", found="None"
        )
    return as_key(key)


def cast(tree: PyTree, dtype: np.dtype) -> PyTree:
    """Float leaves as ``dtype``, others as they are."""
    return jax.tree_util.tree_map(
        lambda x: jnp.asarray(x, dtype if np.issubdtype(np.asarray(x).dtype, np.floating) else None), tree
    )


def finite(found: Point, what: str) -> Point:
    """The argument itself; raises where its values are concrete and not all finite."""
    if not is_traced(found) and not bool(jnp.isfinite(found).all()):
        bad = int((~jnp.isfinite(found)).sum())
        raise NonFiniteError(
            f"{what} gave values that are not finite",
            found=f"{bad} of {found.size} numbers",
            remedy="check the model at the first and the last positive level, or take more steps",
        )
    return found
