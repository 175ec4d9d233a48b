"""One sweep of particle Gibbs: every path by conditional SMC, then the parameters given the paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.conditional_smc.conditional_smc import ConditionalSMC, SweepInfo, sweep
from mcx.inference.conditional_smc.initial_path import filtered_path
from mcx.inference.mcmc.kernel import MCMCKernel, MCMCState
from mcx.methods.initial_points import InitialPoints, best_initial_point
from mcx.model import capture
from mcx.model.conditioning import placeholders
from mcx.model.series.state_space import BlockData, path_sites
from mcx.run.kernel import Kernel
from mcx.target import TargetFunctions
from mcx.types import Array, Flags, Float, Int, Key, PyTree, Scalar, SiteValues, Stats, Vector


class GibbsStart(NamedTuple):
    """Where a chain starts: for the Markov chain method, and constrained values of other sites as given."""

    params: InitialPoints
    values: dict[str, Array]


class PathAverages(NamedTuple):
    """Averages of conditional SMC over the kept sweeps of a chain, (T,) each; see :class:`SweepInfo`."""

    update_rate: Float[Array, " T"]
    ess: Float[Array, " T"]
    unique_ancestors: Float[Array, " T"]

    @classmethod
    def of(cls, info: SweepInfo) -> PathAverages:
        """Of a single sweep."""
        return cls(*(jnp.asarray(x, float) for x in (info.updated, info.ess, info.unique_ancestors)))


class GibbsState(NamedTuple):
    """State of one chain.

    values: constrained values of the paths' sites and of the sites that updates give, by site. Particles are
        made from them anew at every sweep, as some hold what depends on the parameters.
    params: of the Markov chain method on the other sites, in unconstrained space. Its density and gradient
        are those of its last step, that is, given the present paths.
    averages: by block.
    num_kept: sweeps that the averages count.
    """

    values: dict[str, Array]
    params: MCMCState
    averages: dict[str, PathAverages]
    num_kept: Int[Array, ""]

    @property
    def position(self) -> Vector:
        """Where the Markov chain method is, unconstrained."""
        return self.params.position

    @property
    def started(self) -> Flags:
        """Whether a finite starting point was found."""
        return self.params.started


@dataclass(frozen=True)
class GibbsKernel(Kernel):
    """Particle Gibbs on a model.

    Attributes:
        blocks: Markov blocks and how to draw their paths.
        updates: exact draws from full conditionals.
        drawn: the sites that updates give.
        mcmc: a transition on the remaining sites, given all others; not used where none remain.
        whole: functions of the model's target.
    """

    blocks: tuple[tuple[str, ConditionalSMC], ...]
    updates: tuple[Callable[[Key, SiteValues], SiteValues], ...]
    drawn: tuple[str, ...]
    mcmc: MCMCKernel
    whole: TargetFunctions

    @override
    def init(self, data: BlockData, key: Key, start: GibbsStart) -> GibbsState:
        """Search for parameters and paths with a finite joint density and gradient.

        Paths come from a filter, unless the user gave them. Of several starting parameters those of the
        largest evidence are taken: from bad ones a path follows that fits them, which then holds on to the
        parameters.
        """

        def attempt(number: Int[Array, ""]) -> tuple[Scalar, GibbsState]:
            key_params, key_drawn, key_paths = jax.random.split(jax.random.fold_in(key, number), 3)
            position, radius, _ = start.params
            noise = jax.random.uniform(key_params, position.shape, minval=-1.0, maxval=1.0)
            position = position + radius * noise
            paths = tuple(site for space in data.spaces.values() for site in path_sites(space))
            others = {**placeholders(self.mcmc.sites, paths), **self._prior_draws(data, key_drawn)}
            others |= start.values
            values = self._values(data, others, position)
            averages, log_z = {}, jnp.zeros(())
            for (name, method), key_path in zip(self.blocks, _keys(key_paths, self.blocks), strict=True):
                space = data.spaces[name]
                if not set(path_sites(space)) <= set(start.values):
                    path, log_evidence = filtered_path(key_path, space, values, method)
                    values |= path
                    log_z += log_evidence
                zeros = jnp.zeros(space.feynman_kac.num_times)
                averages[name] = PathAverages(zeros, zeros, zeros)
            others = {k: values[k] for k in others}
            params = self.mcmc.at((data.model, others), position)
            state = GibbsState(others, params, averages, jnp.zeros((), jnp.int32))
            return jnp.where(state.started, log_z, -jnp.inf), state

        return best_initial_point(attempt, start.params)

    def _prior_draws(self, data: BlockData, key: Key) -> dict[str, Array]:
        """Values of the sites that updates give, until these do: from the prior, where it is proper."""
        if not self.drawn:
            return {}

        def improper(site: dict[str, Any]) -> Array | None:
            if site["type"] == "sample" and capture.is_improper(site["fn"]):
                return capture.unconstrained_prototype(site)
            return None

        sites = capture.record(self.whole.run(data.model), key=key, substitute_fn=improper).sites
        return {k: jnp.asarray(sites[k]["value"], self.mcmc.sites[k].dtype) for k in self.drawn}

    @override
    def step(
        self, data: BlockData, key: Key, state: GibbsState, u: PyTree
    ) -> tuple[GibbsState, dict[str, Array]]:
        """One sweep; ``u`` holds the adaptation code and whether the sweep counts.

        Without adaptation each part draws from a kernel that leaves its conditional law given the others
        invariant. Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3.
        """
        key_paths, key_params = jax.random.split(key)
        state, swept = self.move_paths(data, key_paths, state)
        state, stats = self.move_params(data, key_params, state, u["code"])
        count = state.num_kept + u["keep"]
        share = u["keep"] / jnp.maximum(count, 1)
        averages = {}
        for name, info in swept.items():
            now = PathAverages.of(info)
            averages[name] = jax.tree.map(
                lambda old, new: old + share * (new - old), state.averages[name], now
            )
            stats |= {f"{name}.{k}": jnp.mean(v) for k, v in now._asdict().items()}
        return state._replace(averages=averages, num_kept=count), stats

    def move_paths(
        self, data: BlockData, key: Key, state: GibbsState
    ) -> tuple[GibbsState, dict[str, SweepInfo]]:
        """A new path for every block in turn, given the parameters and the other blocks' paths."""
        values = self._values(data, state.values, state.params.position)
        swept = {}
        for (name, method), key_block in zip(self.blocks, _keys(key, self.blocks), strict=True):
            space = data.spaces[name]
            fk = space.feynman_kac
            ctx = fk.prepare({k: values[k] for k in space.params})
            path, swept[name] = sweep(key_block, fk, ctx, space.path_of(ctx, values, fk.inputs), method)
            values |= space.path_values(path)
        return state._replace(values={k: values[k] for k in state.values}), swept

    def move_params(
        self, data: BlockData, key: Key, state: GibbsState, code: Int[Array, ""]
    ) -> tuple[GibbsState, dict[str, Array]]:
        """New parameters given the paths: by the updates, then by the Markov chain method on the rest."""
        key_mcmc, key_updates = jax.random.split(key)
        values = self._values(data, state.values, state.params.position)
        for update, key_update in zip(self.updates, _keys(key_updates, self.updates), strict=True):
            values |= {k: jnp.asarray(v, values[k].dtype) for k, v in update(key_update, values).items()}
        others = {k: values[k] for k in state.values}
        params = state.params
        stats: dict[str, Array] = {}
        if self.mcmc.shapes:
            # what the state remembers of its density belongs to the old paths
            params = self.mcmc.refresh((data.model, others), params)
            params, stats = self.mcmc.step((data.model, others), key_mcmc, params, code)
        return state._replace(values=others, params=params), dict(stats)

    def _values(self, data: BlockData, others: SiteValues, position: Vector) -> dict[str, Array]:
        """Constrained values of all latent sites: the ``others``, and those at the chain's position."""
        target = self.mcmc.target((data.model, dict(others)))
        moved = target.constrain(target.unravel(position))
        return {**others, **{name: moved[name] for name, _ in self.mcmc.shapes}}

    @override
    def collect(self, state: GibbsState, info: dict[str, Array]) -> tuple[PyTree, Mapping[str, Array]]:
        return (state.values, state.params.position), info

    @override
    def emit(self, data: BlockData, draw: PyTree) -> tuple[dict[str, Array], Vector]:
        others, position = draw
        target = self.mcmc.target((data.model, others))
        return {**target.constrain(target.unravel(position)), **others}, position

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        rates = [np.mean(stats[f"{name}.update_rate"]) for name, _ in self.blocks]
        shown = {"update rate": float(min(rates))}
        return {**shown, **self.mcmc.report(stats)} if self.mcmc.shapes else shown


def _keys(key: Key, parts: tuple[Any, ...]) -> list[Key]:
    return [jax.random.fold_in(key, i) for i in range(len(parts))]
