"""Markov score climbing: a family of distributions, fitted to Markov chains that draw from a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcx.errors import CapabilityError, MethodError, NonFiniteError
from mcx.inference.maximize.families import FULL_RANK, MEAN_FIELD, Family
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.base import MCMCMethod
from mcx.inference.mcmc.conditional_importance import ImportanceKernel
from mcx.inference.mcmc.initial_points import starting_points
from mcx.inference.particle_gibbs.particle_gibbs import ParticleGibbs
from mcx.inference.smoothing.paris import check_numbers, check_share
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data, refuse_start
from mcx.model.compile import compile_model
from mcx.results.approximation import Approximation, quality
from mcx.results.posterior import RunInfo
from mcx.run.driver import run
from mcx.target import Target

__all__ = ["ScoreClimbing", "climb"]

_FAMILIES = {"full_rank": FULL_RANK, "mean_field": MEAN_FIELD}
_ADAM = optax.adam(0.02)


def _adam() -> optax.GradientTransformation:
    return _ADAM


@dataclass(frozen=True, kw_only=True)
class ScoreClimbing:
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
        num_steps: steps of chains and family, after the chains' warm-up.
        num_samples: proposals a step of conditional importance sampling.
        optimizer: an optax gradient transformation; Adam with a step of 0.02 by default. Keep the object to
            reuse compiled programs.
        average: share of the steps, the last ones, over which the fit is averaged.
        num_checks: draws from the fit that judge it by importance sampling (k-hat, evidence); 0 leaves that
            out.

    Source: Naesseth, Lindsten and Blei (2020).
    """

    family: str | Family = "full_rank"
    kernel: MCMCMethod | ParticleGibbs | None = None
    num_steps: int = 4000
    num_samples: int = 16
    optimizer: optax.GradientTransformation = field(default_factory=_adam)
    average: float = 0.5
    num_checks: int = 20_000

    def __post_init__(self) -> None:
        check_numbers(self, num_steps=2, num_samples=1, num_checks=0)
        if not isinstance(self.family, Family) and self.family not in _FAMILIES:
            raise MethodError(
                "ScoreClimbing(family=...) is unknown",
                expected=" or ".join(map(repr, _FAMILIES)) + ", or a Family",
                found=repr(self.family),
            )
        if not isinstance(self.kernel, MCMCMethod | ParticleGibbs | None):
            raise MethodError(
                "ScoreClimbing(kernel=...) is no Markov chain method",
                expected="None, mcx.NUTS(...), ..., or mcx.ParticleGibbs(...)",
                found=repr(self.kernel),
            )
        check_share(self, "average")


class _State(NamedTuple):
    """State of the fit.

    chains: states of the chains, with a leading axis.
    params, optimizer: of the family.
    means: of ``params`` over the first and over the second half of the averaged steps, with a leading axis.
    """

    chains: Any
    params: Any
    optimizer: Any
    means: Any


@dataclass(frozen=True)
class _Climb:
    """The fit, for the driver; its data are those of the chains' kernel."""

    kernel: Any
    family: Family
    optimizer: optax.GradientTransformation
    num_chains: int
    dim: int

    def init(self, data: Any, key: Any, start: Any) -> _State:
        keys = jax.random.split(key, self.num_chains)
        chains = jax.vmap(partial(self.kernel.init, data))(keys, start)
        params = self.family.init(self.dim)
        means = jax.tree_util.tree_map(lambda x: jnp.zeros((2, *x.shape), x.dtype), params)
        return _State(chains, params, self.optimizer.init(params), means)

    def step(self, data: Any, key: Any, state: _State, u: Any) -> tuple[_State, Any]:
        keys = jax.random.split(key, self.num_chains)
        proposal = self.family.distribution(state.params)

        def move(key: Any, chain: Any) -> Any:
            if isinstance(self.kernel, ImportanceKernel):
                return self.kernel.step(data, key, chain, proposal)
            return self.kernel.step(data, key, chain, u["chain"])[0]

        chains = jax.vmap(move)(keys, state.chains)
        before, z = positions(state.chains), positions(chains)

        def objective(params: Any) -> Any:
            return jnp.mean(self.family.distribution(params).log_prob(z))

        value, score = jax.value_and_grad(objective)(state.params)
        fine = jax.tree_util.tree_reduce(
            lambda a, x: a & jnp.all(jnp.isfinite(x)), score, jnp.isfinite(value)
        )
        now = fine & (u["part"] >= 0)
        down = jax.tree_util.tree_map(lambda x: jnp.where(now, -x, 0.0), score)
        update, optimizer = self.optimizer.update(down, state.optimizer, state.params)
        params, optimizer = jax.tree_util.tree_map(
            lambda new, old: jnp.where(now, new, old),
            (optax.apply_updates(state.params, update), optimizer),
            (state.params, state.optimizer),
        )
        weight = jnp.where(jnp.arange(2) == u["part"] - 1, u["share"], 0.0)
        means = jax.tree_util.tree_map(
            lambda m, x: m + weight.reshape(2, *(1,) * x.ndim) * (x - m), state.means, params
        )
        stats = {"log_density": value, "moved": jnp.mean(jnp.any(z != before, -1)), "nonfinite": ~fine}
        return _State(chains, params, optimizer, means), stats

    def collect(self, state: _State, info: Any) -> tuple[Any, Mapping[str, Any]]:
        return info["log_density"], info

    def emit(self, data: Any, draw: Any) -> Any:
        return draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"log q": float(np.mean(stats["log_density"])), "moved": float(np.mean(stats["moved"]))}

    def stop(self, stats: Mapping[str, Any]) -> bool:
        return bool(np.all(stats["nonfinite"]))


