"""Forecasts of states and observations: from a filter's particles, or from draws of parameters and paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import ModelError
from mcx.inference.smc.resampling import systematic
from mcx.model.bound import BoundModel
from mcx.model.series.state_space import path_sites, state_space
from mcx.ops.batched_draws import ParticleKey, particle_keys
from mcx.ops.validation import integer, validated
from mcx.target import StateSpace
from mcx.types import Array, Draws, Float, Key, LogWeights, PyTree, SiteValues


class Forecast(Mapping[str, np.ndarray]):
    """Draws of states and observations to come, by site: (num_draws, horizon, ...)."""

    def __init__(self, draws: dict[str, np.ndarray]) -> None:
        self._draws = draws

    def __getitem__(self, name: str) -> np.ndarray:
        return self._draws[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._draws)

    def __len__(self) -> int:
        return len(self._draws)

    def quantiles(self, levels: float | Sequence[float]) -> dict[str, np.ndarray]:
        """Quantiles by site, (k, horizon, ...) for k levels."""
        return {name: np.quantile(draws, levels, axis=0) for name, draws in self.items()}

    def __repr__(self) -> str:
        return f"Forecast({', '.join(f'{k}{v.shape}' for k, v in self.items())})"


def forecast_particles(
    bound: BoundModel,
    block: str,
    params: Mapping[str, Array | np.ndarray],
    particles: PyTree,
    log_w: LogWeights,
    *,
    horizon: int,
    key: Key,
    num_draws: int,
    inputs: PyTree,
) -> Forecast:
    """Draw what comes after N weighted particles at the last time; see :meth:`Filtered.forecast`."""
    horizon = validated("forecast", "horizon", horizon, integer(1))
    num_draws = validated("forecast", "num_draws", num_draws, integer(1))
    space, future = _continued(bound, block, inputs, horizon)
    key_start, key_run = jax.random.split(key)
    chosen = systematic(key_start, log_w, num_draws)
    x = jax.tree.map(lambda x: x[chosen], particles)
    keys = jax.random.split(key_run, horizon)
    return _by_draw(_simulate(space, keys, space.feynman_kac.prepare(params), x, future))


def forecast_draws(
    bound: BoundModel, draws: Draws, *, horizon: int, key: Key, inputs: PyTree, block: str | None
) -> Forecast:
    """Draw what comes after draws of parameters and paths, chain x draw x event; see :func:`mcx.forecast`."""
    horizon = validated("forecast", "horizon", horizon, integer(1))
    space, future = _continued(bound, block, inputs, horizon, whole=True)
    values = {}
    for site in (*space.params, *path_sites(space)):
        if site not in draws:
            raise ModelError(
                "there are no draws of this site to start a forecast from",
                site=site,
                found=", ".join(draws),
                remedy="draw parameters and paths: mcx.PMMH, mcx.SMC2, mcx.ParticleGibbs, mcx.NUTS; a run of "
                "SMC2 that was stopped has no paths, go on with it from a checkpoint",
            )
        x = np.asarray(draws[site])
        values[site] = x.reshape(-1, *x.shape[2:])
    return _by_draw(_continue(space, jax.random.split(key, horizon), values, future))


def _continued(
    bound: BoundModel, block: str | None, inputs: PyTree, horizon: int, *, whole: bool = False
) -> tuple[StateSpace, PyTree]:
    """The state-space model that goes on, and its inputs of the times to come."""
    # nothing is known of the observations to come: draw from the transition itself
    space = state_space(bound, block, guided=False, auxiliary=False, whole=whole)
    return space, _future(space.feynman_kac.inputs, inputs, horizon, space.name)


def _by_draw(drawn: dict[str, Float[Array, "time draw ..."]]) -> Forecast:
    return Forecast({k: np.swapaxes(np.asarray(v), 0, 1) for k, v in drawn.items()})


def _future(template: PyTree, inputs: PyTree, horizon: int, name: str) -> PyTree:
    """Inputs of the times to come; observations stand in for themselves, nothing looks at them."""
    wanted = jax.tree.structure(template["u"])
    found = jax.tree.structure(inputs)
    if str(wanted) != str(found) or any(jnp.shape(x)[:1] != (horizon,) for x in jax.tree.leaves(inputs)):
        raise ModelError(
            "forecast(inputs=...) does not fit the Markov block's inputs",
            site=name,
            expected=f"{wanted} with leading axes of {horizon}" if template["u"] is not None else "no inputs",
            found=f"{found}: {[jnp.shape(x) for x in jax.tree.leaves(inputs)]}",
        )
    blank = {
        role: jax.tree.map(
            lambda x: jnp.zeros((horizon, *jnp.shape(x)[1:]), jnp.result_type(x)), template[role]
        )
        for role in ("y", "missing")
    }
    cast = jax.tree.map(lambda x, like: jnp.asarray(x, jnp.result_type(like)), inputs, template["u"])
    return {"u": cast, **blank}


@jax.jit
def _simulate(space: StateSpace, keys: Key, ctx: PyTree, x: PyTree, future: PyTree) -> dict[str, Array]:
    return _ahead(space, keys, ctx, x, future, None)


@jax.jit
def _continue(space: StateSpace, keys: Key, values: SiteValues, future: PyTree) -> dict[str, Array]:
    fk = space.feynman_kac
    inputs = jax.tree.map(jnp.asarray, fk.inputs)

    def at_end(values: SiteValues) -> tuple[PyTree, PyTree]:
        ctx = fk.prepare({site: values[site] for site in space.params})
        path = space.path_of(ctx, {site: values[site] for site in path_sites(space)}, inputs)
        return ctx, jax.tree.map(lambda x: x[-1], path)

    ctx, x = jax.vmap(at_end)(values)
    return _ahead(space, keys, ctx, x, future, 0)


def _ahead(
    space: StateSpace, keys: Key, ctx: PyTree, x: PyTree, future: PyTree, axis: int | None
) -> dict[str, Array]:
    """States and observations to come; the context is of all particles, or of each (``axis`` 0)."""
    fk = space.feynman_kac
    num = jax.tree.leaves(x)[0].shape[0]

    def step(x: PyTree, inputs: tuple[Key, PyTree]) -> tuple[PyTree, dict[str, Array]]:
        key, u = inputs
        key_state, key_obs = jax.random.split(key)
        x = jax.vmap(fk.transition, (ParticleKey(None, 0), axis, 0, None))(
            particle_keys(key_state, num), ctx, x, u
        )
        keys = jax.random.split(key_obs, num)
        y = jax.vmap(space.observe, (0, axis, 0, None))(keys, ctx, x, u)
        return x, {**jax.vmap(space.states)(x), **y}

    return jax.lax.scan(step, x, (keys, future))[1]
