"""What the stages of an adaptive sampler have seen, and the proposals they lead to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.estimators.adaptation import fit_populations, mixture_weights
from mcx.estimators.expectations import Integrals
from mcx.estimators.proposals import Elliptical, Mixture, fit_elliptical

__all__ = ["Adapted", "Seen", "slopes"]

_FURTHER = 2.0  # how much wider than its law an integrand is looked for that has been zero everywhere


def slopes(y: Any, control: Any, weights: Any = None) -> Any:
    """Regression coefficients (J,) of each column of (n, J) on the same column of the control."""
    w = jnp.ones(len(y), y.dtype) if weights is None else weights
    w = w / jnp.sum(w)
    centred = control - w @ control
    variance = w @ centred**2
    return (w @ (centred * (y - w @ y))) / jnp.where(variance > 0, variance, 1.0)


class Adapted(NamedTuple):
    """A proposal, and the components that were fitted to each integrand.

    proposal: what is drawn from.
    found: J k components, those of an integrand one after another; None before anything was fitted.
    shares: (J, k) their log weights within an integrand's fit.
    """

    proposal: Mixture
    found: Elliptical | None
    shares: Any

    def own_log_densities(self, x: Any) -> Any:
        """Log densities (n, J) of the integrands' own fits."""
        assert self.found is not None
        log_g = self.found.log_prob(x).reshape(len(x), *self.shares.shape)
        return jax.nn.logsumexp(log_g + self.shares, 2)

    def own_ratios(self, x: Any) -> Any:
        """The same over the proposal's: controls with mean 1."""
        return jnp.exp(self.own_log_densities(x) - self.proposal.log_prob(x)[:, None])


@dataclass(frozen=True)
class Seen:
    """Points of all stages, in arrays with room for those to come: one compiled program serves all stages.

    Attributes:
        x: (room, d).
        values: (room, J) or (room, 1).
        log_laws: (room, laws); -inf where there is no point yet.
        log_sums: (room,) log of the sum over stages of size x proposal density; 0 where there is no point.
        proposals: of the stages so far.
        count: number of points.
    """

    x: Any
    values: Any
    log_laws: Any
    log_sums: Any
    proposals: tuple[Mixture, ...]
    count: int

    @classmethod
    def empty(cls, problem: Integrals, room: int) -> Seen:
        """Nothing yet."""
        dtype = jnp.result_type(float)
        return cls(
            jnp.zeros((room, *problem.law.event_shape), dtype),
            jnp.zeros((room, problem.num_functions), dtype),
            jnp.full((room, problem.num_laws), -jnp.inf, dtype),
            jnp.zeros(room, dtype),
            (),
            0,
        )

    def with_stage(self, problem: Integrals, x: Any, values: Any, proposal: Mixture) -> Seen:
        """The points of one more stage, drawn from ``proposal``, in the rows after the present ones."""
        size = len(x)
        here = slice(self.count, self.count + size)
        points = self.x.at[here].set(x)
        new = proposal.log_prob(points) + jnp.log(size)
        for earlier in self.proposals:  # of the new points; all stages are of one size
            new = new.at[here].set(jnp.logaddexp(new[here], earlier.log_prob(x) + jnp.log(size)))
        old = jnp.arange(len(points)) < self.count
        log_sums = jnp.where(old, jnp.logaddexp(self.log_sums, new), 0.0).at[here].set(new[here])
        return Seen(
            points,
            self.values.at[here].set(values),
            self.log_laws.at[here].set(problem.log_laws(x)),
            log_sums,
            (*self.proposals, proposal),
            self.count + size,
        )

    def with_final(self, problem: Integrals, x: Any, values: Any, proposal: Mixture) -> Seen:
        """The points so far together with a final sample, without room for more."""
        stage = self.count // max(len(self.proposals), 1)
        new = proposal.log_prob(x) + jnp.log(len(x))
        for earlier in self.proposals:
            new = jnp.logaddexp(new, earlier.log_prob(x) + jnp.log(stage))
        before = slice(0, self.count)
        old = jnp.logaddexp(self.log_sums[before], proposal.log_prob(self.x[before]) + jnp.log(len(x)))
        return Seen(
            jnp.concatenate([self.x[before], x]),
            jnp.concatenate([self.values[before], values]),
            jnp.concatenate([self.log_laws[before], problem.log_laws(x)]),
            jnp.concatenate([old, new]),
            (*self.proposals, proposal),
            self.count + len(x),
        )

    def log_sampling(self) -> Any:
        """Log of the density that the points come from taken together: the balance heuristic."""
        return self.log_sums - jnp.log(self.count)

    def adapt(
        self, problem: Integrals, num_components: int, df: float | None, defensive: float, relative: bool
    ) -> Adapted:
        """Fit components to all integrands, and mix them.

        Args:
            problem: whose integrands.
            num_components: for each.
            df: degrees of freedom; None for Gaussians.
            defensive: share of the mixture that the laws keep.
            relative: whether relative errors count, or absolute ones.
        """
        there = jnp.arange(len(self.x)) < self.count
        found, shares, log_weights = _fit(
            self.x,
            self.values,
            self.log_laws,
            self.log_sampling(),
            there,
            num_components=num_components,
            df=df,
            defensive=defensive,
            relative=relative,
        )
        parts = (found, problem.law) if defensive else (found,)
        return Adapted(Mixture(parts, log_weights), found, shares)

    def own_slopes(self, adapted: Adapted) -> Any:
        """Coefficients (J,) of the integrands' own controls, from the points so far."""
        log_h = self.log_sampling()
        y = self.values * jnp.exp(self.log_laws - log_h[:, None])
        log_q = adapted.proposal.log_prob(self.x)
        own = jnp.exp(adapted.own_log_densities(self.x) - log_q[:, None])
        there = jnp.arange(len(self.x)) < self.count
        # as if drawn from the proposal: y and the control divided by its density, points weighted by q / h
        weight = jnp.where(there, jnp.exp(log_q - log_h), 0.0)
        y = jnp.where(there[:, None], y * jnp.exp(log_h - log_q)[:, None], 0.0)
        return slopes(y, own, weight)