def positions(chains: Any) -> Any:
    """Unconstrained points of chains, (chains, d)."""
    return chains.position if hasattr(chains, "position") else chains.params.position


def climb(
    bound: BoundModel, *, method: ScoreClimbing, init: Any, key: Any, num_chains: int, **options: Any
) -> Approximation:
    """Fit a family to a posterior. Use :func:`mcx.maximize`, which checks; ``options`` go to the driver."""
    family = _FAMILIES[method.family] if isinstance(method.family, str) else method.family
    kernel, data, target, start = _chains(bound, method, init, num_chains, jax.random.fold_in(key, 5))
    num_warmup = 0 if method.kernel is None else method.kernel.num_warmup

    def on_start(state: _State) -> None:
        if hasattr(state.chains, "started") and not bool(jnp.all(state.chains.started)):
            refuse_start(target, positions(state.chains)[0], key)

    climber = _Climb(kernel, family, method.optimizer, num_chains, target.dim)
    result = run(
        climber,
        data,
        key=key,
        num_steps=num_warmup + method.num_steps,
        num_chains=1,
        num_discard=num_warmup,
        start=jax.tree_util.tree_map(lambda x: x[None], start),
        inputs=_inputs(method, num_warmup),
        title="score climbing",
        on_start=on_start,
        **options,
    )
    if result.draws is None:
        raise KeyboardInterrupt("score climbing was interrupted before its first step")
    state: _State = jax.tree_util.tree_map(lambda x: x[0], result.state)
    stats = {name: x[0, num_warmup:] for name, x in result.stats.items()}
    if stats["nonfinite"][-1]:
        raise NonFiniteError(
            "the family's density at the chains' points is no number",
            found=f"log q = {stats['log_density'][-1]}",
            remedy="take a smaller step of the optimizer, or another family",
        )
    params, notes = _average(state, family, result.complete)
    if stats["moved"][-len(stats["moved"]) // 2 :].mean() < 0.05:
        notes.append("the chains hardly move: raise num_samples, or let mcx.NUTS() move them (kernel=)")
    fitted = family.distribution(params)
    judged = None
    if method.num_checks and not isinstance(method.kernel, ParticleGibbs):
        judged = quality(jax.random.fold_in(key, 2), fitted, target, method.num_checks)
    return Approximation.of(
        fitted,
        params,
        target,
        judged,
        stats,
        RunInfo.of(method, result, key=key, coords={}, dtype=jnp.result_type(float)),
        notes,
    )


def _chains(
    bound: BoundModel, method: ScoreClimbing, init: Any, num_chains: int, key: Any
) -> tuple[Any, Any, Target, Any]:
    """The chains' kernel, its data, the target of the family, and where the chains start."""
    if isinstance(method.kernel, ParticleGibbs):
        plan = method.kernel.plan(bound)
        if not plan.given.shapes:
            raise CapabilityError(
                "the family is fitted to what the method for the parameters moves, and nothing is left to it",
                expected="ParticleGibbs(params=...) with a method such as mcx.NUTS()",
            )
        return plan.kernel, plan.data, plan.at_placeholders(), plan.start(init, num_chains, key)
    target = compile_model(bound)
    refuse_data(target)
    if target.dim == 0:
        raise CapabilityError("the model has no latent site, so there is nothing to fit")
    start = starting_points(target, init, num_chains, key)
    if method.kernel is not None:
        return method.kernel.kernel(target), target.data, target, start
    noise = jax.random.uniform(key, start.position.shape, minval=-1.0, maxval=1.0)
    return (
        ImportanceKernel(method.num_samples),
        target,
        target,
        start.position + start.radius[:, None] * noise,
    )


def _inputs(method: ScoreClimbing, num_warmup: int) -> dict[str, Any]:
    """Of every step: for the chains, and which part of the average it belongs to (-1: the family rests)."""
    total = num_warmup + method.num_steps
    step = np.arange(total) - num_warmup
    first = method.num_steps - max(2, round(method.average * method.num_steps))
    middle = (first + method.num_steps) // 2
    part = np.where(step < 0, -1, np.where(step < first, 0, np.where(step < middle, 1, 2)))
    count = np.where(part == 1, step - first + 1, step - middle + 1)
    code = warmup.schedule(num_warmup, method.num_steps)
    chain: Any = code
    if isinstance(method.kernel, ParticleGibbs):
        chain = {"code": code, "keep": step >= 0}
    share = np.where(part > 0, 1.0 / np.maximum(count, 1), 0.0).astype(np.float32)
    return {"chain": chain, "part": part.astype(np.int32), "share": share}


def _average(state: _State, family: Family, complete: bool) -> tuple[Any, list[str]]:
    """The averaged parameters, and whether the two halves agree."""
    if not complete:
        return state.params, ["stopped early: the last step's parameters, not averaged"]
    halves = [jax.tree_util.tree_map(lambda m, i=i: m[i], state.means) for i in (0, 1)]
    params = jax.tree_util.tree_map(lambda a, b: 0.5 * (a + b), *halves)
    key = jax.random.key(0)
    draws = family.distribution(params).sample(key, (1000,))
    first, second = (np.asarray(family.distribution(p).log_prob(draws), float) for p in halves)
    apart = abs(float(np.mean(first - second)))
    if apart < 0.1:
        return params, []
    return params, [f"the averaged steps still drifted, by {apart:.1f} in log density: take more steps"]
