"""Draws from a diffusion model: points of the first level's law, carried to the last level."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from mcx.errors import MethodError
from mcx.inference.diffusion.integrators.base import Integrator
from mcx.inference.diffusion.integrators.integrate import cast, checked_integrator, finite
from mcx.inference.diffusion.models.arguments import DENOISER, EVENT_SHAPE, Point, Points, noise_levels
from mcx.inference.diffusion.models.large_noise import moments_by_pairs
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.inference.diffusion.models.teleport import Teleport
from mcx.ops.arrays import array_argument
from mcx.ops.keys import as_key
from mcx.ops.validation import integer, one_of, optional, validated
from mcx.types import Key, KeyLike, PyTree, Scalar


def sample(
    model: Denoiser,
    num: int,
    event_shape: tuple[int, ...],
    levels: ArrayLike,
    *,
    key: KeyLike,
    method: Integrator | None = None,
    init: str | Teleport | ArrayLike = "moments",
    batch_size: int | None = None,
) -> Points:
    """Draw from a diffusion model.

    Args:
        model: a denoiser: :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Score`.
        num: number of draws.
        event_shape: shape of a draw.
        levels: noise levels rho, (K + 1,), strictly falling to a positive number or to 0; see
            :func:`~mcx.diffusion.levels`.
        key: a typed JAX key or an int.
        method: an integrator; by default ``DPMSolver(order=2)``.
        init: the law at the first level. "moments": a Gaussian with the mean that the model shows there and
            with its mean variance, found by 16 calls of the model in all. "noise": ``N(0, rho^2)``, which
            neglects the data's mean. A :class:`~mcx.diffusion.Teleport`: its Gaussian, the right choice for a
            first level that is not much larger than the data. Or the initial points themselves,
            (num, *event_shape).
        batch_size: number of draws that are computed at once, to save memory; by default all.

    Returns:
        Independent draws at the last level, (num, *event_shape). Up to rounding draw i depends on the key and
        on i, but not on ``num`` or ``batch_size``. Costs ``num * method.nfe(levels)`` calls of the model, in
        one program for all levels of one length.

    Raises:
        MethodError: if an argument makes no sense.
        KeyTypeError: if the key is missing or is none.
        NonFiniteError: if draws are not finite (where arrays are concrete).
    """
    model = validated("sample", "model", model, DENOISER)
    num = validated("sample", "num", num, integer(1))
    shape = validated("sample", "event_shape", event_shape, EVENT_SHAPE)
    rho = noise_levels("sample", "levels", levels, zero=True)
    method = checked_integrator("sample", "method", method)
    batch_size = validated("sample", "batch_size", batch_size, optional(integer(1), "for all at once"))
    law: Teleport | Point | None = None
    if isinstance(init, str):
        rule = one_of("moments", "noise")._replace(expected="'moments', 'noise', a Teleport, or points")
        how = validated("sample", "init", init, rule)
    elif isinstance(init, Teleport):
        how, law = "law", init
    else:
        how, law = "points", jnp.asarray(array_argument("sample", "init", init), float)
        if law.shape != (num, *shape):
            raise MethodError(
                "sample(init=...) does not hold the initial points",
                expected=f"shape {(num, *shape)}",
                found=f"shape {law.shape}",
            )
    dtype = jnp.zeros((), float).dtype
    prepared = cast(method.prepare(rho), dtype)
    first = jnp.asarray(rho[0], dtype)
    sizes = {"num": num, "shape": shape, "batch_size": batch_size}
    found = _sample(as_key(key), model, law, first, prepared, method=method, how=how, **sizes)
    return finite(found, "sample(...)")


@partial(jax.jit, static_argnames=("method", "how", "num", "shape", "batch_size"))
def _sample(
    key: Key,
    model: Denoiser,
    law: Teleport | Point | None,
    rho: Scalar,
    prepared: PyTree,
    *,
    method: Integrator,
    how: str,
    num: int,
    shape: tuple[int, ...],
    batch_size: int | None,
) -> Points:
    key_init, key_run, key_moments = jax.random.split(key, 3)
    mean, variance = jnp.zeros(shape), jnp.zeros(())
    if how == "moments":
        mean, variance = moments_by_pairs(key_moments, model, rho, mean)

    def one(i: Scalar) -> Point:
        z = jax.random.normal(jax.random.fold_in(key_init, i), shape)
        if isinstance(law, Teleport):
            y = law.at(z, rho)
        elif law is not None:
            y = law[i]
        else:
            y = mean + jnp.sqrt(variance + rho**2) * z
        return method.run(jax.random.fold_in(key_run, i), model, y, prepared, None, False)

    indices = jnp.arange(num)
    if batch_size is None or batch_size >= num:
        return jax.vmap(one)(indices)
    return jax.lax.map(one, indices, batch_size=batch_size)
