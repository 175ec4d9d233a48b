"""Expectations under a posterior from draws that exist, with Stein control variates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError
from mcx.estimators.control_variates.stein import scores, stein_controls
from mcx.estimators.evaluation import leaves_at
from mcx.estimators.pareto import khat_of, pareto_khat
from mcx.estimators.polynomials.hermite import highest_degree
from mcx.model.compile import compile_model
from mcx.ops.validation import Rule, Settings, integer, optional
from mcx.results.estimate import Estimate
from mcx.results.posterior import Posterior
from mcx.results.weights import error_over_replicates
from mcx.target import Target
from mcx.types import SiteFunctions

_DRAWS_PER_CONTROL = 20
_LEAST_BLOCKS = 4
_LEAST_REPLICATES = 2.0  # effective ones: fewer say nothing about their spread


@dataclass(frozen=True)
class SteinControls(Settings):
    """Post-process draws, weighted or not, with Stein control variates of polynomials; a gradient a draw.

    Attributes:
        degree: of the polynomials; None for 2 where there are at least 20 effective draws for each of the
            control variates, else 1 where there are, else none; 0 for plain averages.

    Sources: Mira, Solgi and Imparato (2013); South, Oates, Mira and Drovandi (2023).
    """

    degree: int | None = None

    def rules(self) -> Mapping[str, Rule]:
        """See :class:`~mcx.ops.validation.Settings`."""
        return {"degree": optional(integer(0, 4), "to have it chosen")}

    def estimate(self, posterior: Posterior, functions: SiteFunctions) -> dict[str, Estimate]:
        """Expectations of functions of the sites' values; see :func:`mcx.expect`.

        The coefficients for each chain come from the others (for each fifth of a single chain, from the rest
        of it), so that they do not follow its noise. Errors are those of the residuals' averages, from their
        autocorrelation. Where draws have weights (``Posterior.weights``) regression and averages use them,
        too, and errors are those of a ratio of means (delta method); ``stats`` then has ``ess`` and, where
        weights vary within chains, ``khat`` and ``khat_integrand``. Particles of a cloud depend on each
        other: for methods that draw clouds errors come from a jackknife over replicates, and are NaN for a
        single one.

        Args:
            posterior: chain x draw, of any method.
            functions: by name, of the sites' values.

        Returns:
            Estimates by name. Costs a gradient a draw, and O(n K^2) for K control variates.

        Raises:
            CapabilityError: where the draws hold no unconstrained point of every latent site.
            DataError: if a function returns no number.
            NonFiniteError: if a function is not finite at a draw that counts.
            PosteriorShapeError: if there is not a weight for each draw.
            WeightCollapse: if no draw has a positive weight.
        """
        target = compile_model(posterior.bound)
        z = np.asarray(posterior.unconstrained)
        weights = posterior.draw_weights()
        w = np.full(z.shape[:2], 1 / (z.shape[0] * z.shape[1])) if weights is None else weights
        degree = self.degree
        if degree is None:
            degree = highest_degree(z.shape[-1], int(1 / np.sum(w**2)) // _DRAWS_PER_CONTROL, 2)
        if degree and z.shape[-1] != target.dim:
            raise CapabilityError(
                "these draws have no unconstrained point of every latent site",
                expected=f"{target.dim} coordinates",
                found=f"{z.shape[-1]} ({posterior.info.method} draws some sites otherwise)",
                remedy="use SteinControls(degree=0), a plain average",
            )
        controls = _controls(target, z, w, degree) if degree else np.zeros((*z.shape[:2], 0))
        draws = {site: x.reshape(-1, *x.shape[2:]) for site, x in posterior.draws.items()}
        cloud = posterior.info.cloud
        shared: dict[str, float] = {"num_samples": w.size, "num_controls": controls.shape[-1]}
        if weights is not None:
            shared["ess"] = 1 / np.sum(w**2)
        own = weights is not None and bool(np.ptp(w, 1).any())  # not only those of replicates
        if own:
            with np.errstate(divide="ignore"):
                log_w = np.log(w).ravel()
            shared["khat"] = float(_khat(log_w))
        notes = _of_replicates(w) if cloud else ()
        results = {}
        for name, function in functions.items():
            leaves, tree = leaves_at(name, function, draws, None if weights is None else w.ravel() > 0)
            found = [
                _average(np.asarray(leaf).reshape(*w.shape, *leaf.shape[1:]), controls, w, cloud)
                for leaf in leaves
            ]
            value, se, explained, rest = zip(*found, strict=True)
            stats = {**shared, "r_squared": min(float(np.min(x)) for x in explained)}
            if own:
                stats["khat_integrand"] = float(np.fmax.reduce([_khat_of(x, log_w) for x in rest]))
            value, se = (jax.tree_util.tree_unflatten(tree, list(part)) for part in (value, se))
            results[name] = Estimate(value, se, stats=stats, notes=notes)
        return results


_khat = jax.jit(lambda log_w: pareto_khat(log_w, log=True))
_khat_of = jax.jit(lambda x, log_w: jnp.max(khat_of(x, log_w)))


def _controls(target: Target, z: np.ndarray, w: np.ndarray, degree: int) -> np.ndarray:
    """Stein control variates (chain, draw, K); zero where draws do not count."""
    flat = np.asarray(z.reshape(-1, z.shape[-1]), np.float64)
    counts = w.ravel() > 0
    loc = w.ravel()[counts] @ flat[counts]
    cov = np.atleast_2d(np.cov(flat[counts].T, aweights=w.ravel()[counts]))
    cov = cov + 1e-6 * np.diag(np.diag(cov))
    inside = counts[:, None]
    x = jnp.asarray(np.where(inside, flat, loc), z.dtype)
    middle, tril = (jnp.asarray(a, z.dtype) for a in (loc, np.linalg.cholesky(cov)))
    found = jnp.where(inside, stein_controls(x, scores(target, x), middle, tril, degree), 0.0)
    return np.asarray(found, np.float64).reshape(*z.shape[:2], -1)


def _blocks(chains: int, draws: int) -> np.ndarray:
    """Blocks of draws (chain, draw): coefficients for a block come from the others."""
    if chains >= _LEAST_BLOCKS:
        return np.broadcast_to(np.arange(chains)[:, None], (chains, draws))
    parts = np.minimum(np.arange(draws) * 5 // draws, 4)
    return parts + 5 * np.arange(chains)[:, None]


def _of_replicates(w: np.ndarray) -> tuple[str, ...]:
    """Warnings where errors come from replicates alone, with weights (chain, draw)."""
    share = w.sum(1)
    if len(w) < 2:
        return ("draws are one cloud of particles, which has no standard error: take num_chains=4 or more",)
    if 1 / np.sum(share**2) < _LEAST_REPLICATES:
        return (f"one of {len(w)} replicates has {share.max():.0%} of the weight: errors are rough",)
    return ()


def _average(
    values: np.ndarray, controls: np.ndarray, w: np.ndarray, cloud: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard error and explained share of values (chain, draw, ...); residuals (n, J)."""
    shape = values.shape[2:]
    counts = w > 0
    y = np.where(counts[..., None], values.reshape(*w.shape, -1), 0.0).astype(np.float64)
    rest = y.copy()
    if controls.shape[-1]:
        blocks = _blocks(*w.shape)
        for block in np.unique(blocks):
            out = blocks == block
            others = ~out & counts
            rest[out] = y[out] - controls[out] @ _slopes(controls[others], y[others], w[others])
    flat, terms = w.ravel(), rest.reshape(w.size, -1)
    mean = flat @ terms
    middle = y - flat @ y.reshape(w.size, -1)
    variance = np.einsum("cd,cdj->j", w, middle**2)
    explained = 1 - flat @ (terms - mean) ** 2 / np.where(variance > 0, variance, 1.0)
    se = error_over_replicates(rest, w) if cloud else _error(rest - mean, w)
    return mean.reshape(shape), se.reshape(shape), explained.reshape(shape), terms


def _slopes(h: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Coefficients (K, J) of the weighted regression of y (m, J) on h (m, K)."""
    if not len(w):
        return np.zeros((h.shape[1], y.shape[1]))
    w = w / w.max()  # the others may have next to no weight
    w = w / w.sum()
    root = np.sqrt(w)[:, None]
    return np.asarray(np.linalg.lstsq(root * (h - w @ h), root * (y - w @ y), rcond=1e-6)[0])


def _error(centred: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Standard error (J,) of the weighted mean of (chain, draw, J), from autocorrelation."""
    from arviz_stats.base import array_stats

    # the influence of each draw on a ratio of means; a draw of much weight pulls the mean towards itself
    n = w.size
    influence = n * w * (1 - 1 / n) / np.maximum(1 - w, 1e-3)
    terms = influence[..., None] * centred
    return np.array([array_stats.mcse(terms[:, :, j], method="mean") for j in range(terms.shape[2])])
