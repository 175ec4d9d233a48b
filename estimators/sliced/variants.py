"""Variants: the largest distance over directions, and averages that favour large ones."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.estimators.sliced.directions import draw_directions
from mcx.estimators.sliced.fit import fit_controls
from mcx.estimators.sliced.inputs import Samples
from mcx.estimators.sliced.posterior_draws import as_samples
from mcx.estimators.sliced.sliced import POWER, SlicedSettings, centred, sliced_powers, to_estimate
from mcx.ops.keys import as_key
from mcx.ops.logspace import effective_sample_size
from mcx.ops.validation import integer, one_of, refuse, validated
from mcx.results.estimate import Estimate
from mcx.results.posterior import Posterior
from mcx.types import Array, Float, Key, KeyLike, Scalar

type _Ascent = tuple[Array, Array, Array, Array]


class MaxSliced(NamedTuple):
    """The direction in which two samples differ most, of those that were found.

    value: Wasserstein distance W_p of the projections on it: a lower bound of the largest one.
    direction: (d,) unit vector.
    """

    value: Scalar
    direction: Float[Array, " d"]


def max_sliced_wasserstein(
    x: Posterior | ArrayLike,
    y: Posterior | ArrayLike,
    *,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    p: float = 2,
    num_starts: int = 8,
    num_updates: int = 50,
    key: KeyLike,
) -> MaxSliced:
    """The largest Wasserstein distance of one-dimensional projections.

    Ascents on the sphere start from the best of many random directions and from the difference of the means.
    An update that does not ascend is undone, and the step size halved, so that values never fall. The
    function has local maxima: the result is a lower bound.

    Args:
        x: (n, d) points, or a posterior; as for :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        y: (m, d), likewise.
        x_weights: (n,), or None for equal weights.
        y_weights: (m,), likewise.
        p: power of the cost; static.
        num_starts: number of ascents; static. Their starts are chosen from 16 times as many directions.
        num_updates: of each ascent; static.
        key: a typed JAX key or an int.

    Returns:
        Value and direction. O(num_starts num_updates (n log n + n d)). The value is differentiable in points
        and weights, with the direction held fixed, which is right at a maximum.

    Raises:
        DataError: as :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        MethodError: if settings are out of range.

    Source: Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs.
    """
    samples = as_samples(x, y, x_weights, y_weights)
    validate = functools.partial(validated, "max_sliced_wasserstein")
    num_starts = validate("num_starts", num_starts, integer(1))
    num_updates = validate("num_updates", num_updates, integer(1))
    return _ascend(as_key(key), samples, (float(validate("p", p, POWER)), num_starts, num_updates))


@functools.partial(jax.jit, static_argnums=2)
def _ascend(key: Key, samples: Samples, settings: tuple[float, int, int]) -> MaxSliced:
    x, y, x_weights, y_weights = samples
    p, num_starts, num_updates = settings
    x, y = centred(x, y)
    held = jax.lax.stop_gradient((x, y, x_weights, y_weights))

    def powers(theta: Array, samples: Samples) -> Array:
        return sliced_powers(theta, *samples, p)

    d = x.shape[1]
    tried = draw_directions(key, "iid", 16 * num_starts, d, x.dtype).theta
    gap = jnp.mean(held[0], 0) - jnp.mean(held[1], 0)
    theta = jnp.concatenate([_unit(gap)[None], tried[jnp.argsort(-powers(tried, held))[: num_starts - 1]]])

    def update(state: _Ascent, _: None) -> tuple[_Ascent, None]:
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

    def value_and_slope(theta: Array) -> tuple[Array, Array]:
        values, back = jax.vjp(lambda t: powers(t, held), theta)
        (slope,) = back(jnp.ones_like(values))
        return values, slope - jnp.sum(slope * theta, -1, keepdims=True) * theta

    start = (theta, *value_and_slope(theta), jnp.full(num_starts, 0.5, x.dtype))
    (theta, value, _, _), _ = jax.lax.scan(update, start, None, length=num_updates)
    best = theta[jnp.argmax(value)]
    power = powers(best[None], (x, y, x_weights, y_weights))[0]
    positive = power > 0
    root = jnp.where(positive, jnp.where(positive, power, 1.0) ** (1 / p), 0.0)
    return MaxSliced(root, best)


def _unit(v: Array) -> Array:
    size = jnp.linalg.norm(v, axis=-1, keepdims=True)
    return jnp.where(size > 0, v / jnp.where(size > 0, size, 1.0), jnp.eye(v.shape[-1], dtype=v.dtype)[0])


def energy_sliced_wasserstein(
    x: Posterior | ArrayLike,
    y: Posterior | ArrayLike,
    *,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    p: float = 2,
    energy: str = "exp",
    num_projections: int = 256,
    directions: str = "auto",
    num_replicates: int | None = None,
    batch_size: int | None = None,
    key: KeyLike,
) -> Estimate:
    """Sliced Wasserstein distance with directions weighted by how much the samples differ there.

    The p-th power is E[f(W) W] / E[f(W)] over uniform directions, with W = W_p^p of the projections.

    Args:
        x: (n, d) points, d at least 2, or a posterior; this and the other arguments are as for
            :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        y: (m, d), likewise.
        x_weights: (n,), or None for equal weights.
        y_weights: (m,), likewise.
        p: power of the cost; static.
        energy: f: "exp", or "identity".
        num_projections: about how many directions; static.
        directions: their kind.
        num_replicates: of point sets.
        batch_size: directions at once.
        key: a typed JAX key or an int.

    Returns:
        The estimate, with a bias of order 1 / L as ratios have, and its standard error by the delta method;
        ``stats`` as :func:`~mcx.estimators.sliced.sliced_wasserstein`, and ``ess`` of the directions.

    Raises:
        DataError: as :func:`~mcx.estimators.sliced.sliced_wasserstein`.
        MethodError: if settings are out of range, or in one dimension.

    Source: Nguyen and Ho (2023), Energy-based sliced Wasserstein distance.
    """
    samples = as_samples(x, y, x_weights, y_weights)
    owner = "energy_sliced_wasserstein"
    energy = validated(owner, "energy", energy, one_of("exp", "identity"))
    if (d := samples[0].shape[1]) < 2:
        refuse(owner, "x", d, "points of dimension 2 or more", "use sliced_wasserstein, which is exact there")
    asked = SlicedSettings(p, num_projections, directions, None, None, num_replicates, batch_size)
    settings = asked.checked(owner, d)
    return _weighted(as_key(key), samples, settings, energy)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _weighted(key: Key, samples: Samples, settings: SlicedSettings, energy: str) -> Estimate:
    p = settings.p
    x, y = centred(*samples[:2])
    chosen = settings.draw(key, x)
    values = sliced_powers(chosen.theta, x, y, *samples[2:], p, settings.batch_size)
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
