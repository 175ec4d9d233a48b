"""Expectations under a posterior, and its evidence, by adaptive importance sampling."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError, WeightCollapse
from mcx.estimators.control_variates.regression import regress
from mcx.estimators.control_variates.stein import scores, stein_controls
from mcx.estimators.evaluation import leaves_at
from mcx.estimators.importance.adaptation import fit_populations
from mcx.estimators.importance.adaptive_importance import AdaptiveImportance, Iteration, explore
from mcx.estimators.importance.history import History, all_draws, append
from mcx.estimators.importance.proposals import Elliptical, Mixture, Part, as_part, log_parts, num_components
from mcx.estimators.pareto import khat_of, pareto_khat
from mcx.estimators.polynomials.hermite import highest_degree
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.ops.logspace import effective_sample_size
from mcx.results.estimate import Estimate
from mcx.target import Target
from mcx.types import Array, Key, LogWeights, Scalar, SiteFunctions

_DRAWS_PER_CONTROL = 20
_AT_ONCE = 1024
_LEAST_SHARE = 1e-3  # of the wide first law
_EM_STEPS = 50
_TEMPERED_ESS = 0.1  # share of an iteration's draws: fewer say too little about a covariance


def expect_by_importance(
    bound: BoundModel, functions: SiteFunctions, method: AdaptiveImportance, *, key: Key
) -> dict[str, Estimate]:
    """Adapt a mixture of Student t's and the user's proposals to the posterior; average a fresh sample.

    Iterations fit the mixture to all draws so far, weighted by the balance heuristic. Weights that a few
    draws would dominate are tempered, so that the first iterations find their way. Estimates are a weighted
    regression on Stein control variates; that of the evidence is one on the ratios of the mixture's
    components to it. See :func:`mcx.expect`, also for errors; NonFiniteError or DataError name a function.
    ``relative_error`` is of an iteration's draws without control variates. Costs ``method.budget`` log
    densities, and a gradient for each draw of the final sample.

    Sources: Cornuet, Marin, Mira and Robert (2012); Koblents and Miguez (2015) for tempered weights; Leluc,
    Portier, Segers and Zhuman (2022) for the regression.
    """
    _check(method)
    target = compile_model(bound)
    if target.dim == 0:
        raise CapabilityError("the model has no latent site to integrate over")
    size = method.iteration_size
    key, key_first, key_final = jax.random.split(key, 3)
    history, first = _start(_wide(target, key_first, size), _own_parts(method, target.dim), method)

    def iterate(key: Key, history: History, proposal: Mixture) -> Iteration[Mixture]:
        now, following = _iterate(
            target, history, proposal, key,
            size=size, components=method.num_components, df=method.df, share=_share(method),
        )  # fmt: skip
        relative = np.inf
        if (t := int(history.iteration)) and method.relative_error is not None:
            x, log_p = (a[t * size : (t + 1) * size] for a in (now.x, now.values))
            relative = _predicted(target, x, log_p - proposal.log_prob(x), functions) * np.sqrt(size)
        return now, following, np.inf, relative

    keys = iter(jax.random.split(key, method.num_iterations))
    history, proposal, count = explore(method, iterate, history, first, keys)
    x = proposal.sample(key_final, method.budget - size * count)
    log_p = _log_density(target, x)
    if method.samples == "all":
        x, log_q = all_draws(history, proposal, x, count=size * count)
        log_p = jnp.concatenate([history.values[: size * count], log_p])
    else:
        log_q = proposal.log_prob(x)
    log_w = log_p - log_q
    if not bool(jnp.any(log_w > -jnp.inf)):
        raise WeightCollapse(
            "no importance sample has a positive density",
            remedy="raise budget=, or use mcx.infer with a Markov chain method first",
        )
    found = _estimates(target, x, log_w, proposal, functions, method)
    return {name: replace(e, stats={**e.stats, "num_iterations": count}) for name, e in found.items()}


def _check(method: AdaptiveImportance) -> None:
    """Raise on what means nothing for a posterior: one target that all functions share."""
    for name, meant in (("controls", ("all", "none")), ("criterion", ("relative",))):
        if getattr(method, name) not in meant:
            method.refuse(
                name,
                f"{' or '.join(map(repr, meant))} for expectations under a posterior",
                "leave it out: the mixture adapts to the posterior itself, not to each function",
            )


def _share(method: AdaptiveImportance) -> float:
    return max(method.defensive, _LEAST_SHARE)


def _own_parts(method: AdaptiveImportance, d: int) -> tuple[Part, ...]:
    """The user's proposals; their dimension is known where they are NumPyro distributions."""
    parts = tuple(map(as_part, method.proposals))
    for part in parts:
        shape = getattr(part, "event_shape", (d,))
        if shape != (d,):
            raise MethodError(
                "a proposal is not on the posterior's unconstrained space",
                expected=f"event shape {(d,)}, sites in program order, each flattened",
                found=repr(shape),
            )
    return parts


