"""The list of cases: each a function without arguments that returns what to record, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from fields import taken

import mcx

CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(name: str) -> Callable[[Callable[[], dict[str, Any]]], Callable[[], dict[str, Any]]]:
    """Add a function to the cases."""

    def add(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return add


def infer_case(
    name: str, bound: Callable[[], Any], method: Any, *, program: bool = True, **options: Any
) -> None:
    """A case of ``mcx.infer``, with the fingerprint of ``mcx.program`` where there is one."""

    @case(name)
    def run() -> dict[str, Any]:
        given = {"key": 0, "num_chains": 2, "progress": False, "warnings": "ignore", **options}
        found = taken("posterior", mcx.infer(bound(), method, **given))
        if program:
            pure = mcx.program(bound(), method, num_chains=given["num_chains"])
            found["program"] = traced(pure, jax.random.key(0), bound())
        return found


def traced(function: Any, *args: Any) -> Any:
    """The jaxpr of a pure function."""
    return jax.make_jaxpr(function)(*args)
