"""PaRIS: expectations of additive functionals, computed on the way with memory for one time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.inference.smc.backward import backward_weights, check_kind, parents
from mcx.inference.smc.engine import SMCInfo, SMCSettings, SMCState, initialize, move
from mcx.inference.smoothing.additive import Summand
from mcx.target import FeynmanKac

__all__ = [
    "KINDS",
    "PaRIS",
    "Recursion",
    "Smoothing",
    "Trail",
    "check_numbers",
    "check_share",
    "forward",
    "value",
]

KINDS = ("imh", "exact", "hybrid", "all")


@dataclass(frozen=True, kw_only=True)
class PaRIS:
    """Particle-based, rapid incremental smoother.

    A filter whose particles carry the functional's conditional expectation given themselves, updated at
    every step from a few draws of the particle's possible parents. Runs forward only, with memory O(N); its
    bias is O(T / N), and 2 draws a particle are enough for a variance that grows no faster than T.

    Attributes:
        num_particles: N.
        num_backward: draws a particle and step, M; 1 degenerates as genealogies do.
        backward: "imh" (Metropolis-Hastings steps from the particle's ancestor: O(N) a step), "exact" (draws
            from the backward kernel: O(N^2)), "hybrid" (the same by rejection as long as that pays: O(N) to
            O(N^2); needs transitions whose largest density is known), or "all" (its expectation instead of
            draws: O(N^2), the forward form of forward-filtering backward-smoothing).
        num_steps: Metropolis-Hastings steps of a draw.
        threshold: resample where the effective sample size falls below this fraction of N; 1 is every step.

    Source: Olsson and Westerborn (2017); "imh": Dau and Chopin (2023); "all": Del Moral, Doucet
    and Singh (2010).
    """

    num_particles: int = field(default=1000, kw_only=False)
    num_backward: int = 2
    backward: str = "imh"
    num_steps: int = 1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_kind("PaRIS", self.backward, KINDS)
        check_numbers(self, num_particles=1, num_backward=1, num_steps=0)
        SMCSettings(self.num_particles, self.threshold)  # checks the threshold

    @property
    def smoothing(self) -> Smoothing:
        """Settings of the recursion."""
        settings = SMCSettings(self.num_particles, self.threshold)
        return Smoothing(settings, self.backward, self.num_backward, self.num_steps)


def check_numbers(method: Any, **least: int) -> None:
    """Raise unless these integer settings of a method are large enough.

    Raises:
        MethodError: names the setting.
    """
    for name, bound in least.items():
        value = getattr(method, name)
        if not isinstance(value, int) or value < bound:
            raise MethodError(
                f"{type(method).__name__}({name}=...) is out of range",
                expected=f"an int >= {bound}",
                found=repr(value),
            )


def check_share(method: Any, name: str) -> None:
    """Raise unless this setting of a method is a share of its steps, above 0 and at most 1.

    Raises:
        MethodError: names the setting.
    """
    value = getattr(method, name)
    if not 0 < value <= 1:
        raise MethodError(
            f"{type(method).__name__}({name}=...) is out of range",
            expected="a share of the steps: above 0, at most 1",
            found=repr(value),
        )


class Smoothing(NamedTuple):
    """Settings of the recursion; static. See :class:`PaRIS`."""

    system: SMCSettings
    backward: str
    num_backward: int
    num_steps: int


class Trail(NamedTuple):
    """A particle system with a statistic for each particle.

    system: the particles.
    statistic: pytree of (N, ...): expectation of the functional up to now, given that the path ends here.
    """

    system: SMCState
    statistic: Any


def value(trail: Trail) -> Any:
    """The functional's expectation given the observations so far; NaN after a collapse."""
    system = trail.system
    w = jnp.where(system.collapsed, jnp.nan, jnp.exp(system.log_w))

    def average(h: Any) -> Any:
        # particles of weight zero may be anywhere, infinity included
        zero = (w == 0).reshape(-1, *(1,) * (h.ndim - 1))
        return jnp.tensordot(w, jnp.where(zero, 0.0, h), 1, precision="highest")

    return jax.tree_util.tree_map(average, trail.statistic)


