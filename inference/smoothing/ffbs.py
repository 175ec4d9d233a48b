"""FFBS: forward filtering, backward sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, override

import jax
import jax.numpy as jnp

from mcx.inference.smc.backward import backward_paths
from mcx.inference.smc.engine import SMCInfo, first_and_rest, prepended
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.smc import loop
from mcx.inference.smoothing.recursion import Recursion
from mcx.inference.smoothing.smoother import Smoother, Swept
from mcx.ops.validation import Rule, integer
from mcx.types import Key, PyTree


@dataclass(frozen=True, kw_only=True)
class FFBS(Smoother):
    """Forward filtering, backward sampling: paths drawn through the history of a finished filter.

    Attributes:
        num_particles: N.
        num_paths: independent paths given the filter's history.
        backward: "imh" (Metropolis-Hastings steps from the particle's ancestor: O(1) a path and time),
            "exact" (O(N)), or "hybrid" (exact, by rejection as long as that pays: O(1) to O(N); needs
            transitions whose largest density is known).
        num_mh_steps: Metropolis-Hastings steps of a draw.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Godsill, Doucet and West (2004), algorithm 1; "imh": Bunch and Godsill (2013);
    "hybrid": Dau and Chopin (2023).
    """

    num_particles: int = field(default=1000, kw_only=False)
    num_paths: int = 1000
    backward: Literal["imh", "exact", "hybrid"] = "imh"
    num_mh_steps: int = 2
    threshold: float = 0.5

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {**super().rules(), "num_paths": integer(1)}

    @override
    def sweep(self, key: Key, recursion: Recursion, path: PyTree) -> Swept:
        _, average, info = ffbs_run(key, recursion, self.num_paths)
        return Swept(None, average, None, info)


def ffbs_run(key: Key, recursion: Recursion, num_paths: int) -> tuple[PyTree, PyTree, SMCInfo]:
    """Filter, draw paths (T, P, ...), and average the functional over them; also what happened at each time.

    Costs O(T (N + P)) by Metropolis-Hastings, in time and memory.
    """
    fk, ctx, _, _, smoothing = recursion
    key_filter, key_back = jax.random.split(key)
    filtered = loop(key_filter, fk, ctx, smoothing.system, HistorySettings("full"))
    kept = filtered.history
    assert kept.info is not None
    history = (kept.particles, kept.log_w, kept.ancestors)
    kind, num_mh_steps = smoothing.backward, smoothing.num_mh_steps
    paths, _ = backward_paths(
        key_back, fk, ctx, history, num_paths=num_paths, kind=kind, num_mh_steps=num_mh_steps
    )
    gone = jnp.where(filtered.state.collapsed, jnp.nan, 0.0)
    average = jax.tree.map(lambda x: x + gone, path_average(recursion, paths))
    return paths, average, kept.info


def path_average(recursion: Recursion, paths: PyTree) -> PyTree:
    """The functional of paths (T, P, ...), averaged over them."""
    fk, ctx, extra, summand, _ = recursion

    def mean(terms: PyTree) -> PyTree:
        return jax.tree.map(lambda h: jnp.mean(h, 0), terms)

    first, later = first_and_rest((paths, fk.inputs))
    start = mean(jax.vmap(lambda x: summand.initial(fk, ctx, extra, x, first[1]))(first[0]))

    def step(carry: tuple[PyTree, PyTree], at: PyTree) -> tuple[PyTree, PyTree]:
        before, total = carry
        t, (x, u) = at
        term = mean(jax.vmap(lambda a, b: summand.step(fk, ctx, extra, (a, b), u, t))(before, x))
        if summand.by_time:
            return (x, total), term
        return (x, jax.tree.map(jnp.add, total, term)), None

    (_, total), terms = jax.lax.scan(step, (first[0], start), (jnp.arange(1, fk.num_times), later))
    if not summand.by_time:
        return total
    return prepended(start, terms)
