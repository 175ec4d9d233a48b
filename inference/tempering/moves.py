"""Moves of a cloud of particles by a Markov kernel, as many as it takes to forget where they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, override

import jax
import jax.numpy as jnp

from mcx.ops.batches import vmap_in_batches
from mcx.ops.validation import Rule, Settings, integer, number, optional

__all__ = ["Moved", "Moves", "cloud_covariance", "cloud_moments", "correlation", "until_forgotten"]

_GAIN = 1.0  # of the step size's logarithm, a unit of acceptance off its target
_MOST_STEP = 1e3
_LEAST_SEEN = 8  # moves before anything is said about the rate of forgetting
_PATIENCE = 2


@dataclass(frozen=True)
class Moves(Settings):
    """How a cloud is moved; hashable.

    Attributes:
        transition: a Markov transition on vectors, such as ``mcx.HMC().transition()``.
        target_accept: mean acceptance probability that the step size is adapted to, move by move.
        max_correlation: move until neither the log density nor any coordinate, whitened by the cloud's
            covariance, has a larger correlation with what it was than this; or, as where modes are apart,
            until it is clear that this is not going to be.
        max_moves: stop at this number.
        spread: particles have step sizes from the adapted one down to this fraction of it, drawn anew at
            every move and log-uniform: early on a path some are where the law is narrow, others where it is
            wide.
        batch_size: particles that move at once; None is all.
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
            "max_correlation": number(above=0, below=1)._replace(expected="a correlation between 0 and 1"),
            "max_moves": integer(1),
            "spread": number(1)._replace(expected="a ratio >= 1"),
            "batch_size": optional(integer(1)),
        }

    def start(self, log_density: Callable[[Any], Any], x: Any) -> Any:
        """States of the transition at points (n, d)."""
        if self.transition.uses_gradient:
            value, slope = self._each(jax.value_and_grad(log_density), 1)(x)
            return x, value, slope
        return x, self._each(log_density, 1)(x), jnp.zeros_like(x)

    def once(
        self, key: Any, log_density: Callable[[Any], Any], state: Any, step_size: Any, covariance: Any
    ) -> tuple[Any, Any, Any]:
        """Move all particles once; their new states, mean acceptance probability, the adapted step size."""
        key_shared, key_size, key_own = jax.random.split(key, 3)
        num = len(state[0])
        transition = self.transition
        if hasattr(transition, "shared"):  # lengths of trajectories, so that none waits for another
            transition = transition.shared(key_shared, step_size)
        sizes = step_size * self.spread ** -jax.random.uniform(key_size, (num,), state[0].dtype)
        move = self._each(lambda k, size, *s: transition(k, s, log_density, size, covariance), 5)
        state, stats = move(jax.random.split(key_own, num), sizes, *state)
        rate = jnp.mean(jnp.nan_to_num(stats["acceptance_rate"]))
        step_size = step_size * jnp.exp(_GAIN * (rate - self.target_accept))
        return state, rate, jnp.clip(step_size, 1 / _MOST_STEP, _MOST_STEP)

    def _each(self, fn: Callable[..., Any], count: int) -> Callable[..., Any]:
        return vmap_in_batches(fn, (0,) * count, self.batch_size)

    def until_forgotten(
        self,
        key: Any,
        log_density: Callable[[Any], Any],
        x: Any,
        step_size: Any,
        covariance: Any,
        rest: Any = False,
    ) -> Moved:
        """Move a cloud until it has forgotten where it was, or ``max_moves`` times.

        Args:
            key: a typed key.
            log_density: of a vector (d,); what the moves leave invariant.
            x: (n, d).
            step_size: to begin with.
            covariance: (d, d) or (d,), the transition's metric.
            rest: do not move at all.

        Returns:
            New points, and how it went. Adapting by means over the cloud makes an error of order 1 / n.
        """

        def once(key: Any, state: Any, size: Any) -> tuple[Any, Any, Any]:
            return self.once(key, log_density, state, size, covariance)

        return until_forgotten(
            key,
            once,
            self.start(log_density, x),
            lambda state: state[:2],
            jnp.asarray(step_size, x.dtype),
            covariance,
            self.max_correlation,
            self.max_moves,
            rest,
        )

    def chain(
        self,
        key: Any,
        log_density: Callable[[Any], Any],
        x: Any,
        step_size: Any,
        covariance: Any,
        length: int,
        rest: Any = False,
    ) -> tuple[Moved, Any]:
        """Move a cloud ``length - 1`` times and keep all of its points.

        Returns:
            How it went, and the points (n, length, d), those given first.
        """
        begin = self.start(log_density, x)

        def body(i: Any, carry: Any) -> Any:
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


