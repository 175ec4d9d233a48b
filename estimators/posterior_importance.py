"""Expectations under a posterior, and its evidence, by adaptive importance sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, WeightCollapse
from mcx.estimators.adaptation import fit_populations
from mcx.estimators.hermite import highest_degree
from mcx.estimators.pareto import khat_of, pareto_khat
from mcx.estimators.proposals import Elliptical, Mixture
from mcx.estimators.regression import regress
from mcx.estimators.stages import balanced
from mcx.estimators.stein import scores, stein_controls
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.results.estimate import Estimate
from mcx.target import Target

if TYPE_CHECKING:
    from mcx.estimators.adaptive_importance import AdaptiveImportance

__all__ = ["expect_by_importance"]

_DRAWS_PER_CONTROL = 20
_AT_ONCE = 1024
_LEAST_SHARE = 1e-3  # of the wide first law
_TEMPERED_ESS = 0.1  # of a stage's points: fewer say too little about a covariance


def expect_by_importance(
    bound: BoundModel,
    functions: Mapping[str, Callable[[Any], Any]],
    method: AdaptiveImportance,
    key: Any,
) -> dict[str, Estimate]:
    """Adapt a mixture of Student t's to the posterior, on unconstrained space; average a fresh sample.

    Stages fit the mixture to all points so far, weighted by the balance heuristic. Weights that a few points
    would dominate are tempered, so that the first stages find their way. The estimates are a weighted
    regression on Stein control variates; the evidence takes the ratios of the mixture's components to it.

    Args:
        bound: a model and its data; every latent site continuous.
        functions: by name, of the sites' values.
        method: budget, stages, components, tails, share of the wide first law, control variates.
        key: of the run.

    Raises:
        WeightCollapse: if no point has a positive density, or one point all the weight.

    Sources: Cornuet, Marin, Mira and Robert (2012); Koblents and Miguez (2015) for tempered weights; Leluc,
    Portier, Segers and Zhuman (2022) for the regression.
    """
    target = compile_model(bound)
    if target.dim == 0:
        raise CapabilityError("the model has no latent site to integrate over")
    size = int(method.budget * method.exploration) // method.num_stages
    key, key_first, key_final = jax.random.split(key, 3)
    wide = _wide(target, key_first, size)
    proposal = _adapted(
        target,
        key,
        wide,
        size=size,
        stages=method.num_stages,
        components=method.num_components,
        df=method.df,
        share=max(method.defensive, _LEAST_SHARE),
    )
    x = proposal.sample(key_final, method.budget - size * method.num_stages)
    log_w = _log_density(target, x) - proposal.log_prob(x)
    if not bool(jnp.any(log_w > -jnp.inf)):
        raise WeightCollapse(
            "no importance sample has a positive density",
            remedy="raise budget=, or use mcx.infer with a Markov chain method first",
        )
    return _estimates(target, x, log_w, proposal, functions, method)


@partial(jax.jit, static_argnames=("size", "stages", "components", "df", "share"))
def _adapted(
    target: Target,
    key: Any,
    wide: Elliptical,
    *,
    size: int,
    stages: int,
    components: int,
    df: float | None,
    share: float,
) -> Mixture:
    """All stages as one program. There is room for all points; those to come have no density."""
    d, room = target.dim, size * stages

    def mixture(found: Elliptical, shares: Any) -> Mixture:
        return Mixture((found, wide), jnp.append(shares + jnp.log1p(-share), jnp.log(share)))

    # until something is known all components are the wide one
    tails = Elliptical(jnp.repeat(wide.loc, components, 0), jnp.repeat(wide.scale_tril, components, 0), df)
    first = mixture(tails, jnp.full(components, -jnp.log(components)))
    none = jnp.full(room, -jnp.inf)
    past = jax.tree_util.tree_map(lambda x: jnp.stack([x] * stages), first)

    def stage(carry: Any, inputs: Any) -> tuple[Any, None]:
        x, log_p, log_sums, proposal, past = carry
        t, key = inputs
        new = proposal.sample(key, size)
        past = jax.tree_util.tree_map(lambda every, one: every.at[t].set(one), past, proposal)
        put = jax.lax.dynamic_update_slice_in_dim
        x, log_p = put(x, new, t * size, 0), put(log_p, _log_density(target, new), t * size, 0)
        log_sums = balanced(log_sums, x, new, t, proposal, jax.vmap(lambda m: m.log_prob(new))(past))
        log_w = _tempered(log_p - log_sums, max(_TEMPERED_ESS * size, 2.0 * d))
        found, shares = fit_populations(x, log_w[:, None], num_components=components, df=df)
        return (x, log_p, log_sums, mixture(found, shares[0]), past), None

    begin = (jnp.zeros((room, d)), none, jnp.zeros(room), first, past)
    keys = jax.random.split(key, stages)
    return jax.lax.scan(stage, begin, (jnp.arange(stages), keys))[0][3]


def _wide(target: Target, key: Any, size: int) -> Elliptical:
    """A Student t about as wide as the prior, or as the box that chains start from."""
    d, loc, scale = target.dim, jnp.zeros(target.dim), jnp.full(target.dim, 2.0)
    if target.sample_prior is not None:
        draw = target.sample_prior
        z = jax.vmap(lambda k: target.ravel(draw(k)))(jax.random.split(key, min(size, 1000)))
        low, loc, high = jnp.quantile(z, jnp.array([0.16, 0.5, 0.84]), 0)
        scale = jnp.maximum(high - low, 1e-3)  # twice a sd: wider than the prior rather than narrower
    return Elliptical(loc[None], jnp.diag(scale)[None] * jnp.ones((1, d, d)), 3.0)


@jax.jit
def _log_density(target: Target, x: Any) -> Any:
    log_p = jax.lax.map(lambda v: target.log_density(target.unravel(v)), x, batch_size=_AT_ONCE)
    return jnp.where(jnp.isfinite(log_p), log_p, -jnp.inf)


@jax.jit
def _tempered(log_w: Any, least: Any) -> Any:
    """Weights to the highest power, at most 1, at which their effective sample size is ``least``."""

    def scaled(power: Any) -> Any:
        return jnp.where(log_w > -jnp.inf, power * log_w, -jnp.inf)

    def enough(power: Any) -> Any:
        return jnp.exp(-jax.nn.logsumexp(2 * jax.nn.log_softmax(scaled(power)))) >= least

    def halve(_: Any, bounds: Any) -> Any:
        middle = bounds.mean()
        return jnp.where(enough(middle), bounds.at[0].set(middle), bounds.at[1].set(middle))

    power = jax.lax.fori_loop(0, 30, halve, jnp.array([0.0, 1.0]))[0]
    return scaled(jnp.where(enough(1.0), 1.0, power))


def _estimates(
    target: Target,
    x: Any,
    log_w: Any,
    proposal: Mixture,
    functions: Mapping[str, Callable[[Any], Any]],
    method: AdaptiveImportance,
) -> dict[str, Estimate]:
    n, d = x.shape
    every = method.controls == "all"
    ess = float(jnp.exp(-jax.nn.logsumexp(2 * jax.nn.log_softmax(log_w))))
    degree = highest_degree(d, int(ess) // _DRAWS_PER_CONTROL, 2) if every else 0
    w, controls, khat, log_evidence, evidence_se = _weighed(
        target, x, log_w, proposal, degree=degree, ratios=every
    )
    draws = _constrained(target, x)
    shared = {
        "ess": ess,
        "khat": float(khat),
        "num_samples": n,
        "num_controls": controls.shape[1],
        "num_evaluations": method.budget,
        "log_evidence": float(log_evidence),
        "log_evidence_se": float(evidence_se),
    }
    results = {}
    for name, function in functions.items():
        leaves, tree = jax.tree_util.tree_flatten(jax.jit(jax.vmap(function))(draws))
        parts = [_average(jnp.asarray(leaf, x.dtype), controls, w, log_w) for leaf in leaves]
        value, se = (
            jax.tree_util.tree_unflatten(tree, [np.asarray(part[i]) for part in parts]) for i in (0, 1)
        )
        # of indicators it is as heavy as that of the weights
        heaviest = [part[2] for part, leaf in zip(parts, leaves, strict=True) if leaf.dtype != bool]
        k = {"khat_integrand": float(np.fmax.reduce([float(k) for k in heaviest]))} if heaviest else {}
        stats = {**shared, **k}
        results[name] = Estimate(value, se, stats=stats)
    return results


@partial(jax.jit, static_argnames=("degree", "ratios"))
def _weighed(
    target: Target, x: Any, log_w: Any, proposal: Mixture, *, degree: int, ratios: bool
) -> tuple[Any, Any, Any, Any, Any]:
    """Weights, Stein control variates, k-hat of the weights, log evidence and its standard error."""
    shift = jnp.max(log_w)
    w = jnp.exp(log_w - shift)
    controls = jnp.zeros((len(x), 0), x.dtype)
    if degree:
        inside = (w > 0)[:, None]
        mean = (w @ x) / jnp.sum(w)
        cov = ((x - mean).T * w) @ (x - mean) / jnp.sum(w)
        tril = jnp.linalg.cholesky(cov + 1e-6 * jnp.diag(jnp.diag(cov)))
        slope = scores(target, jnp.where(inside, x, mean))
        controls = jnp.where(inside, stein_controls(x, slope, mean, tril, degree), 0.0)
    excess = jnp.exp(proposal.log_components(x) - proposal.log_prob(x)[:, None]) - 1
    found = regress(w, excess if ratios else None, fit="cross_fit")
    khat = pareto_khat(log_w, log=True)
    return w, controls, khat, shift + jnp.log(found.value), found.se / found.value


@jax.jit
def _average(values: Any, controls: Any, w: Any, log_w: Any) -> tuple[Any, Any, Any]:
    """Weighted means, their standard errors, and the heaviest tail of what is averaged, w |h - mean|."""
    flat = jnp.where((w > 0)[:, None], values.reshape(len(w), -1), 0.0)
    found = regress(flat, controls, w)
    shape = values.shape[1:]
    khat = jnp.max(khat_of(flat, log_w))
    return found.value.reshape(shape), found.se.reshape(shape), khat


@jax.jit
def _constrained(target: Target, x: Any) -> dict[str, Any]:
    found: dict[str, Any] = jax.lax.map(lambda v: target.constrain(target.unravel(v)), x, batch_size=_AT_ONCE)
    return found
