"""Forecasts of states and observations: from a filter's particles, or from draws of parameters and paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError, ModelError
from mcx.inference.smc.resampling import systematic
from mcx.model.series.state_space import path_sites, state_space
from mcx.ops.batched_draws import ParticleKey, particle_keys
from mcx.ops.checks import is_count

if TYPE_CHECKING:
    from mcx.inference.filtering.filtered import Filtered
    from mcx.results.posterior import Posterior

__all__ = ["Forecast", "forecast", "forecast_draws"]


class Forecast(Mapping[str, np.ndarray]):
    """Draws of states and observations by site, (num_draws, num_steps, ...)."""

    def __init__(self, draws: dict[str, np.ndarray]) -> None:
        self._draws = draws

    def __getitem__(self, name: str) -> np.ndarray:
        return self._draws[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._draws)

    def __len__(self) -> int:
        return len(self._draws)

    def quantiles(self, levels: Any) -> dict[str, np.ndarray]:
        """Quantiles by site, (k, num_steps, ...)."""
        return {name: np.quantile(draws, levels, axis=0) for name, draws in self.items()}

    def __repr__(self) -> str:
        return f"Forecast({', '.join(f'{k}{v.shape}' for k, v in self.items())})"


def forecast(filtered: Filtered, num_steps: int, key: Any, num_draws: int, inputs: Any) -> Forecast:
    """See :meth:`Filtered.forecast`."""
    _check_count("num_steps", num_steps)
    _check_count("num_draws", num_draws)
    # nothing is known of the observations to come: draw from the transition itself
    space = state_space(filtered.bound, filtered.space.name, guided=False, auxiliary=False)
    template = space.feynman_kac.inputs
    future = _future(template, inputs, num_steps, filtered.space.name)
    log_w = jnp.asarray(filtered.state.log_w) + jnp.asarray(filtered.stats["log_evidence"][:, -1:])
    key_start, key_run = jax.random.split(key)
    chosen = systematic(key_start, log_w.reshape(-1), num_draws)
    x = jax.tree_util.tree_map(lambda x: x.reshape(-1, *x.shape[2:])[chosen], filtered.state.particles)
    keys = jax.random.split(key_run, num_steps)
    drawn = _simulate(space, keys, space.feynman_kac.prepare(filtered.params), x, future)
    return Forecast({k: np.swapaxes(np.asarray(v), 0, 1) for k, v in drawn.items()})


def forecast_draws(posterior: Posterior, num_steps: int, key: Any, inputs: Any, name: str | None) -> Forecast:
    """See :func:`mcx.forecast`."""
    _check_count("num_steps", num_steps)
    # nothing is known of the observations to come: draw from the transition itself
    space = state_space(posterior.bound, name, guided=False, auxiliary=False, whole=True)
    future = _future(space.feynman_kac.inputs, inputs, num_steps, space.name)
    values = {}
    for site in (*space.params, *path_sites(space)):
        if site not in posterior.draws:
            raise ModelError(
                "there are no draws of this site to start a forecast from",
                site=site,
                found=", ".join(posterior.draws),
                remedy="draw parameters and paths: mcx.PMMH, mcx.SMC2, mcx.ParticleGibbs, mcx.NUTS; a run of "
                "SMC2 that was stopped has no paths, go on with it from a checkpoint",
            )
        x = np.asarray(posterior.draws[site])
        values[site] = x.reshape(-1, *x.shape[2:])
    drawn = _continue(space, jax.random.split(key, num_steps), values, future)
    return Forecast({k: np.swapaxes(np.asarray(v), 0, 1) for k, v in drawn.items()})


def _check_count(name: str, value: int) -> None:
    if not is_count(value):
        raise MethodError(f"forecast({name}=...) is out of range", expected="an int >= 1", found=repr(value))


def _future(template: Any, inputs: Any, num_steps: int, name: str) -> Any:
    """Inputs of the times to come; observations stand in for themselves, nothing looks at them."""
    wanted = jax.tree_util.tree_structure(template["u"])
    found = jax.tree_util.tree_structure(inputs)
    if str(wanted) != str(found) or any(
        jnp.shape(x)[:1] != (num_steps,) for x in jax.tree_util.tree_leaves(inputs)
    ):
        raise ModelError(
            "forecast(inputs=...) does not fit the Markov chain's inputs",
            site=name,
            expected=f"{wanted} with leading axes of {num_steps}"
            if template["u"] is not None
            else "no inputs",
            found=f"{found}: {[jnp.shape(x) for x in jax.tree_util.tree_leaves(inputs)]}",
        )
    blank = {
        role: jax.tree_util.tree_map(
            lambda x: jnp.zeros((num_steps, *jnp.shape(x)[1:]), jnp.result_type(x)), template[role]
        )
        for role in ("y", "missing")
    }
    cast = jax.tree_util.tree_map(
        lambda x, like: jnp.asarray(x, jnp.result_type(like)), inputs, template["u"]
    )
    return {"u": cast, **blank}


@jax.jit
def _simulate(space: Any, keys: Any, ctx: Any, x: Any, future: Any) -> dict[str, Any]:
    return _ahead(space, keys, ctx, x, future, None)


@jax.jit
def _continue(space: Any, keys: Any, values: Any, future: Any) -> dict[str, Any]:
    fk = space.feynman_kac
    inputs = jax.tree_util.tree_map(jnp.asarray, fk.inputs)

    def at_end(values: Any) -> tuple[Any, Any]:
        ctx = fk.prepare({site: values[site] for site in space.params})
        path = space.path_of(ctx, {site: values[site] for site in path_sites(space)}, inputs)
        return ctx, jax.tree_util.tree_map(lambda x: x[-1], path)

    ctx, x = jax.vmap(at_end)(values)
    return _ahead(space, keys, ctx, x, future, 0)


def _ahead(space: Any, keys: Any, ctx: Any, x: Any, future: Any, axis: int | None) -> dict[str, Any]:
    """States and observations to come; the context is of all particles, or of each (``axis`` 0)."""
    fk = space.feynman_kac
    num = jax.tree_util.tree_leaves(x)[0].shape[0]

    def step(x: Any, inputs: Any) -> tuple[Any, dict[str, Any]]:
        key, u = inputs
        key_state, key_obs = jax.random.split(key)
        x = jax.vmap(fk.transition, (ParticleKey(None, 0), axis, 0, None))(
            particle_keys(key_state, num), ctx, x, u
        )
        keys = jax.random.split(key_obs, num)
        y = jax.vmap(space.observe, (0, axis, 0, None))(keys, ctx, x, u)
        return x, {**jax.vmap(space.states)(x), **y}

    drawn: dict[str, Any] = jax.lax.scan(step, x, (keys, future))[1]
    return drawn
