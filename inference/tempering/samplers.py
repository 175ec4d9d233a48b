"""SMC samplers: tempering and data annealing, from a model to a posterior and its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, override

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.mcmc.base import MCMCMethod
from mcx.inference.mcmc.hmc import HMC
from mcx.inference.mcmc.sample import checked_target
from mcx.inference.smc.engine import SMCSettings, SMCState
from mcx.inference.smc.replicates import island_log_weights, log_mean_evidence, orders, raise_faults
from mcx.inference.smc.resampling import as_resampling
from mcx.inference.tempering.annealing import Annealing, code
from mcx.inference.tempering.kernel import SamplerKernel, finished
from mcx.inference.tempering.moves import Moves
from mcx.inference.tempering.paths import Path, PathData, annealed_data, tempered
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.ops.batches import vmap_in_batches
from mcx.ops.checks import check_fields, is_count
from mcx.results.posterior import Posterior, RunInfo, fields_of
from mcx.run.driver import Run, run
from mcx.run.programs import chain_keys, start_chains
from mcx.target import Target

__all__ = ["DataAnnealedSMC", "TemperedSMC", "constrained_draws"]

_AUTO = HMC(target_accept=0.9, max_num_steps=16)  # longer ones only follow the contours of a single mode
_AT_ONCE = 4096
_LASTING = ("level", "log_evidence")  # keep their last values where a replicate is done


@dataclass(frozen=True)
class _SMCSampler:
    """Settings that SMC samplers share; see :class:`TemperedSMC`."""

    num_particles: int = 1024
    move: Any = "auto"
    target_ess: float = 0.9
    chain_length: int = 1
    levels: tuple[float, ...] | None = None
    forget: float = 0.2
    max_moves: int = 50
    max_stages: int = 1000
    resampling: str | Callable[..., Any] = "systematic"
    dense: bool | None = None
    start: Any = None
    batch_size: int | None = None
    max_nonfinite: float = 0.5

    def __post_init__(self) -> None:
        as_resampling(self.resampling)
        check_fields(
            self,
            ("num_particles", is_count(self.num_particles, 2), "an int >= 2"),
            ("target_ess", 0 < self.target_ess < 1, "a fraction between 0 and 1"),
            ("max_stages", is_count(self.max_stages), "an int >= 1"),
            ("batch_size", self.batch_size is None or is_count(self.batch_size), "an int >= 1, or None"),
            (
                "chain_length",
                1 <= self.chain_length <= self.num_particles // 2
                and self.num_particles % self.chain_length == 0,
                f"a divisor of num_particles={self.num_particles}, other than itself",
            ),
            (
                "levels",
                self.levels is None or _rising(self.levels),
                "increasing numbers in (0, 1], 1 the last",
            ),
            (
                "move",
                self.move == "auto" or isinstance(self.move, MCMCMethod),
                '"auto", or a Markov chain method such as mcx.HMC() or mcx.RandomWalk()',
            ),
        )
        self._moves()

    @property
    def name(self) -> str:
        """Name of the method."""
        return type(self).__name__

    @property
    def _method(self) -> MCMCMethod:
        return _AUTO if self.move == "auto" else self.move

    def _moves(self) -> Moves:
        return Moves(
            self._method.transition(),
            float(self._method.target_accept),
            self.forget,
            self.max_moves,
            batch_size=self.batch_size,
        )

    def path(self, target: Target) -> tuple[Path, PathData]:
        """The path of laws, and its data."""
        raise NotImplementedError

    def kernel(self, path: Path) -> SamplerKernel:
        """The stages, for the driver."""
        how = Annealing(
            path,
            self._moves(),
            self.target_ess,
            self.chain_length,
            None if self.levels is None else tuple(map(float, self.levels)),
            dense=self.dense,
            first_step_size=float(self._method.step_size),
            rest=True,
        )
        settings = SMCSettings(
            self.num_particles // self.chain_length,
            1.0,
            as_resampling(self.resampling),
            batch_size=self.batch_size,
        )
        return SamplerKernel(code(how, jnp.result_type(float).name), settings)

    def infer(
        self,
        bound: BoundModel,
        *,
        key: Any,
        num_chains: int,
        init: Any,
        coords: Mapping[str, Any],
        **options: Any,
    ) -> Posterior:
        """Run the replicates. Use :func:`mcx.infer`, which checks the options and the result."""
        if init is not None:
            raise MethodError(
                f"{self.name} starts from the prior, not from points",
                found="init=",
                remedy="give a law to start from, start=, to the method",
            )
        target = checked_target(bound)
        path, data = self.path(target)
        result = run(
            self.kernel(path),
            data,
            key=key,
            num_steps=self.max_stages,
            num_chains=num_chains,
            title=self.name,
            **options,
        )
        return self._posterior(bound, target, result, key, coords)

    def _posterior(
        self, bound: BoundModel, target: Target, result: Run, key: Any, coords: Mapping[str, Any]
    ) -> Posterior:
        stats = dict(result.stats)
        if not stats:
            raise KeyboardInterrupt(
                f"{self.name} was interrupted before its first stage; there is nothing yet"
            )
        took_place = stats.pop("took_place")
        raise_faults(stats, self.num_particles // self.chain_length, self.max_nonfinite, "sampler")
        x, log_p = _points(key, result.state)
        draws = jax.device_get(constrained_draws(target, x))
        log_z = np.asarray(jax.device_get(jax.vmap(lambda s: s.log_evidence)(result.state)))
        total, se = log_mean_evidence(log_z)
        complete = bool(np.all(np.asarray(finished(result.state))))
        info = RunInfo.of(self, result, key=key, coords=coords, dtype=x.dtype)
        count = int(took_place.any(0).sum())
        return Posterior(
            draws={s.name: draws[s.name] for s in target.sites if s.name in draws},
            unconstrained=np.asarray(x),
            stats={"lp": np.asarray(log_p)},
            warmup_stats={},
            bound=bound,
            info=replace(info, complete=complete, cloud=True),
            # of stages that differ, evidences are of different laws
            weights=island_log_weights(log_z, x.shape[1]) if complete else None,
            log_evidence=total,
            log_evidence_se=se,
            smc_stats={
                k: (v if k in _LASTING else _padded(v, took_place))[:, :count] for k, v in stats.items()
            },
        )

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`. Use :func:`mcx.program`."""
        template = checked_target(bound)
        path, _ = self.path(template)
        kernel = self.kernel(path)

        def run_program(key: Any, bound: BoundModel = bound) -> Posterior:
            target = compile_model(bound)
            _, data = self.path(target)
            start_keys, keys = chain_keys(key, num_chains)
            state = start_chains(kernel, data, start_keys, None)

            def unfinished(carry: Any) -> Any:
                t, state = carry
                return (t < self.max_stages) & ~jnp.all(finished(state))

            def stage(carry: Any) -> Any:
                t, state = carry
                now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
                return t + 1, jax.vmap(lambda k, s: kernel.step(data, k, s, None)[0])(now, state)

            _, state = jax.lax.while_loop(unfinished, stage, (jnp.uint32(0), state))
            x, log_p = _points(key, state)
            log_z = jax.vmap(lambda s: s.log_evidence)(state)
            fine = finished(state) & (state.info.ess > 0)  # the others came to no end, or lost all particles
            x = jnp.where(fine[:, None, None], x, jnp.nan)
            info = RunInfo(self.name, fields_of(self), cloud=True)
            draws = constrained_draws(target, x)
            weights = island_log_weights(log_z, x.shape[1])
            return Posterior(draws, x, {"lp": log_p}, {}, bound, info, weights, *log_mean_evidence(log_z))

        return run_program