@partial(jax.jit, static_argnames=("num_components", "df", "defensive", "relative"))
def _fit(
    x: Any,
    values: Any,
    log_laws: Any,
    log_h: Any,
    there: Any,
    *,
    num_components: int,
    df: float | None,
    defensive: float,
    relative: bool,
) -> tuple[Elliptical, Any, Any]:
    """Components, their shares in each integrand's fit, and the log weights of the mixture of all."""
    log_w = log_laws - log_h[:, None]  # -inf where there is no point
    log_y = jnp.log(jnp.abs(values)) + log_w
    unseen = jnp.all(log_y == -jnp.inf, 0)  # (J,) integrands that are zero at all points
    own_law = jnp.broadcast_to(log_w, log_y.shape)
    laws_tril = fit_elliptical(x, log_w).scale_tril
    lean = jnp.broadcast_to(laws_tril @ laws_tril.mT, (log_y.shape[1], *laws_tril.shape[1:]))
    found, shares = fit_populations(
        x,
        jnp.where(unseen, own_law, log_y),
        num_components=num_components,
        df=df,
        lean=lean,
    )
    further = jnp.repeat(jnp.where(unseen, _FURTHER, 1.0), num_components)
    found = replace(found, scale_tril=further[:, None, None] * found.scale_tril)
    log_g = found.log_prob(x)
    log_own = jax.nn.logsumexp(log_g.reshape(len(x), *shares.shape) + shares, 2)
    # integrands and their own controls over the sampling density: the smaller what is left, the better
    y = jnp.where(there[:, None], values * jnp.exp(log_w), 0.0)
    control = jnp.where(there[:, None], jnp.exp(log_own - log_h[:, None]), 0.0)
    rest = y - slopes(y, control, there.astype(y.dtype)) * control
    size = jnp.maximum(jnp.sum(jnp.abs(y), 0) / jnp.sum(there), jnp.finfo(y.dtype).tiny * 1e8)
    unit = size if relative else jnp.ones_like(size)
    # proposals in proportion to the integrands' sizes make ratios flat
    log_weights = (jnp.log(size / unit)[:, None] + shares).reshape(-1)
    # the few points of an integrand that was hardly seen ask for no share of the mixture: it is kept for them
    effective = jnp.exp(-jax.nn.logsumexp(2 * jax.nn.log_softmax(log_y, 0), 0))
    seen = effective >= num_components * (x.shape[1] + 1)  # not NaN, of no point
    hardly = jnp.repeat(~seen, num_components)
    fixed = jnp.where(hardly, (1 - defensive) / len(hardly), jnp.nan)
    if defensive:
        laws = log_laws.shape[1]
        # where there is no point the laws' densities were not looked at; nothing counts there
        log_g = jnp.concatenate([log_g, jnp.where(there[:, None], log_laws, -1e3)], 1)
        log_weights = jnp.concatenate([log_weights, jnp.zeros(laws)])
        fixed = jnp.concatenate([fixed, jnp.full(laws, defensive / laws)])
    excess = jnp.sum((rest / unit) ** 2, 1)
    return found, shares, mixture_weights(log_g - log_h[:, None], excess, log_weights, fixed)
