"""Every outcome of a random JAX function, with its exact probability.

A function whose only randomness is ``ops.choose`` and ``ops.accept`` has a finite number of outcomes. Listing
them proves, on the code that is shipped and up to rounding, what a simulation can only make likely: that a
kernel leaves its target invariant, or that an estimator is unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.testing.expand import expand
from mcx.testing.unroll import Compute, EnumerationError, Program, unroll
from mcx.types import PyTree


class UnscriptedDraw(EnumerationError):
    """A result depends on other random numbers; ``primitive`` is the JAX primitive that draws them."""

    primitive: str = ""


class Enumeration(NamedTuple):
    """All outcomes of positive probability.

    Attributes:
        outcomes: what the function returned, each leaf with a leading axis L.
        probabilities: (L,) float64, sums to 1.
    """

    outcomes: PyTree
    probabilities: np.ndarray

    def mean(self, values: PyTree = None) -> PyTree:
        """Exact expectations, in float64, of functions of ``outcomes``, or of these themselves if None.

        The leading axes L of a pytree of arrays are averaged out.
        """
        return jax.tree.map(
            lambda x: np.tensordot(self.probabilities, np.asarray(x, np.float64), 1),
            self.outcomes if values is None else values,
        )

    def law(self, values: PyTree) -> tuple[np.ndarray, np.ndarray]:
        """Exact law of values (L, ...), as a rule one leaf of ``outcomes``.

        It is the distinct values (U, ...), sorted, and their probabilities (U,).
        """
        values = np.asarray(values)
        distinct, where = np.unique(values, axis=0, return_inverse=True)
        return distinct, np.bincount(where.reshape(-1), self.probabilities, len(distinct))


def enumerate_outcomes(
    fn: Callable[..., Any],
    *args: PyTree,
    max_outcomes: int = 2**20,
    batch: int = 2**16,
    allow_other_draws: bool = False,
    check_keys: bool = True,
) -> Enumeration:
    """Run a function under every outcome of its calls of ``ops.choose`` and ``ops.accept``.

    The function is traced as ``jax.jit`` would, so it may use ``vmap``, ``scan`` and ``jit`` at will. Then it
    runs from choice to choice for all outcomes so far at once; at each choice every outcome is continued with
    each index of positive probability, and outcomes that no later step can tell apart become one.
    Probabilities are computed in float64 from the weights that the function computes (float32 unless JAX's
    x64 mode is on).

    To enumerate a kernel from every starting point in one go, draw the starting point with ``ops.choose``,
    too: with the target's log probabilities, the law of the result is the target exactly if the kernel
    leaves it invariant.

    Of a ``cond``, only the choices in the branch taken are made (under ``vmap``, where JAX runs all branches,
    all are made, which gives more outcomes and the same law). ``scan`` and ``while`` loops around choices are
    unrolled; the number of trips of a ``while`` loop must not depend on a choice.

    Choices and other draws that do not affect the result of ``fn`` are left out: the less ``fn`` returns, the
    fewer outcomes there are.

    Args:
        fn: the function. The values of its keys do not matter, only whether they differ from one another.
        *args: its arguments, pytrees of arrays.
        max_outcomes: refuse beyond this many; branches of probability zero are not counted.
        batch: number of outcomes run at once.
        allow_other_draws: whether ``fn`` may draw random numbers in other ways too. They come from the keys
            and are the same in all outcomes, so the result is the law conditional on these numbers.
        check_keys: whether to check that no two choices of one outcome use the same key, which would make
            them dependent. Keys that depend on a choice themselves are not checked. Under ``vmap`` both
            branches of a ``cond`` are seen to use their keys.

    Returns:
        Outcomes and probabilities. Costs a compilation per call of a choice, and one run per outcome.

    Raises:
        TooManyOutcomes: beyond ``max_outcomes``.
        UnscriptedDraw: if a result depends on random numbers drawn in another way.
        KeyReuse: if two choices are not independent.
        EnumerationError: if a choice stands in a transformation that is not known here.
    """
    traced, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    program = unroll(traced, [jnp.asarray(leaf) for leaf in jax.tree.leaves(args)])
    if not allow_other_draws:
        _refuse_draws(program)
    values, probabilities = expand(program, max_outcomes, batch, check_keys)
    return Enumeration(jax.tree.unflatten(jax.tree.structure(shape), values), probabilities)


def _refuse_draws(program: Program) -> None:
    for step in program.steps:
        if isinstance(step, Compute) and step.draws is not None:
            error = UnscriptedDraw(
                "the outcomes depend on random numbers that are not enumerated",
                found=f"primitive '{step.draws}'",
                expected="randomness through ops.choose and ops.accept only",
                remedy="or set allow_other_draws=True: the result is then conditional on these numbers",
            )
            error.primitive = step.draws
            raise error
