"""Conversion to an ``xarray.DataTree`` in ArviZ's schema."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.typing import ArrayLike

from mcx._version import __version__
from mcx.errors import PosteriorShapeError
from mcx.model.bound import BoundModel
from mcx.model.capture import record
from mcx.model.compile import compile_model, observed_values
from mcx.model.density import sample_sites, site_log_prob
from mcx.results.map_draws import map_draws
from mcx.results.predictions import Predictions
from mcx.sites import SiteTable, safe_name
from mcx.target import Target

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = 1
_NO_TERMS: dict[str, dict[str, Any]] = {"likelihood": {}, "prior": {}}


def to_datatree(
    bound: BoundModel,
    draws: Mapping[str, Any],
    *,
    sample_stats: Mapping[str, Any],
    smc_stats: Mapping[str, Any],
    coords: Mapping[str, Any],
    attributes: Mapping[str, Any],
    groups: Mapping[str, Predictions | None],
) -> xr.DataTree:
    """Convert a run; see :meth:`~mcx.results.posterior.Posterior.to_datatree`."""
    from arviz_base import dict_to_dataset, from_dict
    from xarray import DataTree

    target = compile_model(bound)
    latent = {s.name for s in target.sites.of_kind("latent", "discrete")}
    values = {k: v for k, v in draws.items() if k in latent}
    # a run of SMC^2 that was stopped has draws of parameters but not of paths, so that there is no density
    whole = latent <= set(values)
    density_terms = _density_terms if target.functions.probabilities is None else _marginal_terms
    terms: dict[str, Any] = _NO_TERMS
    if values and whole:
        terms = map_draws(density_terms, target, values, density_terms)
    elif whole:  # nothing was latent: the same for every draw
        lead = np.shape(next(iter(sample_stats.values())))[:2]
        once = density_terms(target, {})
        terms = jax.tree.map(lambda x: np.broadcast_to(x, (*lead, *np.shape(x))), once)
    observed = {k: _plain(v) for k, v in observed_values(bound).items()}
    content: dict[str, dict[str, Any]] = {
        "posterior": {k: _plain(v) for k, v in draws.items()},
        "sample_stats": {k: _plain(v, keep_bool=True) for k, v in sample_stats.items()},
        "log_likelihood": terms["likelihood"],
        "log_prior": terms["prior"],
        "observed_data": observed,
    }
    constant = _constant_data(bound, observed, target.sites)
    if constant:
        content["constant_data"] = constant
    new_dims: dict[str, list[str]] = {}
    for name, predictions in groups.items():
        if predictions is None:
            continue
        content.update({k: {n: _plain(x) for n, x in v.items()} for k, v in predictions.groups(name).items()})
        if name == "predictions":
            new_dims = _dims(predictions.sites)
    coords, new_dims = _safe(coords), _safe(new_dims)
    content = {group: _safe(variables) for group, variables in content.items()}
    library = {"inference_library": "mcx", "inference_library_version": __version__}
    attrs: dict[str, dict[str, Any]] = {group: dict(library) for group in content}
    attrs["/"] = {"mcx_schema": SCHEMA, "model": bound.name, **attributes}
    log_prior = content.pop("log_prior")
    content = {group: variables for group, variables in content.items() if variables}
    with warnings.catch_warnings():
        # ArviZ takes more chains than draws for a mistake; for replicates it is none
        warnings.filterwarnings("ignore", "Found chain dimension to be longer")
        tree = from_dict(
            content,
            name="mcx",
            dims=_dims(target.sites),
            coords=coords,
            pred_dims=new_dims,
            attrs={group: value for group, value in attrs.items() if group in content or group == "/"},
        )
        # a density has no event axes, which from_dict allows for in likelihoods only
        how: dict[str, Any] = {"dims": _dims(target.sites), "coords": coords, "attrs": library}
        tree["log_prior"] = DataTree(dict_to_dataset(log_prior, skip_event_dims=True, **how))
    if found := terms.get("probabilities"):
        averages = {safe_name(k): _plain(v).mean(1) for k, v in found.items()}
        named: dict[Any, Any] = {k: [*_dims(target.sites).get(k, []), f"{k}_value"] for k in averages}
        tree["probabilities"] = DataTree(
            dict_to_dataset(averages, dims=named, coords=coords, sample_dims=["chain"], attrs=library)
        )
    if smc_stats:
        statistics = {k: _plain(v) for k, v in smc_stats.items()}
        times = {s.shape[0]: s.dims[0] for s in target.sites if (s.markov or s.scanned) and s.shape}
        staged = "level" in statistics  # of a path of laws, not by time
        names = {k: "stage" if staged else times.get(v.shape[1], "step") for k, v in statistics.items()}
        dims: dict[Any, Any] = {k: [name] for k, name in names.items()}
        tree["smc_stats"] = DataTree(
            dict_to_dataset(statistics, dims=dims, coords=coords, sample_dims=["chain"], attrs=library)
        )
    return tree


def _safe(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {safe_name(name): value for name, value in variables.items()}


def _density_terms(target: Target, values: Mapping[str, Any]) -> dict[str, Any]:
    """Log densities by site at constrained values, of discrete sites too, prior and likelihood apart."""
    terms: dict[str, dict[str, Any]] = {"likelihood": {}, "prior": {}}
    for site in sample_sites(record(target.functions.run(target.data), values=values).sites):
        if target.sites[site["name"]].no_density:
            continue
        part = "likelihood" if target.sites[site["name"]].likelihood else "prior"
        terms[part][site["name"]] = site_log_prob(site)
    return terms


def _marginal_terms(target: Target, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with discrete sites summed out, and the probabilities of their values."""
    z = target.unconstrain(values)
    assert target.functions.probabilities is not None
    return {
        "likelihood": target.pointwise(z),
        "prior": target.prior_terms(z),
        "probabilities": target.functions.probabilities(target.data, z),
    }


