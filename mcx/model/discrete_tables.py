"""Log densities of a program's sites as tables over the values of its discrete sites.

The program is traced once, as a function of the discrete values, and evaluated for all values of those sites
that a density depends on, and of no others. Members of a plate take each value at the same time: what a
member's density says of other members would be wrong, so that :mod:`~mcx.model.discrete_plan` checks it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.interpreters import partial_eval

from mcx.model.capture import Message
from mcx.model.elimination import Factor, Plates
from mcx.types import PyTree

MOST_VALUES = 4096  # of one site, or of all members of a coupled one together


class NotFinite(Exception):
    """A site has too many values, or infinitely many; the argument says how many."""


@dataclass(frozen=True)
class Variable:
    """A discrete site to sum out.

    Attributes:
        shape: of its value; ``batch_shape``: of its distribution.
        num_values: number of values of a member, or of all members together where ``joint``.
        plates: axes of the batch along which members have values of their own; none where ``joint``.
        num_levels: number of values of a single number.
    """

    name: str
    shape: tuple[int, ...]
    batch_shape: tuple[int, ...]
    dtype: str
    num_values: int
    plates: Plates
    joint: bool
    num_levels: int

    @property
    def num_members(self) -> int:
        """Of how many numbers one value consists."""
        return math.prod(self.shape if self.joint else self.shape[len(self.batch_shape) :])


def variable_of(site: Message, joint: bool) -> Variable:
    """What a discrete site is to the sum; raises NotFinite."""
    fn = site["fn"]
    values = jax.eval_shape(lambda: values_of(fn, joint))
    levels = jax.eval_shape(lambda: _listed(fn)).shape[0]
    batch = tuple(fn.batch_shape)
    plates = frozenset(i - len(batch) for i, n in enumerate(batch) if n > 1)
    return Variable(
        site["name"],
        tuple(fn.shape()),
        batch,
        values.dtype.name,
        values.shape[0],
        frozenset() if joint else plates,
        joint,
        levels,
    )


def values_of(fn: Any, joint: bool) -> Array:
    """All values of a site, (values, *shape); members of a plate have the same one, unless ``joint``."""
    listed = _listed(fn)
    events = math.prod(fn.event_shape[: fn.event_dim - listed.ndim + 1])
    members = events * (math.prod(fn.batch_shape) if joint else 1)
    count = listed.shape[0] ** members
    if count > MOST_VALUES:
        raise NotFinite(f"{listed.shape[0]}^{members} values" if members > 1 else f"{count} values")
    combinations = jnp.asarray(list(itertools.product(range(listed.shape[0]), repeat=members)))
    values = listed[combinations]  # (count, members, *event)
    lead = tuple(fn.batch_shape) if joint else (1,) * len(fn.batch_shape)
    return jnp.broadcast_to(
        values.reshape(count, *lead, *fn.event_shape), (count, *fn.batch_shape, *fn.event_shape)
    )


def _listed(fn: Any) -> Array:
    """The values of a single member, of shape (levels, *event)."""
    base = fn
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    if not getattr(base, "has_enumerate_support", False):
        raise NotFinite("infinitely many values, or more than can be listed")
    try:
        listed = base.enumerate_support(expand=False)
    except (NotImplementedError, jax.errors.ConcretizationTypeError):
        raise NotFinite("its bounds differ between members, or are not known before it runs") from None
    return jnp.reshape(listed, (listed.shape[0], *base.event_shape))


def by_level(probabilities: Array, variable: Variable) -> Array:
    """Probabilities of each number's levels, (*shape, levels), from those of values, (values, *batch)."""
    members, levels = variable.num_members, variable.num_levels
    if variable.num_values != levels**members:  # members are vectors themselves: one level each
        return jnp.moveaxis(probabilities, 0, -1)
    digits = np.asarray(list(itertools.product(range(levels), repeat=members))).reshape(-1, members)
    indicators = jnp.asarray(digits[:, :, None] == np.arange(levels), probabilities.dtype)
    found = jnp.tensordot(probabilities, indicators, axes=(0, 0))  # (*batch, members, levels)
    return found.reshape(*variable.shape, levels)


