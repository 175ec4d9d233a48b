"""The log density of a diffusion model at a point, by the probability flow, with an error bar."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import KeyTypeError, MethodError
from mcx.inference.diffusion.integrators.base import as_levels
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.checks import is_count
from mcx.ops.keys import as_key
from mcx.results.estimate import Estimate

__all__ = ["log_likelihood"]

_EXACT = 64  # dimensions up to which traces are exact by default


def log_likelihood(
    model: Denoiser,
    x: Any,
    levels: Any,
    *,
    key: Any = None,
    num_probes: int | None = None,
) -> Estimate:
    """The log density of a diffusion model at a point, of data with noise of the smallest level.

    The probability flow carries the point up to the largest level, where the law is Gaussian as far as the
    model's derivative tells its covariance; the log density changes along the way by the flow's divergence.

    Args:
        model: a denoiser.
        x: one point, in the coordinates ``y = x / alpha``; ``jax.vmap`` for more.
        levels: noise levels rho, (K + 1,), known when the program is traced, strictly rising or falling,
            positive. The smallest is the noise of the data whose density it is; the largest so large that the
            model is Gaussian there. ``levels(500.0, 0.01, 40)``, geometric, is a good choice for exact
            models; networks want the range that they were trained for.
        key: a random key, for probes.
        num_probes: None for exact traces up to 64 dimensions, and 8 probes above; a number for that many
            probes (Hutchinson's estimator with Rademacher probes, each kept along the whole path).

    Returns:
        ``value``, the log density, and ``se``, from two sources that ``stats`` has apart: ``se_probes``, the
        standard error over probes (0 with exact traces), and ``se_steps``, the correction that Richardson's
        extrapolation makes from K / 2 and K steps (K and 2 K, where K is odd) of Runge-Kutta's method of
        order 4: rather an upper bound than a standard deviation, if there are 3 steps or more for a unit of
        log rho. Costs 8 K derivatives, two at a time, each of d or ``num_probes`` Jacobian-vector products.

    Raises:
        MethodError: if levels or probes make no sense.
        KeyTypeError: if probes are needed and no key is there.

    The exponential of an estimate with probes is biased upwards, by the factor ``exp(se_probes^2 / 2)``.
    Source: Song et al. (2021); Hutchinson (1990).
    """
    rho = np.sort(as_levels(levels, rising=True))
    if rho[0] == 0:
        raise MethodError("log_likelihood(levels=...) ends at no noise", expected="positive levels")
    if len(rho) % 2 == 0:  # to leave out every other one
        rho = np.sort(np.concatenate([rho, np.sqrt(rho[1:] * rho[:-1])]))
    if num_probes is not None and not (is_count(num_probes, 2)):
        raise MethodError(
            "log_likelihood(num_probes=...) is out of range",
            expected="None, or an int >= 2",
            found=repr(num_probes),
        )
    x = jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    if num_probes is None and x.size > _EXACT:
        num_probes = 8
    if num_probes is not None:
        if key is None:
            raise KeyTypeError(
                f"log_likelihood(...) estimates traces in {x.size} dimensions and needs a random key",
                expected="key=jax.random.key(0), or an int",
                found="None",
            )
        key = as_key(key)
    else:
        key = None
    return _log_likelihood(key, model, x, jnp.asarray(np.log(rho), x.dtype), num_probes=num_probes)


@partial(jax.jit, static_argnames="num_probes")
def _log_likelihood(key: Any, model: Denoiser, x: Any, log_rho: Any, *, num_probes: int | None) -> Estimate:
    if num_probes is None:
        probes, scale = jnp.eye(x.size, dtype=x.dtype), float(x.size)  # the trace is d times the mean
    else:
        probes, scale = jax.random.rademacher(key, (num_probes, x.size), x.dtype), 1.0
    probes = probes.reshape(-1, *x.shape)
    many = num_probes is not None

    def at(y: Any, log_r: Any) -> tuple[Any, Any, Any]:
        """D, the trace of its derivative by every probe (or once), and the derivative."""
        rho = jnp.exp(log_r)
        said, derivative = jax.linearize(lambda y: model.denoise(y, rho), y)
        products = jax.vmap(lambda v: jnp.sum(v * derivative(v)))(probes)
        return said, products if many else scale * jnp.mean(products), derivative

    def to_density(log_rho: Any) -> Any:
        start = (x, jnp.zeros((num_probes,) if many else (), x.dtype))
        y, change = _carry(at, start, log_rho)
        return change + _gaussian(y, jnp.exp(log_rho[-1]), *at(y, log_rho[-1]))

    # steps twice as long, every other one of length 0: one program for both
    both = jnp.stack([jnp.repeat(log_rho[::2], 2)[1:], log_rho])
    coarse, fine = jax.vmap(to_density)(both)
    correction = (fine - coarse) / 15  # Richardson's, of order 4
    fine = fine + correction
    value, se_steps = jnp.mean(fine), jnp.abs(jnp.mean(correction))
    se_probes = jnp.std(fine, ddof=1) / math.sqrt(fine.size) if many else jnp.zeros((), x.dtype)
    stats = {"se_probes": se_probes, "se_steps": se_steps}
    return Estimate(value, jnp.sqrt(se_probes**2 + se_steps**2), stats=stats)


def _carry(at: Any, start: Any, log_rho: Any) -> Any:
    """The point, and the change of its log density, carried along the flow by Runge and Kutta's method."""
    dtype = log_rho.dtype
    stages = jnp.array([0, 0.5, 0.5, 1], dtype), jnp.array([1 / 6, 1 / 3, 1 / 3, 1 / 6], dtype)

    def field(state: Any, log_r: Any) -> Any:
        said, trace, _ = at(state[0], log_r)
        return state[0] - said, state[0].size - trace

    def step(state: Any, ends: Any) -> Any:
        here, h = ends[0], ends[1] - ends[0]

        def stage(carry: Any, part: Any) -> Any:
            (slope, total), (share, weight) = carry, part
            at_stage = jax.tree_util.tree_map(lambda s, k: s + share * h * k, state, slope)
            slope = field(at_stage, here + share * h)
            return (slope, jax.tree_util.tree_map(lambda t, k: t + weight * h * k, total, slope)), None

        nothing = jax.tree_util.tree_map(jnp.zeros_like, state)
        (_, total), _ = jax.lax.scan(stage, (nothing, state), stages)
        return total, None

    end, _ = jax.lax.scan(step, start, (log_rho[:-1], log_rho[1:]))
    return end


def _gaussian(y: Any, rho: Any, said: Any, trace: Any, derivative: Any) -> Any:
    """Log density of the Gaussian at a large level that the denoiser and its derivative J show.

    Its covariance is ``C = rho^2 (I - J)^-1`` and its score ``r / rho^2``, r = D - y, so that
    ``(y - m) C^-1 (y - m) = r (I - J)^-1 r / rho^2``; J is small: its third power is left out there, and
    the determinant is that of the mean of its eigenvalues.
    """
    r = said - y
    along = derivative(r)
    squares = (jnp.sum(r**2) + jnp.sum(r * along) + jnp.sum(along**2)) / rho**2
    rest = 1 - jnp.clip(trace / y.size, 0.0, 0.99)
    return -0.5 * squares + 0.5 * y.size * (jnp.log(rest) - jnp.log(2 * math.pi * rho**2))
