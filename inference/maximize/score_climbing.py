"""Markov score climbing: a family of distributions, fitted to Markov chains that draw from a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcx.errors import CapabilityError, NonFiniteError
from mcx.inference.maximize.families import FULL_RANK, MEAN_FIELD, Family
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.conditional_importance import ImportanceKernel, ImportanceState
from mcx.inference.mcmc.kernel import MCMCKernel, MCMCState
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.particle_gibbs.kernel import GibbsKernel, GibbsState
from mcx.inference.particle_gibbs.particle_gibbs import ParticleGibbs
from mcx.methods.initial_points import as_initial_points
from mcx.methods.method import interrupted
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start
from mcx.model.compile import compile_model
from mcx.ops.keys import Stream, stream
from mcx.ops.validation import Rule, Settings, either, instance, integer, number, one_of, optional
from mcx.results.approximation import Approximation, quality
from mcx.results.posterior import RunInfo
from mcx.run.driver import run
from mcx.run.kernel import Kernel
from mcx.target import Target
from mcx.types import Array, Key, PyTree, Scalar, Stats

type ChainState = MCMCState | GibbsState | ImportanceState

_FAMILIES = {"full_rank": FULL_RANK, "mean_field": MEAN_FIELD}
_ADAM = optax.adam(0.02)


@dataclass(frozen=True, kw_only=True)
class ScoreClimbing(Settings):
    """Markov score climbing: a variational family, fitted to Markov chains that draw from the posterior.

    Makes KL(posterior || family) small, the divergence that covers the posterior, where variational inference
    by the evidence bound makes KL(family || posterior) small, which is blind to what it leaves out. The score
    of the family at the chains' points estimates the gradient, without bias once the chains have mixed.

    Attributes:
        family: "full_rank" or "mean_field" Gaussians on unconstrained space, or a
            :class:`~mcx.inference.maximize.families.Family`.
        kernel: how the chains move: None for conditional importance sampling with proposals from the family
            as it is fitted so far; a Markov chain method such as ``mcx.NUTS(num_warmup=300)``; or
            ``mcx.ParticleGibbs(...)``, and then the family is fitted to the parameters, paths marginalised.
            Of a method its settings and ``num_warmup`` count; ``num_samples`` does not.
        num_updates: updates of the family after the chains' warm-up, each after a step of the chains.
        num_samples: proposals a step of conditional importance sampling.
        optimizer: an optax gradient transformation; Adam with steps of 0.02 by default. Keep the object to
            reuse compiled programs.
        average: share of the updates, the last ones, over which the fit is averaged.
        num_checks: draws from the fit that judge it by importance sampling (k-hat, evidence); 0 leaves that
            out.

    Source: Naesseth, Lindsten and Blei (2020).
    """

    family: str | Family = "full_rank"
    kernel: MCMCMethod | ParticleGibbs | None = None
    num_updates: int = 4000
    num_samples: int = 16
    optimizer: optax.GradientTransformation = field(default_factory=lambda: _ADAM)
    average: float = 0.5
    num_checks: int = 20_000

    former: ClassVar[Mapping[str, str]] = {"num_updates": "num_steps"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        chains = instance((MCMCMethod, ParticleGibbs), "mcx.NUTS(...), ..., or mcx.ParticleGibbs(...)")
        return {
            "family": either(one_of(*_FAMILIES), instance(Family, "a Family")),
            "kernel": optional(chains),
            "num_updates": integer(2),
            "num_samples": integer(1),
            "optimizer": instance(optax.GradientTransformation, "an optax gradient transformation"),
            "average": number(above=0, most=1),
            "num_checks": integer(0),
        }


class _State(NamedTuple):
    """State of the fit.

    ``means`` are those of ``params`` over the first and over the second half of the averaged updates.
    """

    chains: ChainState
    params: PyTree
    optimizer: PyTree
    means: PyTree


@dataclass(frozen=True)
class _Climb(Kernel):
    """The fit, for the driver; its data are those of the chains' kernel."""

    kernel: MCMCKernel | GibbsKernel | ImportanceKernel
    family: Family
    optimizer: optax.GradientTransformation
    num_chains: int
    dim: int

    @override
    def init(self, data: PyTree, key: Key, start: PyTree) -> _State:
        keys = jax.random.split(key, self.num_chains)
        chains = jax.vmap(partial(self.kernel.init, data))(keys, start)
        params = self.family.init(self.dim)
        means = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), params)
        return _State(chains, params, self.optimizer.init(params), means)

    @override
    def step(self, data: PyTree, key: Key, state: _State, u: PyTree) -> tuple[_State, dict[str, Array]]:
        keys = jax.random.split(key, self.num_chains)
        proposal = self.family.distribution(state.params)

        def move(key: Key, chain: PyTree) -> ChainState:
            if isinstance(self.kernel, ImportanceKernel):
                return self.kernel.step(data, key, chain, proposal)
            return self.kernel.step(data, key, chain, u["chain"])[0]

        chains = jax.vmap(move)(keys, state.chains)
        before, z = state.chains.position, chains.position

        def objective(params: PyTree) -> Scalar:
            return jnp.mean(self.family.distribution(params).log_prob(z))

        value, score = jax.value_and_grad(objective)(state.params)
        fine = jax.tree.reduce(lambda a, x: a & jnp.all(jnp.isfinite(x)), score, jnp.isfinite(value))
        now = fine & (u["part"] >= 0)
        down = jax.tree.map(lambda x: jnp.where(now, -x, 0.0), score)
        update, optimizer = self.optimizer.update(down, state.optimizer, state.params)
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(now, new, old),
            (optax.apply_updates(state.params, update), optimizer),
            (state.params, state.optimizer),
        )
        weight = jnp.where(jnp.arange(2) == u["part"] - 1, u["share"], 0.0)
        means = jax.tree.map(
            lambda m, x: m + weight.reshape(2, *(1,) * x.ndim) * (x - m), state.means, params
        )
        stats = {"log_density": value, "moved": jnp.mean(jnp.any(z != before, -1)), "nonfinite": ~fine}
        return _State(chains, params, optimizer, means), stats

    @override
    def collect(self, state: _State, info: dict[str, Array]) -> tuple[Scalar, Mapping[str, Array]]:
        return info["log_density"], info

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        return {"log q": float(np.mean(stats["log_density"])), "moved": float(np.mean(stats["moved"]))}

    @override
    def stop(self, stats: Stats) -> bool:
        return bool(np.all(stats["nonfinite"]))


