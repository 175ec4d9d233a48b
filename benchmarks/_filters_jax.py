"""The yardstick of ``filters.py``: the bootstrap filter of one model, by hand, in one ``lax.scan``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from _filters_common import SIGMA_Y


def systematic(key: Any, w: Any) -> Any:
    """Ancestors from counts: how many points ``(k + u) / N`` lie below each step of the distribution."""
    n = w.shape[0]
    u = jax.random.uniform(key)
    below = jnp.ceil(n * jnp.cumsum(w) - u).astype(jnp.int32).at[-1].set(n)
    ancestors = jnp.cumsum(jnp.zeros(n, jnp.int32).at[below].add(1, mode="drop"))
    return jnp.minimum(ancestors, n - 1)


def multinomial(key: Any, w: Any) -> Any:
    """Ancestors by searching for uniform numbers in the distribution function."""
    cdf = jnp.cumsum(w)
    u = jax.random.uniform(key, w.shape) * cdf[-1]
    return jnp.minimum(jnp.searchsorted(cdf, u, side="right"), w.shape[0] - 1)


SCHEMES = {"systematic": systematic, "multinomial": multinomial}


def bootstrap(
    key: Any,
    phi: Any,
    y: Any,
    *,
    num: int,
    scheme: str,
    threshold: float,
    moments: bool = True,
    score: bool = False,
) -> Any:
    """Log evidence; filtering mean, sd and effective sample size at every time.

    score: let resampled weights carry their ancestors' derivative (Scibior and Wood 2021).
    """
    draw = SCHEMES[scheme]
    constant = -math.log(SIGMA_Y) - 0.5 * math.log(2 * math.pi)
    equal = jnp.full(num, -math.log(num))

    def weigh(log_w: Any, x: Any, y: Any) -> Any:
        log_v = log_w + constant - 0.5 * ((y - x) / SIGMA_Y) ** 2
        top = jnp.max(log_v)
        v = jnp.exp(log_v - top)
        total = jnp.sum(v)
        increment = top + jnp.log(total)
        w = v / total
        ess = 1 / jnp.sum(w**2)
        kept: tuple[Any, ...] = (ess,)
        if moments:
            mean = w @ x
            kept = (ess, mean, jnp.sqrt(w @ (x - mean) ** 2))
        return (x, log_v - increment, w, ess), (increment, *kept)

    def resample(key: Any, x: Any, log_w: Any, w: Any) -> Any:
        # the barrier keeps XLA from searching anew for every gather
        ancestors = jax.lax.optimization_barrier(draw(key, jax.lax.stop_gradient(w)))
        if not score:
            return x[ancestors], equal
        chosen = log_w[ancestors]
        return x[ancestors], equal + (chosen - jax.lax.stop_gradient(chosen))

    def step(carry: Any, at: Any) -> Any:
        (x, log_w, w, ess), (keys, y) = carry, at
        if threshold >= 1:
            x, log_w = resample(keys[0], x, log_w, w)
        else:
            low = ess < threshold * num
            x, log_w = jax.lax.cond(low, resample, lambda _, x, log_w, w: (x, log_w), keys[0], x, log_w, w)
        return weigh(log_w, phi * x + jax.random.normal(keys[1], (num,)), y)

    key_start, key_run = jax.random.split(key)
    start = jax.random.normal(key_start, (num,)) / jnp.sqrt(1 - phi**2)
    first, kept_first = weigh(equal, start, y[0])
    keys = jax.random.split(key_run, (len(y) - 1, 2))
    _, kept = jax.lax.scan(step, first, (keys, y[1:]))
    increments, *kept = jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a[None], b]), kept_first, kept)
    return jnp.sum(increments), *kept


@partial(jax.jit, static_argnames=("num", "scheme", "threshold"))
def one(key: Any, phi: Any, y: Any, *, num: int, scheme: str, threshold: float) -> Any:
    """One filter."""
    return bootstrap(key, phi, y, num=num, scheme=scheme, threshold=threshold)


@partial(jax.jit, static_argnames=("num", "filters", "scheme", "threshold"))
def many(key: Any, phi: Any, y: Any, *, num: int, filters: int, scheme: str, threshold: float) -> Any:
    """Filters that share data and parameters. Vectorised, ``cond`` runs both sides."""
    run = partial(bootstrap, num=num, scheme=scheme, threshold=threshold)
    return jax.vmap(run, (0, None, None))(jax.random.split(key, filters), phi, y)


@partial(jax.jit, static_argnames=("num", "scheme", "threshold"))
def value_and_grad(phi: Any, key: Any, y: Any, *, num: int, scheme: str, threshold: float) -> Any:
    """Log evidence and its derivative in phi, unbiased up to that of the logarithm."""

    def log_evidence(phi: Any) -> Any:
        settings: Any = {"num": num, "scheme": scheme, "threshold": threshold}
        return bootstrap(key, phi, y, **settings, moments=False, score=True)[0]

    return jax.value_and_grad(log_evidence)(phi)
