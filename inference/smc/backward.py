"""Backward kernels of a particle system: which particle of the time before may have led to this one.

Given a particle x at t, the backward kernel draws index l at t - 1 in proportion to
``W_l m_t(x_l, x) G_t(x_l, x)``. Exact draws cost O(N) each. Independent Metropolis-Hastings steps cost O(1)
and leave the same law invariant; started at the particle's ancestor, which has that law already, one or two
of them renew the index (Dau and Chopin 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mcx.errors import CapabilityError
from mcx.inference.smc.backward_rejection import by_rejection
from mcx.ops.dependences import sources
from mcx.ops.logspace import normalize
from mcx.ops.random import accept, choose
from mcx.target import FeynmanKac
from mcx.types import Array, Float, Int, Key, LogWeights, PyTree, Scalar

_MAX_ENTRIES = 2**24  # of a table of pairs of particles: beyond, its rows are made batch by batch


def check_backward(method: str, fk: FeynmanKac, kind: str, reason: str = "") -> None:
    """Raise unless a model has what backward draws of a kind need; ``reason`` says why it has no density."""
    if fk.adapt is not None:
        raise CapabilityError(
            f"{method} needs Markov kernels that do not depend on the other particles",
            expected="a FeynmanKac model with adapt=None",
        )
    if fk.log_transition is None:
        raise CapabilityError(
            f"{method} needs the density of the transition" + (f": {reason}" if reason else ""),
            expected="FeynmanKac(log_transition=...), or a chain whose steps have densities",
            remedy="trace genealogies instead: mcx.filter(..., history='full').paths(...)",
        )
    if kind == "hybrid" and fk.log_transition_bound is None:
        raise CapabilityError(
            f"{method}(backward='hybrid') needs the largest value of the transition's density",
            expected="FeynmanKac(log_transition_bound=...), or mcx.markov without a proposal=, with "
            "transitions of families whose mode has a closed form",
            remedy="use backward='imh' or 'exact', which need none",
        )


def parents(
    key: Key,
    fk: FeynmanKac,
    ctx: PyTree,
    before: tuple[PyTree, LogWeights],
    after: tuple[PyTree, Int[Array, " n"]],
    u: PyTree,
    *,
    num_draws: int,
    kind: str,
    num_mh_steps: int,
) -> Int[Array, "n M"]:
    """Draw from the backward kernel of every particle, independently given the systems and the ancestors.

    ``before`` has the particles of t - 1 and their log weights, ``after`` those of t and their ancestors. The
    kind is "exact"; "imh", Metropolis-Hastings steps, of which 0 give the ancestors; or "hybrid", exact by
    rejection as long as that pays. Costs O(n M num_mh_steps + N), exact draws O(n (N + M log N)), "hybrid"
    between O(n M + N) and a small multiple of the latter.
    """
    x_prev, log_w = before
    x, ancestors = after
    pair = _pair(fk, ctx, u, bounded=kind == "hybrid")

    def density(index: Int[Array, "n M"]) -> Float[Array, "n M"]:
        each = jax.vmap(jax.vmap(pair, (0, None)))
        return each(jax.tree.map(lambda a: a[index], x_prev), x)

    def exactly(key: Key, x: PyTree) -> Int[Array, " M"]:
        return choose(key, _row(fk, ctx, before, x, u), (num_draws,))

    if kind == "exact":
        keys = jax.random.split(key, ancestors.shape[0])
        return _rows(exactly, (keys, x), log_w.shape[0])
    if kind == "hybrid":
        density_bound = fk.log_transition_bound
        assert density_bound is not None
        bounds = jax.vmap(lambda x: density_bound(ctx, x, u))(x_prev)
        bound = jnp.max(jnp.where(log_w > -jnp.inf, bounds, -jnp.inf))
        key, key_exact = jax.random.split(key)
        rows = (jax.random.split(key_exact, ancestors.shape[0]), x)
        return by_rejection(key, log_w, lambda index: density(index) - bound, exactly, rows, num_draws)

    current = jnp.broadcast_to(ancestors[:, None], (ancestors.shape[0], num_draws))
    if num_mh_steps == 0:
        return current
    key_propose, key_accept = jax.random.split(key)
    proposals = choose(key_propose, log_w, (num_mh_steps, *current.shape))
    log_m = density(current)
    # few steps: a loop would cost more than what it compiles
    for key_step, proposed in zip(jax.random.split(key_accept, num_mh_steps), proposals, strict=True):
        log_m_proposed = density(proposed)
        # whoever has density zero, by rounding, gives way to anybody who has not
        ratio = jnp.where(log_m == -jnp.inf, 0.0, log_m_proposed - log_m)
        moved = accept(key_step, jnp.where(log_m_proposed == -jnp.inf, -jnp.inf, ratio))
        current, log_m = jnp.where(moved, proposed, current), jnp.where(moved, log_m_proposed, log_m)
    return current


def backward_weights(
    fk: FeynmanKac, ctx: PyTree, before: tuple[PyTree, LogWeights], x: PyTree, u: PyTree
) -> LogWeights:
    """The backward kernel of one particle as normalised log weights (N,). Costs O(N)."""
    return normalize(_row(fk, ctx, before, x, u))[0]


def backward_paths(
    key: Key,
    fk: FeynmanKac,
    ctx: PyTree,
    history: tuple[PyTree, Float[Array, "T N"], Int[Array, "T N"]],
    *,
    num_paths: int,
    kind: str,
    num_mh_steps: int = 1,
) -> tuple[PyTree, Int[Array, "T P"]]:
    """Draw P independent paths (T, P, ...) and their indices from a filter's history, backwards.

    The history has particles, log weights and ancestors. Costs as :func:`parents` a time. Source: Godsill,
    Doucet and West (2004), algorithm 1; Bunch and Godsill (2013) for "imh".
    """
    particles, log_w, ancestors = history
    key_last, key_run = jax.random.split(key)
    last = choose(key_last, log_w[-1], (num_paths,))
    end = jax.tree.map(lambda x: x[-1, last], particles)
    before = jax.tree.map(lambda x: x[:-1], (particles, log_w))
    inputs = jax.tree.map(lambda x: jnp.asarray(x)[1:], fk.inputs)
    keys = jax.random.split(key_run, fk.num_times - 1)

    def back(carry: PyTree, at: PyTree) -> tuple[PyTree, PyTree]:
        x_next, index = carry
        key, before, row, u = at
        drawn = parents(
            key, fk, ctx, before, (x_next, row[index]), u, num_draws=1, kind=kind, num_mh_steps=num_mh_steps
        )[:, 0]
        chosen = jax.tree.map(lambda x: x[drawn], before[0])
        return (chosen, drawn), (chosen, drawn)

    _, (earlier, indices) = jax.lax.scan(
        back, (end, last), (keys, before, ancestors[1:], inputs), reverse=True
    )
    paths = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, end)
    return paths, jnp.concatenate([indices, last[None]])


def backward_path(
    key: Key, fk: FeynmanKac, ctx: PyTree, particles: PyTree, log_w: Float[Array, "T N"]
) -> tuple[PyTree, Int[Array, " T"]]:
    """Draw one path exactly; see :func:`backward_paths`. The path is (T, ...), its indices (T,)."""
    history = (particles, log_w, jnp.zeros(log_w.shape, jnp.int32))
    path, indices = backward_paths(key, fk, ctx, history, num_paths=1, kind="exact")
    return jax.tree.map(lambda x: x[:, 0], path), indices[:, 0]


def _pair(
    fk: FeynmanKac, ctx: PyTree, u: PyTree, bounded: bool = False
) -> Callable[[PyTree, PyTree], Scalar]:
    """``(x_prev, x) -> log m_t(x_prev, x) G_t(x_prev, x)``, without G where that is a constant of x_prev.

    Where the bound is that of ``fk.log_transition_bound``, G must be such a constant.
    """
    density = fk.log_transition
    assert density is not None

    def pair(x_prev: PyTree, x: PyTree) -> Scalar:
        log_m = density(ctx, x_prev, x, u)
        # left out, a large constant cannot round the small differences that matter
        past: PyTree = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x_prev)
        if sources(lambda x_prev: fk.log_potential(ctx, x_prev, x, u), x_prev=past):
            if bounded:
                raise CapabilityError(
                    "backward='hybrid' bounds the transition's density alone",
                    expected="potentials that do not depend on the particle before",
                    remedy="use backward='imh' or 'exact'",
                )
            log_m = log_m + fk.log_potential(ctx, x_prev, x, u)
        return jnp.where(jnp.isnan(log_m), -jnp.inf, log_m)

    return pair


def _row(fk: FeynmanKac, ctx: PyTree, before: tuple[PyTree, LogWeights], x: PyTree, u: PyTree) -> LogWeights:
    x_prev, log_w = before
    return log_w + jax.vmap(_pair(fk, ctx, u), (0, None))(x_prev, x)


def _rows(
    row: Callable[[Key, PyTree], Int[Array, " M"]], arguments: tuple[Key, PyTree], num: int
) -> Int[Array, "n M"]:
    """``row`` of every particle; in batches where a table of all pairs would be large."""
    size = jax.tree.leaves(arguments)[0].shape[0]
    if size * num <= _MAX_ENTRIES:
        return jax.vmap(row)(*arguments)
    return jax.lax.map(lambda args: row(*args), arguments, batch_size=max(1, _MAX_ENTRIES // num))