def until_forgotten(
    key: Any,
    once: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    begin: Any,
    look: Callable[[Any], tuple[Any, Any]],
    step_size: Any,
    covariance: Any,
    max_correlation: float,
    max_moves: int,
    rest: Any = False,
) -> Moved:
    """Move a cloud until it has forgotten where it was, or cannot, or ``max_moves`` times.

    Args:
        key: a typed key.
        once: ``(key, state, step_size) -> (state, acceptance, step_size)``, a move of all particles.
        begin: state of the cloud.
        look: ``state -> (positions (n, d), log densities (n,))``.
        step_size: to begin with.
        covariance: (d, d) or (d,), that whitens positions.
        max_correlation: largest correlation that counts as forgotten.
        max_moves: at most.
        rest: do not move at all.
    """
    places, densities = look(begin)
    allowance = jnp.sqrt(2 * jnp.log(jnp.maximum(places.shape[1], 2)) / places.shape[0])  # of pure noise
    limit = max_correlation + allowance

    def unfinished(carry: Any) -> Any:
        i, _, _, _, found, (_, _, hopeful) = carry
        return (i < max_moves) & (jnp.maximum(*found) > limit) & hopeful & ~jnp.asarray(rest)

    def body(carry: Any) -> Any:
        i, state, size, _, _, (then, due, hopeful) = carry
        state, rate, size = once(jax.random.fold_in(key, i), state, size)
        i = i + 1
        now_places, now_densities = look(state)
        found = correlation(places, now_places, covariance), _correlation(densities, now_densities)
        worst = jnp.maximum(*found)
        # Where modes are apart they are never forgotten: each time the number of moves has doubled, the
        # rate of forgetting since tells whether it leads anywhere.
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
    """A cloud after its moves.

    state: of the kernel, with leading axes of n.
    step_size: adapted.
    acceptance: mean acceptance probability of the last move.
    num_moves: how many there were.
    places: largest correlation of a coordinate with what it was before.
    densities: correlation of the log density with what it was.
    """

    state: Any
    step_size: Any
    acceptance: Any
    num_moves: Any
    places: Any
    densities: Any


def cloud_covariance(x: Any, log_w: Any, dense: bool) -> Any:
    """Covariance of :func:`cloud_moments`."""
    return cloud_moments(x, log_w, dense)[1]


def cloud_moments(x: Any, log_w: Any, dense: bool) -> tuple[Any, Any]:
    """Mean (d,), and covariance (d, d) or variances (d,), of weighted points.

    The covariance is taken a little towards the diagonal.

    Args:
        x: (n, d).
        log_w: (n,) normalised log weights.
        dense: whether a matrix is wanted.
    """
    # draws from a prior may round to where its support ends, which is infinitely far off
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
    # the diagonal counts as d + 2 points beside the effective number of those there are
    share = 1 / (1 + (x.shape[1] + 2) * jnp.sum(w**2))
    return mean, share * product((centred * w[:, None]).T, centred) + (1 - share) * jnp.diag(variance)


def correlation(before: Any, after: Any, covariance: Any) -> Any:
    """Largest absolute correlation of a coordinate with what it was; coordinates whitened by a covariance."""
    if covariance.ndim == 2:
        factor = jnp.linalg.cholesky(covariance)

        def white(x: Any) -> Any:
            return jax.scipy.linalg.solve_triangular(factor, x.T, lower=True).T
    else:

        def white(x: Any) -> Any:
            return x / jnp.sqrt(covariance)

    return _correlation(white(before), white(after))


def _correlation(a: Any, b: Any) -> Any:
    """Largest absolute correlation of a column, of (n, k) or (n,)."""
    a, b = a - jnp.mean(a, 0), b - jnp.mean(b, 0)
    size = jnp.sqrt(jnp.sum(a**2, 0) * jnp.sum(b**2, 0))
    found = jnp.abs(jnp.sum(a * b, 0)) / jnp.where(size > 0, size, 1.0)
    return jnp.max(jnp.where(size > 0, found, 1.0))
