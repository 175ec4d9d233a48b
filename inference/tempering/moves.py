"""Moves of a cloud of particles by a Markov kernel, as many as are needed to decorrelate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, override

import jax
import jax.numpy as jnp

from mcx.inference.mcmc.whitening import LogDensity
from mcx.ops.batches import vmap_in_batches
from mcx.ops.validation import Rule, Settings, integer, number, optional
from mcx.types import Array, Covariance, Flags, Float, Int, Key, LogWeights, PyTree, Scalar, Vector

_GAIN = 1.0  # change of the log step size for each unit of acceptance off its target
_MOST_STEP = 1e3
_LEAST_SEEN = 8  # moves before the rate of decorrelation is judged
_PATIENCE = 2


@dataclass(frozen=True)
class CloudMoves(Settings):
    """How a cloud is moved; hashable.

    Attributes:
        transition: a Markov transition on vectors, such as ``mcx.HMC().transition()``.
        target_accept: mean acceptance probability that the step size is adapted to, move by move.
        max_correlation: particles move until neither the log density nor any coordinate, whitened by the
            cloud's covariance, has a larger correlation with its former value; or until it is clear that they
            never will, as with separate modes.
        max_moves: largest number of moves.
        spread: step sizes of particles are log-uniform between the adapted one and that divided by
            ``spread``, drawn anew at every move: early on a path, some particles are where the law is narrow,
            others where it is wide.
        batch_size: number of particles that move at once; None is all.
    """

    transition: Any
    target_accept: float
    max_correlation: float = 0.2
    max_moves: int = 50
    spread: float = 10.0
    batch_size: int | None = None

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "max_correlation": number(above=0, below=1),
            "max_moves": integer(1),
            "spread": number(1),
            "batch_size": optional(integer(1)),
        }

    def start(self, log_density: LogDensity, x: Float[Array, "n d"]) -> PyTree:
        """States of the transition at points (n, d)."""
        if self.transition.uses_gradient:
            value, slope = self._each(jax.value_and_grad(log_density), 1)(x)
            return x, value, slope
        return x, self._each(log_density, 1)(x), jnp.zeros_like(x)

    def once(
        self, key: Key, log_density: LogDensity, state: PyTree, step_size: Scalar, covariance: Covariance
    ) -> tuple[PyTree, Scalar, Scalar]:
        """Move all particles once: new states, mean acceptance probability, and the adapted step size."""
        key_shared, key_size, key_own = jax.random.split(key, 3)
        num = len(state[0])
        transition = self.transition
        if hasattr(transition, "shared"):  # one length for all trajectories, so that none waits for another
            transition = transition.shared(key_shared, step_size)
        sizes = step_size * self.spread ** -jax.random.uniform(key_size, (num,), state[0].dtype)
        move = self._each(lambda k, size, *s: transition(k, s, log_density, size, covariance), 5)
        state, stats = move(jax.random.split(key_own, num), sizes, *state)
        rate = jnp.mean(jnp.nan_to_num(stats["acceptance_rate"]))
        step_size = step_size * jnp.exp(_GAIN * (rate - self.target_accept))
        return state, rate, jnp.clip(step_size, 1 / _MOST_STEP, _MOST_STEP)

    def _each(self, fn: Callable[..., PyTree], count: int) -> Callable[..., PyTree]:
        return vmap_in_batches(fn, (0,) * count, self.batch_size)

    def until_decorrelated(
        self,
        key: Key,
        log_density: LogDensity,
        x: Float[Array, "n d"],
        step_size: Scalar,
        covariance: Covariance,
        rest: Flags | bool = False,
    ) -> Moved:
        """Move a cloud, unless it is to ``rest``, until it is decorrelated, or ``max_moves`` times.

        The moves leave the law of ``log_density`` invariant; to adapt by means over the cloud makes an error
        of order 1 / n.
        """

        def once(key: Key, state: PyTree, size: Scalar) -> tuple[PyTree, Scalar, Scalar]:
            return self.once(key, log_density, state, size, covariance)

        begin, size = self.start(log_density, x), jnp.asarray(step_size, x.dtype)
        limits = (self.max_correlation, self.max_moves)
        return until_decorrelated(key, once, begin, lambda state: state[:2], size, covariance, *limits, rest)

    def waste_free(
        self,
        key: Key,
        log_density: LogDensity,
        x: Float[Array, "n d"],
        step_size: Scalar,
        covariance: Covariance,
        length: int,
        rest: Flags | bool = False,
    ) -> tuple[Moved, Float[Array, "n p d"]]:
        """Move a cloud ``length - 1`` times and keep all of its points, of which ``x`` are the first."""
        begin = self.start(log_density, x)

        def body(i: Int[Array, ""], carry: PyTree) -> PyTree:
            state, size, _, kept = carry
            state, rate, size = self.once(jax.random.fold_in(key, i), log_density, state, size, covariance)
            return state, size, rate, kept.at[:, i].set(state[0])

        size = jnp.asarray(step_size, x.dtype)
        kept = jnp.repeat(x[:, None], length, 1)
        count = jnp.where(rest, 0, length - 1)
        state, size, rate, kept = jax.lax.fori_loop(
            1, count + 1, body, (begin, size, jnp.zeros((), x.dtype), kept)
        )
        places = correlation(x, state[0], covariance)
        return Moved(state, size, rate, count, places, _correlation(begin[1], state[1])), kept


def until_decorrelated(
    key: Key,
    once: Callable[[Key, PyTree, Scalar], tuple[PyTree, Scalar, Scalar]],
    begin: PyTree,
    look: Callable[[PyTree], tuple[Float[Array, "n d"], Float[Array, " n"]]],
    step_size: Scalar,
    covariance: Covariance,
    max_correlation: float,
    max_moves: int,
    rest: Flags | bool = False,
) -> Moved:
    """Move a cloud until it is decorrelated from where it was, or never will be, or ``max_moves`` times.

    ``once`` moves all particles, and ``look`` gives positions, whitened by the covariance, and log densities.
    """
    places, densities = look(begin)
    allowance = jnp.sqrt(2 * jnp.log(jnp.maximum(places.shape[1], 2)) / places.shape[0])  # of noise alone
    limit = max_correlation + allowance

    def unfinished(carry: PyTree) -> Flags:
        i, _, _, _, found, (_, _, hopeful) = carry
        return (i < max_moves) & (jnp.maximum(*found) > limit) & hopeful & ~jnp.asarray(rest)

    def body(carry: PyTree) -> PyTree:
        i, state, size, _, _, (then, due, hopeful) = carry
        state, rate, size = once(jax.random.fold_in(key, i), state, size)
        i = i + 1
        now_places, now_densities = look(state)
        found = correlation(places, now_places, covariance), _correlation(densities, now_densities)
        worst = jnp.maximum(*found)
        # Moves never decorrelate a cloud with separate modes. Each time that the number of moves has doubled,
        # the rate since then shows whether it is worth while to go on.
        log_rate = jnp.log(worst / then) / (i / 2)
        expected = i + jnp.log(limit / worst) / jnp.minimum(log_rate, -1e-9)
        leads = (i < _LEAST_SEEN) | (expected < _PATIENCE * max_moves)
        now = i == due
        seen = jnp.where(now, worst, then), jnp.where(now, 2 * due, due), jnp.where(now, leads, hopeful)
        return i, state, size, rate, found, seen

    one = jnp.ones((), places.dtype)
    seen = (one, jnp.int32(2), jnp.asarray(True))
    carry = (jnp.int32(0), begin, jnp.asarray(step_size), 0 * one, (one, one), seen)
    count, state, size, rate, found, _ = jax.lax.while_loop(unfinished, body, carry)
    return Moved(state, size, rate, count, *found)


class Moved(NamedTuple):
    """A cloud after its moves: states of the kernel, with leading axes of n, and the adapted step size.

    acceptance: mean probability of the last move.
    places: largest correlation of a coordinate with its value before the moves.
    densities: correlation of the log density with its value before the moves.
    """

    state: PyTree
    step_size: Scalar
    acceptance: Scalar
    num_moves: Int[Array, ""]
    places: Scalar
    densities: Scalar


def cloud_moments(x: Float[Array, "n d"], log_w: LogWeights, dense: bool) -> tuple[Vector, Covariance]:
    """Mean, and covariance (d, d), shrunk a little to its diagonal, or variances (d,), of weighted points."""
    # draws from a prior may be rounded to the end of its support, which is infinitely far off
    fine = jnp.all(jnp.isfinite(x), 1)
    x = jnp.where(fine[:, None], x, 0.0)
    w = jnp.where(fine, jnp.exp(log_w), 0.0)
    w = w / jnp.maximum(jnp.sum(w), jnp.finfo(x.dtype).tiny)
    product = partial(jnp.matmul, precision="highest")
    mean = product(w, x)
    centred = x - mean
    variance = jnp.maximum(product(w, centred**2), jnp.finfo(x.dtype).tiny * 1e6)
    if not dense:
        return mean, variance
    # the diagonal counts as much as d + 2 points, the cloud as much as its effective number
    share = 1 / (1 + (x.shape[1] + 2) * jnp.sum(w**2))
    return mean, share * product((centred * w[:, None]).T, centred) + (1 - share) * jnp.diag(variance)


def correlation(before: Float[Array, "n d"], after: Float[Array, "n d"], covariance: Covariance) -> Scalar:
    """Largest absolute correlation of a coordinate with its former value, both whitened by a covariance."""
    if covariance.ndim == 2:
        factor = jnp.linalg.cholesky(covariance)
        solve = jax.scipy.linalg.solve_triangular
        before, after = (solve(factor, x.T, lower=True).T for x in (before, after))
    else:
        before, after = (x / jnp.sqrt(covariance) for x in (before, after))
    return _correlation(before, after)


def _correlation(a: Float[Array, "n ..."], b: Float[Array, "n ..."]) -> Scalar:
    """Largest absolute correlation of two columns with the same index, of (n, d) or (n,)."""
    a, b = a - jnp.mean(a, 0), b - jnp.mean(b, 0)
    size = jnp.sqrt(jnp.sum(a**2, 0) * jnp.sum(b**2, 0))
    found = jnp.abs(jnp.sum(a * b, 0)) / jnp.where(size > 0, size, 1.0)
    return jnp.max(jnp.where(size > 0, found, 1.0))
