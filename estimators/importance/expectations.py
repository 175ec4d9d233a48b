"""Expectations of functions under laws, many from one sample, by adaptive importance sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from mcx.estimators.importance.adaptive_importance import AdaptiveImportance, Iteration, explore
from mcx.estimators.importance.history import History, all_draws
from mcx.estimators.importance.integrals import Integrals, integrals
from mcx.estimators.importance.known_means import EstimatedMeans, KnownMeans
from mcx.estimators.importance.law_proposals import Adaptation, LawProposal, digest, empty_history, own_slopes
from mcx.estimators.importance.proposals import as_part
from mcx.estimators.importance.weighted_average import estimate_from
from mcx.ops.keys import as_key
from mcx.ops.tracing import refuse_tracing
from mcx.ops.validation import function as a_function
from mcx.ops.validation import instance, optional, refuse, validated
from mcx.results.estimate import Estimate
from mcx.types import Array, Key, KeyLike, PyTree

_METHOD = optional(instance(AdaptiveImportance, "an AdaptiveImportance"))
_CONTROLS = optional(instance((KnownMeans, EstimatedMeans), "KnownMeans(...) or EstimatedMeans(...)"))
_OF_CONTROLS = 0x6D65616E  # a number for fold_in that no iteration has


def expectations(
    function: Callable[[Array], PyTree],
    law: dist.Distribution,
    *,
    method: AdaptiveImportance | None = None,
    controls: KnownMeans | EstimatedMeans | None = None,
    key: KeyLike,
) -> Estimate:
    """Estimate one function's expectations under many laws, or many functions' under one, from one sample.

    Args:
        function: of a point (d,): a number, an array or a pytree; traced by JAX, once for each number of
            points: a second call with the same function object compiles nothing.
        law: a NumPyro distribution of event shape (d,); with a batch (J,), J laws, under each of which the
            expectation of the function, then a number, is estimated.
        method: settings; ``AdaptiveImportance()`` by default.
        controls: control variates of your own, beside those of the method: functions whose expectations under
            a single law are known, :class:`KnownMeans`, or are estimated from many draws of it,
            :class:`EstimatedMeans`.
        key: a typed JAX key or an int.

    Returns:
        Values and standard errors, in the structure of the function's values or (J,). ``stats``: see
        :func:`~mcx.estimators.importance.weighted_average.estimate_from`, and ``num_iterations``. Costs
        ``method.budget`` evaluations of the function.

    Raises:
        DataError: if the law has another shape, or both law and function are many, or the function returns no
            number.
        MethodError: within functions that JAX traces; if method or controls are something else, or means come
            from fewer draws than the budget.
        NonFiniteError: if the function is not finite where it was evaluated.

    Source: see :class:`AdaptiveImportance`.

    Example:
        >>> import jax.numpy as jnp, mcx.dist as dist
        >>> from mcx.estimators import expectations
        >>> law = dist.Normal(0.0, 1.0).expand([1]).to_event(1)
        >>> expectations(lambda x: {"fourth": x[0] ** 4, "tail": x[0] > 3.0}, law, key=0)  # doctest: +SKIP
    """
    refuse_tracing("estimators.expectations", "call it outside of jit, vmap and grad", law, key)
    validated("expectations", "function", function, a_function())
    method = validated("expectations", "method", method, _METHOD) or AdaptiveImportance()
    controls = validated("expectations", "controls", controls, _CONTROLS)
    if isinstance(controls, EstimatedMeans) and controls.num_draws < method.budget:
        least = (
            f"at least {method.budget}, the method's budget, or the means' errors cost more than they save"
        )
        refuse("EstimatedMeans", "num_draws", controls.num_draws, least, "take ten times the budget")
    return estimate(integrals(function, law), method, controls, key=as_key(key))


def estimate(
    problem: Integrals,
    method: AdaptiveImportance,
    controls: KnownMeans | EstimatedMeans | None = None,
    *,
    key: Key,
) -> Estimate:
    """Estimate the expectations of a problem; see :func:`expectations`."""
    known = None
    if controls is not None:
        known = controls.prepare(problem, jax.random.fold_in(key, _OF_CONTROLS))
    relative, controlled = method.criterion == "relative", method.controls != "none"
    adaptation = Adaptation(method.num_components, method.df, method.defensive, relative, controlled)
    first = LawProposal.first(problem, adaptation, tuple(map(as_part, method.proposals)))
    room = method.iteration_size * method.num_iterations

    def iterate(key: Key, history: History, proposal: LawProposal) -> Iteration[LawProposal]:
        x = proposal.sample(key, method.iteration_size)
        return digest(history, proposal, x, problem.values(x), adaptation=adaptation)

    keys = _successive(key)
    history, proposal, count = explore(
        method, iterate, empty_history(problem, first, room, method.num_iterations), first, keys
    )
    used = method.iteration_size * count
    x = proposal.sample(next(keys), method.budget - used)
    values = problem.values(x)
    if method.samples == "all":
        x, log_q = all_draws(history, proposal, x, count=used)
        values = jnp.concatenate([history.values[0][:used], values])
    else:
        log_q = proposal.log_prob(x)
    average = partial(
        estimate_from, problem, x, values, log_q, fit=method.fit, num_evaluations=method.budget,
        known=None if known is None else known.at(problem, x),
    )  # fmt: skip
    if method.controls == "own":
        found = average(own=(proposal.own_log_densities(x), own_slopes(history, proposal)))
    elif method.controls == "all":
        found = average(log_components=proposal.mixture.log_components(x))
    else:
        found = average(controls=False)
    return replace(found, stats={**found.stats, "num_iterations": count})


def _successive(key: Key) -> Iterator[Key]:
    while True:
        key, one = jax.random.split(key)
        yield one
