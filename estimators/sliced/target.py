"""A fixed sample, projected and sorted once: for flows towards it, and for many comparisons."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from mcx.errors import DataError, MethodError
from mcx.estimators.sliced.directions import Directions, draw_directions
from mcx.estimators.sliced.gaussian import Moments, moments
from mcx.estimators.sliced.inputs import as_points, as_weights
from mcx.estimators.sliced.sliced import Settings, fit_with_controls, sliced_powers, to_estimate
from mcx.estimators.sliced.wasserstein_1d import Ordered, order
from mcx.ops.keys import as_key
from mcx.results.estimate import Estimate

__all__ = ["SlicedTarget"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlicedTarget:
    """Directions and a sample's sorted projections, kept. A pytree.

    Comparing another sample with it costs half of what :func:`~mcx.estimators.sliced.sliced_wasserstein`
    costs, and always uses the same directions: a deterministic function, which an optimiser can follow. Its
    minimum is the sample itself, up to what the directions do not see; draw another target now and then
    where that matters.

    Attributes:
        theta: (L, d) directions.
        projections: sorted, with L rows; memory for L m numbers.
        middle: (d,) what is taken off both samples.
        sides: mean and covariance of the sample, where control variates need them.
        key: for the mean of the Gaussian cost.
        settings, num_groups, widen, num_points: static.
    """

    theta: Any
    projections: Ordered
    middle: Any
    sides: Moments
    key: Any
    settings: Settings = field(metadata={"static": True})
    num_groups: int | None = field(metadata={"static": True})
    widen: float = field(metadata={"static": True})
    num_points: int = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        y: Any,
        *,
        y_weights: Any = None,
        p: float = 2,
        num_projections: int = 256,
        directions: str = "auto",
        control_variates: str | None = None,
        degree: int | None = None,
        num_replicates: int | None = None,
        batch_size: int | None = None,
        key: Any,
    ) -> SlicedTarget:
        """Project and sort a sample.

        Args:
            y: (m, d), d at least 2.
            y_weights: (m,), or None for equal weights.
            p: power of the cost; this and the other options as for
                :func:`~mcx.estimators.sliced.sliced_wasserstein`.
            num_projections: about how many directions.
            directions: their kind.
            control_variates: which; none by default, because fits give some directions negative weights,
                which an optimiser that always meets the same directions can exploit.
            degree: of polynomials.
            num_replicates: of point sets.
            batch_size: directions at once, in comparisons.
            key: a typed JAX key or an int.

        Raises:
            DataError: on samples and weights that are none.
            MethodError: on settings that make no sense, and in one dimension, where sorting is all there is.
        """
        y = as_points(y, "y")
        y_weights = as_weights(y_weights, y.shape[0], "y_weights")
        if y.shape[1] < 2:
            raise MethodError(
                "a fixed target needs directions",
                expected="points of dimension 2 or more",
                found="dimension 1",
                remedy="use sliced_wasserstein, which is exact there",
            )
        settings = Settings.of(
            y.shape[1],
            p,
            num_projections,
            directions,
            control_variates,
            degree,
            num_replicates,
            batch_size,
        )
        key_directions, key = jax.random.split(as_key(key))
        theta, projections, middle, sides = _prepare(key_directions, y, y_weights, settings)
        layout = _layout(settings, y)
        return cls(
            theta,
            projections,
            middle,
            sides,
            key,
            settings,
            layout.num_groups,
            layout.widen,
            y.shape[0],
        )

    def distance(self, x: Any, *, x_weights: Any = None) -> Estimate:
        """SW_p between a sample and the fixed one.

        Args:
            x: (n, d).
            x_weights: (n,), or None for equal weights.

        Returns:
            As :func:`~mcx.estimators.sliced.sliced_wasserstein`; differentiable in ``x`` and its weights.

        Raises:
            DataError: on a sample that does not fit.
        """
        x = as_points(x, "x").astype(self.theta.dtype)
        if x.shape[1] != self.theta.shape[1]:
            raise DataError(
                "the sample is of another dimension than the target",
                expected=f"(n, {self.theta.shape[1]})",
                found=f"{x.shape}",
            )
        x_weights = as_weights(x_weights, x.shape[0], "x_weights")
        return _compare(self, x, x_weights)


def _layout(settings: Settings, y: Any) -> Directions:
    """What is static of the directions; nothing is drawn."""
    found: list[Directions] = []
    jax.eval_shape(lambda key: found.append(_draw(key, settings, y.shape[1], y.dtype)), jax.random.key(0))
    return found[0]


def _draw(key: Any, settings: Settings, d: int, dtype: Any) -> Directions:
    return draw_directions(
        key, settings.directions, settings.num_projections, d, dtype, settings.num_replicates
    )


@functools.partial(jax.jit, static_argnums=3)
def _prepare(key: Any, y: Any, y_weights: Any, settings: Settings) -> tuple[Any, Ordered, Any, Moments]:
    theta = _draw(key, settings, y.shape[1], y.dtype).theta
    middle = jnp.mean(y, 0)
    y = y - middle
    projections = order(jnp.matmul(theta, y.T, precision="highest"), y_weights)
    return theta, projections, middle, moments(y, y_weights)


@jax.jit
def _compare(target: SlicedTarget, x: Any, x_weights: Any) -> Estimate:
    settings = target.settings
    x = x - target.middle
    values = sliced_powers(
        target.theta, x, target.projections, x_weights, None, settings.p, settings.batch_size
    )
    chosen = Directions(target.theta, target.num_groups, target.widen)
    sides = None
    if settings.controls is not None and settings.controls != "polynomial":
        sides = (moments(x, x_weights), target.sides)
    num_points = x.shape[0] + target.num_points
    fit = fit_with_controls(target.key, values, chosen, sides, settings, num_points)
    return to_estimate(fit, settings.p, target.theta.shape[0])
