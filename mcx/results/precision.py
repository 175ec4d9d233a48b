"""Whether floating-point numbers tell the log densities of draws apart: what rounding does to them.

A log density is known to about its largest term times the machine's precision. In float32 a constant of 1e8
hides differences of 8, and so do terms of 1e8 that cancel, as in the density of Binomial(5e6): chains and
weights then follow the rounding. The first shows in the value, the second only in the values nearby.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from mcx.errors import CapabilityError
from mcx.model.compile import compile_model
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.target import Target
from mcx.types import Array, Float

TOLERATED = 0.1  # nats: more of it shows in rates of acceptance and in weights
_POINTS, _STEPS = 8, 4


def precision_advice(posterior: Posterior, suspicious: bool) -> list[Advice]:
    """Whether rounding moves log densities by more than a tenth of a nat.

    The size of log densities and of the evidence is looked at after every run, and values near some draws
    where that is too large, or where the run is ``suspicious`` otherwise: they compile a program.
    """
    dtype = np.dtype(posterior.info.dtype or posterior.unconstrained.dtype)
    sizes = [posterior.stats.get("lp"), posterior.log_evidence]
    nearby = 0.0
    if suspicious or size_advice(sizes, dtype):
        nearby = rounding_noise(posterior)
    return size_advice(sizes, dtype, nearby)


def size_advice(log_densities: Sequence[object], dtype: DTypeLike, nearby: float = 0.0) -> list[Advice]:
    """Whether log densities are so large that rounding hides differences, or values ``nearby`` show it."""
    largest = max(map(_largest, log_densities))
    noise = max(nearby, largest * float(np.finfo(np.dtype(dtype)).eps))
    if not noise > TOLERATED:
        return []
    text = (
        f"rounding moves log densities by {noise:.2g} nats (they are of size {largest:.2g} in "
        f"{np.dtype(dtype)}), and draws and weights follow it. Leave large constants out of factors and "
        "likelihoods, or compute in float64: JAX_ENABLE_X64=1"
    )
    return [Advice("MCX-W016", text)]


def rounding_noise(posterior: Posterior) -> float:
    """By how many nats rounding moves the log density at some draws; 0 where that cannot be evaluated.

    Over a few units in the last place of a point every smooth function is a straight line: what deviates
    from one is rounding.
    """
    target = compile_model(posterior.bound)
    z = np.asarray(posterior.unconstrained)
    if z.shape[-1] != target.dim or not z.size:
        return 0.0
    flat = z.reshape(-1, z.shape[-1])
    flat = flat[np.isfinite(flat).all(-1)]
    if not len(flat):
        return 0.0
    some = flat[np.linspace(0, len(flat) - 1, _POINTS).astype(int)]
    unit = 4 * np.finfo(z.dtype).eps * np.maximum(np.abs(some), 1e-3 * flat.std(0) + np.finfo(z.dtype).tiny)
    side = np.where(np.arange(z.shape[-1]) % 2, -1, 1)
    steps = np.arange(-_STEPS, _STEPS + 1)
    near = some[:, None] + steps[:, None] * (unit * side)[:, None]
    try:
        values = np.asarray(_densities(target, jnp.asarray(near.astype(z.dtype))), np.float64)
    except CapabilityError:  # priors that have a score but no density
        return 0.0
    values = values[np.isfinite(values).all(-1)]
    if not len(values):
        return 0.0
    centred = values - values.mean(-1, keepdims=True)
    slope = centred @ steps / (steps @ steps)
    return float(np.abs(centred - slope[:, None] * steps).max())


@jax.jit
def _densities(target: Target, z: Float[Array, "point step dim"]) -> Float[Array, "point step"]:
    return jax.vmap(jax.vmap(lambda x: target.log_density(target.unravel(x))))(z)


def _largest(x: object) -> float:
    """The largest finite absolute value; 0 where there is none."""
    values = np.abs(np.asarray([] if x is None else x, np.float64))
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))
