"""Sums over discrete variables in plates: the sum-product algorithm on log factors.

A variable has a value of its own at every index of its plates. Plates are negative axes, as in NumPyro.
Source: Obermeyer, Bingham, Jankowiak, Pradhan, Chiu, Rush and Goodman (2019), Tensor variable elimination for
plated factor graphs, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mcx.types import Key

type Plates = frozenset[int]
type Reduce = Callable[[Array, int], Array]
"""``(log factor, axis) -> log of the sum over the axis``."""

MOST_ENTRIES = 2**24  # of one table


class Factor(NamedTuple):
    """A log factor: an axis for each of its variables, in order, then for each of its plates, ascending."""

    log: Array
    variables: tuple[str, ...]
    plates: tuple[int, ...]


class Intractable(Exception):
    """The sum needs a table that is too large, or plates that cross; the argument says which."""


def log_sum_exp(x: Array, axis: int) -> Array:
    """Log of the sum of exponentials; its gradient is zero, not NaN, where all are zero."""
    largest = jax.lax.stop_gradient(jnp.max(x, axis))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    total = jnp.sum(jnp.exp(x - jnp.expand_dims(largest, axis)), axis)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + largest, -jnp.inf)


class Draw:
    """:func:`log_sum_exp` whose gradient is an indicator of one term, drawn in proportion to the terms.

    The gradient of an elimination with respect to its factors is then an exact draw from their joint law:
    every sum, from the last to the first, chooses a value given those chosen before.
    """

    def __init__(self, key: Key) -> None:
        self.key, self.number = key, 0

    def __call__(self, x: Array, axis: int) -> Array:
        """The same value as :func:`log_sum_exp`."""
        self.number += 1
        return _drawn(axis, x, jax.random.key_data(jax.random.fold_in(self.key, self.number)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _drawn(axis: int, x: Array, key: Array) -> Array:
    return log_sum_exp(x, axis)


def _drawn_forward(axis: int, x: Array, key: Array) -> tuple[Array, tuple[Array, Array]]:
    return log_sum_exp(x, axis), (x, key)


def _drawn_backward(axis: int, kept: tuple[Array, Array], chosen: Array) -> tuple[Array, None]:
    x, key = kept
    index = jax.random.categorical(jax.random.wrap_key_data(key), x, axis=axis)
    one = jax.nn.one_hot(index, x.shape[axis], axis=axis, dtype=x.dtype)
    return one * jnp.expand_dims(chosen, axis), None


_drawn.defvjp(_drawn_forward, _drawn_backward)


def eliminate(
    factors: Sequence[Factor],
    plates: Mapping[str, Plates],
    reduce: Reduce = log_sum_exp,
    keep: Plates = frozenset(),
) -> list[Factor]:
    """Sum over all variables, and multiply over all plates but those to ``keep``.

    Args:
        factors: log factors; the plates of each are those of its variables.
        plates: of every variable.
        reduce: how to sum.
        keep: plates that stay as axes of the results.

    Returns:
        Factors without variables, whose sum over everything is the log of the whole.

    Raises:
        Intractable: if two plates that do not contain each other are coupled, or a table is too large.
    """
    done: list[Factor] = []
    factors = list(factors)
    while left := {v for f in factors for v in f.variables}:
        leaf = max((plates[v] for v in left), key=lambda p: (len(p), sorted(p)))
        inner = {v for v in left if plates[v] == leaf}
        for variables, group in _components(factors, inner):
            factors = [f for f in factors if not any(f is g for g in group)]
            for f in group:
                if frozenset(f.plates) != leaf:
                    raise Intractable(f"plates that cross, around {', '.join(sorted(variables))}")
            rest = _sum_out(group, variables, reduce)
            outer = frozenset().union(*(plates[v] for v in rest.variables))
            factors.append(_multiply(rest, outer | (keep & leaf)))
        done += [f for f in factors if not f.variables]
        factors = [f for f in factors if f.variables]
    return done + list(factors)


def _components(factors: Sequence[Factor], inner: set[str]) -> list[tuple[set[str], list[Factor]]]:
    """Inner variables that factors connect, with these factors."""
    found: list[tuple[set[str], list[Factor]]] = []
    for f in factors:
        variables, group = inner & set(f.variables), [f]
        if not variables:
            continue
        for other in [c for c in found if c[0] & variables]:
            found.remove(other)
            variables, group = variables | other[0], other[1] + group
        found.append((variables, group))
    return found


def _sum_out(group: list[Factor], variables: set[str], reduce: Reduce) -> Factor:
    """One factor of connected ones, without these variables: those first that make the smallest tables."""
    sizes = {v: f.log.shape[i] for f in group for i, v in enumerate(f.variables)}

    def size(variable: str) -> int:
        near = {v for f in group if variable in f.variables for v in f.variables}
        return math.prod(sizes[v] for v in near)

    left = set(variables)
    while left:
        variable = min(sorted(left), key=size)
        near = [f for f in group if variable in f.variables]
        joined = product(near)
        axis = joined.variables.index(variable)
        summed = Factor(
            reduce(joined.log, axis),
            joined.variables[:axis] + joined.variables[axis + 1 :],
            joined.plates,
        )
        group = [f for f in group if variable not in f.variables] + [summed]
        left.discard(variable)
    return product(group)


def product(factors: Sequence[Factor]) -> Factor:
    """The product of factors, with an axis for every variable and plate of theirs."""
    if len(factors) == 1:
        return factors[0]
    variables = tuple(dict.fromkeys(v for f in factors for v in f.variables))
    plates = tuple(sorted({p for f in factors for p in f.plates}))
    sizes: dict[str | int, int] = {v: f.log.shape[i] for f in factors for i, v in enumerate(f.variables)}
    sizes |= {p: f.log.shape[len(f.variables) + i] for f in factors for i, p in enumerate(f.plates)}
    entries = math.prod(sizes.values())
    if entries > MOST_ENTRIES:
        raise Intractable(f"a table of {entries:,} entries over {', '.join(variables)}")
    total: Array | None = None
    for f in factors:
        axes: list[str | int] = [*f.variables, *f.plates]
        wanted: list[str | int] = [*variables, *plates]
        order = sorted(range(len(axes)), key=lambda i: wanted.index(axes[i]))
        shape = [sizes[a] if a in axes else 1 for a in wanted]
        term = jnp.transpose(f.log, order).reshape(shape)
        total = term if total is None else total + term
    assert total is not None
    return Factor(total, variables, plates)


def _multiply(factor: Factor, stay: Plates) -> Factor:
    """Multiply over the plates that do not stay."""
    lead = len(factor.variables)
    gone = tuple(lead + i for i, p in enumerate(factor.plates) if p not in stay)
    return Factor(jnp.sum(factor.log, gone), factor.variables, tuple(p for p in factor.plates if p in stay))
