"""Errors about scans that particle methods cannot take, with what to write instead."""

from __future__ import annotations

from typing import Any, NoReturn

import jax.numpy as jnp

from mcx.errors import CapabilityError
from mcx.model.density import subsampling_error
from mcx.model.series.capture_scan import ScanStatement
from mcx.target import Target


def refuse_statement(target: Target, scan: ScanStatement) -> None:
    """Raise CapabilityError if a scan cannot be run forwards, one step after the other."""
    name = scan.latent[0]
    if scan.reverse:
        raise CapabilityError(
            "the scan runs backwards in time",
            site=name,
            expected="scan(..., reverse=False)",
            remedy="flip the inputs: scan(body, init, xs[::-1])",
        )
    if scan.history > 1:
        raise CapabilityError(
            "the scan looks back more than one step",
            site=name,
            expected="scan(..., history=1)",
            found=f"history={scan.history}",
            remedy="carry what is needed of the past: scan(body, (x, x_before), ys)",
        )
    if scan.handlers:
        raise CapabilityError(
            "effect handlers around the scan change its sites",
            site=name,
            found=", ".join(scan.handlers),
            remedy="apply them within the body:\n"
            "def body(carry, x):\n    with numpyro.handlers.mask(...):\n        ...",
        )
    for kind, values in scan.assigned:
        _refuse_assigned(target, scan, kind, values)
    for site in scan.latent:
        described = target.sites[site]
        if described.improper or described.weighted:
            raise CapabilityError(
                "this latent site has no distribution to draw from",
                site=site,
                expected="a proper distribution without mask or scale",
                found="an improper distribution" if described.improper else "a mask or a scale",
                remedy="mask or scale the observed sites alone; give the others a proper distribution",
            )
    for plate in target.sites.of_kind("plate"):
        if plate.subsample_size is not None:
            raise subsampling_error(plate)


def _refuse_assigned(target: Target, scan: ScanStatement, kind: str, values: Any) -> None:
    """Refuse values that handlers assign, except conditions with one value a step: observations."""
    names = [scan.prefix + name for name in values] if isinstance(values, dict) else None
    if names is not None and not any(n in target.sites and target.sites[n].scanned for n in names):
        return  # they are for sites elsewhere
    if kind != "condition" or not isinstance(values, dict):
        raise CapabilityError(
            "the scan's sites get their values by a function, or by substitution",
            site=scan.latent[0],
            expected="obs= within the body, or numpyro.handlers.condition(data={...})",
            found=f"a {kind} handler",
            remedy="pass the values among the scan's inputs: numpyro.sample('y', ..., obs=y_t)",
        )
    for name, value in values.items():
        full = scan.prefix + name
        if full not in target.sites or not target.sites[full].scanned:
            continue
        shape = target.sites[full].shape
        if jnp.ndim(value) == len(shape) and jnp.shape(value)[0] < scan.length:
            raise CapabilityError(
                f"{jnp.shape(value)[0]} observations for {scan.length} steps",
                site=full,
                expected="an observation at every step",
                remedy="scan over the observed times alone, and forecast the others: "
                "mcx.filter(...).forecast(horizon, key=...)",
            )


def refuse_likelihood_outside(
    target: Target, scan: ScanStatement, observed: tuple[str, ...], site: str | None
) -> NoReturn:
    """Raise for a site outside of the scan (None: another scan) that depends on its results."""
    name = scan.latent[0]
    short = name.rpartition(".")[2]
    where = "this site" if site is not None else "another scan"
    label = "y" if site is None else site.rpartition(".")[2]
    likelihood = site is None or target.sites[site].kind in ("observed", "factor")
    rewrite = (
        f"def body(carry, y_t):\n    {short} = numpyro.sample('{short}', ...)\n"
        f"    numpyro.sample('{label}', ..., obs=y_t)\n    return {short}, {short}\n"
        "scan(body, init, y)\nMCMC methods take the model as it is"
    )
    raise CapabilityError(
        f"{where} depends on the results of the scan over '{name}', so particles cannot be weighted "
        "as they go",
        site=site if site is not None else name,
        expected="observations within the scan's body"
        + (f", as {', '.join(map(repr, observed))}" if observed else ""),
        remedy=rewrite if likelihood else "draw what comes after the series from the filter's forecast",
    )