def climb(
    bound: BoundModel, method: ScoreClimbing, *, init: PyTree, key: Key, num_chains: int, **options: Any
) -> Approximation:
    """Fit a family to a posterior. Users call :func:`mcx.maximize`; ``options`` go to the driver."""
    family = _FAMILIES[method.family] if isinstance(method.family, str) else method.family
    key_start = stream(key, Stream.INITIAL_POINTS)
    kernel, data, target, start = _chains(bound, method, init, num_chains, key_start)
    num_warmup = 0 if method.kernel is None else method.kernel.num_warmup

    def on_start(state: _State) -> None:
        chains = state.chains
        if not (isinstance(chains, ImportanceState) or bool(jnp.all(chains.started))):
            refuse_start(target, chains.position[0], key)

    climber = _Climb(kernel, family, method.optimizer, num_chains, target.dim)
    result = run(
        climber,
        data,
        key=key,
        num_steps=num_warmup + method.num_updates,
        num_chains=1,
        num_discard=num_warmup,
        init=jax.tree.map(lambda x: x[None], start),
        inputs=_inputs(method, num_warmup),
        title=method.name,
        on_start=on_start,
        **options,
    )
    if result.draws is None:
        interrupted(method.name, "warm-up", result)
    state: _State = jax.tree.map(lambda x: x[0], result.state)
    stats = {name: x[0, num_warmup:] for name, x in result.stats.items()}
    if stats["nonfinite"][-1]:
        error = NonFiniteError(
            "the family's density at the chains' points is no number",
            found=f"log q = {stats['log_density'][-1]}",
            remedy="take a smaller step of the optimizer, or another family",
        )
        error.result = result
        raise error
    params, notes = _average(state, family, result.complete)
    if stats["moved"][-len(stats["moved"]) // 2 :].mean() < 0.05:
        notes.append("the chains hardly move: raise num_samples, or let mcx.NUTS() move them (kernel=)")
    fitted = family.distribution(params)
    judged = None
    if method.num_checks and not isinstance(method.kernel, ParticleGibbs):
        judged = quality(stream(key, Stream.FIT_QUALITY), fitted, target, method.num_checks)
    info = RunInfo.of(method, result, key=key, coords={}, dtype=jnp.result_type(float))
    notes += [] if judged is None else judged.notes
    return Approximation(fitted, params, target, judged, stats, info, tuple(notes))


def _chains(
    bound: BoundModel, method: ScoreClimbing, init: PyTree, num_chains: int, key: Key
) -> tuple[MCMCKernel | GibbsKernel | ImportanceKernel, PyTree, Target, PyTree]:
    """The chains' kernel, its data, the target of the family, and where the chains start."""
    if isinstance(method.kernel, ParticleGibbs):
        plan = method.kernel.plan(bound)
        if not plan.rest.shapes:
            raise CapabilityError(
                "the family is fitted to what the method for the parameters moves, and nothing is left to it",
                expected="ParticleGibbs(params=...) with a method such as mcx.NUTS()",
            )
        start = method.kernel.initial_points(plan, init, num_chains, key)
        return plan.kernel, plan.data, plan.at_placeholders(), start
    target = compile_model(bound)
    refuse_data(target)
    if target.dim == 0:
        raise CapabilityError("the model has no latent site, so there is nothing to fit")
    points = as_initial_points(target, init, num_chains, key)
    if method.kernel is not None:
        return method.kernel.kernel(target), target.data, target, points
    noise = jax.random.uniform(key, points.position.shape, minval=-1.0, maxval=1.0)
    radius = points.radius.reshape(*points.radius.shape[:1], -1)  # one for all coordinates, or one for each
    positions = points.position + radius * noise
    return ImportanceKernel(method.num_samples), target, target, positions


def _inputs(method: ScoreClimbing, num_warmup: int) -> dict[str, PyTree]:
    """Of every step: for the chains, and which part of the average it belongs to (-1: the family rests)."""
    total = num_warmup + method.num_updates
    step = np.arange(total) - num_warmup
    first = method.num_updates - max(2, round(method.average * method.num_updates))
    middle = (first + method.num_updates) // 2
    part = np.where(step < 0, -1, np.where(step < first, 0, np.where(step < middle, 1, 2)))
    count = np.where(part == 1, step - first + 1, step - middle + 1)
    code = warmup.schedule(num_warmup, method.num_updates)
    chain: PyTree = code
    if isinstance(method.kernel, ParticleGibbs):
        chain = {"code": code, "keep": step >= 0}
    share = np.where(part > 0, 1.0 / np.maximum(count, 1), 0.0).astype(np.float32)
    return {"chain": chain, "part": part.astype(np.int32), "share": share}


def _average(state: _State, family: Family, complete: bool) -> tuple[PyTree, list[str]]:
    """The averaged parameters, and whether the two halves agree."""
    if not complete:
        return state.params, ["stopped early: the last update's parameters, not averaged"]
    halves = [jax.tree.map(lambda m, i=i: m[i], state.means) for i in (0, 1)]
    params = jax.tree.map(lambda a, b: 0.5 * (a + b), *halves)
    key = jax.random.key(0)
    draws = family.distribution(params).sample(key, (1000,))
    first, second = (np.asarray(family.distribution(p).log_prob(draws), float) for p in halves)
    apart = abs(float(np.mean(first - second)))
    if apart < 0.1:
        return params, []
    return params, [f"the averaged updates still drifted, by {apart:.1f} in log density: take more of them"]
