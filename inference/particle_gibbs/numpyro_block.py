"""Conditional SMC as a block of ``numpyro.infer.Gibbs``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro.infer.mcmc import MCMCKernel

from mcx.errors import CapabilityError, MissingExtraError
from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, refuse_backward, sweep
from mcx.inference.conditional_smc.initial_path import filtered_path
from mcx.model.bound import Model
from mcx.model.series.state_space import path_sites, state_space
from mcx.target import StateSpace
from mcx.types import Array, Bool, Float, Key, SiteValues


class PathGibbsState(NamedTuple):
    """State of the block: constrained values of the path by site, and a key for the next sweep.

    ``updated`` says where the path changed in the last sweep, and ``ess`` are its effective sample sizes.
    """

    z: dict[str, Array]
    rng_key: Key
    updated: Bool[Array, " T"]
    ess: Float[Array, " T"]


class PathGibbs(MCMCKernel):
    """Conditional SMC for the path of a state-space model, as a block of ``numpyro.infer.Gibbs``.

    It makes particle Gibbs of NumPyro's own samplers, for a model with a ``scan`` or with ``mcx.markov``::

        from numpyro.infer import MCMC, NUTS, Gibbs

        kernel = Gibbs([(mcx.PathGibbs(model), ["x"]), (NUTS(model), None)])
        MCMC(kernel, num_warmup=500, num_samples=500).run(key, y)

    The block owns the latent sites of one Markov chain, and may own those that are drawn just to start a
    scan; it draws them given the sites of the other blocks.

    Args:
        model: the model of all blocks.
        states: how to draw the path.
        name: of the Markov chain, where the model has several.

    Raises:
        MissingExtraError: with a NumPyro older than 0.22, which has no composable ``Gibbs``.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3.
    """

    sample_field = "z"

    def __init__(
        self, model: Callable[..., Any], states: ConditionalSMC | None = None, name: str | None = None
    ) -> None:
        if not hasattr(numpyro.infer, "Gibbs"):
            raise MissingExtraError(
                "mcx.PathGibbs is a block of numpyro.infer.Gibbs, which this NumPyro does not have",
                expected="numpyro >= 0.22",
                found=f"numpyro {numpyro.__version__}",
                remedy="pip install -U numpyro; or mcx.infer(mcx.model(f)(data), mcx.ParticleGibbs(), "
                "key=...), which needs no such block",
            )
        self._model = model
        self._states = ConditionalSMC() if states is None else states
        self._name = name

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields that ``MCMC`` keeps of every state."""
        return ("z",)

    def init(
        self,
        rng_key: Key,
        num_warmup: int,
        init_params: SiteValues | None,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> PathGibbsState:
        """A first path, from a particle filter given the other blocks' first values."""
        space = self._space(model_args, model_kwargs)
        refuse_backward(self._states, space)
        sites = path_sites(space)
        if init_params is not None and set(init_params) != set(sites):
            raise CapabilityError(
                "mcx.PathGibbs owns the latent sites of one chain, all of them and no others",
                site=space.name,
                expected=f"(mcx.PathGibbs(model), {list(sites)})",
                found=f"(..., {list(init_params)})",
            )
        key, key_path = jax.random.split(rng_key)
        z, _ = filtered_path(key_path, space, {}, self._states)
        steps = space.feynman_kac.num_times
        return PathGibbsState(z, key, jnp.zeros(steps, bool), jnp.zeros(steps))

    def sample(
        self, state: PathGibbsState, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> PathGibbsState:
        """One sweep of conditional SMC given the other blocks' present values."""
        space = self._space(model_args, model_kwargs)
        fk = space.feynman_kac
        ctx = fk.prepare({})
        key, key_sweep = jax.random.split(state.rng_key)
        path = space.path_of(ctx, state.z, fk.inputs)
        path, info = sweep(key_sweep, fk, ctx, path, self._states)
        z = {k: v.astype(state.z[k].dtype) for k, v in space.path_values(path).items()}
        return PathGibbsState(z, key, info.updated, info.ess.astype(state.ess.dtype))

    def refresh(
        self, state: PathGibbsState, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None
    ) -> PathGibbsState:
        """As it is: the state holds nothing that depends on other blocks."""
        return state

    def wrap_model(self, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> PathGibbs:
        """The same block of ``wrapper(model)``."""
        wrapped = copy.copy(self)
        wrapped._model = wrapper(self._model)
        return wrapped

    def get_diagnostics_str(self, state: PathGibbsState) -> str:
        """For the progress bar."""
        return f"path renewed at {float(jnp.mean(state.updated)):.0%} of the times"

    def _space(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any] | None) -> StateSpace:
        """The chain's state-space model; other blocks' values are conditions of the wrapped model."""
        bound = Model(self._model).bind(*model_args, **(model_kwargs or {}))
        space = state_space(bound, self._name, whole=True)
        if space.params:
            raise CapabilityError(
                "mcx.PathGibbs draws a path given everything else",
                site=space.params[0],
                expected="numpyro.infer.Gibbs around it, with a block for this site",
            )
        return space
