"""Proposals for expectations under laws: components fitted to each integrand, beside the laws themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.estimators.importance.adaptation import fit_populations, mixture_weights
from mcx.estimators.importance.history import History, append
from mcx.estimators.importance.integrals import Integrals
from mcx.estimators.importance.proposals import (
    Elliptical,
    Mixture,
    Part,
    fit_elliptical,
    log_densities,
    log_parts,
    mixed,
    num_components,
)
from mcx.ops.logspace import effective_sample_size
from mcx.types import Array, Float, Key, Scalar

_FURTHER = 2.0  # by how much the search for an integrand that was zero at all draws widens each iteration


class Adaptation(NamedTuple):
    """How proposals follow the draws; hashable, as it shapes programs. See ``AdaptiveImportance``.

    relative: whether relative errors count, or absolute ones.
    controls: whether the result will have control variates.
    """

    num_components: int
    df: float | None
    defensive: float
    relative: bool
    controls: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LawProposal:
    """A mixture of components that were fitted to each integrand, the laws, and the user's proposals.

    Attributes:
        fitted: J k components, those of an integrand one after another.
        shares: (J, k) their log weights within an integrand's fit.
        log_weights: of the mixture: of the fitted components, the laws and the fixed parts.
    """

    fitted: Elliptical
    shares: Float[Array, "J k"]
    law: dist.Distribution
    fixed: tuple[Part, ...]
    log_weights: Float[Array, " C"]

    @classmethod
    def first(cls, problem: Integrals, adaptation: Adaptation, fixed: tuple[Part, ...] = ()) -> LawProposal:
        """The laws, and an equal share of the fixed parts; the fitted components have no share yet."""
        d, count = problem.law.event_shape[0], problem.count * adaptation.num_components
        dtype = jnp.result_type(float)
        tril = np.broadcast_to(np.eye(d), (count, d, d))
        fitted = Elliptical(jnp.zeros((count, d)), jnp.asarray(tril, dtype), adaptation.df)
        others = sum(map(num_components, fixed))
        share = np.log(problem.num_laws / max(others, 1))
        weights = np.repeat([-np.inf, 0.0, share], [count, problem.num_laws, others])
        shares = jnp.zeros((problem.count, adaptation.num_components))
        return cls(fitted, shares, problem.law, fixed, jnp.asarray(weights, dtype))

    @property
    def mixture(self) -> Mixture:
        """What is drawn from."""
        return Mixture((self.fitted, self.law, *self.fixed), self.log_weights)

    @property
    def kept(self) -> tuple[Elliptical, Float[Array, " C"]]:
        """What differs between iterations: the laws and the fixed parts stay as they are."""
        return self.fitted, self.log_weights

    def sample(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Independent draws."""
        return self.mixture.sample(key, n)

    def log_prob(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Log density at points."""
        return self.mixture.log_prob(x)

    def log_past(
        self, kept: tuple[Elliptical, Float[Array, "iteration C"]], x: Float[Array, "n d"]
    ) -> Float[Array, "iteration n"]:
        """Log densities of points under the proposals of all iterations."""
        same = jnp.concatenate([log_densities(self.law, x), log_parts(self.fixed, x)], 1)
        return jax.vmap(lambda p: mixed(jnp.concatenate([p[0].log_prob(x), same], 1), p[1]))(kept)

    @jax.jit
    def own_log_densities(self, x: Float[Array, "n d"]) -> Float[Array, "n J"]:
        """Log densities of the integrands' own fits."""
        log_g = self.fitted.log_prob(x).reshape(len(x), *self.shares.shape)
        return jax.nn.logsumexp(log_g + self.shares, 2)


def empty_history(problem: Integrals, first: LawProposal, room: int, num_iterations: int) -> History:
    """Room for draws, the function's values (room, J or 1), and the laws' log densities (room, laws)."""
    values = jnp.zeros((room, problem.num_functions)), jnp.full((room, problem.num_laws), -jnp.inf, float)
    return History.empty(problem.law.event_shape[0], values, first, num_iterations)


@partial(jax.jit, static_argnames="adaptation")
def digest(
    history: History,
    proposal: LawProposal,
    x: Float[Array, "n d"],
    values: Float[Array, "n J"],
    *,
    adaptation: Adaptation,
) -> tuple[History, LawProposal, Scalar, Scalar]:
    """Add the draws of one iteration to the history, and fit the next proposal: an ``Iteration``."""
    log_laws = log_densities(proposal.law, x)
    now = append(history, x, (values, log_laws), proposal)
    deviation, relative = _predicted(proposal, x, values, log_laws, history.iteration > 0, adaptation)
    return now, _next(now, proposal, adaptation), deviation, relative


def _slopes(y: Array, control: Array, weights: Array | None = None) -> Array:
    """Regression coefficients of each column on the same column of the control."""
    w = jnp.ones(len(y), y.dtype) if weights is None else weights
    w = w / jnp.sum(w)
    centred = control - w @ control
    variance = w @ centred**2
    return (w @ (centred * (y - w @ y))) / jnp.where(variance > 0, variance, 1.0)


def _predicted(
    proposal: LawProposal, x: Array, values: Array, log_laws: Array, fitted: Array, adaptation: Adaptation
) -> tuple[Scalar, Scalar]:
    log_q = proposal.log_prob(x)[:, None]
    y = values * jnp.exp(log_laws - log_q)
    # squares of small numbers are zero in float32
    most = jnp.max(jnp.abs(y), 0)
    most = most if adaptation.relative else jnp.full_like(most, jnp.max(most))
    most = jnp.where((most > 0) & jnp.isfinite(most), most, 1.0)
    y = y / most
    rest = y
    if adaptation.controls:
        ratio = jnp.where(fitted, jnp.exp(proposal.own_log_densities(x) - log_q), 0.0)
        rest = y - _slopes(y, ratio) * ratio
    sd, mean = jnp.std(rest, 0), jnp.abs(jnp.mean(y, 0))
    unit = mean if adaptation.relative else jnp.ones_like(mean)
    known = jnp.all(mean > 0)
    back = 1.0 if adaptation.relative else most[0]  # absolute errors of different iterations are compared
    return (
        jnp.where(known, jnp.sqrt(jnp.sum((sd / unit) ** 2)) * back, jnp.inf),
        jnp.where(known, jnp.max(sd / mean), jnp.inf),
    )


def _next(history: History, proposal: LawProposal, adaptation: Adaptation) -> LawProposal:
    """Fit components to all integrands, and mix them; unseen integrands are looked for ever further out."""
    x, drawn, log_h = history.x, history.drawn(), history.log_sampling()
    values, log_laws = history.values
    log_w = log_laws - log_h[:, None]  # -inf where there is no draw
    log_y = jnp.log(jnp.abs(values)) + log_w
    unseen = jnp.all(log_y == -jnp.inf, 0)  # (J,) integrands that are zero at all draws
    laws_tril = fit_elliptical(x, log_w).scale_tril
    fitted, shares = fit_populations(
        x,
        jnp.where(unseen, jnp.broadcast_to(log_w, log_y.shape), log_y),
        num_components=adaptation.num_components,
        df=adaptation.df,
        shrink_to=jnp.broadcast_to(laws_tril @ laws_tril.mT, (log_y.shape[1], *laws_tril.shape[1:])),
    )
    further = jnp.repeat(jnp.where(unseen, _FURTHER**history.iteration, 1.0), adaptation.num_components)
    fitted = replace(fitted, scale_tril=further[:, None, None] * fitted.scale_tril)

    log_g = fitted.log_prob(x)
    log_own = jax.nn.logsumexp(log_g.reshape(len(x), *shares.shape) + shares, 2)
    # integrands and their own controls over the sampling density: the smaller what is left, the better
    y = jnp.where(drawn[:, None], values * jnp.exp(log_w), 0.0)
    control = jnp.where(drawn[:, None], jnp.exp(log_own - log_h[:, None]), 0.0)
    rest = y - _slopes(y, control, drawn.astype(y.dtype)) * control
    size = jnp.maximum(jnp.sum(jnp.abs(y), 0) / jnp.sum(drawn), jnp.finfo(y.dtype).tiny * 1e8)
    unit = size if adaptation.relative else jnp.full_like(size, jnp.max(size))
    # proposals in proportion to the integrands' sizes make ratios flat
    log_weights = (jnp.log(size / unit)[:, None] + shares).reshape(-1)
    laws = log_w.shape[1]
    # An integrand that hardly any draw saw is too uncertain to choose its share: a fixed one is kept for it.
    enough = effective_sample_size(log_y, 0) >= adaptation.num_components * (x.shape[1] + 1)
    hardly = jnp.repeat(~enough, adaptation.num_components)
    log_fixed = log_parts(proposal.fixed, x)
    others = log_fixed.shape[1]
    held = jnp.where(hardly, (1 - adaptation.defensive) / (len(hardly) + others), jnp.nan)
    # rows without a draw have no densities of the laws; nothing counts there
    outside = jnp.where(drawn[:, None], jnp.concatenate([log_laws, log_fixed], 1), -1e3)
    log_weights = mixture_weights(
        jnp.concatenate([log_g, outside], 1) - log_h[:, None],
        jnp.sum((rest / unit) ** 2, 1),
        jnp.concatenate([log_weights, jnp.zeros(laws + others)]),
        jnp.concatenate([held, jnp.full(laws, adaptation.defensive / laws), jnp.full(others, jnp.nan)]),
    )
    return replace(proposal, fitted=fitted, shares=shares, log_weights=log_weights)


@jax.jit
def own_slopes(history: History, proposal: LawProposal) -> Float[Array, " J"]:
    """Coefficients of the integrands' own controls, from the draws so far."""
    log_h = history.log_sampling()
    values, log_laws = history.values
    y = values * jnp.exp(log_laws - log_h[:, None])
    log_q = proposal.log_prob(history.x)
    own = jnp.exp(proposal.own_log_densities(history.x) - log_q[:, None])
    # as if drawn from the proposal: y and the control divided by its density, draws weighted by q / h
    weight = jnp.where(history.drawn(), jnp.exp(log_q - log_h), 0.0)
    counts = weight > 0  # elsewhere the proposal's density underflows, and what is divided by it overflows
    y = jnp.where(counts[:, None], y * jnp.exp(jnp.where(counts, log_h - log_q, 0.0))[:, None], 0.0)
    return _slopes(y, jnp.where(counts[:, None], own, 0.0), weight)
