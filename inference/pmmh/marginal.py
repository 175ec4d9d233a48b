"""The marginal model of the parameters, whose Markov blocks particle filters integrate out."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, InitializationError
from mcx.inference.filtering.particle_filter import ParticleFilter
from mcx.inference.pmmh.kernel import PMMHState
from mcx.methods.initial_points import MAX_TRIES
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start, refuse_unsupported, static_problems
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.series.state_space import BlockData, block_names, block_sites, path_sites, refuse_unobserved
from mcx.target import Target
from mcx.types import Key


class MarginalModel(NamedTuple):
    """A checked model of parameters and Markov blocks.

    target: the posterior of parameters and paths.
    conditional: its density as a function of the parameters, given the paths.
    marginal: the same without the densities of the Markov blocks.
    """

    target: Target
    conditional: Target
    marginal: Target
    data: BlockData


def marginal_model(bound: BoundModel, filter: ParticleFilter | None = None) -> MarginalModel:
    """Check a model and split it into parameters and Markov blocks, for a filter of these.

    The filter is :class:`mcx.ParticleFilter` by default.

    Raises:
        CapabilityError: if the model has no Markov block or no parameters, or blocks depend on each other.
    """
    method = filter or ParticleFilter()
    target = compile_model(bound)
    for problem in static_problems(target.sites):
        raise problem
    names = block_names(bound)
    if not names:
        raise CapabilityError(
            f"{target.sites.model} has no Markov block whose evidence a particle filter could estimate",
            expected="a model with mcx.markov(name, initial=..., transition=..., emission=..., obs=...), "
            "or with numpyro.contrib.control_flow.scan over a body with latent and observed sites",
            remedy="write the series with mcx.markov; or use mcx.NUTS() for models without one",
        )
    refuse_unobserved(target)
    # refuses blocks that depend on each other, as the product of their evidences would be wrong
    spaces = {name: method.state_space(bound, name, whole=True) for name in names}
    paths = tuple(site for space in spaces.values() for site in path_sites(space))
    conditional = condition_target(target, paths)
    refuse_data(conditional)
    if not conditional.shapes:
        raise CapabilityError(
            f"{target.sites.model} has no parameters: all its latent sites belong to Markov blocks",
            remedy="mcx.filter and mcx.smooth for the path given the parameters; or mcx.ParticleGibbs",
        )
    own = tuple(site for space in spaces.values() for site in block_sites(space))
    marginal = condition_target(target, paths, own)
    return MarginalModel(target, conditional, marginal, BlockData(target.data, spaces))


def marginal_data(bound: BoundModel, method: ParticleFilter, names: tuple[str, ...]) -> BlockData:
    """Data for kernels, of a model that was checked before; may be traced."""
    spaces = {name: method.state_space(bound, name, whole=True) for name in names}
    return BlockData(compile_model(bound).data, spaces)


def refuse_filters(model: MarginalModel, state: PMMHState, key: Key) -> None:
    """Raise if a chain found no initial point; its states have a leading chain axis."""
    started = np.asarray(state.started)
    chain = int(np.argmin(started))
    point = jax.tree.map(lambda x: jnp.asarray(x)[chain], state.point)
    position = point.position[None]
    refuse_unsupported(model.conditional.with_data((model.data.model, point.paths)), position)
    if started.all():
        return
    if not jnp.isfinite(point.log_density):
        refuse_start(model.marginal, position, key)
    raise InitializationError(
        f"no particle of the filters explains the observations at any of the {MAX_TRIES} points tried",
        site=", ".join(model.data.spaces),
        expected="a point where the estimated evidence is not zero",
        remedy="start from values you trust: infer(..., init={'site': value}); take more particles; or "
        "propose with the observation in view (proposal=)",
    )
