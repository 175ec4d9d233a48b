"""Expectations under a posterior from draws that exist, with Stein control variates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError
from mcx.estimators.evaluation import leaves_at
from mcx.estimators.hermite import highest_degree
from mcx.estimators.stein import scores, stein_controls
from mcx.model.compile import compile_model
from mcx.results.estimate import Estimate
from mcx.results.posterior import Posterior

__all__ = ["SteinControls"]

_DRAWS_PER_CONTROL = 20
_LEAST_BLOCKS = 4


@dataclass(frozen=True)
class SteinControls:
    """Post-process draws: Stein control variates of polynomials, at the cost of a gradient a draw.

    Attributes:
        degree: of the polynomials; None for 2 where there are at least 20 effective draws for each of the
            control variates, else 1 where there are, else none; 0 for plain averages.

    Sources: Mira, Solgi and Imparato (2013); South, Oates, Mira and Drovandi (2023).
    """

    degree: int | None = None

    def __post_init__(self) -> None:
        if self.degree is not None and self.degree not in range(5):
            raise MethodError("degree is out of range", expected="0 to 4, or None", found=repr(self.degree))

    def estimate(
        self, posterior: Posterior, functions: Mapping[str, Callable[[Any], Any]]
    ) -> dict[str, Estimate]:
        """Expectations of functions of the sites' values; see :func:`mcx.expect`.

        The coefficients for each chain come from the others (for each fifth of a single chain, from the rest
        of it), so that they do not follow its noise. Errors are those of the residuals' averages, from their
        autocorrelation.

        Raises:
            CapabilityError: where the draws hold no unconstrained point of every latent site.
            DataError: if a function returns no number.
            NonFiniteError: if a function is not finite at a draw.
        """
        target = compile_model(posterior.bound)
        z = np.asarray(posterior.unconstrained)
        degree = self._degree(posterior, z.shape[-1])
        if degree and z.shape[-1] != target.dim:
            raise CapabilityError(
                "these draws have no unconstrained point of every latent site",
                expected=f"{target.dim} coordinates",
                found=f"{z.shape[-1]} ({posterior.info.method} draws some sites otherwise)",
                remedy="use SteinControls(degree=0), a plain average",
            )
        controls = _controls(target, z, degree) if degree else np.zeros((*z.shape[:2], 0))
        blocks = _blocks(z.shape[0], z.shape[1])
        draws = {site: x.reshape(-1, *x.shape[2:]) for site, x in posterior.draws.items()}
        results = {}
        for name, function in functions.items():
            leaves, tree = leaves_at(name, function, draws)
            found = [
                _average(
                    np.asarray(leaf, np.float64).reshape(*z.shape[:2], *leaf.shape[1:]), controls, blocks
                )
                for leaf in leaves
            ]
            value, se, explained = (
                jax.tree_util.tree_unflatten(tree, list(part)) for part in zip(*found, strict=True)
            )
            stats = {
                "num_samples": z.shape[0] * z.shape[1],
                "num_controls": controls.shape[-1],
                "r_squared": min(float(np.min(x)) for x in jax.tree_util.tree_leaves(explained)),
            }
            results[name] = Estimate(value, se, stats=stats)
        return results

    def _degree(self, posterior: Posterior, d: int) -> int:
        if self.degree is not None:
            return self.degree
        enough = posterior.num_chains * posterior.num_draws // _DRAWS_PER_CONTROL
        return highest_degree(d, enough, 2)


def _controls(target: Any, z: np.ndarray, degree: int) -> np.ndarray:
    flat = jnp.asarray(z.reshape(-1, z.shape[-1]))
    cov = np.atleast_2d(np.cov(np.asarray(flat, np.float64).T))
    cov = cov + 1e-6 * np.diag(np.diag(cov))
    tril = jnp.asarray(np.linalg.cholesky(cov), flat.dtype)
    found = stein_controls(flat, scores(target, flat), flat.mean(0), tril, degree)
    return np.asarray(found, np.float64).reshape(*z.shape[:2], -1)


def _blocks(chains: int, draws: int) -> np.ndarray:
    """Which part (chain, draw) coefficients must not come from."""
    if chains >= _LEAST_BLOCKS:
        return np.broadcast_to(np.arange(chains)[:, None], (chains, draws))
    parts = np.minimum(np.arange(draws) * 5 // draws, 4)
    return parts + 5 * np.arange(chains)[:, None]


def _average(
    values: np.ndarray, controls: np.ndarray, blocks: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard error and explained share of values (chain, draw, ...)."""
    from arviz_stats.base import array_stats

    shape = values.shape[2:]
    y = values.reshape(*values.shape[:2], -1)
    rest = y.copy()
    if controls.shape[-1]:
        for block in np.unique(blocks):
            out = blocks == block
            h, x = controls[~out], y[~out]
            slope = np.linalg.lstsq(h - h.mean(0), x - x.mean(0), rcond=1e-6)[0]
            rest[out] = y[out] - controls[out] @ slope
    variance = y.var((0, 1))
    explained = 1 - rest.var((0, 1)) / np.where(variance > 0, variance, 1.0)
    se = np.array([array_stats.mcse(rest[:, :, j], method="mean") for j in range(rest.shape[2])])
    return rest.mean((0, 1)).reshape(shape), se.reshape(shape), explained.reshape(shape)
