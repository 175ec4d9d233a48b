"""FFBS: forward filtering, backward sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from mcx.inference.smc.backward import backward_paths, backward_weights, check_kind
from mcx.inference.smc.engine import SMCInfo, SMCSettings
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.smc import loop
from mcx.inference.smoothing.paris import Recursion, Smoothing, check_numbers
from mcx.target import FeynmanKac

__all__ = ["FFBS", "ffbs_run", "marginals", "path_average"]


@dataclass(frozen=True, kw_only=True)
class FFBS:
    """Forward filtering, backward sampling: paths drawn through the history of a finished filter.

    Attributes:
        num_particles: N.
        num_paths: independent paths given the filter's history.
        backward: "imh" (Metropolis-Hastings steps from the particle's ancestor: O(1) a path and time),
            "exact" (O(N)), or "hybrid" (exact, by rejection as long as that pays: O(1) to O(N); needs
            transitions whose largest density is known).
        num_steps: Metropolis-Hastings steps of a draw.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Godsill, Doucet and West (2004), algorithm 1; "imh": Bunch and Godsill (2013);
    "hybrid": Dau and Chopin (2023).
    """

    num_particles: int = field(default=1000, kw_only=False)
    num_paths: int = field(default=1000, kw_only=False)
    backward: str = "imh"
    num_steps: int = 2
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_kind("FFBS", self.backward)
        check_numbers(self, num_particles=1, num_paths=1, num_steps=0)
        SMCSettings(self.num_particles, self.threshold)  # checks the threshold

    @property
    def smoothing(self) -> Smoothing:
        """Settings of the filter and of the backward draws."""
        settings = SMCSettings(self.num_particles, self.threshold)
        return Smoothing(settings, self.backward, 1, self.num_steps)


def ffbs_run(key: Any, recursion: Recursion, num_paths: int) -> tuple[Any, Any, SMCInfo]:
    """Filter, draw paths, and average the functional over them.

    Args:
        key: a typed key.
        recursion: model, functional and settings.
        num_paths: P.

    Returns:
        The paths, a pytree of (T, P, ...); the average; what happened at each time of the filter. Costs
        O(T (N + P)) by Metropolis-Hastings; memory O(T (N + P)).
    """
    fk, ctx, _, _, smoothing = recursion
    key_filter, key_back = jax.random.split(key)
    filtered = loop(key_filter, fk, ctx, smoothing.system, HistorySettings("full"))
    kept = filtered.history
    assert kept.info is not None
    history = (kept.particles, kept.log_w, kept.ancestors)
    paths, _ = backward_paths(
        key_back,
        fk,
        ctx,
        history,
        num_paths=num_paths,
        kind=smoothing.backward,
        num_steps=smoothing.num_steps,
    )
    gone = jnp.where(filtered.state.collapsed, jnp.nan, 0.0)
    average = jax.tree_util.tree_map(lambda x: x + gone, path_average(recursion, paths))
    return paths, average, kept.info


def path_average(recursion: Recursion, paths: Any) -> Any:
    """The functional of paths (T, P, ...), averaged over them."""
    fk, ctx, extra, summand, _ = recursion

    def mean(terms: Any) -> Any:
        return jax.tree_util.tree_map(lambda h: jnp.mean(h, 0), terms)

    first, later = (
        jax.tree_util.tree_map(lambda x, s=part: jnp.asarray(x)[s], (paths, fk.inputs))
        for part in (0, slice(1, None))
    )
    start = mean(jax.vmap(lambda x: summand.initial(fk, ctx, extra, x, first[1]))(first[0]))

    def step(carry: tuple[Any, Any], at: Any) -> tuple[Any, Any]:
        before, total = carry
        t, (x, u) = at
        term = mean(jax.vmap(lambda a, b: summand.step(fk, ctx, extra, (a, b), u, t))(before, x))
        if summand.by_time:
            return (x, total), term
        return (x, jax.tree_util.tree_map(jnp.add, total, term)), None

    (_, total), terms = jax.lax.scan(step, (first[0], start), (jnp.arange(1, fk.num_times), later))
    if not summand.by_time:
        return total
    return jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a[None], b]), start, terms)


def marginals(fk: FeynmanKac, ctx: Any, particles: Any, log_w: Any) -> Any:
    """Smoothing weights of a filter's particles (forward filtering, backward smoothing).

    Args:
        fk: the model, with a transition density.
        ctx: what ``fk.prepare`` gave.
        particles: pytree of (T, N, ...).
        log_w: (T, N) log weights of the filter.

    Returns:
        Normalised weights (T, N): what they average at time t is the smoothing law of x_t. Costs O(T N^2).

    Source: Doucet, Godsill and Andrieu (2000), section IV.
    """
    inputs = jax.tree_util.tree_map(lambda x: jnp.asarray(x)[1:], fk.inputs)
    before, after = (
        jax.tree_util.tree_map(lambda x, s=part: x[s], (particles, log_w))
        for part in (slice(None, -1), slice(1, None))
    )
    last = jnp.exp(log_w[-1])

    def back(w: Any, at: Any) -> tuple[Any, Any]:
        earlier, x, u = at

        def share(total: Any, one: Any) -> tuple[Any, None]:
            weight, x = one
            return total + weight * jnp.exp(backward_weights(fk, ctx, earlier, x, u)), None

        w, _ = jax.lax.scan(share, jnp.zeros_like(w), (w, x))
        return w, w

    _, earlier = jax.lax.scan(back, last, (before, after[0], inputs), reverse=True)
    return jnp.concatenate([earlier, last[None]])