class Recursion(NamedTuple):
    """What carries statistics from one time to the next.

    fk: the model.
    ctx: what ``fk.prepare`` gave.
    extra: what ``summand.prepare`` gave.
    summand: the functional.
    smoothing: settings.
    """

    fk: FeynmanKac
    ctx: Any
    extra: Any
    summand: Summand
    smoothing: Smoothing

    def start(self, system: SMCState, u: Any) -> Trail:
        """Statistics of the system at time 0."""
        terms = jax.vmap(lambda x: self.summand.initial(self.fk, self.ctx, self.extra, x, u))(
            system.particles
        )
        if self.summand.by_time:
            terms = jax.tree_util.tree_map(
                lambda h: jnp.zeros((h.shape[0], self.fk.num_times, *h.shape[1:]), h.dtype).at[:, 0].set(h),
                terms,
            )
        return Trail(system, terms)

    def advance(self, key: Any, old: Trail, new: SMCState, u: Any, t: Any) -> tuple[Trail, Any]:
        """Carry the statistics over to a system that has moved on by a step.

        Args:
            key: a typed key.
            old: the system before, with its statistics.
            new: the system now.
            u: input of the step.
            t: its number.

        Returns:
            The new statistics; and the first parent drawn for each particle, int32 (N,).
        """
        before, smoothing = (old.system.particles, old.system.log_w), self.smoothing

        def terms(chosen: Any, x: Any) -> Any:
            return jax.vmap(lambda a, s: self._term(s, (a, x), u, t))(*chosen)

        if smoothing.backward == "all":

            def expected(x: Any) -> Any:
                w = jnp.exp(backward_weights(self.fk, self.ctx, before, x, u))
                every = terms((before[0], old.statistic), x)
                return jax.tree_util.tree_map(lambda h: jnp.tensordot(w, h, 1, precision="highest"), every)

            return Trail(new, jax.lax.map(expected, new.particles)), new.ancestors

        drawn = parents(
            key,
            self.fk,
            self.ctx,
            before,
            (new.particles, new.ancestors),
            u,
            num_draws=smoothing.num_backward,
            kind=smoothing.backward,
            num_steps=smoothing.num_steps,
        )

        def average(index: Any, x: Any) -> Any:
            chosen = jax.tree_util.tree_map(lambda a: a[index], (before[0], old.statistic))
            return jax.tree_util.tree_map(lambda h: jnp.mean(h, 0), terms(chosen, x))

        return Trail(new, jax.vmap(average)(drawn, new.particles)), drawn[:, 0]

    def _term(self, so_far: Any, pair: tuple[Any, Any], u: Any, t: Any) -> Any:
        term = self.summand.step(self.fk, self.ctx, self.extra, pair, u, t)
        if self.summand.by_time:
            return jax.tree_util.tree_map(lambda s, h: s.at[t].set(h), so_far, term)
        return jax.tree_util.tree_map(jnp.add, so_far, term)


def forward(
    key: Any,
    recursion: Recursion,
    *,
    system_of: FeynmanKac | None = None,
    scheme: Callable[[SMCState, Any], Callable[..., Any]] | None = None,
    keep: Callable[[SMCState, Any], Any] | None = None,
) -> tuple[Trail, SMCInfo, Any]:
    """Run the recursion over all times.

    Args:
        key: a typed key.
        recursion: model, functional and settings.
        system_of: the model that the particles follow, if it is another one: of the same kernels and
            potentials, with inputs of its own.
        scheme: ``(state, u) -> resampling scheme``, if it depends on the system; ``u`` of ``system_of``.
        keep: ``(system, parents) -> what to keep of every time``.

    Returns:
        The last system with its statistics; what happened at each time, (T,); what was kept, (T, ...).
        Costs O(T N M) by Metropolis-Hastings, memory O(N) and what is kept.
    """
    fk, settings = recursion.fk, recursion.smoothing.system
    model = fk if system_of is None else system_of
    key_start, key_run = jax.random.split(key)
    at_start, later = (
        jax.tree_util.tree_map(lambda x, s=part: jnp.asarray(x)[s], (fk.inputs, model.inputs))
        for part in (0, slice(1, None))
    )
    system = initialize(key_start, model, recursion.ctx, at_start[1], settings)

    def kept(system: SMCState, drawn: Any) -> tuple[SMCInfo, Any]:
        return system.info, None if keep is None else keep(system, drawn)

    def step(trail: Trail, x: Any) -> tuple[Trail, Any]:
        key, t, (u, u_system) = x
        key_move, key_back = jax.random.split(key)
        own = settings if scheme is None else replace(settings, resampling=scheme(trail.system, u_system))
        new = move(key_move, model, recursion.ctx, trail.system, u_system, own)
        trail, drawn = recursion.advance(key_back, trail, new, u, t)
        return trail, kept(new, drawn)

    keys = jax.random.split(key_run, fk.num_times - 1)
    start = kept(system, system.ancestors)
    trail = recursion.start(system, at_start[0])
    trail, rest = jax.lax.scan(step, trail, (keys, jnp.arange(1, fk.num_times), later))
    info, history = jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a[None], b]), start, rest)
    return trail, info, history
