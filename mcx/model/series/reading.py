"""Reading a program with Markov blocks: it runs with given values, and what it did is looked at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
from jax import Array

from mcx.errors import CapabilityError
from mcx.model import capture
from mcx.model.capture import Message
from mcx.model.series.capture_scan import scans_taken
from mcx.target import Target
from mcx.types import PyTree, SiteValues


def run_program(
    target: Target,
    data: PyTree,
    params: SiteValues,
    draw: Callable[[Message], Array | None] | None = None,
    scans: scans_taken | None = None,
) -> capture.SiteTrace:
    """Run a target's program with values of its parameters, and record the sites.

    Every other site without a value gets that of ``draw(site)``, or, where there is none, the value at the
    origin of unconstrained space. ``scans`` takes the program's scans, which then do not run.
    """

    def value(site: Message) -> PyTree:
        if site["type"] == "sample" and site["name"] in params:
            return params[site["name"]]
        if site["value"] is not None:
            return None
        drawn = None if draw is None else draw(site)
        return capture.unconstrained_prototype(site) if drawn is None else drawn

    run = target.functions.run(data)

    def program() -> PyTree:
        with nullcontext() if scans is None else scans:
            return run()

    return capture.record(program, key=jax.random.key(0), substitute_fn=value).sites


def latent_shapes(target: Target) -> dict[str, Any]:
    """Shapes and dtypes of all latent sites, discrete ones too."""
    sites = target.sites.of_kind("latent", "discrete")
    return {s.name: jax.ShapeDtypeStruct(s.shape, s.dtype) for s in sites}


def refuse_dependent_series(block: str, parameter: str, where: str) -> CapabilityError:
    """The error about observations or inputs that change with a parameter."""
    return CapabilityError(
        f"observations or inputs of '{block}' are computed from this site",
        site=parameter,
        expected="data that do not change with the parameters",
        remedy=f"move the computation into {where}",
    )
