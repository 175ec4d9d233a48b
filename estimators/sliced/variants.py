"""Other averages over directions: the largest one, and weights that favour large ones."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.estimators.sliced.directions import direction_kind, draw_directions
from mcx.estimators.sliced.fit import fit_controls
from mcx.estimators.sliced.inputs import as_clouds, check_power
from mcx.estimators.sliced.sliced import centred, sliced_powers, to_estimate
from mcx.ops.keys import as_key
from mcx.ops.logspace import effective_sample_size
from mcx.results.estimate import Estimate

__all__ = ["MaxSliced", "energy_sliced_wasserstein", "max_sliced_wasserstein"]


class MaxSliced(NamedTuple):
    """The direction in which two samples differ most, as far as it was found.

    value: Wasserstein distance W_p of the projections on it: a lower bound of the largest one.
    direction: (d,) unit vector.
    """

    value: Any
    direction: Any


def max_sliced_wasserstein(
    x: Any,
    y: Any,
    *,
    x_weights: Any = None,
    y_weights: Any = None,
    p: float = 2,
    num_starts: int = 8,
    num_steps: int = 50,
    key: Any,
) -> MaxSliced:
    """The largest Wasserstein distance of one-dimensional projections.

    Ascent on the sphere from the best of many random directions and from the difference of the means. A step
    that does not ascend is taken back and halved; so values never fall. The function has local maxima, and
    what is found is a lower bound.

    Args:
        x: (n, d).
        y: (m, d).
        x_weights: (n,), or None.
        y_weights: (m,), or None.
        p: power of the cost; static.
        num_starts: ascents; static. Sixteen times as many random directions are tried for starts.
        num_steps: of each ascent; static.
        key: a typed JAX key or an int.

    Returns:
        Value and direction. O(num_starts num_steps (n log n + n d)). The value is differentiable in points
        and weights, with the direction held fixed, which is right at a maximum.

    Raises:
        DataError: as :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        MethodError: on settings that make no sense.

    Source: Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs.
    """
    x, y, x_weights, y_weights = as_clouds(x, y, x_weights, y_weights)
    for name, value in (("num_starts", num_starts), ("num_steps", num_steps)):
        if value < 1:
            raise MethodError(f"{name} is no count", expected="at least 1", found=repr(value))
    return _ascend(as_key(key), x, y, x_weights, y_weights, (check_power(p), num_starts, num_steps))


@functools.partial(jax.jit, static_argnums=5)
def _ascend(key: Any, x: Any, y: Any, x_weights: Any, y_weights: Any, settings: Any) -> MaxSliced:
    p, num_starts, num_steps = settings
    x, y = centred(x, y)
    held = jax.lax.stop_gradient((x, y, x_weights, y_weights))

    def powers(theta: Any, sample: Any) -> Any:
        x, y, x_weights, y_weights = sample
        return sliced_powers(theta, x, y, x_weights, y_weights, p)

    d = x.shape[1]
    tried = draw_directions(key, "iid", 16 * num_starts, d, x.dtype).theta
    gap = jnp.mean(held[0], 0) - jnp.mean(held[1], 0)
    theta = jnp.concatenate([_unit(gap)[None], tried[jnp.argsort(-powers(tried, held))[: num_starts - 1]]])

    def step(state: Any, _: Any) -> Any:
        theta, value, slope, size = state
        moved = _unit(theta + size[:, None] * _unit(slope))
        new, new_slope = value_and_slope(moved)
        better = new > value
        keep = better[:, None]
        size = jnp.where(better, 1.5 * size, 0.5 * size)
        return (
            jnp.where(keep, moved, theta),
            jnp.where(better, new, value),
            jnp.where(keep, new_slope, slope),
            size,
        ), None

    def value_and_slope(theta: Any) -> Any:
        values, back = jax.vjp(lambda t: powers(t, held), theta)
        (slope,) = back(jnp.ones_like(values))
        return values, slope - jnp.sum(slope * theta, -1, keepdims=True) * theta

    start = (theta, *value_and_slope(theta), jnp.full(num_starts, 0.5, x.dtype))
    (theta, value, _, _), _ = jax.lax.scan(step, start, None, length=num_steps)
    best = theta[jnp.argmax(value)]
    power = powers(best[None], (x, y, x_weights, y_weights))[0]
    positive = power > 0
    root = jnp.where(positive, jnp.where(positive, power, 1.0) ** (1 / p), 0.0)
    return MaxSliced(root, best)


def _unit(v: Any) -> Any:
    size = jnp.linalg.norm(v, axis=-1, keepdims=True)
    return jnp.where(size > 0, v / jnp.where(size > 0, size, 1.0), jnp.eye(v.shape[-1], dtype=v.dtype)[0])


def energy_sliced_wasserstein(
    x: Any,
    y: Any,
    *,
    x_weights: Any = None,
    y_weights: Any = None,
    p: float = 2,
    energy: str = "exp",
    num_projections: int = 256,
    directions: str = "auto",
    num_replicates: int | None = None,
    batch_size: int | None = None,
    key: Any,
) -> Estimate:
    """Sliced Wasserstein distance with directions weighted by how much the samples differ there.

    The p-th power is E[f(W) W] / E[f(W)] over uniform directions, with W = W_p^p of the projections.

    Args:
        x: (n, d), d at least 2.
        y: (m, d).
        x_weights: (n,), or None.
        y_weights: (m,), or None.
        p: power of the cost; static.
        energy: f: "exp", or "identity".
        num_projections: about how many directions; static.
        directions: their kind, as for :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        num_replicates: of point sets.
        batch_size: directions at once.
        key: a typed JAX key or an int.

    Returns:
        The estimate, with a bias of order 1 / L as ratios have, and its standard error by the delta method;
        ``stats`` as :func:`~mcx.estimators.sliced.sliced_wasserstein`, and ``ess`` of the directions.

    Raises:
        DataError: on impossible samples.
        MethodError: on settings that make no sense.

    Source: Nguyen and Ho (2023), Energy-based sliced Wasserstein distance.
    """
    x, y, x_weights, y_weights = as_clouds(x, y, x_weights, y_weights)
    if energy not in ("exp", "identity"):
        raise MethodError("unknown energy", expected="'exp' or 'identity'", found=repr(energy))
    d = x.shape[1]
    if d < 2:
        raise MethodError("one dimension has one direction", expected="d of 2 or more", found="d = 1")
    kind = direction_kind(directions, d)
    replicates = num_replicates or (8 if d == 2 else 4)
    settings = (check_power(p), energy, kind, num_projections, replicates, batch_size)
    return _weighted(as_key(key), x, y, x_weights, y_weights, settings)


@functools.partial(jax.jit, static_argnums=5)
def _weighted(key: Any, x: Any, y: Any, x_weights: Any, y_weights: Any, settings: Any) -> Estimate:
    p, energy, kind, num, replicates, batch_size = settings
    x, y = centred(x, y)
    chosen = draw_directions(key, kind, num, x.shape[1], x.dtype, replicates)
    values = sliced_powers(chosen.theta, x, y, x_weights, y_weights, p, batch_size)
    if energy == "exp":
        share = jax.nn.softmax(values)
    else:
        total = jnp.sum(values)
        share = jnp.where(total > 0, values / jnp.where(total > 0, total, 1.0), 1 / values.shape[0])
    power = jnp.sum(share * values)
    influence = values.shape[0] * share * (values - power)
    fit = fit_controls(jax.lax.stop_gradient(influence), num_groups=chosen.num_groups)
    fit = fit._replace(value=power, se=fit.se * chosen.widen)
    found = to_estimate(fit, p, chosen.theta.shape[0])
    ess = jax.lax.stop_gradient(effective_sample_size(jnp.log(share)))
    return Estimate(found.value, found.se, stats={**found.stats, "ess": ess})
