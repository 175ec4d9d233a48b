"""What sliced distances take: arrays of points, and posteriors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError, MethodError, PosteriorShapeError
from mcx.model.compile import model_sites
from mcx.ops.tracing import is_traced
from mcx.results.posterior import Posterior

__all__ = ["as_clouds", "as_points", "as_weights", "check_power", "draws_matrix", "draws_of_both", "whiten"]


def as_clouds(x: Any, y: Any, x_weights: Any, y_weights: Any) -> tuple[Any, Any, Any, Any]:
    """Check two samples, and bring them to one dtype.

    Args:
        x: (n, d), or (n,) for d = 1; or a posterior.
        y: (m, d), likewise; both are posteriors or neither.
        x_weights: (n,); None for equal weights, or a posterior's own.
        y_weights: (m,), likewise.

    Returns:
        Both samples, (n, d) and (m, d), and their weights or None. Posteriors' latent sites are flattened to
        columns and whitened together.

    Raises:
        DataError: if samples are empty, not finite, or of different dimension, or on weights that are none.
        MethodError: if only one of them is a posterior.
        PosteriorShapeError: if posteriors are not of the same sites.
    """
    if isinstance(x, Posterior) or isinstance(y, Posterior):
        if not (isinstance(x, Posterior) and isinstance(y, Posterior)):
            raise MethodError(
                "a posterior can be compared with another posterior only",
                expected="two posteriors, or two arrays",
                found=f"{type(x).__name__} and {type(y).__name__}",
                remedy="pass arrays: the columns of both, on one scale",
            )
        x_weights = _own_weights(x) if x_weights is None else x_weights
        y_weights = _own_weights(y) if y_weights is None else y_weights
        x, y = draws_of_both(x, y)
        w = [as_weights(x_weights, len(x), "x_weights"), as_weights(y_weights, len(y), "y_weights")]
        x, y = whiten(x, y, *w)
    x, y = as_points(x, "x"), as_points(y, "y")
    if x.shape[1] != y.shape[1]:
        raise DataError(
            "the samples are of different dimension",
            expected="x (n, d) and y (m, d)",
            found=f"{x.shape} and {y.shape}",
        )
    dtype = jnp.result_type(x, y)
    weights = (
        None if w is None else as_weights(w, n, name).astype(dtype)
        for w, n, name in ((x_weights, x.shape[0], "x_weights"), (y_weights, y.shape[0], "y_weights"))
    )
    return x.astype(dtype), y.astype(dtype), *weights


def as_points(x: Any, name: str) -> Any:
    """Points as a float array (n, d); see :func:`as_clouds`."""
    x = jnp.asarray(x)
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or not x.size:
        raise DataError(
            f"{name} is no sample of points",
            expected="an array (n, d), or (n,) for one dimension, with n and d at least 1",
            found=f"shape {x.shape}",
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise DataError(f"{name} is complex", expected="real coordinates", found=str(x.dtype))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    if not is_traced(x) and not (finite := np.isfinite(np.asarray(x))).all():
        raise DataError(
            f"{name} has points that are not finite",
            expected="finite coordinates",
            found=f"{int((~finite).any(1).sum())} of {x.shape[0]} points with NaN or infinity",
            remedy="drop them, or look for what made them",
        )
    return x


def as_weights(weights: Any, n: int, name: str) -> Any:
    """Weights as a float array (n,), non-negative with a positive sum; None stays None."""
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape != (n,):
        raise DataError(
            f"{name} does not fit the points",
            expected=f"one weight a point, ({n},)",
            found=f"{weights.shape}",
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.result_type(float))
    if not is_traced(weights):
        w = np.asarray(weights)
        total = w.sum(dtype=np.float64)
        if not (np.isfinite(w).all() and (w >= 0).all() and total > 0):
            raise DataError(
                f"{name} are no weights",
                expected="finite, non-negative numbers, some of them positive",
                found=f"smallest {w.min():g}, largest {w.max():g}, sum {total:g}",
                remedy="log weights have to be exponentiated first",
            )
    return weights


def check_power(p: Any) -> float:
    """The power of the cost as a float.

    Raises:
        MethodError: if it is below 1 or not a number.
    """
    if not isinstance(p, int | float | np.integer | np.floating) or not 1 <= p < np.inf:
        raise MethodError("p is no power of a cost", expected="a number of at least 1", found=repr(p))
    return float(p)


# --- posteriors ----------------------------------------------------------------------------------------


def draws_matrix(posterior: Posterior) -> tuple[np.ndarray, tuple[str, ...]]:
    """Latent sites of all draws as columns.

    Args:
        posterior: any.

    Returns:
        (chains x draws, d) in float64, chain by chain, and the names of the sites.
    """
    wanted = [s.name for s in model_sites(posterior.bound).of_kind("latent", "discrete")]
    names = tuple(name for name in sorted(wanted) if name in posterior.draws)
    size = posterior.num_chains * posterior.num_draws
    columns = [np.asarray(posterior.draws[n], np.float64).reshape(size, -1) for n in names]
    return np.concatenate(columns, 1) if columns else np.zeros((size, 0)), names


def draws_of_both(x: Posterior, y: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Latent sites of two posteriors as columns; see :func:`draws_matrix`.

    Args:
        x: any posterior.
        y: one of the same sites.

    Raises:
        PosteriorShapeError: if their sites differ.
    """
    (a, names_a), (b, names_b) = draws_matrix(x), draws_matrix(y)
    if names_a != names_b or a.shape[1] != b.shape[1]:
        raise PosteriorShapeError(
            "the posteriors are of different latent sites",
            expected=f"the same sites: {', '.join(names_a)} ({a.shape[1]} numbers)",
            found=f"{', '.join(names_b)} ({b.shape[1]} numbers)",
        )
    return a, b


def _own_weights(posterior: Posterior) -> Any:
    w = posterior.draw_weights()
    return None if w is None else w.ravel()


def whiten(x: Any, y: Any, x_weights: Any = None, y_weights: Any = None) -> tuple[Any, Any]:
    """Take both samples to mean zero and covariance one, of their equal mixture.

    Args:
        x: (n, d).
        y: (m, d).
        x_weights: (n,), or None.
        y_weights: (m,), or None.

    Returns:
        Both in the new coordinates. Directions in which neither varies stay as they are, at zero.
    """
    mean = (np.average(x, 0, x_weights) + np.average(y, 0, y_weights)) / 2
    x, y = np.asarray(x, np.float64) - mean, np.asarray(y, np.float64) - mean
    cov = (np.cov(x.T, aweights=x_weights, bias=True) + np.cov(y.T, aweights=y_weights, bias=True)) / 2
    # the mixture's covariance has that of the means as well
    gap = np.average(x, 0, x_weights)
    values, vectors = np.linalg.eigh(np.atleast_2d(cov) + np.outer(gap, gap))
    inside = values > 1e-12 * values[-1]
    scale = np.where(inside, 1 / np.sqrt(np.where(inside, values, 1.0)), 0.0)
    to_float = jnp.result_type(float)
    return jax.device_put(((x @ vectors * scale).astype(to_float), (y @ vectors * scale).astype(to_float)))
