"""Draws of all iterations of an adaptive importance sampler, weighted by the balance heuristic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from mcx.types import Array, Bool, Float, Int, Key, PyTree


class AdaptiveProposal(Protocol):
    """A proposal that iterations replace by one of the same structure. A pytree."""

    @property
    def kept(self) -> PyTree:
        """What the history keeps of it: the arrays that differ between iterations."""

    def sample(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Independent draws."""

    def log_prob(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Normalised log densities at points."""

    def log_past(self, kept: PyTree, x: Float[Array, "n d"]) -> Float[Array, "iteration n"]:
        """Log densities of points under the proposals of all iterations, whose ``kept`` are stacked."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """Draws of all iterations, in arrays with room for those to come, and what was evaluated there.

    Attributes:
        log_sums: log of the sum of the iterations' proposal densities; 0 where there is no draw yet.
        proposals: ``kept`` of the iterations' proposals, stacked.
        iteration: how many iterations there were, int32.
    """

    x: Float[Array, "room d"]
    values: PyTree
    log_sums: Float[Array, " room"]
    proposals: PyTree
    iteration: Int[Array, ""]

    @classmethod
    def empty(cls, dim: int, values: PyTree, first: AdaptiveProposal, num_iterations: int) -> History:
        """Room for the draws and proposals of ``num_iterations`` iterations; ``values`` are placeholders."""
        room = len(jax.tree_util.tree_leaves(values)[0])
        stacked = jax.tree_util.tree_map(lambda a: jnp.stack([a] * num_iterations), first.kept)
        return cls(jnp.zeros((room, dim)), values, jnp.zeros(room), stacked, jnp.asarray(0, "int32"))

    @property
    def size(self) -> int:
        """Draws of an iteration."""
        return len(self.x) // len(jax.tree_util.tree_leaves(self.proposals)[0])

    def drawn(self) -> Bool[Array, " room"]:
        """Which rows hold a draw."""
        return jnp.arange(len(self.x)) < self.iteration * self.size

    def log_sampling(self) -> Float[Array, " room"]:
        """Log of the density that the draws come from taken together: the balance heuristic."""
        return self.log_sums - jnp.log(jnp.maximum(self.iteration, 1))


def append(history: History, x: Float[Array, "n d"], values: PyTree, proposal: AdaptiveProposal) -> History:
    """Add the draws of one iteration, and its proposal's density to the sums of all."""
    put, t = jax.lax.dynamic_update_slice_in_dim, history.iteration
    begin = t * len(x)
    now = replace(
        history,
        x=put(history.x, x, begin, 0),
        values=jax.tree_util.tree_map(lambda every, new: put(every, new, begin, 0), history.values, values),
        proposals=jax.tree_util.tree_map(
            lambda every, one: every.at[t].set(one), history.proposals, proposal.kept
        ),
        iteration=t + 1,
    )
    of_past = proposal.log_past(now.proposals, x)
    so_far = jnp.arange(len(of_past))[:, None] <= t
    of_new = jax.nn.logsumexp(jnp.where(so_far, of_past, -jnp.inf), 0)
    sums = put(jnp.logaddexp(history.log_sums, proposal.log_prob(now.x)), of_new, begin, 0)
    return replace(now, log_sums=jnp.where(now.drawn(), sums, 0.0))


@partial(jax.jit, static_argnames="count")
def all_draws(
    history: History, proposal: AdaptiveProposal, x: Float[Array, "n d"], *, count: int
) -> tuple[Float[Array, "total d"], Float[Array, " total"]]:
    """The iterations' ``count`` draws and a final sample; the log density they come from taken together."""
    of_past = proposal.log_past(history.proposals, x)
    used = jnp.arange(len(of_past))[:, None] < history.iteration
    of_past = jnp.where(used, of_past, -jnp.inf)
    before = history.x[:count]
    log_n, log_size = jnp.log(len(x)), jnp.log(history.size)
    new = jnp.logaddexp(proposal.log_prob(x) + log_n, jax.nn.logsumexp(of_past, 0) + log_size)
    old = jnp.logaddexp(history.log_sums[:count] + log_size, proposal.log_prob(before) + log_n)
    log_q = jnp.concatenate([old, new]) - jnp.log(count + len(x))
    return jnp.concatenate([before, x]), log_q
