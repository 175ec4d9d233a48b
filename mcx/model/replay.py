"""A program run at an unconstrained point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.distribution import Unit
from numpyro.distributions.util import sum_rightmost

from mcx.model.bijections import bijection
from mcx.model.capture import JACOBIAN, Assign, Message, Recorder, SiteTrace, recording, unless_fixed
from mcx.model.imputation import impute, observed_part
from mcx.types import SiteValues


def replay(fn: Callable[[], Any], z: Mapping[str, Any], given: SiteValues | None = None) -> SiteTrace:
    """Run a program at an unconstrained point; log Jacobians appear as factors, see :func:`is_jacobian`.

    ``given`` has values of discrete sites.
    """
    given = {} if given is None else given

    def assign(site: Message) -> Array | None:
        found = given.get(site["name"]) if site["type"] == "sample" else None
        if found is not None:
            return found
        observed = observed_part(site, recorder.sites) if site["name"] in z else None
        if observed is None:
            return _constrain_site(z, site, recorder)
        value, terms = impute(site["fn"], z[site["name"]], observed)
        recorder.sites[f"_{site['name']}_log_det"] = _jacobian(site["name"], terms)
        return value

    with recording() as recorder:
        Assign(fn, substitute_fn=unless_fixed(assign))()
    return recorder.sites


def _constrain_site(z: Mapping[str, Any], site: Message, recorder: Recorder) -> Array | None:
    """The value of a site at a point; records its log Jacobian as a factor, unless that is zero."""
    name = site["name"]
    if site["type"] != "sample" or name not in z:
        return None
    support, x = site["fn"].support, z[name]
    to_value = bijection(support)
    shape = tuple(site["kwargs"].get("sample_shape", ())) + tuple(site["fn"].shape())
    step = site["infer"].get("_scan_current_index")
    if step is not None and jnp.ndim(x) > len(to_value.inverse_shape(shape)):
        x = x[step]
    base = support.base_constraint if isinstance(support, dist.constraints.independent) else support
    if base is dist.constraints.real:
        return x
    value = to_value(x)
    log_det = to_value.log_abs_det_jacobian(x, value)
    extra = jnp.ndim(log_det) - jnp.ndim(value) + len(site["fn"].event_shape)
    terms = sum_rightmost(log_det, extra)
    changed = site["scale"] is not None or isinstance(site["fn"], dist.MaskedDistribution)
    if changed and step is None:
        recorder.sites[f"_{name}_log_det"] = _jacobian(name, terms)
    else:  # what is stated scans hand on, too
        with numpyro.handlers.infer_config(config_fn=lambda _: {"mcx_kind": JACOBIAN}):
            numpyro.factor(f"_{name}_log_det", terms)
    return value


def _jacobian(name: str, terms: Array) -> Message:
    """Log Jacobians as a recorded factor: not stated, as scales and masks of the site would apply to them."""
    unit = Unit(terms)
    return {
        "type": "sample",
        "name": f"_{name}_log_det",
        "fn": unit,
        "value": unit.sample(jax.random.key(0)),
        "scale": None,
        "is_observed": True,
        "intermediates": [],
        "infer": {"mcx_kind": JACOBIAN},
    }
