"""Exact answers for small models: quadrature and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.errors import CapabilityError, McxError
from mcx.model.bound import BoundModel
from mcx.model.capture import record
from mcx.model.compile import compile_model


class Moments(NamedTuple):
    """Posterior moments by site, and the log evidence.

    mean, sd: by latent and deterministic site, constrained space.
    log_evidence: log of the integral of the joint density.
    """

    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    log_evidence: float


class QuadratureError(McxError, ArithmeticError):
    """The quadrature rule did not converge."""


def quadrature(bound: BoundModel, *, num_points: int = 257, tolerance: float = 1e-4) -> Moments:
    """Posterior moments and evidence of a model with at most three unconstrained coordinates.

    The trapezoid rule on a sinh-stretched grid around the mode: exponentially convergent for smooth
    densities, heavy tails included (Trefethen and Weideman 2014, SIAM Review 56(3)). Costs
    ``num_points ** d`` densities.

    Args:
        bound: the model with its data.
        num_points: points an axis.
        tolerance: the rule on every other point must agree to this, relative to the sd.

    Raises:
        CapabilityError: beyond three coordinates.
        QuadratureError: without convergence; take more points.
    """
    target = compile_model(bound)
    dim = target.dim
    if not 1 <= dim <= 3:
        raise CapabilityError(
            "quadrature takes one to three unconstrained coordinates", found=str(dim), expected="1, 2 or 3"
        )
    log_density = jax.jit(jax.vmap(lambda x: target.log_density(target.unravel(x))))
    mode, scale = _locate(log_density, dim)
    u = np.linspace(-1, 1, num_points)
    reach = _reach(log_density, mode, scale)
    axes = [mode[i] + scale[i] * np.sinh(u * reach[i]) for i in range(dim)]
    log_step = [np.log(scale[i] * reach[i] * np.cosh(u * reach[i]) * (u[1] - u[0])) for i in range(dim)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    log_w = np.sum(np.meshgrid(*log_step, indexing="ij"), axis=0).reshape(-1)
    constrain = jax.jit(jax.vmap(lambda x: target.constrain(target.unravel(x))))
    log_p, sites = [], []
    for part in np.array_split(grid, max(1, len(grid) // 65536)):
        log_p.append(np.asarray(log_density(jnp.asarray(part)), np.float64))
        sites.append({k: np.asarray(v, np.float64) for k, v in constrain(jnp.asarray(part)).items()})
    total = np.nan_to_num(np.concatenate(log_p), nan=-np.inf) + log_w
    values = {k: np.concatenate([s[k] for s in sites]) for k in sites[0]}
    full = _moments(total, values)
    coarse = np.zeros((num_points,) * dim, bool)
    coarse[(slice(None, None, 2),) * dim] = True
    half = _moments(
        total[coarse.reshape(-1)] + dim * math.log(2), {k: v[coarse.reshape(-1)] for k, v in values.items()}
    )
    gap = max(
        [abs(full.log_evidence - half.log_evidence)]
        + [float(np.max(np.abs(full.mean[k] - half.mean[k]) / (full.sd[k] + 1e-300))) for k in values]
    )
    if not gap < tolerance:
        raise QuadratureError(
            "the grid is too coarse",
            expected=f"agreement to {tolerance:g}",
            found=f"{gap:.2g}",
            remedy="raise num_points, or check that the posterior is proper",
        )
    return full


def _locate(log_density: Callable[[Array], Array], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale of the mass by repeated moment matching on coarse grids."""
    centre, scale = np.zeros(dim), np.full(dim, 3.0)
    u = np.linspace(-4, 4, 41 if dim < 3 else 17)
    for _ in range(12):
        axes = [centre[i] + scale[i] * np.sinh(u) for i in range(dim)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
        log_jac = np.sum(np.meshgrid(*[np.log(np.cosh(u))] * dim, indexing="ij"), axis=0).reshape(-1)
        log_w = np.nan_to_num(np.asarray(log_density(jnp.asarray(grid)), np.float64), nan=-np.inf) + log_jac
        w = np.exp(log_w - log_w.max())
        w /= w.sum()
        new = w @ grid
        spread = np.sqrt(np.maximum(w @ (grid - new) ** 2, 1e-12))
        # never narrower than the grid can see, so that a spike between points is zoomed in on stepwise
        centre, scale = new, np.maximum(spread, scale / 8)
    return centre, scale


def _reach(log_density: Callable[[Array], Array], centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Half-width of each stretched axis: beyond it the density has fallen by e^-35, with room.

    The largest density over a coarse grid of the other axes counts: a normal-gamma is narrow where its
    precision is large, and heavy-tailed where it is small.
    """
    dim = len(centre)
    u, coarse = np.linspace(-12, 12, 481), np.linspace(-4, 4, 13)
    reach = np.empty(dim)
    for i in range(dim):
        axes = [centre[j] + scale[j] * np.sinh(u if j == i else coarse) for j in range(dim)]
        stretch = [np.log(np.cosh(u if j == i else coarse)) for j in range(dim)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
        jacobian = np.sum(np.meshgrid(*stretch, indexing="ij"), axis=0)
        values = np.asarray(log_density(jnp.asarray(points)), np.float64).reshape(jacobian.shape) + jacobian
        profile = np.moveaxis(np.nan_to_num(values, nan=-np.inf), i, 0).reshape(len(u), -1).max(1)
        inside = np.abs(u[profile > profile.max() - 35])
        reach[i] = min(12.0, float(inside.max()) + 0.7)
    return reach


def _moments(log_w: np.ndarray, values: dict[str, np.ndarray]) -> Moments:
    top = log_w.max()
    w = np.exp(log_w - top)
    total = w.sum()
    w = w / total
    mean, sd = {}, {}
    for name, v in values.items():
        finite = np.where(w.reshape(-1, *[1] * (v.ndim - 1)) > 0, v, 0.0)
        mean[name] = np.tensordot(w, finite, 1)
        sd[name] = np.sqrt(np.maximum(np.tensordot(w, (finite - mean[name]) ** 2, 1), 0))
    return Moments(mean, sd, float(top + math.log(total)))


def enumerate_discrete(bound: BoundModel, *, max_states: int = 100_000) -> Moments:
    """Posterior moments and evidence of a model whose latent sites are all discrete and finite.

    Args:
        bound: the model with its data.
        max_states: refuse beyond this many joint states.

    Raises:
        CapabilityError: if a latent site is continuous or its support is not finite, or on too many states.
    """
    sites = compile_model(bound).sites
    for site in sites.of_kind("latent"):
        raise CapabilityError(
            "enumeration takes discrete latent sites only", site=site.name, found=site.support
        )
    recorder = record(bound.run, key=jax.random.key(0))
    axes, layout = [], []
    for site in sites.of_kind("discrete"):
        fn = recorder.sites[site.name]["fn"]
        if not fn.has_enumerate_support or fn.event_shape:
            raise CapabilityError("the support cannot be listed", site=site.name, found=site.support)
        states = np.asarray(fn.enumerate_support(expand=False)).reshape(-1)
        size = math.prod(site.shape)
        axes += [states] * size
        layout.append((site, size))
    count = math.prod(len(a) for a in axes)
    if count > max_states:
        raise CapabilityError("too many joint states", found=str(count), expected=f"at most {max_states}")
    table = np.asarray(list(itertools.product(*axes))).reshape(count, len(axes))
    values, start = {}, 0
    for site, size in layout:
        values[site.name] = table[:, start : start + size].reshape(count, *site.shape)
        start += size
    log_joint = jax.jit(jax.vmap(bound.log_density))({k: jnp.asarray(v) for k, v in values.items()})
    return _moments(np.asarray(log_joint, np.float64), {k: v.astype(np.float64) for k, v in values.items()})
