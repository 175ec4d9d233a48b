"""The likelihood of one site's value under a model's observations, in general and if linear Gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from mcx.inference.diffusion.models.arguments import Point
from mcx.model import capture
from mcx.model.density import sample_sites, site_log_prob, total
from mcx.target import TargetFunctions
from mcx.types import Array, Bool, Float, PyTree, Scalar, SiteValues, Vector

_LARGEST = 2**24  # entries of the matrix of a linear observation
_TOLERANCE = 1e-3
_MULTIPLES = (0.3, 1.0, 3.0, 10.0)


def log_likelihood(
    functions: TargetFunctions, name: str, data: PyTree, x: Point, others: SiteValues | None = None
) -> Scalar:
    """Log density of everything else in the model given the value of one site and of other sites."""
    sites = capture.record(functions.run(data), values={name: x, **(others or {})}).sites
    rest = (site for site in sample_sites(sites) if site["name"] != name)
    return total([jnp.sum(site_log_prob(site)) for site in rest])


class LinearObservation(NamedTuple):
    """A linear Gaussian observation along its singular directions: ``z_i ~ N(scale_i (directions x)_i, 1)``.

    scale: singular values (r,) of the matrix, in units of the noise.
    directions: (r, d), orthonormal.
    value: z, (r,).
    constant: the log likelihood minus the log density of z, up to ``-r log(2 pi) / 2``.
    """

    scale: Float[Array, " r"]
    directions: Float[Array, "r d"]
    value: Float[Array, " r"]
    constant: Scalar


class _White(NamedTuple):
    """Observations (n,) scaled to unit variance: divided by standard deviations, or Cholesky factors."""

    mean: Float[Array, " n"]
    value: Float[Array, " n"]
    divisor: Float[Array, "..."]
    log_det: Scalar


def _white(functions: TargetFunctions, name: str, data: PyTree, x: Point) -> _White | None:
    """All observations at a value of the site, scaled to unit noise; None unless all are Gaussian."""
    sites = capture.record(functions.run(data), values={name: x}).sites
    parts = []
    for site in sample_sites(sites):
        if site["name"] == name:
            continue
        part = None if capture.is_factor(site) else _white_site(site)
        if part is None:
            return None
        parts.append(part)
    if not parts:
        return None
    mean, value, divisor = (jnp.concatenate([jnp.ravel(p[i]) for p in parts]) for i in range(3))
    return _White(mean, value, divisor, total([p.log_det for p in parts]))


def _white_site(site: Mapping[str, Any]) -> _White | None:
    fn, value = site["fn"], jnp.asarray(site["value"])
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    weight = site["scale"]
    plain = weight is None or (isinstance(weight, int | float) and weight == 1)
    if not plain or not site["is_observed"]:
        return None
    shape = jnp.broadcast_shapes(tuple(site["fn"].shape()), value.shape)
    value = jnp.broadcast_to(value, shape)
    if isinstance(fn, dist.Normal):
        mean, scale = jnp.broadcast_to(fn.loc, shape), jnp.broadcast_to(fn.scale, shape)
        return _White(mean / scale, value / scale, scale, jnp.sum(jnp.log(scale)))
    if isinstance(fn, dist.MultivariateNormal):
        factor = jnp.broadcast_to(fn.scale_tril, (*shape, shape[-1]))

        def solve(v: Float[Array, "..."]) -> Float[Array, "..."]:
            return jax.lax.linalg.triangular_solve(factor, v[..., None], left_side=True, lower=True)[..., 0]

        diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
        mean = jnp.broadcast_to(fn.loc, shape)
        return _White(solve(mean), solve(value), factor, jnp.sum(jnp.log(diagonal)))
    return None


@partial(jax.jit, static_argnames=("functions", "name"))
def looks_linear(
    functions: TargetFunctions, name: str, data: PyTree, centre: Point, spread: Scalar
) -> Bool[Array, ""]:
    """Whether the observations are Gaussian, with means affine in the site's value and constant variances.

    Points up to ten times ``spread`` away from ``centre`` are tried.
    """
    probe = jax.eval_shape(lambda x: _white(functions, name, data, x), centre)
    if probe is None or probe.mean.size * centre.size > _LARGEST:
        return jnp.asarray(False)

    def mean_and_divisor(x: Point) -> tuple[Float[Array, " n"], Float[Array, "..."]]:
        found = _white(functions, name, data, x)
        assert found is not None
        return found.mean, found.divisor

    base, push = jax.linearize(lambda x: mean_and_divisor(x)[0], centre)
    divisor = mean_and_divisor(centre)[1]
    size = jnp.max(jnp.abs(base))
    fine = jnp.all(jnp.isfinite(base))
    for number, multiple in enumerate(_MULTIPLES):
        noise = jax.random.normal(jax.random.key(number), jnp.shape(centre), base.dtype)
        mean, found = mean_and_divisor(centre + multiple * spread * noise)
        change = push(multiple * spread * noise)
        slack = _TOLERANCE * jnp.max(jnp.abs(change)) + 1e3 * jnp.finfo(base.dtype).eps * size
        fine &= jnp.all(jnp.abs(mean - base - change) <= slack)
        fine &= jnp.all(jnp.abs(found - divisor) <= _TOLERANCE * jnp.abs(divisor))
    return fine


@partial(jax.jit, static_argnames=("functions", "name"))
def slope_vanishes(
    functions: TargetFunctions, name: str, data: PyTree, centre: Point, spread: Scalar, others: SiteValues
) -> Bool[Array, ""]:
    """Whether the log likelihood changes with the site's value although its gradient is zero throughout."""
    like = partial(log_likelihood, functions, name, data, others=others)
    noise = jax.random.normal(jax.random.key(0), (16, *jnp.shape(centre)))
    points = centre + jnp.linspace(0.3, 3.0, 16).reshape(-1, *(1,) * jnp.ndim(centre)) * spread * noise
    value, slope = jax.vmap(jax.value_and_grad(like))(points)
    fine = jnp.isfinite(value)
    changes = jnp.ptp(jnp.where(fine, value, value[jnp.argmax(fine)])) > 0
    flat = jnp.all((slope.reshape(16, -1) == 0).all(-1) | ~fine)
    return changes & flat


def linearize(functions: TargetFunctions, name: str, data: PyTree, like: Point) -> LinearObservation:
    """The linear observation of a model for which :func:`looks_linear` holds.

    Costs a derivative per coordinate or observation, whichever are fewer, and a singular value decomposition.
    """

    def mean(flat: Vector) -> Float[Array, " n"]:
        found = _white(functions, name, data, flat.reshape(jnp.shape(like)))
        assert found is not None
        return found.mean

    origin = jnp.zeros(jnp.size(like), jnp.result_type(like))
    white = _white(functions, name, data, jnp.zeros_like(like))
    assert white is not None
    wide = white.mean.size < origin.size
    matrix = (jax.jacrev if wide else jax.jacfwd)(mean)(origin)
    left, scale, directions = jnp.linalg.svd(matrix, full_matrices=False)
    residual = white.value - white.mean
    value = left.T @ residual
    outside = jnp.sum((residual - left @ value) ** 2)
    spare = white.mean.size - value.size
    constant = -0.5 * outside - 0.5 * spare * math.log(2 * math.pi) - white.log_det
    return LinearObservation(scale, directions, value, constant)
