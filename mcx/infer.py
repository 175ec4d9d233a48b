"""The front door: one call for every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx._version import __version__
from mcx.errors import CapabilityError, InitializationError, MethodError, ModelError
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start, refuse_unsupported
from mcx.model.compile import compile_model
from mcx.ops.keys import as_key
from mcx.results.datatree import check_coords
from mcx.results.diagnose import check_mode, report_advice
from mcx.results.posterior import Posterior, RunInfo
from mcx.run.driver import run
from mcx.run.programs import chain_keys, run_steps, start_chains
from mcx.target import Target

if TYPE_CHECKING:
    from mcx.inference.mcmc.base import MCMCMethod

__all__ = ["infer", "program"]


def infer(
    bound: BoundModel,
    method: MCMCMethod,
    *,
    key: Any,
    num_chains: int = 4,
    progress: Any = True,
    warnings: str = "warn",
    coords: Mapping[str, Any] | None = None,
    init: Any = None,
) -> Posterior:
    """Draw from the posterior of a model.

    Args:
        bound: a model with its data, ``model(data)``.
        method: how, e.g. ``mcx.NUTS()``.
        key: a typed JAX key or an int.
        num_chains: independent chains, vectorised.
        progress: True (a bar in terminals and notebooks, lines elsewhere), False, "bar" or "lines".
        warnings: "warn" (one block after the run), "raise" (for CI; the posterior is attached to the
            error) or "ignore".
        coords: labels of the results' dimensions (plates), ``{"school": [...]}``.
        init: starting points: None (uniform on (-2, 2) in unconstrained space), "prior", a radius, or a
            dictionary of constrained values (of shape (num_chains, ...) or of one chain).

    Returns:
        The posterior. Interrupted by Ctrl-C, it holds what was drawn, with ``complete=False``.

    Raises:
        CapabilityError, ModelError, DataError, BroadcastError, SupportError: if the model or its data
            cannot be used as they are; the error names the site and the remedy.
        InitializationError: if no starting point has a finite log density and gradient.
        DiagnosticWarning: with ``warnings="raise"``, if the diagnostics find fault.
    """
    _check_types(bound, method)
    check_mode(warnings)
    key = as_key(key)
    target = compile_model(bound)
    refuse_data(target)
    if target.dim == 0:
        raise CapabilityError(
            "the model has no latent site, so there is nothing to infer", remedy="leave out an obs="
        )
    check_coords(coords or {}, target.sites)
    kernel = method.kernel(target)
    start = _start(target, init, num_chains, jax.random.fold_in(key, 1))

    def on_start(state: Any) -> None:
        if not bool(jnp.all(state.started)):
            refuse_start(target, state.position, key)
        refuse_unsupported(target, state.position)

    result = run(
        kernel,
        target.data,
        key=key,
        num_steps=method.num_warmup + method.num_samples,
        num_chains=num_chains,
        num_discard=method.num_warmup,
        start=start,
        inputs=method.inputs(),
        progress=progress,
        title=method.name,
        on_start=on_start,
        while_compiling=_load_diagnostics if warnings != "ignore" else None,
    )
    if result.draws is None:
        raise KeyboardInterrupt(f"{method.name} was interrupted during warm-up; there are no draws yet")
    draws, unconstrained = result.draws
    split = result.num_discard
    posterior = Posterior(
        draws=_in_order(draws, target),
        unconstrained=unconstrained,
        stats={k: v[:, split:] for k, v in result.stats.items()},
        warmup_stats={k: v[:, :split] for k, v in result.stats.items()},
        bound=bound,
        info=_run_info(method, key, unconstrained, coords, result),
    )
    report_advice(posterior, warnings)
    return posterior


def program(bound: BoundModel, method: MCMCMethod, *, num_chains: int = 4) -> Callable[..., Posterior]:
    """The pure function behind :func:`infer`, for ``jit``, ``vmap`` over keys and data sets.

    Args:
        bound: a model with data; the function takes other data of the same shapes.
        method: how.
        num_chains: independent chains.

    Returns:
        ``fn(key, bound) -> Posterior``, whose draws are NaN for a chain that found no finite starting
        point. Nothing is checked, shown or warned about.
    """
    _check_types(bound, method)
    template = compile_model(bound)
    refuse_data(template)
    kernel = method.kernel(template)
    inputs = jnp.asarray(method.inputs())
    total, warm = method.num_warmup + method.num_samples, method.num_warmup

    def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
        data = compile_model(bound).data
        key_start, key_run = jax.random.split(key)
        start = _start(template, None, num_chains, key)
        state = start_chains(kernel, data, chain_keys(key_start, num_chains), start)
        started = state.started
        _, draws, stats = run_steps(
            kernel,
            data,
            chain_keys(key_run, num_chains),
            0,
            total,
            state,
            inputs,
            method.num_samples,
            discard=warm,
        )
        sites, unconstrained = jax.vmap(jax.vmap(kernel.emit, (None, 0)), (None, 0))(data, draws)

        def by_chain(x: Any) -> Any:
            x = jnp.swapaxes(x, 0, 1)
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return jnp.where(started.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)

        sites, unconstrained, stats = jax.tree_util.tree_map(by_chain, (sites, unconstrained, stats))
        info = RunInfo(method.name, _settings(method), num_warmup=warm)
        return Posterior(sites, unconstrained, stats, {}, bound, info)

    return run_program


def _check_types(bound: Any, method: Any) -> None:
    if not isinstance(bound, BoundModel):
        hint = "call the model with its data first: infer(model(data), ...)"
        if callable(bound):
            hint = "wrap the function and call it with its data: infer(mcx.model(f)(data), ...)"
        raise ModelError(
            "the first argument is no bound model",
            expected="model(data)",
            found=type(bound).__name__,
            remedy=hint,
        )
    if isinstance(method, type):
        raise MethodError("the method is a class", expected=f"{method.__name__}()", found=method.__name__)
    if not (hasattr(method, "kernel") and hasattr(method, "inputs")):
        raise MethodError(
            "the second argument is no inference method", expected="e.g. mcx.NUTS()", found=repr(method)
        )


def _start(target: Target, init: Any, num_chains: int, key: Any) -> Any:
    from mcx.inference.mcmc.base import MAX_TRIES, Start

    radius, tries = 2.0, MAX_TRIES
    positions = jnp.zeros((num_chains, target.dim))
    if init is None:
        pass
    elif isinstance(init, int | float) and not isinstance(init, bool):
        radius = float(init)
    elif isinstance(init, str) and init == "prior":
        draw = target.sample_prior
        if draw is None:
            raise CapabilityError(
                'init="prior" needs a proper prior that can be drawn from',
                site=next((s.name for s in target.sites if s.improper), None),
                remedy="start from the default, or from values: init={'site': value}",
            )
        keys = jax.random.split(key, num_chains)
        positions = jax.vmap(lambda k: target.ravel(draw(k)))(keys)
        radius, tries = 0.0, 1
    elif isinstance(init, Mapping):
        positions = _positions(target, init, num_chains)
        radius, tries = 0.0, 1
    else:
        raise InitializationError(
            "init= is not understood",
            expected='None, "prior", a radius, or a dictionary of constrained values',
            found=repr(init),
        )
    return Start(
        positions, jnp.full(num_chains, radius, positions.dtype), jnp.full(num_chains, tries, jnp.int32)
    )


def _positions(target: Target, init: Mapping[str, Any], num_chains: int) -> Any:
    """Unconstrained starting points from constrained values."""
    values = {}
    for site in target.sites.of_kind("latent"):
        if site.name not in init:
            raise InitializationError(
                "init= has no value for this site",
                site=site.name,
                expected="a value for every latent site",
                found=", ".join(init) or "nothing",
            )
        value = jnp.asarray(init[site.name], jnp.result_type(float))
        if value.shape == site.shape:
            value = jnp.broadcast_to(value, (num_chains, *site.shape))
        if value.shape != (num_chains, *site.shape):
            raise InitializationError(
                "init= has the wrong shape",
                site=site.name,
                expected=f"{site.shape}, or {(num_chains, *site.shape)} for one value a chain",
                found=str(value.shape),
            )
        values[site.name] = value
    return jax.vmap(lambda v: target.ravel(target.unconstrain(v)))(values)


def _in_order(draws: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Sites in program order; leaving a compiled program sorts them by name."""
    return {s.name: draws[s.name] for s in target.sites if s.name in draws}


def _settings(method: Any) -> dict[str, Any]:
    return {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}


def _run_info(method: Any, key: Any, unconstrained: Any, coords: Any, result: Any) -> RunInfo:
    import numpyro

    return RunInfo(
        method=method.name,
        settings=_settings(method),
        num_warmup=result.num_discard,
        complete=result.complete,
        compile_time=result.compile_time,
        run_time=result.run_time,
        key=f"{jax.random.key_impl(key)}:{np.asarray(jax.random.key_data(key)).tolist()}",
        coords=dict(coords or {}),
        versions={"mcx": __version__, "jax": jax.__version__, "numpyro": numpyro.__version__},
        device=str(jax.devices()[0].device_kind),
        dtype=str(unconstrained.dtype),
        num_nonfinite=result.num_nonfinite,
    )


def _load_diagnostics() -> None:
    """Import ArviZ's statistics while XLA compiles: a second that nobody then waits for."""
    import arviz_stats.base  # noqa: F401
