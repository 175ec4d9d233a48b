"""Draws from a diffusion model: points of the first level's law, carried to the last."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.inference.diffusion.integrators.base import (
    Integrator,
    as_levels,
    cast,
    default_method,
    finite,
)
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.inference.diffusion.models.teleport import Teleport
from mcx.ops.checks import is_count
from mcx.ops.keys import as_key

__all__ = ["sample"]

_PROBES = 8


def sample(
    key: Any,
    model: Denoiser,
    num: int,
    event_shape: tuple[int, ...],
    levels: Any,
    *,
    method: Integrator | None = None,
    start: Any = "moments",
    batch_size: int | None = None,
) -> Any:
    """Draw from a diffusion model.

    Args:
        key: a random key.
        model: a denoiser: :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Score`.
        num: number of draws.
        event_shape: shape of a draw.
        levels: noise levels rho, (K + 1,), strictly falling to a positive number or to 0: see
            :func:`~mcx.diffusion.levels`.
        method: an integrator; by default ``DPMSolver(order=2)``.
        start: the law at the first level. "moments": a Gaussian with the mean that the model shows there and
            with its mean variance, by 16 calls of the model in all. "noise": ``N(0, rho^2)``, which is off by
            the data's mean. A :class:`~mcx.diffusion.Teleport`: its Gaussian, the right thing for a first
            level not much larger than the data. Or points, (num, *event_shape).
        batch_size: draws at once, where memory is short.

    Returns:
        Draws at the last level, (num, *event_shape), independent; draw i depends on the key and on i, not on
        ``num`` or ``batch_size``, up to rounding. Costs
        ``num * method.nfe(levels)`` calls of the model, in one program for all levels of one length.

    Raises:
        MethodError: if levels, start or sizes make no sense.
        NonFiniteError: if draws are not finite (where arrays are concrete).
    """
    method = default_method(method)
    rho = as_levels(levels)
    shape = tuple(event_shape)
    for name, value, fine, expected in (
        ("num", num, is_count(num), "an int >= 1"),
        ("batch_size", batch_size, batch_size is None or is_count(batch_size), "None, or an int >= 1"),
        ("event_shape", event_shape, all(is_count(n) for n in shape), "ints >= 1"),
    ):
        if not fine:
            raise MethodError(f"sample({name}=...) is out of range", expected=expected, found=repr(value))
    how = start if isinstance(start, str) else "law" if isinstance(start, Teleport) else "points"
    if how not in ("moments", "noise", "law", "points"):
        raise MethodError(
            "sample(start=...) is unknown", expected="'moments', 'noise', a Teleport, or points", found=start
        )
    law = None if isinstance(start, str) else start
    if how == "points":
        law = jnp.asarray(start, float)
        if law.shape != (num, *shape):
            raise MethodError(
                "sample(start=...) are not the points to start from",
                expected=f"shape {(num, *shape)}",
                found=f"shape {law.shape}",
            )
    dtype = jnp.zeros((), float).dtype
    prepared = cast(method.prepare(rho), dtype)
    first = jnp.asarray(rho[0], dtype)
    sizes = {"num": int(num), "shape": shape, "batch_size": batch_size}
    found = _sample(as_key(key), model, law, first, prepared, method=method, how=how, **sizes)
    return finite(found, "sample(...)")


@partial(jax.jit, static_argnames=("method", "how", "num", "shape", "batch_size"))
def _sample(
    key: Any,
    model: Denoiser,
    law: Any,
    rho: Any,
    prepared: Any,
    *,
    method: Integrator,
    how: str,
    num: int,
    shape: tuple[int, ...],
    batch_size: int | None,
) -> Any:
    key_start, key_run, key_moments = jax.random.split(key, 3)
    mean, variance = jnp.zeros(shape), jnp.zeros(())
    if how == "moments":
        mean, variance = _moments(key_moments, model, rho, mean)

    def one(i: Any) -> Any:
        z = jax.random.normal(jax.random.fold_in(key_start, i), shape)
        if how == "points":
            y = law[i]
        elif how == "law":
            y = law.at(z, rho)
        else:
            y = mean + jnp.sqrt(variance + rho**2) * z
        return method.run(jax.random.fold_in(key_run, i), model, y, prepared, None, False)

    indices = jnp.arange(num)
    if batch_size is None or batch_size >= num:
        return jax.vmap(one)(indices)
    return jax.lax.map(one, indices, batch_size=batch_size)


def _moments(key: Any, model: Denoiser, rho: Any, like: Any) -> tuple[Any, Any]:
    """Mean, and mean variance of the coordinates, that a model shows at large noise.

    There the denoiser is ``m + V (V + rho^2)^-1 (y - m)``: pairs of points ``+-rho z``, which are where the
    model was trained, give the mean by their sum and the variance by their difference.
    """
    z = jax.random.rademacher(key, (_PROBES, *like.shape), like.dtype)
    ahead, behind = (jax.vmap(lambda z, sign=sign: model.denoise(sign * rho * z, rho))(z) for sign in (1, -1))
    share = jnp.clip(jnp.mean(z * (ahead - behind)) / (2 * rho), 0.0, 0.99)
    mean = jnp.mean(0.5 * (ahead + behind), 0) / (1 - share)
    return mean, rho**2 * share / (1 - share)
