"""Conditioning of a target on some of its sites: the density that one block of a Gibbs sampler moves on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.ops.provenance import eval_provenance

from mcx.errors import CapabilityError
from mcx.model.density import capability_error, target_functions
from mcx.ops.lru_cache import LRUCache
from mcx.sites import SiteTable
from mcx.target import Target
from mcx.types import PyTree

_CACHE: LRUCache[tuple[Any, ...]] = LRUCache()


def condition_target(target: Target, names: tuple[str, ...], hidden: tuple[str, ...] = ()) -> Target:
    """The joint density as a function of the other sites, without the densities of ``hidden`` ones.

    The target's data are ``(the target's data, {site: constrained value})``, with values that are
    placeholders; :meth:`Target.with_data` puts in others. Equal arguments share their functions.

    Raises:
        CapabilityError: if the support of another site depends on one of these, because its unconstrained
            coordinates would then change their meaning.
    """
    data = (target.data, placeholders(target.sites, names))

    def make() -> tuple[Any, ...]:
        made = _conditioned(target, names, hidden, data)
        _refuse_moving_supports(made)
        return made.functions, made.shapes, made.sites

    return Target(data, *_CACHE.get((target.functions, names, hidden), make))


def placeholders(sites: SiteTable, names: tuple[str, ...]) -> dict[str, Array]:
    """Zeros of the sites' shapes and dtypes."""
    return {name: jnp.zeros(sites[name].shape, sites[name].dtype) for name in names}


def _conditioned(target: Target, names: tuple[str, ...], hidden: tuple[str, ...], data: PyTree) -> Target:
    whole = target.functions.run

    def run(data: PyTree) -> Callable[[], Any]:
        model, values = data
        conditioned: Callable[[], Any] = handlers.condition(whole(model), data=values)
        return handlers.block(conditioned, hide=list(hidden)) if hidden else conditioned

    sites = target.sites
    observed = {
        n: replace(sites[n], kind="observed", no_density="" if n in hidden else sites[n].no_density)
        for n in names
    }
    kept = (observed.get(s.name, replace(s, num_values=0)) for s in sites)
    sites = SiteTable(tuple(kept), sites.model)
    shapes = tuple((name, shape) for name, shape in target.shapes if name not in names)
    return Target(data, target_functions(run, sites, hidden), shapes, sites)


def _refuse_moving_supports(target: Target) -> None:
    # sites in scans would all seem to depend on whatever is conditioned on in the same scan
    free = [name for name, _ in target.shapes if not target.sites[name].scanned]
    if not free or capability_error(target.sites) is not None:
        return  # a target without a density is refused by name where the density is evaluated
    z = {name: jnp.zeros(shape) for name, shape in target.shapes}
    model, values = target.data

    def constrained(**values: PyTree) -> dict[str, Array]:
        found = target.functions.constrain((model, values), z)
        return {name: found[name] for name in free}

    for name, sources in eval_provenance(constrained, **values).items():
        if sources:
            raise CapabilityError(
                "the support of this site depends on sites that are updated apart from it",
                site=name,
                expected="a support that does not depend on " + ", ".join(sorted(sources)),
                remedy="sample it from a fixed support and scale it in the model, or update both together",
            )
