"""Sliced Wasserstein distances with standard errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.estimators.sliced.directions import Directions, direction_kind, draw_directions
from mcx.estimators.sliced.fit import ControlFit, fit_controls
from mcx.estimators.sliced.gaussian import Moments, bounds, gaussian_cost, gaussian_mean, moments
from mcx.estimators.sliced.harmonics import even_polynomials, largest_degree, num_polynomials
from mcx.estimators.sliced.inputs import Samples
from mcx.estimators.sliced.posterior_draws import as_samples
from mcx.estimators.sliced.wasserstein_1d import Ordered, match, order
from mcx.ops.keys import as_key
from mcx.ops.validation import Rule, integer, number, one_of, optional, refuse, validated
from mcx.results.estimate import Estimate
from mcx.results.posterior import Posterior
from mcx.types import Array, Float, Key, KeyLike, PyTree

CONTROLS = ("auto", "lower", "upper", "bounds", "polynomial", "gaussian", "gaussian+polynomial")

_ENTRIES_A_BATCH = 1 << 22
_MOST_POLYNOMIALS = 256  # more cost more than they save
_MOST_MOMENTS = 1000  # beyond this dimension d x d matrices cost more than they save
_CHEAP = (1 << 15, 1 << 20)  # directions for the mean of the Gaussian cost: fewest, most

POWER: Rule = number(1)
"""What the power of the cost has to be."""


class SlicedSettings(NamedTuple):
    """How to estimate; static. See :func:`sliced_wasserstein`."""

    p: float
    num_projections: int
    directions: str
    controls: str | None
    degree: int | None = None
    num_replicates: int | None = None
    batch_size: int | None = None

    def checked(self, owner: str, d: int) -> SlicedSettings:
        """The settings of a function ``owner``, checked, and those left open chosen for dimension d."""
        validate = functools.partial(validated, owner)
        p = float(validate("p", self.p, POWER))
        num_projections = validate("num_projections", self.num_projections, integer(1))
        num_replicates = validate("num_replicates", self.num_replicates, optional(integer(1)))
        batch_size = validate("batch_size", self.batch_size, optional(integer(1)))
        controls = validate("control_variates", self.controls, optional(one_of(*CONTROLS)))
        degree = validate("degree", self.degree, optional(integer(0), "for the highest possible"))
        if num_replicates is None:  # in the plane the errors of point sets are far from normal
            num_replicates = 8 if d == 2 else 4
        kind = direction_kind(self.directions, d, owner) if d > 1 else "iid"
        # fits without one of few replicates must still have twice as many directions as polynomials
        spared = 1 / num_replicates if kind not in ("iid", "orthogonal") and num_replicates > 1 else 0.0
        most = min(_MOST_POLYNOMIALS, int(num_projections * min(0.4, (1 - spared) / 2)))
        if controls == "auto":
            controls = _auto(kind, d, most)
        if controls is None or "polynomial" not in controls:
            degree = 0
        elif degree is None:
            degree = largest_degree(d, most - 1)
        elif degree % 2 or degree < 2 or num_polynomials(d, degree) > num_projections - 2:
            fits = f"an even degree with at most {num_projections - 2} polynomials in dimension {d}"
            refuse(owner, "degree", degree, fits, "take more directions, or a lower degree")
        return SlicedSettings(p, num_projections, kind, controls, degree, num_replicates, batch_size)

    def draw(self, key: Key, x: Float[Array, "n d"]) -> Directions:
        """Directions for a sample."""
        num, d = self.num_projections, x.shape[1]
        assert self.num_replicates is not None
        return draw_directions(key, self.directions, num, d, x.dtype, self.num_replicates)


def _auto(kind: str, d: int, most: int) -> str | None:
    if d <= 2:
        return None  # equispaced angles integrate trigonometric polynomials as it is
    if d == 3:
        return "polynomial"
    if most < 4 or d > _MOST_MOMENTS:
        return None
    return "gaussian+polynomial"


def sliced_wasserstein(
    x: Posterior | ArrayLike,
    y: Posterior | ArrayLike,
    *,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    p: float = 2,
    num_projections: int = 256,
    directions: str = "auto",
    control_variates: str | None = "auto",
    degree: int | None = None,
    num_replicates: int | None = None,
    batch_size: int | None = None,
    key: KeyLike,
) -> Estimate:
    """Sliced Wasserstein distance between two samples, with its standard error.

    SW_p^p is the mean, over directions uniform on the sphere, of the Wasserstein distance W_p^p between the
    samples' projections.

    Args:
        x: (n, d) points, or (n,) for d = 1; or a :class:`mcx.Posterior`, whose latent sites become columns
            and are whitened together with those of ``y``.
        y: (m, d), likewise.
        x_weights: (n,), non-negative, of any scale; None for equal weights, or a posterior's own.
        y_weights: (m,), likewise.
        p: power of the cost, at least 1; static.
        num_projections: about how many directions; static.
        directions: "auto", "iid", "orthogonal", "sobol", "fibonacci", "spiral" or "equispaced"; see
            :func:`~mcx.estimators.sliced.directions.draw_directions`.
        control_variates: None; "lower", "upper" or "bounds": those of the Gaussian cost, with known means;
            "polynomial": even polynomials, that is spherical harmonics; "gaussian": the Gaussian cost itself,
            whose mean comes from many more directions, cheap ones; "gaussian+polynomial"; or "auto".
        degree: of the polynomials, even; as high as the number of directions allows by default.
        num_replicates: independent replicates of a point set, from whose spread the standard error comes; 4
            by default, in the plane 8.
        batch_size: directions at once; chosen by memory by default.
        key: a typed JAX key or an int.

    Returns:
        The estimate of SW_p. ``stats`` has ``power`` and ``power_se`` (of SW_p^p, for which the estimate is
        unbiased but for the fit of the control variates), ``num_directions``, ``num_controls``,
        ``r_squared`` of the controls, and ``clipped``: whether the power came out negative and was set to 0.
        In one dimension the result is exact. The function may be called under ``jit`` and ``vmap`` over keys,
        and ``value`` is differentiable in points and weights.

    Raises:
        DataError: if samples are empty, not finite or of different dimension, or weights are negative.
        MethodError: if settings are out of range, or directions do not exist in that dimension.
        PosteriorShapeError: if posteriors have different sites.

    Costs O(L (n log n + n d)) in time, O((n + m) (batch_size + d)) in memory, twice that in time with a
    gradient. Errors say how far the estimate is from the distance between these two samples, not between the
    laws they come from: see :func:`mcx.estimators.sliced.two_sample_test` for that.

    Source: Bonneel, Rabin, Peyré and Pfister (2015), Sliced and Radon Wasserstein barycenters of measures;
    for the controls see :mod:`~mcx.estimators.sliced.harmonics` and :mod:`~mcx.estimators.sliced.gaussian`.
    """
    samples = as_samples(x, y, x_weights, y_weights)
    asked = SlicedSettings(
        p, num_projections, directions, control_variates, degree, num_replicates, batch_size
    )
    settings = asked.checked("sliced_wasserstein", samples[0].shape[1])
    return _estimate(as_key(key), samples, settings)


@functools.partial(jax.jit, static_argnums=2)
def _estimate(key: Key, samples: Samples, settings: SlicedSettings) -> Estimate:
    x, y, x_weights, y_weights = samples
    if x.shape[1] == 1:
        power = match(order(x[:, 0], x_weights), order(y[:, 0], y_weights), settings.p)
        zero = jnp.zeros_like(power)
        exact = ControlFit(power, zero, zero[None], zero[None], zero, jnp.zeros((), jnp.int32))
        return to_estimate(exact, settings.p, 1)
    x, y = centred(x, y)
    key_directions, key_controls = jax.random.split(key)
    chosen = settings.draw(key_directions, x)
    values = sliced_powers(chosen.theta, x, y, x_weights, y_weights, settings.p, settings.batch_size)
    sides = None
    if settings.controls is not None and settings.controls != "polynomial":
        sides = (moments(x, x_weights), moments(y, y_weights))
    fit = fit_with_controls(key_controls, values, chosen, sides, settings, x.shape[0] + y.shape[0])
    return to_estimate(fit, settings.p, chosen.theta.shape[0])


def centred(
    x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Move both samples by the same vector, towards the origin: projections then keep their digits."""
    middle = jax.lax.stop_gradient((jnp.mean(x, 0) + jnp.mean(y, 0)) / 2)
    return x - middle, y - middle


