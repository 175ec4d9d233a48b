"""What the Markov chain methods share: starting points, adaptation, what is kept of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.mcmc import warmup
from mcx.inference.mcmc.initial_points import Start
from mcx.inference.mcmc.sample import mcmc_program, sample_chains
from mcx.model.bound import BoundModel
from mcx.results.posterior import Posterior
from mcx.sites import SiteTable
from mcx.target import Target, TargetFunctions

__all__ = ["ChainKernel", "ChainMethod", "MCMCKernel", "MCMCMethod", "MCMCState", "Transition"]

_DENSE_DIM = 50


class Transition(Protocol):
    """One Markov transition on vectors; a frozen dataclass, so that programs can be cached on it."""

    uses_gradient: ClassVar[bool]

    def __call__(
        self, key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any
    ) -> tuple[Any, dict[str, Any]]:
        """New ``(position, log_density, gradient)`` and ArviZ-named statistics."""
        ...


class MCMCState(NamedTuple):
    """State of one chain.

    position: (d,), unconstrained.
    log_density: of the target there, log Jacobians included.
    gradient: of the log density; zeros where the method takes none.
    warmup: adaptation state.
    started: whether a finite starting point was found.
    """

    position: Any
    log_density: Any
    gradient: Any
    warmup: Any
    started: Any


@dataclass(frozen=True)
class ChainKernel:
    """What kernels of adapted Markov chains share: all but the step."""

    functions: TargetFunctions
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    sites: SiteTable
    target_accept: float
    step_size: float
    dense_mass: bool

    @property
    def uses_gradient(self) -> bool:
        """Whether the chain needs the gradient of the log density."""
        raise NotImplementedError

    def adaptation(self, gradient: Any) -> Any:
        """Adaptation state before the first step, given the gradient of the log density there."""
        raise NotImplementedError

    def target(self, data: Any) -> Target:
        """The target with these data."""
        return Target(data, self.functions, self.shapes, self.sites)

    def init(self, data: Any, key: Any, start: Start) -> MCMCState:
        """Search for a point with a finite density and gradient."""
        target = self.target(data)
        evaluate = self._evaluate(target)
        dim = target.dim
        zero = jnp.zeros(())

        def unfinished(carry: Any) -> Any:
            tries, _, _, _, ok = carry
            return ~ok & (tries < start.tries)

        def attempt(carry: Any) -> Any:
            tries = carry[0]
            noise = jax.random.uniform(jax.random.fold_in(key, tries), (dim,), minval=-1.0, maxval=1.0)
            position = start.position + start.radius * noise
            value, gradient = evaluate(position)
            return tries + 1, position, value, gradient, jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

        blank = (jnp.int32(0), jnp.zeros(dim), zero, jnp.zeros(dim), jnp.asarray(False))
        _, position, value, gradient, ok = jax.lax.while_loop(unfinished, attempt, blank)
        return MCMCState(position, value, gradient, self.adaptation(gradient), ok)

    def _evaluate(self, target: Target) -> Any:
        def log_density(x: Any) -> Any:
            return target.log_density(target.unravel(x))

        if self.uses_gradient:
            return jax.value_and_grad(log_density)
        return lambda x: (log_density(x), jnp.zeros_like(x))

    def collect(self, state: MCMCState, info: Any) -> tuple[Any, Mapping[str, Any]]:
        """The position and the transition's statistics."""
        return state.position, info

    def emit(self, data: Any, draw: Any) -> Any:
        """A draw as sites, and as the unconstrained vector it came from."""
        target = self.target(data)
        return target.constrain(target.unravel(draw)), draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Step size, acceptance, leapfrog steps and divergences of a chunk."""
        shown: dict[str, Any] = {
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
    """A transition on a target, with adaptation: the kernel that the driver runs."""

    transition: Transition

    @property
    @override
    def uses_gradient(self) -> bool:
        return self.transition.uses_gradient

    @property
    def tuning(self) -> warmup.Tuning:
        """What warm-up aims at."""
        return warmup.Tuning(self.target_accept, self.dense_mass, self.uses_gradient)

    @override
    def adaptation(self, gradient: Any) -> warmup.WarmupState:
        return warmup.init(gradient, self.step_size, self.tuning)

    def at(self, data: Any, position: Any) -> MCMCState:
        """The state at a given point, before any adaptation."""
        value, gradient = self._evaluate(self.target(data))(position)
        ok = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        return MCMCState(position, value, gradient, self.adaptation(gradient), ok)

    def refresh(self, data: Any, state: MCMCState) -> MCMCState:
        """The state with its density and gradient computed anew: due where the data have changed."""
        value, gradient = self._evaluate(self.target(data))(state.position)
        return state._replace(log_density=value, gradient=gradient)

    def step(self, data: Any, key: Any, state: MCMCState, u: Any) -> tuple[MCMCState, Any]:
        """One transition, then adaptation as the code ``u`` says."""
        target = self.target(data)
        adapted = state.warmup
        (position, value, gradient), stats = self.transition(
            key,
            (state.position, state.log_density, state.gradient),
            lambda x: target.log_density(target.unravel(x)),
            adapted.step_size,
            adapted.inverse_mass_matrix,
        )
        stats = dict(stats)
        outside = stats.pop("outside", jnp.asarray(False))
        rate = stats["acceptance_rate"]
        adapting = warmup.step(adapted, u, position, gradient, rate, self.tuning, outside)
        stats = {"lp": value, **stats, "step_size": adapted.step_size}
        return MCMCState(position, value, gradient, adapting, state.started), stats


@dataclass(frozen=True, kw_only=True)
class ChainMethod:
    """Settings that all Markov chain methods share.

    Attributes:
        num_warmup: steps of adaptation, dropped from the results.
        num_samples: draws a chain keeps.
        target_accept: mean acceptance probability that the step size is adapted to.
        dense_mass: adapt a full mass matrix instead of its diagonal, which pays for correlated targets of
            moderate dimension (memory d^2, work d^2 a step and d^3 a transition). "auto" does so where the
            method takes gradients and d is at most 50.
        step_size: first step size; kept as it is where ``num_warmup`` is 0.
    """

    num_warmup: int = 1000
    num_samples: int = 1000
    target_accept: float = 0.8
    dense_mass: bool | Literal["auto"] = "auto"
    step_size: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("num_warmup", 0), ("num_samples", 1)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                self._refuse(name, f"an int >= {least}")
        if not 0 < self.target_accept < 1:
            self._refuse("target_accept", "a number between 0 and 1")
        if self.dense_mass not in (True, False, "auto"):
            self._refuse("dense_mass", "True, False or 'auto'")
        if not self.step_size > 0:
            self._refuse("step_size", "a positive number")

    def _refuse_trajectories(self, length: float, max_num_steps: int) -> None:
        """For methods whose trajectories have a length and a largest number of steps."""
        if not length > 0:
            self._refuse("trajectory_length", "a positive number")
        if max_num_steps < 1:
            self._refuse("max_num_steps", "an int >= 1")

    def _refuse(self, name: str, expected: str) -> None:
        raise MethodError(
            f"{type(self).__name__}({name}=...) is out of range",
            expected=expected,
            found=repr(getattr(self, name)),
        )

    @property
    def name(self) -> str:
        """Name of the method."""
        return type(self).__name__

    def takes_dense(self, target: Target, uses_gradient: bool) -> bool:
        """Whether the metric is a full matrix."""
        if self.dense_mass == "auto":
            return uses_gradient and target.dim <= _DENSE_DIM
        return bool(self.dense_mass)

    def kernel(self, target: Target) -> Any:
        """The kernel for the driver. Equal methods on targets of one structure give equal kernels."""
        raise NotImplementedError

    def inputs(self) -> Any:
        """What the kernel is told at every step: a pytree with a leading axis of all steps."""
        raise NotImplementedError

    def infer(self, bound: BoundModel, **options: Any) -> Posterior:
        """Run the chains. Use :func:`mcx.infer`, which checks the options and the result."""
        return sample_chains(bound, self, **options)

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`. Use :func:`mcx.program`."""
        return mcmc_program(bound, self, num_chains)


@dataclass(frozen=True, kw_only=True)
class MCMCMethod(ChainMethod):
    """A transition of one chain, which adapts alone, over windows that grow."""

    def transition(self) -> Transition:
        """The Markov transition on vectors."""
        raise NotImplementedError

    @override
    def kernel(self, target: Target) -> MCMCKernel:
        transition = self.transition()
        return MCMCKernel(
            target.functions,
            target.shapes,
            target.sites,
            float(self.target_accept),
            float(self.step_size),
            self.takes_dense(target, transition.uses_gradient),
            transition,
        )

    @override
    def inputs(self) -> np.ndarray:
        return warmup.schedule(self.num_warmup, self.num_samples)
