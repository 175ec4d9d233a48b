"""Which discrete sites of a program can be summed out, and how; found once, when the program is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.errors import CapabilityError
from mcx.model import capture
from mcx.model.density import sample_sites, site_log_prob
from mcx.model.discrete_tables import NotFinite, Tables, Variable, values_of, variable_of
from mcx.model.elimination import Intractable, eliminate
from mcx.model.replay import replay
from mcx.sites import Site, SiteTable
from mcx.types import Key, PyTree, SiteValues

type Run = Callable[[PyTree], Callable[[], Any]]


@dataclass(frozen=True)
class DiscretePlan:
    """The discrete sites to sum out, and what depends on them.

    Attributes:
        variables: by name.
        densities: sites whose log density depends on them.
    """

    variables: Mapping[str, Variable]
    densities: frozenset[str]


def program(run: Run, data: PyTree, z: SiteValues, joint: frozenset[str]) -> Callable[..., Any]:
    """``values of discrete sites -> (log densities, all values, other sites' values)``, each by site."""

    def at(values: SiteValues) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        trace = replay(run(data), z, values)
        densities = {s["name"]: site_log_prob(s) for s in sample_sites(trace)}
        listed = {name: values_of(trace[name]["fn"], name in joint) for name in values}
        others = {
            name: s["value"]
            for name, s in trace.items()
            if s["type"] == "deterministic" or (s["type"] == "sample" and name in z)
        }
        return densities, listed, jax.tree_util.tree_map(jnp.asarray, others)

    return at


def tables(run: Run, data: PyTree, z: SiteValues, variables: Mapping[str, Variable]) -> Tables:
    """The tables of a program at an unconstrained point."""
    joint = frozenset(n for n, v in variables.items() if v.joint)
    return Tables(program(run, data, z, joint), variables)


def discrete_plan(
    run: Run, data: PyTree, sites: SiteTable, concrete: bool
) -> DiscretePlan | CapabilityError | None:
    """How to sum out the discrete sites of a program; why it cannot be done; None if there are none.

    ``concrete`` says whether the data have values: the sum is then compared with the joint density.
    """
    try:
        return _plan(run, data, sites, concrete)
    except CapabilityError as error:
        return error


def _plan(run: Run, data: PyTree, sites: SiteTable, concrete: bool) -> DiscretePlan | CapabilityError | None:
    names = [s.name for s in sites.of_kind("discrete")]
    hidden = sites.of_kind("latent", "discrete")
    # states of series are for particles, or for gradients along the path
    series = any(s.markov or s.scanned for s in hidden)
    random_part = any(s.subsample_size is not None for s in sites)
    if not names or series or random_part or not all(map(_may, sites)):
        return None
    shapes = {s.name: jnp.zeros(s.unconstrained_shape) for s in sites.of_kind("latent")}
    joint: frozenset[str] = frozenset()
    for _ in range(2):
        found = _structure(run, data, sites, shapes, names, joint)
        if isinstance(found, CapabilityError):
            return found
        plan, coupled = found
        if not coupled and (not concrete or _agrees(run, data, sites, plan)):
            return plan
        joint = frozenset(coupled or (n for n, v in plan.variables.items() if v.plates)) | joint
        if all(plan.variables[n].joint for n in joint):
            break
    return CapabilityError(
        "the members of this discrete site depend on each other in a way that no plate declares",
        site=sorted(joint)[0] if joint else names[0],
        expected="densities of each member on its own, within the site's plate",
        remedy="write chains with mcx.markov or numpyro.contrib.control_flow.scan",
    )


def _may(site: Site) -> bool:
    return site.kind != "discrete" or (site.discrete_support and not site.no_density)


def _structure(
    run: Run, data: PyTree, sites: SiteTable, z: SiteValues, names: list[str], joint: frozenset[str]
) -> tuple[DiscretePlan, set[str]] | CapabilityError:
    """The plan for a choice of joint variables, and which of the others are coupled; nothing is computed."""
    found: list[Any] = []

    def look(data: PyTree, z: SiteValues) -> None:
        trace = capture.record(
            run(data), key=jax.random.key(0), substitute_fn=capture.unconstrained_prototype
        ).sites
        variables = {}
        for name in names:
            try:
                variables[name] = variable_of(trace[name], name in joint)
            except NotFinite as error:
                found.append(_too_many(sites, name, str(error), name in joint))
                return
        made = tables(run, data, z, variables)
        depends = {output for output, over in made.dependences.items() if over}
        moving = [name for part, name in depends if part == 2 and name in z]
        moving += [name for part, name in depends if part == 1]
        if moving:
            found.append(
                CapabilityError(
                    "the support of this site depends on a discrete site, which is summed out",
                    site=moving[0],
                    remedy="sample it from a fixed support and scale it in the model",
                )
            )
            return
        densities = frozenset(name for part, name in depends if part == 0)
        plan = DiscretePlan(variables, densities)
        coupled = made.coupled()
        if not coupled:
            try:
                eliminate([made.factor(n) for n in sorted(densities)], plates(variables))
            except Intractable as error:
                found.append(
                    CapabilityError(
                        f"discrete sites cannot be summed out: {error}",
                        site=names[0],
                        expected="tables of 16 million entries at most, and plates within plates",
                    )
                )
                return
        found.append((plan, coupled))

    jax.eval_shape(look, data, z)
    result: tuple[DiscretePlan, set[str]] | CapabilityError = found[0]
    return result


def plates(variables: Mapping[str, Variable]) -> dict[str, frozenset[int]]:
    """Plates by variable."""
    return {n: v.plates for n, v in variables.items()}


def _too_many(sites: SiteTable, name: str, count: str, joint: bool) -> CapabilityError:
    why = "; its members depend on each other, so that all their combinations count" if joint else ""
    return CapabilityError(
        f"a discrete latent variable ({sites[name].distribution}) cannot be summed out: {count}{why}",
        site=name,
        expected="4096 values at most",
        remedy="sum it out by hand (for mixtures: dist.MixtureSameFamily), or bound it; simulate, predict "
        "and log_density take discrete sites as they are",
    )


def _agrees(run: Run, data: PyTree, sites: SiteTable, plan: DiscretePlan) -> bool:
    """Whether tables give the joint density of random values, to rounding."""
    shapes = {s.name: s.unconstrained_shape for s in sites.of_kind("latent")}

    def compare(data: PyTree, key: Key) -> tuple[Array, Array, Array]:
        at, which = jax.random.split(key)
        z = {
            n: jax.random.uniform(jax.random.fold_in(at, i), shape, minval=-1, maxval=1)
            for i, (n, shape) in enumerate(shapes.items())
        }
        made = tables(run, data, z, plan.variables)
        chosen = {
            n: jax.random.randint(
                jax.random.fold_in(which, i), () if v.joint else v.batch_shape, 0, v.num_values
            )
            for i, (n, v) in enumerate(plan.variables.items())
        }
        values = {n: pick(made.values[n], plan.variables[n], chosen[n]) for n in chosen}
        exact = program(run, data, z, frozenset(n for n, v in plan.variables.items() if v.joint))(values)[0]
        joint = sum(jnp.sum(exact[n]) for n in plan.densities)
        size = sum(jnp.sum(jnp.abs(exact[n])) for n in plan.densities)
        factors = [made.factor(n) for n in sorted(plan.densities)]
        total = sum(jnp.sum(_look_up(f, plan.variables, chosen)) for f in factors)
        return jnp.asarray(joint), jnp.asarray(total), jnp.asarray(size)

    keys = jax.random.split(jax.random.key(0), 4)
    joint, total, size = map(np.asarray, jax.jit(jax.vmap(compare, (None, 0)))(data, keys))
    finite = np.isfinite(joint) & np.isfinite(total)
    with np.errstate(invalid="ignore"):
        close = np.abs(joint - total) <= 1e-4 * (1 + size)
    return bool(np.all(np.where(finite, close, (joint == total) | np.isnan(joint))))


def pick(values: Array, variable: Variable, index: Array) -> Array:
    """The site's value where its members have these numbers of values."""
    if variable.joint:
        return values[index]
    events = len(variable.shape) - len(variable.batch_shape)
    where = index.reshape(1, *variable.batch_shape, *(1,) * events)
    return jnp.take_along_axis(values, where, 0)[0]


def _look_up(factor: Any, variables: Mapping[str, Variable], chosen: Mapping[str, Array]) -> Array:
    """Entries of a factor at chosen values, over its plates."""
    lead = len(factor.variables)
    sizes = factor.log.shape[lead:]
    index: list[Array] = []
    for name in factor.variables:
        own = chosen[name]
        shape = [variables[name].batch_shape[p] if p in variables[name].plates else 1 for p in factor.plates]
        index.append(jnp.broadcast_to(own.reshape(shape), sizes))
    grid = jnp.meshgrid(*(jnp.arange(n) for n in sizes), indexing="ij") if sizes else []
    return factor.log[(*index, *grid)]
