"""Fingerprints: of arrays by their bits, of programs by what they compute."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal

# primitives that only wrap a program: what they hold is read as if it were written out
_WRAPPERS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
# parameters that do not say what is computed
_LABELS = {"name", "sharding", "out_sharding", "source_info", "debug_info", "debug", "layout", "ctx_mesh"}


def leaves_of(tree: Any, name: str) -> dict[str, str]:
    """Every leaf of a pytree as text: type and shape, hash of its bytes, a summary to judge a mismatch by."""
    if isinstance(tree, Jaxpr):
        return {name: f"program {of_program(tree)}"}
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}{jax.tree_util.keystr(path)} is no array of numbers: {leaf!r}")
        shape = ",".join(map(str, np.shape(leaf)))
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        found[f"{name}{jax.tree_util.keystr(path)}"] = f"{array.dtype}[{shape}] {digest} {_summary(array)}"
    return found


def _summary(array: np.ndarray) -> str:
    """The mean of what is finite, and how many entries are not."""
    finite = np.isfinite(array)
    mean = f"mean {np.mean(array[finite], dtype=np.float64):.6g}" if finite.any() else "nothing finite"
    return mean if finite.all() else f"{mean}, {int(np.sum(~finite))} not finite"


def of_program(jaxpr: Jaxpr) -> str:
    """A hash of what a jaxpr computes.

    Every value is hashed from its primitive, parameters and operands, and the program from its results. So
    names, the nesting of ``jit``, unused equations and the order of independent ones do not matter. The order
    of what a loop carries does.
    """
    return _hash(*_results(jaxpr, [_hash("input", str(i), _aval(v)) for i, v in enumerate(jaxpr.invars)]))[
        :16
    ]


def _results(jaxpr: Jaxpr, inputs: list[str]) -> list[str]:
    """Hashes of a jaxpr's results, given those of its inputs."""
    given = [*map(_constant, jaxpr.consts), *inputs]
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

    def of(atom: Any) -> str:
        return _constant(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _equation(eqn, [of(v) for v in eqn.invars]), strict=True))
    return [of(v) for v in jaxpr.outvars]


def _equation(eqn: Any, operands: list[str]) -> list[str]:
    """Hashes of an equation's results."""
    name, params = eqn.primitive.name, eqn.params
    if name in _WRAPPERS:
        return _results(next(p for p in params.values() if isinstance(p, Jaxpr)), operands)
    if name == "scan":  # what a loop closes over is as good as written in it, in whatever order
        consts, carry, _ = (len(part) for part in params["ft_in"].unpack())
        body = _results(params["jaxpr"], operands[:consts] + _places(len(operands) - consts))
        how = f"{carry} {params['length']} {params['reverse']}"
        return _made(eqn, how, *operands[consts:], *body)
    if name == "while":
        of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
        carry = operands[of_cond + of_body :]
        cond = _results(params["cond_jaxpr"], operands[:of_cond] + _places(len(carry)))
        body = _results(params["body_jaxpr"], operands[of_cond:][:of_body] + _places(len(carry)))
        return _made(eqn, *carry, *cond, *body)
    if name == "cond":
        branches = [_results(branch, operands[1:]) for branch in params["branches"]]
        return [_hash("cond", operands[0], *results) for results in zip(*branches, strict=True)]
    return _made(eqn, _text(params), *operands)


def _made(eqn: Any, *parts: str) -> list[str]:
    whole = _hash(eqn.primitive.name, *parts)
    return [_hash(whole, str(i), _aval(v)) for i, v in enumerate(eqn.outvars)]


def _places(num: int) -> list[str]:
    return [_hash("place", str(i)) for i in range(num)]


def _text(value: Any) -> str:
    """A parameter as text, without names, places in memory and Python functions."""
    if isinstance(value, Jaxpr):
        return _hash(*_results(value, _places(len(value.invars))))
    if isinstance(value, Mapping):
        return ";".join(f"{k}={_text(v)}" for k, v in sorted(value.items()) if k not in _LABELS)
    if isinstance(value, tuple | list):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, np.ndarray | jax.Array):
        return _constant(value)
    if callable(value) and not isinstance(value, type | Enum):
        return "function"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _constant(value: Any) -> str:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def _aval(var: Any) -> str:
    shape, dtype = getattr(var.aval, "shape", ""), getattr(var.aval, "dtype", type(var.aval).__name__)
    return f"{dtype}{shape}"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
