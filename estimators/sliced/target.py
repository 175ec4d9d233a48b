"""A fixed sample, projected and sorted once: for flows towards it, and for many comparisons."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.errors import DataError, MethodError
from mcx.estimators.sliced.directions import Directions
from mcx.estimators.sliced.gaussian import Moments, moments
from mcx.estimators.sliced.inputs import as_points, as_weights
from mcx.estimators.sliced.sliced import SlicedSettings, fit_with_controls, sliced_powers, to_estimate
from mcx.estimators.sliced.wasserstein_1d import Ordered, order
from mcx.ops.keys import as_key
from mcx.results.estimate import Estimate
from mcx.types import Array, Float, Key, KeyLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlicedTarget:
    """A sample, as its sorted projections on fixed directions. A pytree.

    Comparing another sample with it costs half of what :func:`~mcx.estimators.sliced.sliced_wasserstein`
    costs, and always uses the same directions: the distance is a deterministic function, which an optimiser
    can follow. Its minimum is the sample itself, up to differences that the directions do not see; draw
    another target now and then where those matter.

    Attributes:
        theta: (L, d) directions.
        projections: sorted, with L rows; memory for L m numbers.
        middle: (d,) the sample's mean, which is subtracted from both samples.
        sides: mean and covariance of the sample, for control variates.
        key: for the mean of the Gaussian cost.
        settings: how to estimate; static.
        num_groups: the directions are this many independent groups; static.
        widen: factor of standard errors from independence; static.
        num_points: m; static.
    """

    theta: Float[Array, "L d"]
    projections: Ordered
    middle: Float[Array, " d"]
    sides: Moments
    key: Key
    settings: SlicedSettings = field(metadata={"static": True})
    num_groups: int | None = field(metadata={"static": True})
    widen: float = field(metadata={"static": True})
    num_points: int = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        y: ArrayLike,
        *,
        y_weights: ArrayLike | None = None,
        p: float = 2,
        num_projections: int = 256,
        directions: str = "auto",
        control_variates: str | None = None,
        degree: int | None = None,
        num_replicates: int | None = None,
        batch_size: int | None = None,
        key: KeyLike,
    ) -> SlicedTarget:
        """Project and sort a sample.

        Args:
            y: (m, d), d at least 2.
            y_weights: (m,), or None for equal weights.
            p: power of the cost; this and the other options as for
                :func:`~mcx.estimators.sliced.sliced_wasserstein`.
            num_projections: about how many directions.
            directions: their kind.
            control_variates: their kind; none by default, because fits give some directions negative weights,
                which an optimiser that always sees the same directions can exploit.
            degree: of polynomials.
            num_replicates: of point sets.
            batch_size: directions at once, in comparisons.
            key: a typed JAX key or an int.

        Returns:
            The target. Costs O(L (m log m + m d)).

        Raises:
            DataError: if the sample is empty or not finite, or weights are negative.
            MethodError: if settings are out of range, and in one dimension, where sorting is enough.
        """
        sample = as_points(y, "y")
        weights = as_weights(y_weights, sample.shape[0], "y_weights")
        if sample.shape[1] < 2:
            raise MethodError(
                "a fixed target needs directions",
                expected="points of dimension 2 or more",
                found="dimension 1",
                remedy="use sliced_wasserstein, which is exact there",
            )
        asked = SlicedSettings(
            p, num_projections, directions, control_variates, degree, num_replicates, batch_size
        )
        settings = asked.checked("SlicedTarget.of", sample.shape[1])
        key_directions, key = jax.random.split(as_key(key))
        theta, projections, middle, sides = _prepare(key_directions, sample, weights, settings)
        layout = _layout(settings, sample)
        return cls(
            theta, projections, middle, sides, key, settings, layout.num_groups, layout.widen, sample.shape[0]
        )

    def distance(self, x: ArrayLike, *, x_weights: ArrayLike | None = None) -> Estimate:
        """SW_p between a sample and the fixed one.

        Args:
            x: (n, d).
            x_weights: (n,), or None for equal weights.

        Returns:
            As :func:`~mcx.estimators.sliced.sliced_wasserstein`; differentiable in ``x`` and its weights.

        Raises:
            DataError: if the sample is empty, not finite, or of another dimension, or weights are negative.
        """
        sample = as_points(x, "x").astype(self.theta.dtype)
        if sample.shape[1] != self.theta.shape[1]:
            raise DataError(
                "the sample is of another dimension than the target",
                expected=f"(n, {self.theta.shape[1]})",
                found=f"{sample.shape}",
            )
        return _compare(self, sample, as_weights(x_weights, sample.shape[0], "x_weights"))


def _layout(settings: SlicedSettings, y: Array) -> Directions:
    """The static fields of the directions, without drawing any."""
    found: list[Directions] = []
    jax.eval_shape(lambda key: found.append(settings.draw(key, y)), jax.random.key(0))
    return found[0]


@functools.partial(jax.jit, static_argnums=3)
def _prepare(
    key: Key, y: Array, y_weights: Array | None, settings: SlicedSettings
) -> tuple[Array, Ordered, Array, Moments]:
    theta = settings.draw(key, y).theta
    middle = jnp.mean(y, 0)
    y = y - middle
    projections = order(jnp.matmul(theta, y.T, precision="highest"), y_weights)
    return theta, projections, middle, moments(y, y_weights)


@jax.jit
def _compare(target: SlicedTarget, x: Array, x_weights: Array | None) -> Estimate:
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
