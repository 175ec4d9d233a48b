"""The log density of a diffusion model at a point by the probability flow, with an error bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from mcx.errors import NonFiniteError
from mcx.inference.diffusion.integrators.integrate import required_key
from mcx.inference.diffusion.models.arguments import DENOISER, ByLevel, Point, noise_levels, refuse_scalar
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.arrays import array_argument
from mcx.ops.logspace import as_float
from mcx.ops.tracing import is_traced
from mcx.ops.validation import integer, optional, validated
from mcx.results.estimate import Estimate
from mcx.types import Key, KeyLike, Scalar

_EXACT = 64  # dimensions up to which traces are exact by default

type _Derivative = Callable[[Point], Point]
type _State = tuple[Point, Array]  # a point, and the change of its log density (by probe)
type _At = Callable[[Point, Scalar], tuple[Point, Array, _Derivative]]


def log_likelihood(
    model: Denoiser, x: Point, levels: ArrayLike, *, key: KeyLike | None = None, num_probes: int | None = None
) -> Estimate:
    """The log density of a diffusion model at a point, for data with noise of the smallest level.

    The probability flow carries the point up to the largest level, where the law is taken to be the Gaussian
    with the covariance that the model's derivative shows; on the way the log density changes by the
    divergence of the flow.

    Args:
        model: a denoiser.
        x: one point, in the coordinates ``y = x / alpha``; use ``jax.vmap`` for several.
        levels: noise levels rho, (K + 1,), known when the program is traced, strictly rising or falling,
            positive. The smallest is the noise of the data whose density is returned; the largest has to be
            so large that the model is Gaussian there. The geometric ``levels(500.0, 0.01, 40)`` is a good
            choice for exact models; for networks take the range that they were trained for.
        key: a typed JAX key or an int; needed for probes only.
        num_probes: None for exact traces up to 64 dimensions and 8 probes above; otherwise the number of
            probes (Hutchinson's estimator with Rademacher probes, each kept along the whole path).

    Returns:
        ``value``, the log density, and ``se``, which combines two errors that ``stats`` has separately:
        ``se_probes``, the standard error over probes (0 with exact traces), and ``se_steps``, the correction
        that Richardson's extrapolation makes from K / 2 and K steps (K and 2 K if K is odd) of the
        Runge-Kutta method of order 4. The latter is an upper bound rather than a standard deviation if there
        are 3 steps or more for a unit of log rho. Costs 8 K derivatives, two at a time, of d or
        ``num_probes`` Jacobian-vector products each.

    Raises:
        MethodError: if an argument makes no sense.
        KeyTypeError: if probes are needed and there is no key.
        NonFiniteError: if the result is NaN (where arrays are concrete).

    The exponential of an estimate with probes is biased upwards, by the factor ``exp(se_probes^2 / 2)``.

    Sources: Song et al. (2021), Score-based generative modeling through SDEs; Hutchinson (1990) for the
    probes.
    """
    model = validated("log_likelihood", "model", model, DENOISER)
    rho = np.sort(noise_levels("log_likelihood", "levels", levels, rising=True))
    if len(rho) % 2 == 0:  # coarse steps use every other level
        rho = np.sort(np.concatenate([rho, np.sqrt(rho[1:] * rho[:-1])]))
    rule = optional(integer(2), "for a choice by dimension")
    num_probes = validated("log_likelihood", "num_probes", num_probes, rule)
    x = as_float(array_argument("log_likelihood", "x", x))
    refuse_scalar("log_likelihood", "x", x)
    if num_probes is None and x.size > _EXACT:
        num_probes = 8
    reason = f"log_likelihood(...) estimates traces in {x.size} dimensions"
    key = None if num_probes is None else required_key(key, reason)
    found = _log_likelihood(key, model, x, jnp.asarray(np.log(rho), x.dtype), num_probes=num_probes)
    if not is_traced(found.value) and bool(jnp.isnan(found.value)):
        raise NonFiniteError(
            "log_likelihood(...) is NaN",
            remedy="look for NaN among the point and the model's parameters, and at the model at all levels",
        )
    return found


@partial(jax.jit, static_argnames="num_probes")
def _log_likelihood(
    key: Key | None, model: Denoiser, x: Point, log_rho: ByLevel, *, num_probes: int | None
) -> Estimate:
    if num_probes is None:
        probes, scale = jnp.eye(x.size, dtype=x.dtype), float(x.size)  # the trace is d times the mean
    else:
        assert key is not None
        probes, scale = jax.random.rademacher(key, (num_probes, x.size), x.dtype), 1.0
    probes = probes.reshape(-1, *x.shape)
    many = num_probes is not None

    def at(y: Point, log_r: Scalar) -> tuple[Point, Array, _Derivative]:
        """D, the trace of its derivative by each probe (or exactly), and the derivative."""
        rho = jnp.exp(log_r)
        denoised, derivative = jax.linearize(lambda y: model.denoise(y, rho), y)
        products = jax.vmap(lambda v: jnp.sum(v * derivative(v)))(probes)
        return denoised, products if many else scale * jnp.mean(products), derivative

    def to_density(log_rho: ByLevel) -> Array:
        start = (x, jnp.zeros((num_probes,) if many else (), x.dtype))
        y, change = _carry(at, start, log_rho)
        return change + _gaussian(y, jnp.exp(log_rho[-1]), *at(y, log_rho[-1]))

    # the coarse path takes steps twice as long, then one of length 0: one program serves both
    both = jnp.stack([jnp.repeat(log_rho[::2], 2)[1:], log_rho])
    coarse, fine = jax.vmap(to_density)(both)
    correction = (fine - coarse) / 15  # Richardson's, of order 4
    fine = fine + correction
    value, se_steps = jnp.mean(fine), jnp.abs(jnp.mean(correction))
    se_probes = jnp.std(fine, ddof=1) / math.sqrt(fine.size) if many else jnp.zeros((), x.dtype)
    stats = {"se_probes": se_probes, "se_steps": se_steps}
    return Estimate(value, jnp.sqrt(se_probes**2 + se_steps**2), stats=stats)


def _carry(at: _At, start: _State, log_rho: ByLevel) -> _State:
    """The point, and the change of its log density, carried along the flow by the Runge-Kutta method."""
    dtype = log_rho.dtype
    stages = jnp.array([0, 0.5, 0.5, 1], dtype), jnp.array([1 / 6, 1 / 3, 1 / 3, 1 / 6], dtype)

    def field(state: _State, log_r: Scalar) -> _State:
        denoised, trace, _ = at(state[0], log_r)
        return state[0] - denoised, state[0].size - trace

    def step(state: _State, ends: tuple[Scalar, Scalar]) -> tuple[_State, None]:
        here, h = ends[0], ends[1] - ends[0]

        def stage(
            carry: tuple[_State, _State], part: tuple[Scalar, Scalar]
        ) -> tuple[tuple[_State, _State], None]:
            (slope, total), (share, weight) = carry, part
            at_stage = jax.tree_util.tree_map(lambda s, k: s + share * h * k, state, slope)
            slope = field(at_stage, here + share * h)
            return (slope, jax.tree_util.tree_map(lambda t, k: t + weight * h * k, total, slope)), None

        zero = jax.tree_util.tree_map(jnp.zeros_like, state)
        (_, total), _ = jax.lax.scan(stage, (zero, state), stages)
        return total, None

    end, _ = jax.lax.scan(step, start, (log_rho[:-1], log_rho[1:]))
    return end


def _gaussian(y: Point, rho: Scalar, denoised: Point, trace: Array, derivative: _Derivative) -> Array:
    """The log density of the Gaussian at a large level that the denoiser and its derivative J show.

    Its covariance is ``C = rho^2 (I - J)^-1`` and its score ``r / rho^2`` with r = D - y, so that ``(y - m)
    C^-1 (y - m) = r (I - J)^-1 r / rho^2``. The third power of J, which is small, is neglected, and all
    eigenvalues are taken to be their mean.
    """
    r = denoised - y
    along = derivative(r)
    squares = (jnp.sum(r**2) + jnp.sum(r * along) + jnp.sum(along**2)) / rho**2
    rest = 1 - jnp.clip(trace / y.size, 0.0, 0.99)
    return -0.5 * squares + 0.5 * y.size * (jnp.log(rest) - jnp.log(2 * math.pi * rho**2))
