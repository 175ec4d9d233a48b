"""Fits of proposals to weighted points: moments and cross-entropy, mixtures by EM, mixture weights."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mcx.estimators.importance.proposals import Elliptical, fit_elliptical
from mcx.types import Array, Float

_EM_STEPS = 30
_WEIGHT_STEPS = 200


@partial(jax.jit, static_argnames=("num_components", "df"))
def fit_populations(
    x: Float[Array, "n d"],
    log_w: Float[Array, "n J"],
    *,
    num_components: int = 1,
    df: float | None = None,
    shrink_to: Float[Array, "J d d"] | None = None,
) -> tuple[Elliptical, Float[Array, "J k"]]:
    """For each column of log weights, the mixture of k components that is closest to the weighted points.

    Closest in Kullback-Leibler divergence: the cross-entropy method. One component has the points' moments;
    several come from EM, started by cutting the points along their longest direction. Returns J k components,
    those of a target one after another, and their log weights. Costs O(n J k d^2) for each of 30 steps of EM.

    Sources: Rubinstein and Kroese (2004) for cross-entropy; Cappe, Douc, Guillin, Marin and Robert (2008) for
    EM on weighted populations.
    """
    targets = log_w.shape[1]
    if num_components == 1:
        return fit_elliptical(x, log_w, df=df, shrink_to=shrink_to), jnp.zeros((targets, 1), x.dtype)

    def population(inputs: tuple[Array, Array | None]) -> tuple[Array, Array, Array]:
        column, other = inputs
        several = None if other is None else jnp.broadcast_to(other, (num_components, *other.shape))
        whole = fit_elliptical(x, column[:, None])
        cov = whole.scale_tril[0] @ whole.scale_tril[0].T
        along = (x - whole.loc[0]) @ jnp.linalg.eigh(cov)[1][:, -1]
        w = jax.nn.softmax(column)
        # as much weight on each side of a cut; ends overlap so that no component is left without points
        share = jnp.cumsum(w[jnp.argsort(along)])[jnp.argsort(jnp.argsort(along))]
        piece = jnp.clip((share * num_components).astype(int), 0, num_components - 1)
        log_member = jnp.log(jax.nn.one_hot(piece, num_components) * 0.9 + 0.1 / num_components)

        def improve(_: Array, member: Array) -> Array:
            return jax.nn.log_softmax(_log_joint(x, column, member, df, several), 1)

        member = jax.lax.fori_loop(0, _EM_STEPS, improve, jax.nn.log_softmax(log_member, 1))
        found = fit_elliptical(x, column[:, None] + member, df=df, shrink_to=several)
        return found.loc, found.scale_tril, _log_shares(column, member)

    loc, tril, shares = jax.lax.map(population, (log_w.T, shrink_to), batch_size=16)
    d = x.shape[1]
    return Elliptical(loc.reshape(-1, d), tril.reshape(-1, d, d), df), shares


def _log_shares(column: Array, member: Array) -> Array:
    shares = jax.nn.log_softmax(jax.nn.logsumexp(column[:, None] + member, 0))
    # a component that dies comes back
    return jax.nn.log_softmax(jnp.logaddexp(shares, jnp.log(0.01 / len(shares))))


def _log_joint(x: Array, column: Array, member: Array, df: float | None, shrink_to: Array | None) -> Array:
    fitted = fit_elliptical(x, column[:, None] + member, df=df, jitter=1e-4, shrink_to=shrink_to)
    return fitted.log_prob(x) + _log_shares(column, member)


@jax.jit
def mixture_weights(
    log_components: Float[Array, "n C"],
    excess: Float[Array, " n"],
    log_weights: Float[Array, " C"],
    fixed: Float[Array, " C"],
) -> Float[Array, " C"]:
    """Mixture weights a that minimise the sum over points of r_i / (sum_k a_k g_k(x_i)): a convex problem.

    ``excess`` holds r_i, squared deviations over the density that points come from. Weights that are
    ``fixed`` stay, the others have NaN there. Returns normalised log weights. Costs O(n C) for each of 200
    steps.

    Source: for the criterion, Demange-Chryst, Bachoc and Morio (2022), the minimisation over alpha; for the
    multiplicative iteration with exponent 1/2, Silvey, Titterington and Torgersen (1978).
    """
    held = ~jnp.isnan(fixed)
    kept = jnp.where(held, fixed, 0.0)
    tiny = jnp.finfo(log_weights.dtype).tiny
    # Densities of far points vanish in float32: each row has its own unit, which its r takes over. That of r
    # does not matter.
    top = jnp.max(log_components, 1)
    g = jnp.exp(log_components - top[:, None])
    log_r = jnp.where(jnp.isfinite(excess), jnp.log(excess), -jnp.inf) - top
    r = jnp.exp(log_r - jnp.max(log_r))
    r = jnp.where(jnp.isnan(r), 0.0, r)

    def normalised(a: Array) -> Array:
        free = jnp.where(held, 0.0, a)
        return kept + free / jnp.maximum(jnp.sum(free), tiny) * (1 - jnp.sum(kept))

    def improve(_: Array, a: Array) -> Array:
        q = jnp.maximum(g @ a, jnp.sqrt(tiny))
        slope = (r / q) @ (g / q[:, None])
        return normalised(a * jnp.sqrt(slope / jnp.maximum(jnp.max(slope), tiny)))

    start = normalised(jax.nn.softmax(log_weights))
    return jnp.log(jax.lax.fori_loop(0, _WEIGHT_STEPS, improve, start))
