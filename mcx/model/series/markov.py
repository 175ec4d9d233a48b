"""``mcx.markov``: a Markov block, that is a Markov chain with emissions, as one statement of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro

from mcx.errors import ModelError
from mcx.model.capture import check_name
from mcx.model.handler_stack import active_plates, inside_model, scope_prefix
from mcx.model.path_law import Emission, Laws, PathComponent, PathLaw, bare, check_observations
from mcx.model.series.markov_arguments import (
    as_inputs,
    as_mask,
    by_key,
    check_emission,
    check_function,
    check_keys,
    laws_of,
    num_times,
)
from mcx.types import PyTree


@dataclass(frozen=True, eq=False)
class MarkovStatement:
    """An ``mcx.markov`` statement as it was run: functions that close over the model's parameters.

    Attributes:
        name: of the block, with the scopes of submodels.
        emission: ``(x, u) -> {observed site: distribution}``, or None.
        states, observed: full site names by component, and by emission.
        missing: masks by emission.
    """

    name: str
    law: PathLaw
    emission: Laws | None
    proposal: Laws | None
    initial_proposal: Laws | None
    lookahead: Callable[..., Any] | None
    states: dict[str, str]
    observed: dict[str, str]
    missing: dict[str, Any]


_BLOCKS: ContextVar[list[MarkovStatement] | None] = ContextVar("mcx_markov_blocks", default=None)


@contextmanager
def collect_statements() -> Iterator[list[MarkovStatement]]:
    """Collect the Markov statements that run within."""
    blocks: list[MarkovStatement] = []
    token = _BLOCKS.set(blocks)
    try:
        yield blocks
    finally:
        _BLOCKS.reset(token)


def markov(
    name: str,
    *,
    initial: Callable[..., Any],
    transition: Callable[..., Any],
    emission: Callable[..., Any] | None = None,
    obs: PyTree = None,
    inputs: PyTree = None,
    missing: PyTree = None,
    length: int | None = None,
    proposal: Callable[..., Any] | None = None,
    initial_proposal: Callable[..., Any] | None = None,
    lookahead: Callable[..., Any] | None = None,
) -> PyTree:
    """A Markov chain x_0, ..., x_{T-1} with observations y_0, ..., y_{T-1}; y_t belongs to x_t.

    The functions return a distribution, or a dictionary of them for a structured state (independent given the
    past; sites ``name.key``, and ``x`` is then a dictionary). They may close over the model's parameters.

    Args:
        name: of the site; the observed site is ``name_obs`` unless ``obs`` names it.
        initial: ``u_0 -> distribution`` of x_0.
        transition: ``(x_prev, u) -> distribution`` of x_t, with the shape and support of the initial one.
        emission: ``(x, u) -> distribution`` of y_t, or a dictionary of them by observed site.
        obs: (T, ...) array, or a dictionary of arrays by the emission's keys; None draws observations. NaN is
            a missing observation; a vector may be missing in part where its components are independent.
        inputs: pytree of known values with a leading axis of T, such as time-varying covariates; ``u`` is its
            t-th entry, and None where there are none.
        missing: mask (or dictionary of masks) of missing observations, for integers; True is missing.
        length: T, where it follows from neither ``obs`` nor ``inputs``.
        proposal: ``(x_prev, u, y) -> distribution`` to draw x_t from in guided particle filters; ``y`` is the
            observation of t, a dictionary where ``obs`` is one. The weights correct for it.
        initial_proposal: ``(u, y) -> distribution``, the same for x_0.
        lookahead: ``(x, u, y) -> scalar``, the log of a positive guess at the density of the *next*
            observation ``y`` (with inputs ``u``) given x, for auxiliary particle filters.

    Returns:
        The path: an array (T, ...), or a dictionary of them. Deterministic functions of it are fine; a
        likelihood on it is fine for MCMC but not for particle methods, which weight as they go.

    Raises:
        ModelError: outside of a model, within a plate, or if lengths, components, shapes or supports
            disagree.
    """
    if not inside_model():
        raise ModelError(
            "mcx.markov was called outside of a model",
            site=name,
            remedy="write it in a function decorated with @mcx.model, and call that with data",
        )
    if active_plates():
        raise ModelError(
            "a Markov block within a plate",
            site=name,
            found=", ".join(plate for plate, _, _ in active_plates()),
            remedy="put the series into the state: distributions of batch shape (num_series,) within the "
            "functions",
        )
    check_name(name)
    check_function(name, "initial", initial)
    check_function(name, "transition", transition)
    optional = {"emission": emission, "proposal": proposal}
    optional |= {"initial_proposal": initial_proposal, "lookahead": lookahead}
    for argument, fn in optional.items():
        if fn is not None:
            check_function(name, argument, fn)
    observations = by_key(name, "obs", obs)
    masks = by_key(name, "missing", missing)
    inputs = as_inputs(name, inputs)
    check_keys(name, observations, masks, emission is not None)
    length = num_times(name, observations, inputs, length)
    law = PathLaw(
        name, laws_of(name, "initial", initial), laws_of(name, "transition", transition), inputs, length
    )
    path = {}
    states = {key: f"{name}.{key}" if key else name for key in law.start}
    for key, site in states.items():
        path[key] = numpyro.sample(site, PathComponent(law, key))
        law.settle(key, path[key])
    prefix = scope_prefix()
    observed: dict[str, str] = {}
    emissions = None if emission is None else laws_of(name, "emission", emission)
    if emissions is not None:
        first = emissions(bare({k: v[0] for k, v in path.items()}), law.first_input)
        check_emission(name, first, observations)
        for key, emitted in first.items():
            observed[key] = key or f"{name}_obs"
            if key in observations:
                check_observations(observed[key], emitted, jnp.shape(observations[key]), length)
            if key in masks:
                masks[key] = as_mask(observed[key], masks[key], jnp.shape(observations[key]))
            numpyro.sample(
                observed[key],
                Emission(emissions, key, path, inputs, masks.get(key)),
                obs=observations.get(key),
            )
    blocks = _BLOCKS.get()
    if blocks is not None:
        blocks.append(
            MarkovStatement(
                prefix + name,
                law,
                emissions,
                None if proposal is None else laws_of(name, "proposal", proposal),
                None if initial_proposal is None else laws_of(name, "initial_proposal", initial_proposal),
                lookahead,
                {key: prefix + site for key, site in states.items()},
                {key: prefix + site for key, site in observed.items()},
                masks,
            )
        )
    return bare(path)