@dataclass(frozen=True)
class TemperedSMC(_SMCSampler):
    """SMC sampler with adaptive tempering: from the prior to the posterior by powers of the likelihood.

    It takes posteriors of several modes, gives the evidence, and tells its own error: a chain of the result
    is a replicate, a cloud of particles run independently of the others.

    Attributes:
        num_particles: of a replicate.
        move: a Markov chain method whose transition moves the particles, its step size and metric adapted to
            the cloud at each stage; "auto" is Hamiltonian Monte Carlo.
        target_ess: the temperature is changed until the conditional effective sample size has fallen to this
            share.
        chain_length: points that are kept of the moves of a particle. 1 is the last only. With p of them
            (waste-free SMC) ``num_particles / p`` chains of p - 1 moves make up the next cloud.
        levels: inverse temperatures, given and ending at 1, in place of adaptive ones.
        forget: particles are moved until log density and coordinates have less correlation than this with
            what they were.
        max_moves: a stage, at most.
        max_stages: at most; the result is incomplete where they did not suffice.
        resampling: a scheme by name, or a function ``(key, log_w, num) -> ancestors``.
        dense: whether moves use the full covariance of the cloud; by default where there are 5 particles or
            more a coordinate.
        start: a law on unconstrained space to start from in the prior's place, of event shape (d,), or the
            standard deviation of a Gaussian: needed where the prior is improper.
        batch_size: particles that are moved at once, where all of them would need too much memory.
        max_nonfinite: largest tolerated share of likelihoods that are NaN or +inf.

    Costs a gradient a particle, leapfrog step, move and stage. Memory O(num_particles d) a replicate.

    Sources: Del Moral, Doucet and Jasra (2006); Jasra, Stephens, Doucet and Tsagaris (2011) for adaptive
    temperatures; Zhou, Johansen and Aston (2016) for the conditional effective sample size; Dau and Chopin
    (2022) for waste-free; Buchholz, Chopin and Jacob (2021) for Hamiltonian moves tuned by the cloud.
    """

    @override
    def path(self, target: Target) -> tuple[Path, PathData]:
        return tempered(target, self.start)