class Tables:
    """The densities of a program as functions of its discrete values.

    Args:
        program: ``values by site -> (log densities by site, values of discrete sites by site)``.
        variables: by name.
    """

    def __init__(self, program: Callable[..., PyTree], variables: Mapping[str, Variable]) -> None:
        self.variables = variables
        self.names = sorted(variables)
        shapes = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in variables.items()}
        self.closed, shape = jax.make_jaxpr(program, return_shape=True)(shapes)
        leaves, self.tree = jax.tree_util.tree_flatten(shape)
        paths = jax.tree_util.tree_flatten_with_path(shape)[0]
        self.outputs = {(p[0].idx, p[1].key): i for i, (p, _) in enumerate(paths)}
        self.shapes = {k: leaves[i].shape for k, i in self.outputs.items()}

    @cached_property
    def dependences(self) -> dict[tuple[int, str], tuple[str, ...]]:
        """The discrete sites that each output depends on."""
        found = {}
        for output, i in self.outputs.items():
            used = [j == i for j in range(len(self.outputs))]
            _, inputs = partial_eval.dce_jaxpr(self.closed.jaxpr, used, instantiate=False)
            found[output] = tuple(n for n, needed in zip(self.names, inputs, strict=True) if needed)
        return found

    @cached_property
    def values(self) -> dict[str, Array]:
        """All values of each discrete site, of shape (values, *shape)."""
        return {n: self._evaluate([(1, n)], ())[0] for n in self.names}

    def _evaluate(
        self,
        outputs: list[tuple[int, str]],
        over: tuple[str, ...],
        at_values: Mapping[str, Array] | None = None,
    ) -> list[Array]:
        """Outputs for all values of some sites, which are leading axes, or at one value of each."""
        wanted = [self.outputs[o] for o in outputs]
        used = [i in wanted for i in range(len(self.outputs))]
        jaxpr, _ = partial_eval.dce_jaxpr(self.closed.jaxpr, used, instantiate=True)
        fn = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(jaxpr, self.closed.consts))
        position = {i: n for n, i in enumerate(sorted(wanted))}

        def at(*values: Array) -> list[Array]:
            given = {**(at_values or {}), **dict(zip(over, values, strict=True))}
            zeros = (jnp.zeros(v.shape, v.dtype) for v in map(self.variables.__getitem__, self.names))
            found = fn(*(given.get(n, zero) for n, zero in zip(self.names, zeros, strict=True)))
            return [found[position[i]] for i in wanted]

        for i in reversed(range(len(over))):
            at = jax.vmap(at, [0 if j == i else None for j in range(len(over))])
        return at(*(self.values[n] for n in over)) if over else at()

    def others(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Values of latent and deterministic sites where the discrete ones have these."""
        outputs = [o for o in self.outputs if o[0] == 2]
        found = self._evaluate(outputs, (), values)
        return {name: x for (_, name), x in zip(outputs, found, strict=True)}

    @cached_property
    def densities(self) -> dict[str, Array]:
        """Log densities by site, of shape (values of each site that it depends on, *its batch)."""
        found: dict[str, Array] = {}
        groups: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        for output, over in self.dependences.items():
            if output[0] == 0:
                groups.setdefault(over, []).append(output)
        for over, outputs in groups.items():
            arrays = self._evaluate(outputs, over)
            found |= {name: x for (_, name), x in zip(outputs, arrays, strict=True)}
        return found

    def factor(self, name: str) -> Factor:
        """The log density of a site as a factor: axes that are no plates of its variables are summed."""
        over = self.dependences[(0, name)]
        table, plates = self.densities[name], self.plates_of(over)
        batch = self.shapes[(0, name)]
        gone = tuple(len(over) + i for i in range(len(batch)) if i - len(batch) not in plates)
        return Factor(jnp.sum(table, gone), over, tuple(sorted(plates)))

    def plates_of(self, over: tuple[str, ...]) -> Plates:
        """All plates of some variables."""
        return frozenset().union(*(self.variables[v].plates for v in over))

    def coupled(self) -> set[str]:
        """Variables whose members meet in one density, so that they cannot be summed one by one."""
        found: set[str] = set()
        for (part, name), over in self.dependences.items():
            batch = self.shapes[(part, name)]
            for variable in over if part == 0 else ():
                own = self.variables[variable]
                for p in own.plates:
                    if len(batch) < -p or batch[p] != own.batch_shape[p]:
                        found.add(variable)
        return found