def _plain(x: ArrayLike, keep_bool: bool = False) -> np.ndarray:
    """A numpy array of a type that summaries and files can take."""
    array = np.asarray(jax.device_get(x))
    if array.dtype == bool and not keep_bool:
        return array.astype(np.int8)  # az.summary refuses booleans
    if array.dtype.kind not in "biufc":
        return array.astype(np.float32)  # bfloat16 and relatives are unknown to netCDF
    return array


def _dims(sites: SiteTable) -> dict[Any, Any]:
    return {safe_name(s.name): [safe_name(dim) for dim in s.dims] for s in sites if s.dims}


def check_coords(coords: Mapping[str, Any], sites: SiteTable) -> None:
    """Raise unless the labels fit the dimensions of the model's sites."""
    if not isinstance(coords, Mapping):
        raise PosteriorShapeError(
            "coords= takes labels by dimension",
            expected="a dictionary, {'school': names}",
            found=f"a {type(coords).__name__}",
        )
    sizes = {dim: length for s in sites for dim, length in zip(s.dims, s.shape, strict=False)}
    for dim, labels in coords.items():
        if dim not in sizes:
            raise PosteriorShapeError(
                f"coords= names a dimension that the model does not have: {dim!r}",
                expected="one of " + ", ".join(sizes),
                remedy="dimensions are named after plates; .sites() shows them",
            )
        flat = not isinstance(labels, str | bytes) and getattr(labels, "ndim", 1) == 1
        if not (hasattr(type(labels), "__len__") and flat and not any(isinstance(x, list) for x in labels)):
            raise PosteriorShapeError(
                f"coords= has no labels for {dim!r}",
                expected=f"a list or an array of {sizes[dim]} labels",
                found=f"a {type(labels).__name__}",
            )
        if len(labels) != sizes[dim]:
            raise PosteriorShapeError(
                f"coords= has the wrong number of labels for {dim!r}",
                expected=f"{sizes[dim]} labels",
                found=str(len(labels)),
            )


def _constant_data(
    bound: BoundModel, observed: Mapping[str, np.ndarray], sites: SiteTable
) -> dict[str, np.ndarray]:
    """Array arguments that are not observations themselves."""
    dims = {dim for s in sites for dim in s.dims}
    found: dict[str, np.ndarray] = {}
    for name, value in bound.arguments().items():
        leaves = jax.tree_util.tree_flatten_with_path(value)[0]
        for path, leaf in leaves:
            if not hasattr(leaf, "dtype") or getattr(leaf.dtype, "kind", "O") not in "biuf":
                continue
            array = np.asarray(leaf)
            if any(_same(array, y) for y in observed.values()):
                continue
            parts = [name, *(str(getattr(p, "key", getattr(p, "idx", p))) for p in path)]
            label = safe_name(".".join(parts))
            # a variable named like a dimension would turn into a coordinate and vanish
            found[label + "_data" if label in dims else label] = array
    return found


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal arrays, NaN (a missing observation) included."""
    both_float = a.dtype.kind == b.dtype.kind == "f"
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=both_float)