@dataclass(frozen=True)
class DataAnnealedSMC(_SMCSampler):
    """SMC sampler that takes in the observations one after another (iterated batch importance sampling).

    The attributes are those of :class:`TemperedSMC`, and

    Attributes:
        dim: plate or time axis whose entries come in one by one, or in parts where one entry surprises;
            by default the only one that observations have. Other observations come in with its first entry.

    ``smc_stats`` has the number of entries taken in, over their total, as ``level``. Every stage costs a pass
    over all data. Source: Chopin (2002), Biometrika 89(3).
    """

    dim: str | None = None

    @override
    def path(self, target: Target) -> tuple[Path, PathData]:
        return annealed_data(target, self.dim, self.start)


def _rising(levels: tuple[float, ...]) -> bool:
    return len(levels) > 0 and levels[-1] == 1 and bool(np.all(np.diff([0.0, *levels]) > 0))


@jax.jit
def _points(key: Any, state: SMCState) -> tuple[Any, Any]:
    """Particles of all replicates, (chain, draw, d), and their log densities, in no order."""
    particles = state.particles
    chains, d = len(particles.position), particles.position.shape[-1]
    x = particles.position.reshape(chains, -1, d)
    log_p = (particles.base + particles.terms.sum(-1)).reshape(chains, -1)
    order = orders(jax.random.fold_in(key, 5), chains, x.shape[1])
    return jnp.take_along_axis(x, order[:, :, None], 1), jnp.take_along_axis(log_p, order, 1)


@jax.jit
def constrained_draws(target: Target, x: Any) -> dict[str, Any]:
    """Sites, deterministic ones too, at unconstrained points (chain, draw, d)."""
    flat = x.reshape(-1, x.shape[-1])
    batch = _AT_ONCE if len(flat) > _AT_ONCE else None
    found = vmap_in_batches(lambda v: target.constrain(target.unravel(v)), (0,), batch)(flat)
    return jax.tree_util.tree_map(lambda a: a.reshape(*x.shape[:2], *a.shape[1:]), found)


def _padded(values: np.ndarray, took_place: np.ndarray) -> np.ndarray:
    """Statistics chain x stage, NaN where a replicate was done before."""
    return np.where(took_place, values, np.nan)
