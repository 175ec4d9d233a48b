"""The functions of a target whose discrete sites are summed out, and drawn back given the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mcx.model import capture
from mcx.model.bijections import bijection
from mcx.model.density import total
from mcx.model.discrete_plan import DiscretePlan, Run, pick, plates, tables
from mcx.model.discrete_tables import Tables, by_level
from mcx.model.elimination import Draw, Factor, Reduce, eliminate, log_sum_exp
from mcx.model.replay import replay
from mcx.sites import SiteTable
from mcx.target import LogParts, TargetFunctions
from mcx.types import Key, PyTree, Scalar, SiteValues


def marginal_functions(
    whole: TargetFunctions, run: Run, sites: SiteTable, plan: DiscretePlan
) -> TargetFunctions:
    """The functions of the target without its discrete sites."""
    variables, where = plan.variables, plates(plan.variables)
    latent = [s.name for s in sites.of_kind("latent")]
    prior_names, own = _split(sites, plan)

    def made(data: PyTree, z: SiteValues) -> Tables:
        return tables(run, data, z, variables)

    def log_sum(factors: list[Factor], reduce: Reduce = log_sum_exp) -> Scalar:
        return total([jnp.sum(f.log) for f in eliminate(factors, where, reduce)])

    def log_parts(data: PyTree, z: SiteValues) -> LogParts:
        table = made(data, z)
        alone = {n: jnp.sum(x) for n, x in table.densities.items() if n not in plan.densities}
        prior = total([x for n, x in alone.items() if n in prior_names])
        likelihood = total([x for n, x in alone.items() if n not in prior_names])
        both = log_sum([table.factor(n) for n in sorted(plan.densities)])
        before = _log_prior_sum(table)
        return LogParts(prior + before, likelihood + both - before)

    def _log_prior_sum(table: Tables) -> Scalar:
        """The sum without the likelihood: zero where laws of the discrete sites are all there is."""
        there = sorted(plan.densities & prior_names)
        return jnp.zeros(()) if set(there) <= own else log_sum([table.factor(n) for n in there])

    def chosen(table: Tables, reduce: Reduce) -> dict[str, Array]:
        """The gradient with respect to each site's own table: (values, *batch), or (values,)."""
        zeros = {
            n: jnp.zeros((v.num_values, *(v.batch_shape[p] for p in sorted(v.plates))))
            for n, v in variables.items()
        }

        def shifted(shift: Mapping[str, Array]) -> Scalar:
            extra = [Factor(shift[n], (n,), tuple(sorted(v.plates))) for n, v in variables.items()]
            return log_sum([*(table.factor(n) for n in sorted(plan.densities)), *extra], reduce)

        return {n: _by_member(x, variables[n]) for n, x in jax.grad(shifted)(zeros).items()}

    def draw(table: Tables, key: Key) -> dict[str, Array]:
        """Discrete sites drawn given the others."""
        index = {n: jnp.argmax(x, 0) for n, x in chosen(table, Draw(key)).items()}
        return {n: pick(table.values[n], v, index[n]) for n, v in variables.items()}

    def probabilities(data: PyTree, z: SiteValues) -> dict[str, Array]:
        """Posterior probabilities of each discrete site's levels given the others: (*shape, levels)."""
        return {n: by_level(x, variables[n]) for n, x in chosen(made(data, z), log_sum_exp).items()}

    def replayed(data: PyTree, z: SiteValues) -> capture.SiteTrace:
        return replay(run(data), z, draw(made(data, z), _key_of(z)))

    def constrain(data: PyTree, z: SiteValues) -> dict[str, Array]:
        return constrain_with(data, _key_of(z), z)

    def constrain_with(data: PyTree, key: Key, z: SiteValues) -> dict[str, Array]:
        table = made(data, z)
        drawn = draw(table, key)
        found = {**table.others(drawn), **drawn}
        return {s.name: found[s.name] for s in sites if s.name in found}

    def unconstrain(data: PyTree, values: SiteValues) -> dict[str, Array]:
        missing = {n: jnp.zeros(v.shape, v.dtype) for n, v in variables.items() if n not in values}
        trace = capture.record(run(data), values={**missing, **values}).sites
        return {n: bijection(trace[n]["fn"].support).inv(trace[n]["value"]) for n in latent}

    def pointwise(data: PyTree, z: SiteValues) -> dict[str, Array]:
        table = made(data, z)
        found = {}
        for name, x in table.densities.items():
            if name in prior_names:
                continue
            found[name] = _predictive(table, name) if name in plan.densities else x
        return found

    def _predictive(table: Tables, name: str) -> Array:
        """Log density of each observation given the others, the discrete sites summed out.

        That is what leave-one-out cross-validation needs (Buerkner, Gabry and Vehtari 2020); where nothing
        else is observed of the same members, it is the marginal density.
        """
        others = [table.factor(n) for n in sorted(plan.densities) if n != name]
        batch, over = table.shapes[(0, name)], table.dependences[(0, name)]
        group = _connected(others, over)
        local = table.plates_of(over)
        alone = not any(n in _likelihoods and _touches(table, n, group) for n in plan.densities if n != name)
        simple = alone and all(where[v] == local for v in group)
        own_axes = {i - len(batch) for i in range(len(batch)) if batch[i] > 1}
        if simple and own_axes <= local:
            inside = [f for f in others if set(f.variables) & group] + [table.factor(name)]
            kept = eliminate(inside, where, keep=local)
            summed = sum((f.log for f in kept), start=jnp.zeros(()))
            shape = [n if i - len(batch) in local else 1 for i, n in enumerate(batch)]
            return jnp.broadcast_to(jnp.reshape(summed, shape), batch)
        lead, axes = len(over), tuple(sorted(local))
        raw = table.densities[name]
        everything = log_sum([*others, table.factor(name)])

        def without(i: Array) -> Scalar:
            left = jnp.where(jnp.arange(raw[(0,) * lead].size).reshape(batch) == i, 0.0, raw)
            gone = tuple(lead + j for j in range(len(batch)) if j - len(batch) not in local)
            return everything - log_sum([*others, Factor(jnp.sum(left, gone), over, axes)])

        size = raw[(0,) * lead].size
        return jax.lax.map(without, jnp.arange(size)).reshape(batch)

    _likelihoods = plan.densities - prior_names

    def prior_terms(data: PyTree, z: SiteValues) -> dict[str, Array]:
        table = made(data, z)
        terms = {
            n: x
            for n, x in table.densities.items()
            if n in prior_names and n not in plan.densities and n in sites
        }
        if not plan.densities & prior_names <= own:
            terms["summed_out"] = _log_prior_sum(table)
        return terms

    return whole._replace(
        log_parts=log_parts,
        constrain=constrain,
        unconstrain=unconstrain,
        pointwise=pointwise,
        prior_terms=prior_terms,
        replayed=replayed,
        probabilities=probabilities,
        constrain_with=constrain_with,
    )


