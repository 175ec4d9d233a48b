"""Kernels of Markov chains that adapt during warm-up: initial points, steps, and what is kept of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.whitening import LogDensity, NewPoint, Point
from mcx.methods.initial_points import InitialPoints
from mcx.run.kernel import Kernel
from mcx.sites import SiteTable
from mcx.target import Target, TargetFunctions
from mcx.types import Covariance, Flags, Key, PyTree, Scalar, Stats, Vector


class Transition(Protocol):
    """One Markov transition on vectors; a frozen dataclass, so that programs can be cached on it."""

    uses_gradient: ClassVar[bool]

    def __call__(
        self, key: Key, state: Point, log_density: LogDensity, step_size: Scalar, covariance: Covariance
    ) -> NewPoint:
        """The new ``(position, log_density, gradient)``, and statistics by ArviZ's names."""


class MCMCState(NamedTuple):
    """State of one chain: an unconstrained position (d,), the log density there, and the adaptation state.

    The gradient is zeros if the method takes none; ``started`` says whether a finite initial point was found.
    """

    position: Vector
    log_density: Scalar
    gradient: Vector
    warmup: PyTree
    started: Flags


def vector_density(target: Target) -> LogDensity:
    """The log density of a target at vectors (d,)."""
    return lambda x: target.log_density(target.unravel(x))


@dataclass(frozen=True)
class ChainKernel(Kernel):
    """What kernels of adapted Markov chains have in common, which is all but the step.

    The first three fields are those of the target, the others settings of :class:`~.method.AdaptiveMethod`.
    """

    functions: TargetFunctions
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    sites: SiteTable
    target_accept: float
    step_size: float
    dense_mass: bool

    @property
    def uses_gradient(self) -> bool:
        """Whether the chain needs the gradient of the log density."""
        return True

    @property
    def tuning(self) -> warmup.Tuning:
        """What warm-up aims at."""
        return warmup.Tuning(self.target_accept, self.dense_mass, self.uses_gradient)

    def adaptation(self, gradient: Vector) -> PyTree:
        """Adaptation state before the first step, given the gradient of the log density there."""
        return warmup.init(gradient, self.step_size, self.tuning)

    def target(self, data: PyTree) -> Target:
        """The target with these data."""
        return Target(data, self.functions, self.shapes, self.sites)

    @override
    def init(self, data: PyTree, key: Key, start: InitialPoints) -> PyTree:
        """Search for a point with a finite log density and gradient."""
        target = self.target(data)
        evaluate, dim = self._evaluate(target), target.dim

        def unfinished(carry: PyTree) -> Flags:
            tries, _, _, _, ok = carry
            return ~ok & (tries < start.tries)

        def attempt(carry: PyTree) -> PyTree:
            tries = carry[0]
            noise = jax.random.uniform(jax.random.fold_in(key, tries), (dim,), minval=-1.0, maxval=1.0)
            position = start.position + start.radius * noise
            value, gradient = evaluate(position)
            return tries + 1, position, value, gradient, jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

        blank = (jnp.int32(0), jnp.zeros(dim), jnp.zeros(()), jnp.zeros(dim), jnp.asarray(False))
        _, position, value, gradient, ok = jax.lax.while_loop(unfinished, attempt, blank)
        return MCMCState(position, value, gradient, self.adaptation(gradient), ok)

    def _evaluate(self, target: Target) -> Callable[[Vector], tuple[Scalar, Vector]]:
        log_density = vector_density(target)
        if self.uses_gradient:
            return jax.value_and_grad(log_density)
        return lambda x: (log_density(x), jnp.zeros_like(x))

    @override
    def collect(self, state: MCMCState, info: PyTree) -> tuple[PyTree, Mapping[str, PyTree]]:
        return state.position, info

    @override
    def emit(self, data: PyTree, draw: Vector) -> PyTree:
        target = self.target(data)
        return target.constrain(target.unravel(draw)), draw

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        shown: dict[str, float] = {
            "step size": float(np.mean(stats["step_size"][-1])),
            "acceptance": float(np.mean(stats["acceptance_rate"])),
        }
        if "n_steps" in stats:
            shown["leapfrogs"] = float(np.mean(stats["n_steps"]))
        if "diverging" in stats:
            shown["divergences"] = int(np.sum(stats["diverging"]))
        bad = int(np.sum(~np.isfinite(stats["lp"])))
        if bad:
            shown["non-finite"] = bad
        return shown


@dataclass(frozen=True)
class MCMCKernel(ChainKernel):
    """A Markov transition on a target, with adaptation."""

    transition: Transition

    @property
    @override
    def uses_gradient(self) -> bool:
        return self.transition.uses_gradient

    def at(self, data: PyTree, position: Vector) -> MCMCState:
        """The state at a point, before any adaptation."""
        value, gradient = self._evaluate(self.target(data))(position)
        ok = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        return MCMCState(position, value, gradient, self.adaptation(gradient), ok)

    def refresh(self, data: PyTree, state: MCMCState) -> MCMCState:
        """The state with its density and gradient computed for new data."""
        value, gradient = self._evaluate(self.target(data))(state.position)
        return state._replace(log_density=value, gradient=gradient)

    @override
    def step(
        self, data: PyTree, key: Key, state: MCMCState, u: PyTree
    ) -> tuple[MCMCState, dict[str, PyTree]]:
        """One transition, then adaptation as ``u`` says, an entry of :func:`.warmup.schedule`."""
        target = self.target(data)
        adapted = state.warmup
        here = (state.position, state.log_density, state.gradient)
        (position, value, gradient), stats = self.transition(
            key, here, vector_density(target), adapted.step_size, adapted.inverse_mass_matrix
        )
        stats = dict(stats)
        outside = stats.pop("outside", jnp.asarray(False))
        rate = stats["acceptance_rate"]
        adapting = warmup.step(adapted, u, position, gradient, rate, self.tuning, outside)
        stats = {"lp": value, **stats, "step_size": adapted.step_size}
        return MCMCState(position, value, gradient, adapting, state.started), stats
