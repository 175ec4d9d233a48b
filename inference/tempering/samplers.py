"""SMC samplers: tempering and data annealing, from a model to a posterior and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.inference.mcmc.hmc import HMC
from mcx.inference.mcmc.method import MCMCMethod
from mcx.inference.smc.engine import SMCSettings, SMCState
from mcx.inference.smc.replicates import orders
from mcx.inference.smc.resampling import Resampling, as_resampling, resampling_rule
from mcx.inference.tempering.advice import forced_advice, level_advice, moves_advice, survivors_advice
from mcx.inference.tempering.annealing import Annealing, in_batches
from mcx.inference.tempering.kernel import SamplerKernel
from mcx.inference.tempering.moves import CloudMoves
from mcx.inference.tempering.paths import LawPath, LawPathData, annealed_data, tempered
from mcx.methods.method import checked_target
from mcx.methods.replicate_method import Cloud, ReplicateMethod, ReplicatePlan
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.ops.keys import Stream, stream
from mcx.ops.validation import (
    Rule,
    boolean,
    either,
    fraction,
    instance,
    integer,
    number,
    one_of,
    optional,
    tuple_of,
)
from mcx.results.advice import Advice
from mcx.results.faults import FaultAdvice
from mcx.results.posterior import Posterior
from mcx.run.driver import Run
from mcx.target import Target
from mcx.types import Array, Bool, Float, Key, Stats

# longer trajectories only follow the contours of a single mode
_AUTO = HMC(target_accept=0.9, max_leapfrog_steps=16)
_BATCH_SIZE = 4096
_LASTING = ("level", "log_evidence")  # keep their last values when a replicate is finished


@dataclass(frozen=True, kw_only=True)
class _SMCSampler(ReplicateMethod[ReplicatePlan]):
    """Settings that SMC samplers share; see :class:`TemperedSMC`."""

    num_particles: int = field(default=1024, kw_only=False)
    move: MCMCMethod | str = "auto"
    target_ess: float = 0.9
    waste_free_length: int = 1
    levels: tuple[float, ...] | None = None
    max_correlation: float = 0.2
    max_moves: int = 50
    max_stages: int = 1000
    resampling: str | Resampling = "systematic"
    dense_mass: bool | None = None
    initial_law: Any = None
    batch_size: int | None = None
    max_nonfinite: float = 0.5

    former: ClassVar[Mapping[str, str]] = {
        "waste_free_length": "chain_length",
        "max_correlation": "forget",
        "dense_mass": "dense",
        "initial_law": "start",
    }
    fault_advice: ClassVar[FaultAdvice] = FaultAdvice(
        "check the observations and their distributions' supports, take more particles, or start from "
        "a law nearer to the posterior (initial_law=)",
        "the likelihood",
    )
    start_advice: ClassVar[str] = "give a law to start from, initial_law=, to the method"
    synchronous: ClassVar[bool] = False

    @override
    def rules(self) -> Mapping[str, Rule]:
        move = '"auto", or a Markov chain method such as mcx.HMC() or mcx.RandomWalk()'
        return {
            "num_particles": integer(2),
            "move": either(one_of("auto"), instance(MCMCMethod, move), expected=move),
            "target_ess": number(above=0, below=1),
            "waste_free_length": integer(1),
            "levels": optional(
                tuple_of(number(above=0, most=1), "increasing numbers in (0, 1], 1 the last", least=1)
            ),
            "max_correlation": number(above=0, below=1),
            "max_moves": integer(1),
            "max_stages": integer(1),
            "resampling": resampling_rule(),
            "dense_mass": optional(boolean()),
            "batch_size": optional(integer(1)),
            "max_nonfinite": fraction(),
        }

    @override
    def check(self) -> None:
        n, kept = self.num_particles, self.waste_free_length
        if kept > n // 2 or n % kept:
            self.refuse("waste_free_length", f"a divisor of num_particles={n}, other than itself")
        if self.levels is not None and not (
            self.levels[-1] == 1 and np.all(np.diff([0.0, *self.levels]) > 0)
        ):
            self.refuse("levels", "increasing numbers in (0, 1], 1 the last")

    def path(self, target: Target) -> tuple[LawPath, LawPathData]:
        """The path of laws and its data."""
        raise NotImplementedError

    def annealing(self, path: LawPath) -> Annealing:
        """How the path is followed."""
        method = _AUTO if isinstance(self.move, str) else self.move
        transition, accept = method.transition(), float(method.target_accept)
        moves = CloudMoves(
            transition, accept, self.max_correlation, self.max_moves, batch_size=self.batch_size
        )
        return Annealing(
            path,
            moves,
            self.target_ess,
            self.waste_free_length,
            None if self.levels is None else tuple(map(float, self.levels)),
            dense=self.dense_mass,
            first_step_size=float(method.step_size),
            rest=True,
        )

    @property
    @override
    def particles(self) -> int:
        return self.num_particles // self.waste_free_length

    @override
    def plan(self, bound: BoundModel) -> ReplicatePlan:
        target = checked_target(bound)
        path, data = self.path(target)
        settings = SMCSettings(
            self.particles, 1.0, as_resampling(self.resampling), batch_size=self.batch_size
        )
        kernel = SamplerKernel(self.annealing(path), settings)
        return ReplicatePlan(target, kernel, data, self.max_stages)

    @override
    def at(self, plan: ReplicatePlan, bound: BoundModel) -> ReplicatePlan:
        target = compile_model(bound)
        return replace(plan, target=target, data=self.path(target)[1])

    @override
    def cloud(self, plan: ReplicatePlan, key: Key, state: SMCState, *, complete: bool) -> Cloud:
        x, log_p = _points(key, state)
        return Cloud(constrained_draws(plan.target, x), x, {"lp": log_p})

    @override
    def lost(self, state: SMCState) -> Bool[Array, " chain"]:
        came_to_end: Bool[Array, " chain"] = jax.vmap(lambda s: s.particles.stage.level[0] >= 1)(state)
        return ~came_to_end | (state.info.ess == 0)

    @override
    def finished(self, plan: ReplicatePlan, result: Run) -> bool:
        return bool(np.all(np.asarray(jax.vmap(plan.kernel.finished)(result.state))))

    @override
    def stages(self, plan: ReplicatePlan, result: Run, cloud: Cloud, stats: Stats) -> Stats:
        took_place = stats["took_place"]
        count = int(took_place.any(0).sum())
        shown = {k: v for k, v in stats.items() if k != "took_place"}
        return {
            k: (v if k in _LASTING else np.where(took_place, v, np.nan))[:, :count] for k, v in shown.items()
        }

    @override
    def advice(self, posterior: Posterior) -> list[Advice]:
        if not posterior.smc_stats:
            return []
        stats = {name: np.asarray(x, float) for name, x in posterior.smc_stats.items()}
        survivors = np.nanmin(stats["unique_ancestors"]) * self.waste_free_length / posterior.num_draws
        path = [*level_advice(stats), *moves_advice(stats, ", or another move="), *forced_advice(stats)]
        return [*path, *survivors_advice(float(survivors))]


@dataclass(frozen=True, kw_only=True)
class TemperedSMC(_SMCSampler):
    """SMC sampler with adaptive tempering: from the prior to the posterior by powers of the likelihood.

    It suits posteriors with several modes, and estimates the evidence and its own error: a chain of the
    result is a replicate, a cloud of particles that is run independently of the others.

    Attributes:
        num_particles: number of particles of a replicate.
        move: a Markov chain method whose transition moves the particles; its step size and metric are adapted
            to the cloud at each stage. "auto" is Hamiltonian Monte Carlo.
        target_ess: the temperature is changed until the conditional effective sample size has fallen to this
            share.
        waste_free_length: number of points that are kept of the moves of a particle. 1 keeps the last only.
            With p of them (waste-free SMC) ``num_particles / p`` particles, each moved p - 1 times, make up
            the next cloud.
        levels: increasing inverse temperatures that end at 1, in place of adaptive ones.
        max_correlation: particles are moved until log density and coordinates have a smaller correlation than
            this with their former values.
        max_moves: largest number of moves of a stage.
        max_stages: largest number of stages; the result is incomplete if they do not suffice.
        resampling: a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        dense_mass: whether moves use the full covariance of the cloud; by default they do so if there are at
            least 5 particles a coordinate.
        initial_law: a law on unconstrained space to start from in the prior's place, of event shape (d,), or
            the standard deviation of a Gaussian; needed if the prior is improper.
        batch_size: number of particles that move at once, where all of them would need too much memory.
        max_nonfinite: largest tolerated share of likelihoods that are NaN or +inf.

    It costs a gradient a particle, leapfrog step, move and stage, and memory O(num_particles d) a replicate.

    Sources: Del Moral, Doucet and Jasra (2006); Jasra, Stephens, Doucet and Tsagaris (2011) for adaptive
    temperatures; Zhou, Johansen and Aston (2016) for the conditional effective sample size; Dau and Chopin
    (2022) for waste-free; Buchholz, Chopin and Jacob (2021) for Hamiltonian moves tuned by the cloud.
    """

    @override
    def path(self, target: Target) -> tuple[LawPath, LawPathData]:
        return tempered(target, self.initial_law)


@dataclass(frozen=True, kw_only=True)
class DataAnnealedSMC(_SMCSampler):
    """SMC sampler that takes in the observations one after another (iterated batch importance sampling).

    The other attributes are those of :class:`TemperedSMC`.

    Attributes:
        dim: plate or time axis whose entries come in one by one, and surprising ones in parts; by default the
            only one that observations have. Other observations come in with its first entry.

    ``smc_stats["level"]`` is the number of entries taken in, over their total. Every stage costs a pass over
    all data.

    Source: Chopin (2002), Biometrika 89(3).
    """

    dim: str | None = None

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {**super().rules(), "dim": optional(instance(str, "the name of a plate or time axis"))}

    @override
    def path(self, target: Target) -> tuple[LawPath, LawPathData]:
        return annealed_data(target, self.dim, self.initial_law)


@jax.jit
def _points(key: Key, state: SMCState) -> tuple[Float[Array, "chain draw d"], Float[Array, "chain draw"]]:
    """Particles of all replicates, (chain, draw, d), and their log densities, in random order."""
    particles = state.particles
    chains, d = len(particles.position), particles.position.shape[-1]
    x = particles.position.reshape(chains, -1, d)
    log_p = (particles.base + particles.terms.sum(-1)).reshape(chains, -1)
    order = orders(stream(key, Stream.PARTICLE_ORDER), chains, x.shape[1])
    return jnp.take_along_axis(x, order[:, :, None], 1), jnp.take_along_axis(log_p, order, 1)


@jax.jit
def constrained_draws(
    target: Target, x: Float[Array, "chain draw d"]
) -> dict[str, Float[Array, "chain draw ..."]]:
    """Values by site, deterministic sites too, at unconstrained points (chain, draw, d)."""
    batch = _BATCH_SIZE if x.shape[0] * x.shape[1] > _BATCH_SIZE else None
    found: dict[str, Array] = in_batches(lambda v: target.constrain(target.unravel(v)), x, batch)
    return found