def _mixture(parts: tuple[Part, ...], shares: Array, wide: Elliptical, share: float) -> Mixture:
    return Mixture((*parts, wide), jnp.append(shares + jnp.log1p(-share), jnp.log(share)))


def _shares(
    x: Array, log_w: Array, parts: tuple[Part, ...], wide: Elliptical, share: float, fitted: Array
) -> Array:
    """Log shares of the fitted components, which share ``fitted`` among them, and the user's, by EM."""
    others = sum(map(num_components, parts[1:]))
    if not others:
        return fitted
    start = jnp.append(fitted, jnp.zeros(others)) - jnp.log1p(others)
    w = jax.nn.softmax(log_w)
    log_g = jnp.where((w > 0)[:, None], log_parts((*parts, wide), x), 0.0)

    def improve(_: Array, log_a: Array) -> Array:
        log_h = log_g + jnp.append(log_a + jnp.log1p(-share), jnp.log(share))
        part = w @ jax.nn.softmax(log_h, 1)[:, :-1]
        return jnp.log(jnp.maximum(part / jnp.sum(part), _LEAST_SHARE))

    return jax.nn.log_softmax(jax.lax.fori_loop(0, _EM_STEPS, improve, start))


def _start(wide: Elliptical, own: tuple[Part, ...], method: AdaptiveImportance) -> tuple[History, Mixture]:
    """The first proposal, and an empty history: all components but the user's are the wide one."""
    components, d = method.num_components, wide.loc.shape[1]
    tails = Elliptical(
        jnp.repeat(wide.loc, components, 0), jnp.repeat(wide.scale_tril, components, 0), method.df
    )
    others = sum(map(num_components, own))
    shares = jnp.append(jnp.full(components, -jnp.log(components)), jnp.zeros(others)) - jnp.log1p(others)
    first = _mixture((tails, *own), shares, wide, _share(method))
    room = method.iteration_size * method.num_iterations
    history = History.empty(d, jnp.full(room, -jnp.inf), first, method.num_iterations)
    # of the types that an iteration returns: with weak ones it would be compiled twice
    history, first = jax.tree_util.tree_map(lambda x: jnp.asarray(x, jnp.result_type(x)), (history, first))
    return history, first


@partial(jax.jit, static_argnames=("size", "components", "df", "share"))
def _iterate(
    target: Target,
    history: History,
    proposal: Mixture,
    key: Key,
    *,
    size: int,
    components: int,
    df: float | None,
    share: float,
) -> tuple[History, Mixture]:
    """Draw, weight all draws so far, and fit the next proposal. One program serves all iterations."""
    new = proposal.sample(key, size)
    now = append(history, new, _log_density(target, new), proposal)
    log_w = _tempered(now.values - now.log_sums, max(_TEMPERED_ESS * size, 2.0 * target.dim))
    fitted, shares = fit_populations(now.x, log_w[:, None], num_components=components, df=df)
    *own, wide = proposal.parts[1:]
    assert isinstance(wide, Elliptical)
    parts = (fitted, *own)
    return now, _mixture(parts, _shares(now.x, log_w, parts, wide, share, shares[0]), wide, share)


def _predicted(target: Target, x: Array, log_w: LogWeights, functions: SiteFunctions) -> float:
    """The largest relative standard error of an iteration's weighted averages, without control variates."""
    draws, w = _constrained(target, x), jnp.exp(log_w - jnp.max(log_w))
    errors = []
    for name, function in functions.items():
        for leaf in leaves_at(name, function, draws, w > 0)[0]:
            value, se, _ = _average(jnp.asarray(leaf, x.dtype), None, w, log_w, fit="least_squares")
            errors.append(np.max(np.asarray(se) / np.maximum(np.abs(value), np.finfo(x.dtype).tiny)))
    return float(np.max(errors))