def _split(sites: SiteTable, plan: DiscretePlan) -> tuple[frozenset[str], frozenset[str]]:
    """Densities that belong to the prior, and those of discrete sites' own laws, which sum to one."""
    prior = {s.name for s in sites if s.kind in ("latent", "discrete", "deterministic")}
    prior |= {s.name for s in sites if s.kind == "factor" and not s.likelihood}
    prior |= {f"_{s.name}_log_det" for s in sites.of_kind("latent")}
    own = {n for n in plan.variables if not sites[n].weighted}
    return frozenset(prior), frozenset(own)


def _by_member(x: Array, variable: Any) -> Array:
    """(values, *batch) of what has an axis for each plate only."""
    if variable.joint:
        return x
    return x.reshape(x.shape[0], *variable.batch_shape)


def _connected(factors: list[Factor], start: tuple[str, ...]) -> set[str]:
    found = set(start)
    while more := {v for f in factors if set(f.variables) & found for v in f.variables} - found:
        found |= more
    return found


def _touches(table: Tables, name: str, group: set[str]) -> bool:
    return bool(set(table.dependences[(0, name)]) & group)


def _key_of(z: SiteValues) -> Key:
    """A random key that is a function of a point: draws do not depend on how a run is cut in pieces."""
    key = jax.random.key(0)
    for leaf in jax.tree_util.tree_leaves(z):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).reshape(-1)
        place = jnp.arange(1, bits.size + 1, dtype=jnp.uint32)
        for multiplier in (0x9E3779B1, 0x85EBCA77):  # odd multipliers of hashes, another for every place
            mixed = (bits ^ (bits >> 15)) * (place * jnp.uint32(multiplier) | 1)
            key = jax.random.fold_in(key, jnp.sum(mixed, dtype=jnp.uint32))
    return key
