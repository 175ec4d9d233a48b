"""Arguments that diffusion functions share: the types of points and levels, and rules for what users pass."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from mcx.errors import MethodError
from mcx.ops.arrays import as_numbers
from mcx.ops.validation import Rule, function, integer, tuple_of
from mcx.types import Array, Float

type Point = Float[Array, "..."]
"""A point, in the shape of an event."""

type Points = Float[Array, "num ..."]
"""Several points, with a leading axis."""

type Noise = Float[Array, "..."]
"""Standard normal draws of a point's shape, stacked along leading axes."""

type Level = Float[Array, ""] | float
"""A noise level ``rho = sigma / alpha``."""

type ByLevel = Float[Array, " K"]
"""Numbers by noise level: the levels themselves, or something that depends on them."""

EVENT_SHAPE = tuple_of(integer(1), "a tuple of ints >= 1, one at least", least=1)


def having(attribute: str, expected: str) -> Rule:
    """An object, rather than a class, with an attribute that tells what it can do."""

    def plain(value: Any) -> Any:
        if isinstance(value, type) or not hasattr(value, attribute):
            raise ValueError
        return value

    return Rule(expected, plain)


def pytree_function(expected: str) -> Rule:
    """A function, made a pytree: what a ``jax.tree_util.Partial`` holds is data."""

    def plain(value: Any) -> jax.tree_util.Partial:
        fn = function().plain(value)
        return fn if isinstance(fn, jax.tree_util.Partial) else jax.tree_util.Partial(fn)

    return Rule(expected, plain)


def refuse_scalar(owner: str, name: str, x: Array) -> None:
    """Raise MethodError for a number where a point of a model is asked for."""
    if not x.ndim or not x.size:
        raise MethodError(
            f"{owner}({name}=...) is no point",
            expected="an array of one axis or more",
            found=f"shape {x.shape}",
            remedy="write a point of one dimension as an array of one entry",
        )


DENOISER = having("denoise", "a GaussianMixture, a Score, or another object with denoise(y, rho)")


def noise_levels(
    owner: str, name: str, value: ArrayLike, *, rising: bool = False, zero: bool = False, fewest: int = 2
) -> np.ndarray:
    """Strictly falling levels (K + 1,) in float64; MethodError for what is traced, or no such levels.

    ``rising`` levels, all positive, may be allowed, too, and falling ones to end at ``zero``.
    """
    expected = f"{fewest} or more numbers, strictly falling" + (" or rising, " if rising else ", ")
    expected += "positive" + ("; falling ones may end at 0" if zero else "")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(value)):
        raise MethodError(
            f"{owner}({name}=...): the noise levels are traced, but coefficients depend on their values",
            expected=expected,
            remedy="make them with NumPy, outside of jit and vmap",
        )
    try:
        rho = np.asarray(as_numbers(value), float)
    except (TypeError, ValueError):
        rho = np.full((), np.nan)
    rho = rho if rho.ndim == 1 else np.full((), np.nan)
    steps = np.diff(rho) if rho.ndim == 1 else np.zeros(0)
    proper = rho.ndim == 1 and len(rho) >= fewest and bool(np.isfinite(rho).all())
    falls = proper and bool((steps < 0).all()) and (rho[-1] > 0 or (zero and rho[-1] == 0))
    rises = proper and rising and bool((steps > 0).all()) and rho[0] > 0
    if not (falls or rises):
        raise MethodError(
            f"{owner}({name}=...): these are no noise levels",
            expected=expected,
            found=f"shape {rho.shape}, {np.array2string(rho, threshold=6)}" if rho.ndim else repr(value),
            remedy="mcx.diffusion.levels(80.0, 0.002, 20) makes levels; a repeated one leaves noise in draws",
        )
    return rho
