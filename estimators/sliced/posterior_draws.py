"""Draws of two posteriors as samples of points, in common coordinates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mcx.errors import MethodError, PosteriorShapeError
from mcx.estimators.sliced.inputs import Samples, as_pair, as_weights
from mcx.model.compile import model_sites
from mcx.results.posterior import Posterior
from mcx.types import Array, Float


def as_samples(
    x: Posterior | ArrayLike,
    y: Posterior | ArrayLike,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
) -> Samples:
    """Check two samples of points, or two posteriors, whose latent sites are whitened; with their weights.

    Raises DataError as :func:`~mcx.estimators.sliced.inputs.as_pair`, MethodError if only one of them is a
    posterior, PosteriorShapeError if they have different sites.
    """
    if isinstance(x, Posterior) and isinstance(y, Posterior):
        weights: list[Array | None] = []
        for posterior, own, name in ((x, x_weights, "x_weights"), (y, y_weights, "y_weights")):
            if own is None and (w := posterior.draw_weights()) is not None:
                own = w.ravel()
            weights.append(as_weights(own, posterior.num_chains * posterior.num_draws, name))
        return as_pair(*whiten(*draws_of_both(x, y), *weights), *weights)
    if isinstance(x, Posterior) or isinstance(y, Posterior):
        raise MethodError(
            "a posterior can be compared with another posterior only",
            expected="two posteriors, or two arrays",
            found=f"{type(x).__name__} and {type(y).__name__}",
            remedy="pass arrays: the columns of both, on one scale",
        )
    return as_pair(x, y, x_weights, y_weights)


def draws_of_both(x: Posterior, y: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Latent sites of two posteriors as columns, chain by chain; PosteriorShapeError if they differ."""
    (a, names_a), (b, names_b) = _columns(x), _columns(y)
    if names_a != names_b or a.shape[1] != b.shape[1]:
        raise PosteriorShapeError(
            "the posteriors are of different latent sites",
            expected=f"the same sites: {', '.join(names_a)} ({a.shape[1]} numbers)",
            found=f"{', '.join(names_b)} ({b.shape[1]} numbers)",
        )
    return a, b


def _columns(posterior: Posterior) -> tuple[np.ndarray, list[str]]:
    wanted = [s.name for s in model_sites(posterior.bound).of_kind("latent", "discrete")]
    names = [name for name in sorted(wanted) if name in posterior.draws]
    size = posterior.num_chains * posterior.num_draws
    columns = [np.asarray(posterior.draws[n], np.float64).reshape(size, -1) for n in names]
    return np.concatenate(columns, 1) if columns else np.zeros((size, 0)), names


def whiten(
    x: np.ndarray, y: np.ndarray, x_weights: Array | None = None, y_weights: Array | None = None
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Standardise both samples together: their equal mixture gets mean zero and covariance one.

    Directions in which neither varies are zero.
    """
    mean = (np.average(x, 0, x_weights) + np.average(y, 0, y_weights)) / 2
    x, y = np.asarray(x, np.float64) - mean, np.asarray(y, np.float64) - mean
    cov = (np.cov(x.T, aweights=x_weights, bias=True) + np.cov(y.T, aweights=y_weights, bias=True)) / 2
    # the mixture's covariance has that of the means as well
    gap = np.average(x, 0, x_weights)
    values, vectors = np.linalg.eigh(np.atleast_2d(cov) + np.outer(gap, gap))
    inside = values > 1e-12 * values[-1]
    scale = np.where(inside, 1 / np.sqrt(np.where(inside, values, 1.0)), 0.0)
    dtype = jnp.result_type(float)
    white: tuple[Array, Array] = jax.device_put(
        ((x @ vectors * scale).astype(dtype), (y @ vectors * scale).astype(dtype))
    )
    return white
