"""Mistakes in observed values that are seen before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from mcx.errors import DataError, ModelError, SupportError
from mcx.model.compile import model_sites, observed_values
from mcx.model.program import BoundProgram
from mcx.sites import Site


def refuse_values(bound: BoundProgram) -> None:
    """Raise DataError on NaN, and SupportError on values beyond bounds that are plain numbers.

    Bounds that depend on other sites, and supports without bounds, are looked at where a run starts. Missing
    observations of series (NaN) are none of a mistake, nor is what a mask leaves out.
    """
    sites = model_sites(bound)
    looked_at = [s for s in sites.of_kind("observed") if not s.weighted and not s.no_density]
    if not any(np.dtype(s.dtype).kind == "f" or _bounds(s.support) for s in looked_at):
        return
    values = observed_values(bound)
    for site in looked_at:
        for problem in value_problems(site, np.asarray(values[site.name])):
            raise problem


def value_problems(site: Site, value: np.ndarray) -> Iterator[ModelError]:
    """What is wrong with the values of one site."""
    missing = int(np.isnan(value).sum()) if value.dtype.kind == "f" else 0
    if missing and not (site.markov or site.scanned):
        yield nan_error(site, missing)
    low, high, whole = _bounds(site.support) or (-np.inf, np.inf, False)
    with np.errstate(invalid="ignore"):
        outside = (value < low) | (value > high)
        if whole and value.dtype.kind == "f":
            outside |= np.isfinite(value) & (value != np.floor(value))
    if outside.any():
        yield support_error(site, int(outside.sum()), value[outside].flat[0])


def nan_error(site: Site, count: int) -> DataError:
    """The error about missing values of a site that has no way to leave them out."""
    return DataError(
        f"{count} of the observed values are NaN",
        site=site.name,
        expected="finite data",
        remedy="drop them, or write mcx.sample(..., obs=y, obs_mask=~jnp.isnan(y)), which imputes them; or "
        "replace them by any supported value and mask the site (dist.Normal(...).mask(~missing)); masking "
        "alone gives NaN gradients",
    )


def support_error(site: Site, count: int = 0, example: object = None) -> SupportError:
    """The error about values that the distribution cannot have."""
    return SupportError(
        f"observed values lie outside the support of {site.distribution}",
        site=site.name,
        expected=f"values in {site.support}",
        found=f"{count} that are not, {example} among them" if count else None,
        remedy="check units, signs and zeros in the data, or choose another distribution",
    )


def _bounds(support: str) -> tuple[float, float, bool] | None:
    """Smallest and largest value, and whether values are whole; None where there are no plain bounds.

    Bounds are known to the six digits that are shown, and widened by that much.
    """
    whole = "integer" in support
    if support == "boolean":
        return 0, 1, True
    found = re.fullmatch(r"(\w+)\(([^()]*)\)", support)
    if found is None or "circular" in support or "multi" in support:
        return None
    try:
        bounds = [float(text) for text in found[2].split(",")]
    except ValueError:
        return None
    slack = [0.0 if whole and abs(bound) < 1e5 else 1e-5 * abs(bound) for bound in bounds]
    if len(bounds) == 2:
        return bounds[0] - slack[0], bounds[1] + slack[1], whole
    if "less" in support:
        return -np.inf, bounds[0] + slack[0], whole
    return bounds[0] - slack[0], np.inf, whole
