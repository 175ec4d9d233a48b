"""Filtering laws as an ``xarray.DataTree``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx._version import __version__
from mcx.inference.smc.genealogy import unique_ancestors
from mcx.inference.smc.history import Record
from mcx.model.bound import BoundModel
from mcx.model.compile import model_sites
from mcx.sites import safe_name
from mcx.target import StateSpace
from mcx.types import Stats

if TYPE_CHECKING:
    import xarray as xr

type BySite = dict[str, np.ndarray] | None


def filtering_tree(
    bound: BoundModel,
    space: StateSpace,
    summaries: tuple[BySite, BySite, BySite],
    quantile_levels: tuple[float, ...],
    stats: Stats,
    record: Record,
    coords: Mapping[str, Any],
) -> xr.DataTree:
    """The groups that :meth:`Filtered.to_datatree` describes; ``summaries``: mean, sd, quantiles by site."""
    from arviz_base import dict_to_dataset
    from xarray import DataTree

    sites = model_sites(bound)
    names = list(space.state_names)
    time = sites[names[0]].dims[0]
    num_times = stats["ess"].shape[1]  # fewer than the data have, where the run was stopped
    labels = {safe_name(k): v[:num_times] if k == time else v for k, v in coords.items()}
    dims = {name: [safe_name(dim) for dim in sites[name].dims] for name in names}
    library = {"inference_library": "mcx", "inference_library_version": __version__}

    def dataset(
        data: Mapping[str, np.ndarray], axes: Mapping[Any, Any], leading: list[str], **more: Any
    ) -> xr.Dataset:
        return dict_to_dataset(
            {safe_name(k): v for k, v in data.items()},
            dims={safe_name(k): v for k, v in axes.items()},
            coords={**labels, **more},
            sample_dims=leading,
            attrs=dict(library),
            check_conventions=False,
        )

    groups: dict[str, Any] = {}
    mean, sd, quantiles = summaries
    if mean is not None and sd is not None:
        summary, axes = dict(mean), dict(dims)
        for name in names:
            summary[f"{name}_sd"], axes[f"{name}_sd"] = sd[name], dims[name]
            if quantiles is not None:
                summary[f"{name}_quantile"] = quantiles[name]
                axes[f"{name}_quantile"] = ["quantile", *dims[name]]
        more = {} if quantiles is None else {"quantile": list(quantile_levels)}
        groups["filtering"] = dataset(summary, axes, [], **more)
    by_step = {k: np.asarray(v) for k, v in stats.items()}
    if record.ancestors is not None:
        by_step["unique_ancestors"] = np.asarray(jax.vmap(unique_ancestors)(jnp.asarray(record.ancestors)))
    groups["smc_stats"] = dataset(by_step, {}, ["chain", "step"])
    observed = {k: np.asarray(v)[:num_times] for k, v in space.observed(space.feynman_kac.inputs).items()}
    if observed:
        groups["observed_data"] = dataset(
            observed, {k: [safe_name(d) for d in sites[k].dims] for k in observed}, []
        )
    if record.particles is not None:
        states = jax.vmap(jax.vmap(jax.vmap(space.states)))(record.particles)
        particles = {k: np.asarray(v) for k, v in states.items()}
        axes = {k: dims[k][1:] for k in particles}
        particles["log_weight"] = np.asarray(record.log_w)
        groups["weighted_posterior"] = dataset(particles, axes, ["chain", safe_name(time), "particle"])
    return DataTree.from_dict(groups, name="mcx")
