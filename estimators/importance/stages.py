"""What the stages of an adaptive sampler have seen, and the proposals they lead to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.estimators.importance.adaptation import fit_populations, mixture_weights
from mcx.estimators.importance.expectations import Integrals
from mcx.estimators.importance.proposals import (
    Elliptical,
    Mixture,
    fit_elliptical,
    log_densities,
    log_parts,
    mixed,
    num_components,
)
from mcx.ops.logspace import effective_sample_size

__all__ = ["Adapted", "Adapting", "Seen", "balanced", "digest", "joined", "own_slopes", "with_final"]

_FURTHER = 2.0  # how much wider an integrand is looked for in each stage, as long as it was zero everywhere


class Adapting(NamedTuple):
    """How proposals follow the points; hashable, as it shapes programs.

    num_components: for each integrand.
    df: their degrees of freedom; None for Gaussians.
    defensive: share of the mixture that the laws keep.
    relative: whether relative errors count, or absolute ones.
    controls: whether the result will have control variates.
    """

    num_components: int
    df: float | None
    defensive: float
    relative: bool
    controls: bool


def _slopes(y: Any, control: Any, weights: Any = None) -> Any:
    """Regression coefficients (J,) of each column of (n, J) on the same column of the control."""
    w = jnp.ones(len(y), y.dtype) if weights is None else weights
    w = w / jnp.sum(w)
    centred = control - w @ control
    variance = w @ centred**2
    return (w @ (centred * (y - w @ y))) / jnp.where(variance > 0, variance, 1.0)


def balanced(log_sums: Any, points: Any, new: Any, t: Any, proposal: Any, of_past: Any) -> Any:
    """Logs of the balance heuristic's sums, after stage t drew ``new``, which is among ``points`` already.

    Args:
        log_sums: (room,) of the stages before: log of the sum of their proposals' densities.
        points: (room, d) of all stages, one after another.
        new: (size, d) those of stage t.
        t: its number, from 0.
        proposal: what it drew from; has ``log_prob``.
        of_past: (stages, size) log densities of ``new`` under the proposals of all stages up to t; what
            stands in the rows after is ignored.
    """
    there = jnp.arange(len(of_past))[:, None] <= t
    of_new = jax.nn.logsumexp(jnp.where(there, of_past, -jnp.inf), 0)
    sums = jnp.logaddexp(log_sums, proposal.log_prob(points))
    return jax.lax.dynamic_update_slice_in_dim(sums, of_new, t * len(new), 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A proposal: components that were fitted to each integrand, the laws, and what else is given.

    Attributes:
        found: J k components, those of an integrand one after another.
        shares: (J, k) their log weights within an integrand's fit.
        law: that of the integrals.
        fixed: further parts of the mixture, that stay as they are.
        log_weights: of the mixture, of the components found, the laws and the fixed parts.
    """

    found: Elliptical
    shares: Any
    law: Any
    fixed: tuple[Any, ...]
    log_weights: Any

    @classmethod
    def nothing(cls, problem: Integrals, how: Adapting, fixed: tuple[Any, ...] = ()) -> Adapted:
        """The laws, and as much of fixed parts: all proposals have the same structure and share programs."""
        d, count = problem.law.event_shape[0], problem.count * how.num_components
        dtype = jnp.result_type(float)
        tril = np.broadcast_to(np.eye(d), (count, d, d))
        found = Elliptical(jnp.zeros((count, d)), jnp.asarray(tril, dtype), how.df)
        others = sum(map(num_components, fixed))
        share = np.log(problem.num_laws / max(others, 1))
        weights = np.repeat([-np.inf, 0.0, share], [count, problem.num_laws, others])
        shares = jnp.zeros((problem.count, how.num_components))
        return cls(found, shares, problem.law, fixed, jnp.asarray(weights, dtype))

    @property
    def proposal(self) -> Mixture:
        """What is drawn from."""
        return Mixture((self.found, self.law, *self.fixed), self.log_weights)

    @jax.jit
    def own_log_densities(self, x: Any) -> Any:
        """Log densities (n, J) of the integrands' own fits."""
        log_g = self.found.log_prob(x).reshape(len(x), *self.shares.shape)
        return jax.nn.logsumexp(log_g + self.shares, 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """Points of all stages, in arrays with room for those to come.

    Attributes:
        x: (room, d).
        values: (room, J) or (room, 1).
        log_laws: (room, laws); -inf where there is no point yet.
        log_sums: (room,) log of the sum over stages of proposal densities; 0 where there is no point.
        proposals: of the stages so far: their components and mixture weights, stage x ...
        stage: number of stages.
    """

    x: Any
    values: Any
    log_laws: Any
    log_sums: Any
    proposals: tuple[Elliptical, Any]
    stage: Any

    @classmethod
    def empty(cls, problem: Integrals, first: Adapted, size: int, stages: int) -> Seen:
        """Room for the stages' points and proposals."""
        room = size * stages
        return cls(
            jnp.zeros((room, *problem.law.event_shape)),
            jnp.zeros((room, problem.num_functions)),
            jnp.full((room, problem.num_laws), -jnp.inf, float),
            jnp.zeros(room),
            jax.tree_util.tree_map(lambda a: jnp.stack([a] * stages), (first.found, first.log_weights)),
            jnp.asarray(0, "int32"),
        )

    def there(self) -> Any:
        """Which rows hold a point (room,)."""
        size = len(self.x) // len(self.proposals[1])
        return jnp.arange(len(self.x)) < self.stage * size

    def log_sampling(self) -> Any:
        """Log of the density that the points come from taken together: the balance heuristic."""
        return self.log_sums - jnp.log(jnp.maximum(self.stage, 1))

    def of_past(self, adapted: Adapted, x: Any) -> Any:
        """Log densities (stages, n) of points under the proposals, which share what is fixed of one."""
        same = jnp.concatenate([log_densities(adapted.law, x), log_parts(adapted.fixed, x)], 1)
        return jax.vmap(lambda p: mixed(jnp.concatenate([p[0].log_prob(x), same], 1), p[1]))(self.proposals)


@partial(jax.jit, static_argnames="how")
def digest(seen: Seen, adapted: Adapted, x: Any, values: Any, *, how: Adapting) -> tuple[Any, ...]:
    """Take in the points of one stage.

    Args:
        seen: so far.
        adapted: what the points were drawn from.
        x: (size, d).
        values: of the function there.
        how: to adapt.

    Returns:
        What has been seen now, the next proposal, the root of the variance of one draw from the present one,
        summed over integrands, and the largest relative standard deviation of one: both infinite where an
        integrand was zero at all of the points, which says nothing about it.
    """
    put, t = jax.lax.dynamic_update_slice_in_dim, seen.stage
    log_laws = log_densities(adapted.law, x)
    proposals = jax.tree_util.tree_map(
        lambda every, one: every.at[t].set(one), seen.proposals, (adapted.found, adapted.log_weights)
    )
    begin = t * len(x)
    now = replace(
        seen,
        x=put(seen.x, x, begin, 0),
        values=put(seen.values, values, begin, 0),
        log_laws=put(seen.log_laws, log_laws, begin, 0),
        proposals=proposals,
        stage=t + 1,
    )
    sums = balanced(seen.log_sums, now.x, x, t, adapted.proposal, now.of_past(adapted, x))
    now = replace(now, log_sums=jnp.where(now.there(), sums, 0.0))
    deviation, relative = _predicted(adapted, x, values, log_laws, t > 0, how)
    return now, _next(now, adapted, how), deviation, relative


def _predicted(
    adapted: Adapted, x: Any, values: Any, log_laws: Any, fitted: Any, how: Adapting
) -> tuple[Any, Any]:
    log_q = adapted.proposal.log_prob(x)[:, None]
    y = values * jnp.exp(log_laws - log_q)
    # squares of small numbers are zero in float32
    most = jnp.max(jnp.abs(y), 0)
    most = most if how.relative else jnp.full_like(most, jnp.max(most))
    most = jnp.where((most > 0) & jnp.isfinite(most), most, 1.0)
    y = y / most
    rest = y
    if how.controls:
        ratio = jnp.where(fitted, jnp.exp(adapted.own_log_densities(x) - log_q), 0.0)
        rest = y - _slopes(y, ratio) * ratio
    sd, mean = jnp.std(rest, 0), jnp.abs(jnp.mean(y, 0))
    unit = mean if how.relative else jnp.ones_like(mean)
    known = jnp.all(mean > 0)
    back = 1.0 if how.relative else most[0]  # absolute errors of different stages are compared
    return (
        jnp.where(known, jnp.sqrt(jnp.sum((sd / unit) ** 2)) * back, jnp.inf),
        jnp.where(known, jnp.max(sd / mean), jnp.inf),
    )


def _next(seen: Seen, adapted: Adapted, how: Adapting) -> Adapted:
    """Fit components to all integrands, and mix them.

    An integrand that was zero at all points is looked for in a law twice as wide after the first stage, four
    times after the second, and so on.
    """
    x, there, log_h = seen.x, seen.there(), seen.log_sampling()
    log_w = seen.log_laws - log_h[:, None]  # -inf where there is no point
    log_y = jnp.log(jnp.abs(seen.values)) + log_w
    unseen = jnp.all(log_y == -jnp.inf, 0)  # (J,) integrands that are zero at all points
    laws_tril = fit_elliptical(x, log_w).scale_tril
    found, shares = fit_populations(
        x,
        jnp.where(unseen, jnp.broadcast_to(log_w, log_y.shape), log_y),
        num_components=how.num_components,
        df=how.df,
        lean=jnp.broadcast_to(laws_tril @ laws_tril.mT, (log_y.shape[1], *laws_tril.shape[1:])),
    )
    further = jnp.repeat(jnp.where(unseen, _FURTHER**seen.stage, 1.0), how.num_components)
    found = replace(found, scale_tril=further[:, None, None] * found.scale_tril)

    log_g = found.log_prob(x)
    log_own = jax.nn.logsumexp(log_g.reshape(len(x), *shares.shape) + shares, 2)
    # integrands and their own controls over the sampling density: the smaller what is left, the better
    y = jnp.where(there[:, None], seen.values * jnp.exp(log_w), 0.0)
    control = jnp.where(there[:, None], jnp.exp(log_own - log_h[:, None]), 0.0)
    rest = y - _slopes(y, control, there.astype(y.dtype)) * control
    size = jnp.maximum(jnp.sum(jnp.abs(y), 0) / jnp.sum(there), jnp.finfo(y.dtype).tiny * 1e8)
    unit = size if how.relative else jnp.full_like(size, jnp.max(size))
    # proposals in proportion to the integrands' sizes make ratios flat
    log_weights = (jnp.log(size / unit)[:, None] + shares).reshape(-1)
    laws = log_w.shape[1]
    # the few points of an integrand that was hardly seen ask for no share of the mixture: it is kept for them
    enough = effective_sample_size(log_y, 0) >= how.num_components * (x.shape[1] + 1)
    hardly = jnp.repeat(~enough, how.num_components)
    log_fixed = log_parts(adapted.fixed, x)
    others = log_fixed.shape[1]
    fixed = jnp.where(hardly, (1 - how.defensive) / (len(hardly) + others), jnp.nan)
    # where there is no point the laws' densities were not looked at; nothing counts there
    outside = jnp.where(there[:, None], jnp.concatenate([seen.log_laws, log_fixed], 1), -1e3)
    log_weights = mixture_weights(
        jnp.concatenate([log_g, outside], 1) - log_h[:, None],
        jnp.sum((rest / unit) ** 2, 1),
        jnp.concatenate([log_weights, jnp.zeros(laws + others)]),
        jnp.concatenate([fixed, jnp.full(laws, how.defensive / laws), jnp.full(others, jnp.nan)]),
    )
    return replace(adapted, found=found, shares=shares, log_weights=log_weights)


def joined(log_sums: Any, before: Any, x: Any, of_past: Any, proposal: Any, size: int) -> Any:
    """Log densities that the points of all stages and of a final sample come from, taken together.

    Args:
        log_sums: (count,) of the stages' points, as :func:`balanced` has them.
        before: (count, d) those points.
        x: (n, d) the final sample.
        of_past: (stages, n) log densities of ``x`` under the stages' proposals; -inf of those not drawn from.
        proposal: what ``x`` was drawn from; has ``log_prob``.
        size: points of a stage.

    Returns:
        (count + n,).
    """
    log_n, log_size = jnp.log(len(x)), jnp.log(size)
    new = jnp.logaddexp(proposal.log_prob(x) + log_n, jax.nn.logsumexp(of_past, 0) + log_size)
    old = jnp.logaddexp(log_sums + log_size, proposal.log_prob(before) + log_n)
    return jnp.concatenate([old, new]) - jnp.log(len(before) + len(x))


@partial(jax.jit, static_argnames="count")
def with_final(seen: Seen, adapted: Adapted, x: Any, values: Any, *, count: int) -> tuple[Any, Any, Any]:
    """Points, values and log sampling densities of the ``count`` draws of stages and a final sample."""
    stages = len(seen.proposals[1])
    size = len(seen.x) // stages
    drawn = jnp.arange(stages)[:, None] < seen.stage
    of_past = jnp.where(drawn, seen.of_past(adapted, x), -jnp.inf)
    before = seen.x[:count]
    log_q = joined(seen.log_sums[:count], before, x, of_past, adapted.proposal, size)
    return jnp.concatenate([before, x]), jnp.concatenate([seen.values[:count], values]), log_q


@jax.jit
def own_slopes(seen: Seen, adapted: Adapted) -> Any:
    """Coefficients (J,) of the integrands' own controls, from the points so far."""
    log_h = seen.log_sampling()
    y = seen.values * jnp.exp(seen.log_laws - log_h[:, None])
    log_q = adapted.proposal.log_prob(seen.x)
    own = jnp.exp(adapted.own_log_densities(seen.x) - log_q[:, None])
    there = seen.there()
    # as if drawn from the proposal: y and the control divided by its density, points weighted by q / h
    weight = jnp.where(there, jnp.exp(log_q - log_h), 0.0)
    counts = weight > 0  # elsewhere the proposal's density underflows, and what is divided by it overflows
    y = jnp.where(counts[:, None], y * jnp.exp(jnp.where(counts, log_h - log_q, 0.0))[:, None], 0.0)
    return _slopes(y, jnp.where(counts[:, None], own, 0.0), weight)