def _wide(target: Target, key: Key, size: int) -> Elliptical:
    """A Student t about as wide as the prior, or as the box that chains start from."""
    d, loc, scale = target.dim, jnp.zeros(target.dim), jnp.full(target.dim, 2.0)
    if target.sample_prior is not None:
        draw = target.sample_prior
        z = jax.vmap(lambda k: target.ravel(draw(k)))(jax.random.split(key, min(size, 1000)))
        low, loc, high = jnp.quantile(z, jnp.array([0.16, 0.5, 0.84]), 0)
        scale = jnp.maximum(high - low, 1e-3)  # twice a sd: wider than the prior rather than narrower
    return Elliptical(loc[None], jnp.diag(scale)[None] * jnp.ones((1, d, d)), 3.0)


@jax.jit
def _log_density(target: Target, x: Array) -> Array:
    log_p = jax.lax.map(lambda v: target.log_density(target.unravel(v)), x, batch_size=_AT_ONCE)
    return jnp.where(jnp.isfinite(log_p), log_p, -jnp.inf)


@jax.jit
def _tempered(log_w: LogWeights, least: Scalar | float) -> LogWeights:
    """Weights to the highest power, at most 1, at which their effective sample size is ``least``."""

    def scaled(power: Array | float) -> Array:
        return jnp.where(log_w > -jnp.inf, power * log_w, -jnp.inf)

    def enough(power: Array | float) -> Array:
        return effective_sample_size(scaled(power)) >= least

    def halve(_: Array, bounds: Array) -> Array:
        middle = bounds.mean()
        return jnp.where(enough(middle), bounds.at[0].set(middle), bounds.at[1].set(middle))

    power = jax.lax.fori_loop(0, 30, halve, jnp.array([0.0, 1.0]))[0]
    return scaled(jnp.where(enough(1.0), 1.0, power))


def _estimates(
    target: Target,
    x: Array,
    log_w: LogWeights,
    proposal: Mixture,
    functions: SiteFunctions,
    method: AdaptiveImportance,
) -> dict[str, Estimate]:
    n, d = x.shape
    every = method.controls == "all"
    ess = float(effective_sample_size(log_w))
    degree = highest_degree(d, int(ess) // _DRAWS_PER_CONTROL, 2) if every else 0
    w, controls, khat, log_evidence, evidence_se = _weighed(
        target, x, log_w, proposal, degree=degree, ratios=every, fit=method.fit
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
        leaves, tree = leaves_at(name, function, draws, w > 0)
        parts = [_average(jnp.asarray(leaf, x.dtype), controls, w, log_w, fit=method.fit) for leaf in leaves]
        value, se = (
            jax.tree_util.tree_unflatten(tree, [np.asarray(part[i]) for part in parts]) for i in (0, 1)
        )
        # of indicators it is as heavy as that of the weights
        heaviest = [part[2] for part, leaf in zip(parts, leaves, strict=True) if leaf.dtype != bool]
        k = {"khat_integrand": float(np.fmax.reduce([float(k) for k in heaviest]))} if heaviest else {}
        results[name] = Estimate(value, se, stats={**shared, **k})
    return results


@partial(jax.jit, static_argnames=("degree", "ratios", "fit"))
def _weighed(
    target: Target, x: Array, log_w: LogWeights, proposal: Mixture, *, degree: int, ratios: bool, fit: str
) -> tuple[Array, Array, Scalar, Scalar, Scalar]:
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
    found = regress(w, excess if ratios else None, fit=fit)
    khat = pareto_khat(log_w, log=True)
    return w, controls, khat, shift + jnp.log(found.value), found.se / found.value


@partial(jax.jit, static_argnames="fit")
def _average(
    values: Array, controls: Array | None, w: Array, log_w: LogWeights, *, fit: str
) -> tuple[Array, Array, Scalar]:
    """Weighted means, their standard errors, and the heaviest tail of what is averaged, w |h - mean|."""
    flat = jnp.where((w > 0)[:, None], values.reshape(len(w), -1), 0.0)
    found = regress(flat, controls, w, fit=fit)
    shape = values.shape[1:]
    khat = jnp.max(khat_of(flat, log_w))
    return found.value.reshape(shape), found.se.reshape(shape), khat


@jax.jit
def _constrained(target: Target, x: Array) -> dict[str, Array]:
    found: dict[str, Array] = jax.lax.map(
        lambda v: target.constrain(target.unravel(v)), x, batch_size=_AT_ONCE
    )
    return found
