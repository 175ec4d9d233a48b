"""Traced JAX functions as straight-line programs in which the random choices stand out.

Values are numbered; a step computes some from earlier ones, or is a call of ``ops.choose`` or ``ops.accept``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from mcx.errors import McxError
from mcx.ops.random import ACCEPT, CHOOSE

# calls whose meaning is that of the function they carry: it takes their place
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "named_call"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
    *("checkpoint", "remat", "remat2"),
}
_DRAWS = {"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"}
_MAX_TRIPS = 10_000


class EnumerationError(McxError, ValueError):
    """The outcomes of a function cannot be enumerated."""


class Compute(NamedTuple):
    """A deterministic step.

    run: from the inputs' values to a sequence of outputs.
    draws: name of the primitive that draws random numbers here, if one does.
    """

    run: Callable[..., Sequence[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    draws: str | None = None


class Choice(NamedTuple):
    """A call of ``ops.choose`` or ``ops.accept``, with one output.

    inputs: the log weights (*batch, n) of CHOOSE, the log probabilities of ACCEPT; then, where the choice is
        made in some outcomes only, the boolean that says in which.
    keys: one or several (*batch); None if they depend on a choice.
    branch: the branches it stands in, as (which cond, which of its branches).
    repeats: number of draws from each row of weights.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int]
    keys: int | None
    branch: tuple[tuple[int, int], ...]
    repeats: int
    shape: tuple[int, ...]
    dtype: Any


class Program(NamedTuple):
    """A straight-line program.

    known: values that are there before it starts: arguments and constants.
    scripted: the values that depend on a choice.
    """

    steps: list[Compute | Choice]
    known: dict[int, Any]
    scripted: set[int]
    outputs: list[int]


def unroll(jaxpr: Any, arguments: Sequence[Any]) -> Program:
    """Unroll a traced function, as far as needed for its choices to stand in a straight line.

    Calls are inlined; ``scan``, ``while`` and ``cond`` are unrolled where they hold a choice, and stay one
    step otherwise. What reaches no output is left out. Raises EnumerationError if a choice cannot be reached.
    """
    builder = _Builder()
    outputs = builder.inline(jaxpr, [builder.constant(a) for a in arguments], _ALWAYS)
    needed, steps = set(outputs), []
    for step in reversed(builder.steps):
        if any(o in needed and o not in builder.known for o in step.outputs):
            needed.update(step.inputs)
            if isinstance(step, Choice) and step.keys is not None:
                needed.add(step.keys)
            steps.append(step)
    known = {i: v for i, v in builder.known.items() if i in needed}
    return Program(steps[::-1], known, builder.scripted, outputs)


class _When(NamedTuple):
    """In which outcomes code runs: a boolean value (None: in all), and the branches that stands for."""

    value: int | None
    branch: tuple[tuple[int, int], ...]


_ALWAYS = _When(None, ())


