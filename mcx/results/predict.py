"""Prior and posterior predictive draws, on the model's own data or on new data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mcx.errors import PosteriorShapeError
from mcx.model.bound import BoundModel
from mcx.model.compile import model_sites, predict_once, refuse_improper
from mcx.ops.keys import as_key
from mcx.ops.validation import instance, integer, optional, such_that, validated
from mcx.results.map_draws import map_draws
from mcx.results.posterior import Posterior
from mcx.results.predictions import Predictions
from mcx.sites import SiteTable
from mcx.types import KeyLike, PyTree


def predict(
    posterior: Posterior | None,
    bound: BoundModel,
    *,
    key: KeyLike,
    num_draws: int = 1000,
    resample: Sequence[str] = (),
) -> Predictions:
    """Run the model forwards: one simulated data set for every posterior draw, or for prior draws.

    Args:
        posterior: draws of the latent sites; None draws them from the prior.
        bound: the model with the data to predict for: the posterior's own, or new covariates (with or without
            observations, which are drawn afresh either way).
        key: a typed JAX key or an int.
        num_draws: number of prior draws; of a posterior, all draws are used.
        resample: latent sites to draw afresh given the others, such as the effects of new groups. Latent
            sites that the posterior has no draws of must be among them.

    Returns:
        For a posterior, draws of observed, deterministic and resampled sites, chain x draw x site shape. For
        the prior, draws of these and of the latent sites, with one chain. Costs one run of the model a draw.

    Raises:
        MethodError: if ``num_draws`` is no int of at least 1.
        PosteriorShapeError: if draws do not fit the model's sites, or a site has none.
        CapabilityError: for a prior that cannot be drawn from.
    """
    num_draws = validated("predict", "num_draws", num_draws, integer(1))
    key = as_key(key)
    bound = validated("predict", "bound", bound, instance(BoundModel, "a model with its data, model(data)"))
    rule = optional(instance(Posterior, "what mcx.infer gives"), "for draws from the prior")
    posterior = validated("predict", "posterior", posterior, rule)
    resample = validated("predict", "resample", resample, such_that(_are_names, "a list of names of sites"))
    sites = model_sites(bound)
    if posterior is None:
        refuse_improper(sites, "predict")
        values: dict[str, Any] = {}
        leading = (1, num_draws)
    else:
        leading = (posterior.num_chains, posterior.num_draws)
        values = _matching_draws(posterior, sites, resample)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(leading[0] * leading[1]))
    once = predict_once(bound)

    def forward(data: PyTree, draw: PyTree) -> dict[str, Array]:
        return once(data, draw["key"], draw["values"])

    drawn = map_draws(forward, bound, {"key": keys.reshape(leading), "values": values}, (once, "predict"))
    if posterior is not None:
        drawn = {k: v for k, v in drawn.items() if k not in values}
    return Predictions(drawn, "prior" if posterior is None else "posterior", sites)


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _matching_draws(posterior: Posterior, sites: SiteTable, resample: Sequence[str]) -> dict[str, Any]:
    known = {s.name: s for s in sites.of_kind("latent", "discrete")}
    for name in resample:
        if name not in known:
            raise PosteriorShapeError(
                "resample= names what is no latent site", site=name, expected="one of " + ", ".join(known)
            )
    values = {}
    for name, site in known.items():
        if name in resample or name not in posterior.draws:
            continue
        draws = posterior.draws[name]
        if tuple(draws.shape[2:]) != site.shape:
            raise PosteriorShapeError(
                "the posterior's draws do not fit this model",
                site=name,
                expected=f"shape {site.shape}",
                found=f"shape {tuple(draws.shape[2:])}",
                remedy=f"if these are new groups, draw them afresh: predict(..., resample=[{name!r}])",
            )
        values[name] = draws
    # what was observed is drawn afresh, also where the new model leaves it free
    observed = {s.name for s in model_sites(posterior.bound).of_kind("observed")}
    missing = [n for n in known if n not in values and n not in resample and n not in observed]
    if missing:
        raise PosteriorShapeError(
            "the posterior has no draws of latent sites of this model",
            site=", ".join(missing),
            expected="draws of " + ", ".join(known),
            found="draws of " + ", ".join(posterior.draws),
            remedy="predict with the model of the posterior; to draw these sites from their priors given the "
            f"others: predict(..., resample={missing})",
        )
    improper = [n for n, s in known.items() if n not in values and s.improper]
    if improper:
        raise PosteriorShapeError("no draws and no proper prior to draw from", site=improper[0])
    return values