def sliced_powers(
    theta: Float[Array, "L d"],
    x: Float[Array, "n d"],
    y: Float[Array, "m d"] | Ordered,
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
    p: float = 2.0,
    batch_size: int | None = None,
) -> Float[Array, " L"]:
    """W_p^p between projections, for each of many directions, ``batch_size`` of them in memory at once.

    ``y`` is a sample, or its sorted projections, from :func:`order`. A gradient computes projections again.
    """
    fixed, free = (y, None) if isinstance(y, Ordered) else (None, y)
    points = x.shape[0] + (y.values.shape[-1] if isinstance(y, Ordered) else y.shape[0])

    @jax.checkpoint
    def batch(part: tuple[Array, Ordered | None], x: Array, y: Array | None, *weights: Array | None) -> Array:
        x_weights, y_weights = weights
        theta, sorted_y = part
        if y is not None:
            sorted_y = order(_project(theta, y), y_weights)
        assert sorted_y is not None
        return match(order(_project(theta, x), x_weights), sorted_y, p)

    return in_batches(
        lambda part: batch(part, x, free, x_weights, y_weights),
        (theta, fixed),
        theta.shape[0],
        batch_size or max(1, _ENTRIES_A_BATCH // points),
    )


def in_batches[T](
    fn: Callable[[T], Float[Array, " part"]], args: T, num: int, batch_size: int
) -> Float[Array, " num"]:
    """Apply a function of arrays with a leading axis to a part at a time; the last part is filled up."""
    parts = -(-num // batch_size)
    if parts == 1:
        return fn(args)
    size = -(-num // parts)

    def split(a: Array) -> Array:
        if parts * size != num:
            a = a[jnp.minimum(jnp.arange(parts * size), num - 1)]
        return a.reshape(parts, size, *a.shape[1:])

    split_args: PyTree = jax.tree_util.tree_map(split, args)
    return jax.lax.map(fn, split_args).reshape(-1)[:num]


def _project(theta: Array, x: Array) -> Array:
    # directions first: sorts run along the last axis
    return jax.lax.dot_general(theta, x, (((1,), (1,)), ((), ())), precision="highest")


def fit_with_controls(
    key: Key,
    values: Float[Array, " L"],
    chosen: Directions,
    sides: tuple[Moments, Moments] | None,
    settings: SlicedSettings,
    num_points: int,
) -> ControlFit:
    """Average over directions with the chosen controls; ``sides`` are both samples' moments where needed."""
    kinds = (settings.controls or "").split("+")
    theta, columns, gaussian_se = chosen.theta, [], None
    if "gaussian" in kinds and sides is not None:
        # about as much work as the projections and their sorts
        d = theta.shape[1]
        num = min(max(_CHEAP[0], theta.shape[0] * num_points * (d + 40) // d**2), _CHEAP[1])
        mean, gaussian_se = gaussian_mean(key, *sides, settings.p, num)
        columns.append((gaussian_cost(theta, *sides, settings.p) - mean)[:, None])
    if settings.degree:
        columns.append(even_polynomials(theta, settings.degree))
    if sides is not None and kinds[0] in ("lower", "upper", "bounds"):
        columns.append(bounds(theta, *sides, kinds[0]))
    controls = jnp.concatenate(columns, 1) if columns else None
    fit = fit_controls(values, controls, num_groups=chosen.num_groups)
    se = fit.se * chosen.widen
    if gaussian_se is not None:
        se = jnp.hypot(se, fit.coefficients[0] * gaussian_se)
    return fit._replace(se=se)


def to_estimate(fit: ControlFit, p: float, num_directions: int) -> Estimate:
    """The p-th root of an average, with its standard error by the delta method.

    Near zero the delta method gives far too large an error; it is bounded by the root of the power's error.
    """
    clipped = fit.value <= 0
    power = jnp.where(clipped, 0.0, fit.value)
    safe = jnp.where(clipped, 1.0, fit.value)
    value = jnp.where(clipped, 0.0, safe ** (1 / p))
    near_zero = fit.se ** (1 / p)
    se = jnp.where(clipped, near_zero, jnp.minimum(fit.se / (p * safe ** (1 - 1 / p)), near_zero))
    stats = {
        "power": power,
        "power_se": fit.se,
        "num_directions": jnp.asarray(num_directions),
        "num_controls": fit.rank,
        "r_squared": fit.r_squared,
        "clipped": fit.value < 0,
    }
    return Estimate(value, jax.lax.stop_gradient(se), stats=jax.lax.stop_gradient(stats))