class _Builder:
    def __init__(self) -> None:
        self.steps: list[Compute | Choice] = []
        self.known: dict[int, Any] = {}
        self.scripted: set[int] = set()
        self.origin: dict[int, int] = {}  # value -> index of the step that computes it
        self.values = 0

    def number(self) -> int:
        self.values += 1
        return self.values - 1

    def constant(self, value: Any) -> int:
        i = self.number()
        self.known[i] = value
        return i

    def add(self, step: Compute | Choice) -> tuple[int, ...]:
        for o in step.outputs:
            self.origin[o] = len(self.steps)
        if isinstance(step, Choice) or self.scripted.intersection(step.inputs):
            self.scripted.update(step.outputs)
        self.steps.append(step)
        return step.outputs

    def compute(self, run: Callable[..., Any], *inputs: int) -> int:
        """Add a step with one output."""
        return self.add(Compute(lambda *v: [run(*v)], inputs, (self.number(),)))[0]

    def value(self, wanted: int) -> Any:
        """Evaluate a value that does not depend on choices."""
        needed, stack = set(), [wanted]
        while stack:
            i = stack.pop()
            if i not in self.known and self.origin[i] not in needed:
                needed.add(self.origin[i])
                stack.extend(self.steps[self.origin[i]].inputs)
        for s in sorted(needed):
            step = self.steps[s]
            assert isinstance(step, Compute)
            found = step.run(*(self.known[i] for i in step.inputs))
            self.known.update(zip(step.outputs, found, strict=True))
        return self.known[wanted]

    def inline(self, jaxpr: Any, arguments: Sequence[int], when: _When) -> list[int]:
        """Add the steps of a traced function."""
        consts = [self.constant(c) for c in getattr(jaxpr, "consts", ())]
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars], when), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, inputs: list[int], when: _When) -> Sequence[int]:
        name, params = eqn.primitive.name, eqn.params
        if _is_choice(eqn):
            return self.choice(eqn, inputs, when)
        if name in _CALLS:
            return self.inline(next(_functions(params)), inputs, when)
        if not _holds_choice(eqn) or params.get("length") == 0:
            outputs = tuple(self.number() for _ in eqn.outvars)
            return self.add(Compute(_runner(eqn), tuple(inputs), outputs, _draws(eqn)))
        if name == "scan":
            return self.scan(params, inputs, when)
        if name == "while":
            return self.while_loop(params, inputs, when)
        if name == "cond":
            return self.cond(params["branches"], inputs, when)
        raise EnumerationError(
            f"a choice within '{name}' cannot be enumerated",
            expected="ops.choose and ops.accept in plain code, jit, vmap, scan, while and cond",
        )

    def choice(self, eqn: Any, inputs: list[int], when: _When) -> tuple[int, ...]:
        keys, values = (v.aval.shape for v in eqn.invars)
        out = eqn.outvars[0].aval
        kind = eqn.params["name"]
        draws = out.shape[len(keys) :] if kind == CHOOSE else ()
        if out.shape != (values[:-1] if kind == CHOOSE else values) + draws:
            raise EnumerationError(f"{kind} has unexpected shapes", found=f"{keys}, {values} -> {out.shape}")
        repeats = math.prod(draws)
        given = (inputs[1],) if when.value is None else (inputs[1], when.value)
        key = None if inputs[0] in self.scripted else inputs[0]
        output = (self.number(),)
        return self.add(Choice(kind, given, output, key, when.branch, repeats, out.shape, out.dtype))

    def scan(self, params: Any, inputs: list[int], when: _When) -> list[int]:
        num_consts, num_carry = _scan_sizes(params)
        consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
        sliced, length = inputs[num_consts + num_carry :], params["length"]
        stacked: list[list[int]] = []
        for t in reversed(range(length)) if params["reverse"] else range(length):
            here = [self.compute(lambda x, t=t: x[t], x) for x in sliced]
            out = self.inline(params["jaxpr"], [*consts, *carry, *here], when)
            carry = out[:num_carry]
            stacked.append(out[num_carry:])
        if params["reverse"]:
            stacked.reverse()
        return [*carry, *(self.compute(lambda *v: jnp.stack(v), *ys) for ys in zip(*stacked, strict=True))]

    def while_loop(self, params: Any, inputs: list[int], when: _When) -> list[int]:
        a, b = params["cond_nconsts"], params["body_nconsts"]
        cond_consts, body_consts, carry = inputs[:a], inputs[a : a + b], inputs[a + b :]
        for _ in range(_MAX_TRIPS):
            go_on = self.inline(params["cond_jaxpr"], [*cond_consts, *carry], when)[0]
            if go_on in self.scripted:
                raise EnumerationError(
                    "the number of trips of a while loop depends on a choice",
                    expected="loops around choices whose length no choice decides",
                    remedy="use a loop of fixed length that does nothing once it is done",
                )
            if not self.value(go_on):
                return carry
            carry = self.inline(params["body_jaxpr"], [*body_consts, *carry], when)
        raise EnumerationError(f"a while loop around a choice makes more than {_MAX_TRIPS} trips")

    def cond(self, branches: Sequence[Any], inputs: list[int], when: _When) -> list[int]:
        index, operands = inputs[0], inputs[1:]
        if index not in self.scripted:
            # lax.cond has clipped the index already
            return self.inline(branches[int(self.value(index))], operands, when)
        # All branches are computed, and what the predicate picks is kept. A choice in a branch is made only
        # in outcomes that take the branch, else its outcomes would be counted where it is not made: harmless,
        # as their probabilities sum to one, but there would be many more.
        this, found = self.number(), []
        for k, branch in enumerate(branches):
            taken = self.compute(lambda i, k=k: i == k, index)
            if when.value is not None:
                taken = self.compute(jnp.logical_and, when.value, taken)
            found.append(self.inline(branch, operands, _When(taken, (*when.branch, (this, k)))))
        return [self.compute(jax.lax.select_n, index, *v) for v in zip(*found, strict=True)]


def _is_choice(eqn: Any) -> bool:
    return eqn.primitive.name in ("jit", "pjit") and eqn.params.get("name") in (CHOOSE, ACCEPT)


def _holds_choice(eqn: Any) -> bool:
    return _is_choice(eqn) or any(_holds_choice(e) for f in _functions(eqn.params) for e in _equations(f))


def _draws(eqn: Any) -> str | None:
    """Name of a primitive that draws random numbers, in an equation that holds no choice."""
    if eqn.primitive.name in _DRAWS:
        return str(eqn.primitive.name)
    inner = (_draws(e) for f in _functions(eqn.params) for e in _equations(f))
    return next((name for name in inner if name is not None), None)


def _equations(jaxpr: Any) -> Sequence[Any]:
    equations: Sequence[Any] = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return equations


def _functions(params: Any) -> Iterator[Any]:
    """The traced functions among an equation's parameters."""
    for value in params.values():
        for v in value if isinstance(value, tuple | list) else (value,):
            if isinstance(v, jex_core.Jaxpr | jex_core.ClosedJaxpr):
                yield v


def _runner(eqn: Any) -> Callable[..., Sequence[Any]]:
    def run(*values: Any) -> Sequence[Any]:
        with eqn.ctx.manager:  # the settings that were in force when it was traced
            out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        return out if eqn.primitive.multiple_results else [out]

    return run


def _scan_sizes(params: Any) -> tuple[int, int]:
    if "num_carry" in params:  # until JAX kept them as trees
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return consts, carry
