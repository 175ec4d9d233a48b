"""Markov chains from a model to a posterior: through the driver, or as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mcx.errors import CapabilityError
from mcx.inference.mcmc.initial_points import starting_points
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start, refuse_unsupported
from mcx.model.compile import compile_model
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import Run, run
from mcx.run.programs import chain_keys, run_steps, start_chains
from mcx.target import Target

if TYPE_CHECKING:
    from mcx.inference.mcmc.base import ChainMethod

__all__ = ["checked_target", "mcmc_program", "posterior_of", "run_purely", "sample_chains"]


def sample_chains(
    bound: BoundModel,
    method: ChainMethod,
    *,
    key: Any,
    num_chains: int,
    init: Any,
    coords: Mapping[str, Any],
    **options: Any,
) -> Posterior:
    """Run a Markov chain method on a model. See :func:`mcx.infer`; ``options`` go to the driver."""
    target = checked_target(bound)

    def on_start(state: Any) -> None:
        if not bool(jnp.all(state.started)):
            refuse_start(target, state.position, key)
        refuse_unsupported(target, state.position)

    result = run(
        method.kernel(target),
        target.data,
        key=key,
        num_steps=method.num_warmup + method.num_samples,
        num_chains=num_chains,
        num_discard=method.num_warmup,
        start=starting_points(target, init, num_chains, jax.random.fold_in(key, 5)),
        inputs=method.inputs(),
        title=method.name,
        on_start=on_start,
        **options,
    )
    if result.draws is None:
        raise KeyboardInterrupt(f"{method.name} was interrupted during warm-up; there are no draws yet")
    return posterior_of(bound, target, method, result, key=key, coords=coords)


def posterior_of(
    bound: BoundModel,
    target: Target,
    method: Any,
    result: Run,
    *,
    key: Any,
    coords: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    smc_stats: Mapping[str, Any] | None = None,
) -> Posterior:
    """The posterior of a finished run whose draws are ``(values by site, unconstrained point)``."""
    draws, unconstrained = result.draws
    split = result.num_discard
    return Posterior(
        # leaving a compiled program sorted the sites by name; the program's order is the user's
        draws={s.name: draws[s.name] for s in target.sites if s.name in draws},
        unconstrained=unconstrained,
        stats={k: v[:, split:] for k, v in result.stats.items()},
        warmup_stats={k: v[:, :split] for k, v in result.stats.items()},
        bound=bound,
        info=RunInfo.of(method, result, key=key, coords=coords, dtype=unconstrained.dtype, settings=settings),
        smc_stats=dict(smc_stats or {}),
    )


def mcmc_program(bound: BoundModel, method: ChainMethod, num_chains: int) -> Callable[..., Posterior]:
    """The pure function behind :func:`sample_chains`. See :func:`mcx.program`."""
    template = checked_target(bound)
    kernel = method.kernel(template)
    inputs = jax.tree_util.tree_map(jnp.asarray, method.inputs())

    def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
        data = compile_model(bound).data
        start = starting_points(template, None, num_chains, key)
        _, (sites, unconstrained), stats = run_purely(kernel, data, key, start, inputs, method, num_chains)
        info = RunInfo(method.name, fields_of(method), num_warmup=method.num_warmup)
        return Posterior(sites, unconstrained, stats, {}, bound, info)

    return run_program


def run_purely(
    kernel: Any, data: Any, key: Any, start: Any, inputs: Any, method: Any, num_chains: int
) -> tuple[Any, Any, Any]:
    """All steps of all chains, as a pure function.

    Args:
        kernel: whose states tell by ``started`` whether the chain found a starting point.
        data: for the kernel.
        key: of the run.
        start: starting points.
        inputs: of every step.
        method: gives ``num_warmup`` and ``num_samples``.
        num_chains: number of chains.

    Returns:
        The last states, what the kernel emits for every kept draw and its statistics, chain x draw; NaN in
        chains that did not start.
    """
    start_keys, keys = chain_keys(key, num_chains)
    state = start_chains(kernel, data, start_keys, start)
    total, warm = method.num_warmup + method.num_samples, method.num_warmup
    last, draws, stats = run_steps(
        kernel, data, keys, 0, total, state, inputs, method.num_samples, discard=warm
    )
    emitted = jax.vmap(jax.vmap(kernel.emit, (None, 0)), (None, 0))(data, draws)

    def by_chain(x: Any) -> Any:
        x = jnp.swapaxes(x, 0, 1)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(state.started.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)

    return last, *jax.tree_util.tree_map(by_chain, (emitted, stats))


def checked_target(bound: BoundModel) -> Target:
    """The posterior of a model that has something to infer, and whose data can be used as they are."""
    target = compile_model(bound)
    refuse_data(target)
    if target.dim == 0:
        raise CapabilityError(
            "the model has no latent site, so there is nothing to infer", remedy="leave out an obs="
        )
    return target
