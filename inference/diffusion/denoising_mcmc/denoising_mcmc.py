"""Denoising MCMC: Markov chains over points and noise levels, whose points are denoised."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.denoising_mcmc.kernel import DenoisingKernel, ProductSpace
from mcx.inference.diffusion.denoising_mcmc.level_laws import LevelLaw, LevelsFromDensity, LevelsFromScore
from mcx.inference.diffusion.integrators.base import Integrator
from mcx.inference.diffusion.integrators.integrate import INTEGRATOR, cast, checked_integrator
from mcx.inference.diffusion.integrators.linear import DPMSolver
from mcx.inference.diffusion.integrators.sampling import sample
from mcx.inference.diffusion.models.arguments import (
    DENOISER,
    EVENT_SHAPE,
    ByLevel,
    Points,
    having,
    noise_levels,
)
from mcx.inference.diffusion.models.schedules import levels
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.keys import as_key
from mcx.ops.validation import Rule, Settings, boolean, either, integer, number, one_of, optional, validated
from mcx.run.checkpoint import Checkpoint, identified
from mcx.run.devices import Devices
from mcx.run.driver import run
from mcx.types import Key, KeyLike, PyTree

if TYPE_CHECKING:
    import xarray as xr

_INITIAL_STEPS = 20


@dataclass(frozen=True)
class Denoised:
    """Draws of denoising MCMC.

    Attributes:
        x: denoised points, chain x draw x event.
        noisy: the chains' points that they come from, chain x draw x event.
        rho: the noise levels of those points, chain x draw.
        acceptance: acceptance rate of the moves, chain x step, warm-up first.
        step_size: final step sizes of the Langevin moves, one for each sixteenth of the levels, (16,), the
            smallest levels first.
        nfe: number of calls of the denoiser for a draw: those of the chain and those of the denoising.
        nfe_start: number of calls for a chain's initial point and its warm-up.
        complete: False if the run was stopped before its end.
        compile_time, run_time: in seconds.
    """

    x: np.ndarray
    noisy: np.ndarray
    rho: np.ndarray
    acceptance: np.ndarray
    step_size: np.ndarray
    nfe: int
    nfe_start: int
    complete: bool
    compile_time: float
    run_time: float

    def to_datatree(self) -> xr.DataTree:
        """The draws in ArviZ's schema: ``posterior`` holds x, ``sample_stats`` the levels."""
        from arviz_base import from_dict

        with warnings.catch_warnings():
            # ArviZ warns of more chains than draws, which are usual here
            warnings.filterwarnings("ignore", "Found chain dimension to be longer")
            return from_dict({"posterior": {"x": self.x}, "sample_stats": {"rho": self.rho}}, name="mcx")

    def __repr__(self) -> str:
        chains, draws, *event = self.x.shape
        low, middle, high = np.quantile(self.rho, [0.05, 0.5, 0.95])
        return (
            f"DenoisingMCMC: {chains} chains x {draws} draws of shape {tuple(event)}, "
            f"{self.nfe} calls of the model a draw\n"
            f"noise level {middle:.3g} (90 % within {low:.3g} and {high:.3g}), ran for {self.run_time:.1f} s "
            f"(compile {self.compile_time:.1f} s)"
        )


@dataclass(frozen=True, kw_only=True)
class DenoisingMCMC(Settings):
    """Markov chains on the product of points and noise levels, whose points are denoised as they come.

    The law of a chain is ``q_rho(y) p(rho)``: it alternates Langevin moves of y at its level and draws of the
    level given y. Large levels let it cross between modes, and points of small levels need few steps to be
    denoised: draws cost a fraction of those that start from noise.

    Attributes:
        num_samples: number of draws of a chain.
        num_warmup: number of steps before them, which learn step sizes from all chains together.
        num_skip: number of moves in a step, of which one point is denoised.
        level_law: the law of a level given a point: :class:`~mcx.diffusion.LevelsFromDensity`,
            ``LevelsFromScore``, or ``LevelsFromClassifier``. "auto" uses the model's density if it has one,
            and its divergence otherwise.
        metropolis: whether to accept or reject moves, so that the chain's law is exact; this needs a density.
            "auto" does so if there is one.
        step_size: squared length of the moves' noise, at every level; None learns one for every sixteenth
            of the levels, which needs ``metropolis``.
        integrator: the integrator that denoises; by default ``DPMSolver(order=2)``.
        num_denoise: its number of steps n, from a point's level rho to no noise.
        denoise_power: the exponent a of the levels ``rho (1 - i / n)^a`` that it takes.
        select: "last" denoises the last point of a step's moves; "smallest" the one with the least noise,
            which is faster to denoise, but biased: its law is not the chain's.

    A move costs a call of the model (two with ``metropolis``) and of the level law, a draw ``num_denoise``
    more. The law of x is as exact as the level law and the integrator are.

    Source: Kim and Ye (2022), Denoising MCMC for accelerating diffusion-based generative models. Their code
    takes the most probable level where their algorithm draws one; here it is drawn.
    """

    num_samples: int = 1000
    num_warmup: int = 200
    num_skip: int = 1
    level_law: LevelLaw | str = "auto"
    metropolis: bool | str = "auto"
    step_size: float | None = None
    integrator: Integrator | None = None
    num_denoise: int = 3
    denoise_power: float = 3.0
    select: str = "last"

    def rules(self) -> Mapping[str, Rule]:
        """Rules of the fields."""
        laws = "'auto', LevelsFromDensity(), LevelsFromScore() or LevelsFromClassifier(fn)"
        return {
            "num_samples": integer(1),
            "num_warmup": integer(0),
            "num_skip": integer(1),
            "level_law": either(one_of("auto"), having("log_density", laws), expected=laws),
            "metropolis": either(boolean(), one_of("auto"), expected="True, False or 'auto'"),
            "step_size": optional(number(above=0), "to learn it"),
            "integrator": optional(INTEGRATOR, "for DPMSolver(order=2)"),
            "num_denoise": integer(1),
            "denoise_power": number(above=0, below=100),
            "select": one_of("last", "smallest"),
        }

    def run(
        self,
        model: Denoiser,
        event_shape: tuple[int, ...],
        rho: ArrayLike,
        *,
        key: KeyLike,
        log_prior: ArrayLike | None = None,
        init: ArrayLike | None = None,
        num_chains: int = 64,
        progress: Any = True,
        checkpoint: str | Path | Checkpoint | None = None,
        devices: Devices = None,
    ) -> Denoised:
        """Run the chains.

        Args:
            model: a denoiser: :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Score`.
            event_shape: shape of a point.
            rho: noise levels, (K,), strictly falling or rising, positive. Their law is uniform over the K
                levels, so that geometric levels make it log-uniform; see :func:`~mcx.diffusion.levels`.
            key: a typed JAX key or an int.
            log_prior: log probabilities of the levels, (K,), unnormalised, in place of the uniform law.
            init: initial points without noise, (num_chains, *event_shape), to which noise of a level drawn
                from its law is added; by default draws of the model itself, in 20 steps of
                ``DPMSolver(order=2)``.
            num_chains: number of chains, which run together.
            progress: as for :func:`mcx.infer`.
            checkpoint: as for :func:`mcx.infer`.
            devices: as for :func:`mcx.infer`.

        Raises:
            MethodError: if levels or initial points make no sense.
            CapabilityError: if a density is needed and there is none.
            KeyTypeError: if the key is missing or is none.
        """
        model = validated("DenoisingMCMC.run", "model", model, DENOISER)
        shape = validated("DenoisingMCMC.run", "event_shape", event_shape, EVENT_SHAPE)
        num_chains = validated("DenoisingMCMC.run", "num_chains", num_chains, integer(1))
        grid = noise_levels("DenoisingMCMC.run", "rho", rho, rising=True)
        prior = np.zeros(len(grid)) if log_prior is None else np.asarray(log_prior, float)
        if prior.shape != grid.shape or not np.isfinite(prior).all():
            raise MethodError(
                "DenoisingMCMC.run(log_prior=...) does not fit the levels",
                expected=f"{len(grid)} finite numbers",
                found=f"shape {prior.shape}",
            )
        if grid[0] > grid[-1]:
            grid, prior = grid[::-1], prior[::-1]
        law, metropolis = self._for(model)
        integrator = checked_integrator("DenoisingMCMC", "integrator", self.integrator)
        tables, by_level = self._tables(integrator, grid)
        kernel = DenoisingKernel(
            integrator=integrator,
            num_skip=self.num_skip,
            metropolis=metropolis,
            step_size=self.step_size,
            num_warmup=self.num_warmup,
            smallest=self.select == "smallest",
            by_level=by_level,
        )
        key_init, key_noise, key_chain, key_denoise = jax.random.split(as_key(key), 4)
        dtype = jnp.zeros(()).dtype
        data = ProductSpace(
            model,
            law,
            jnp.asarray(grid, dtype),
            jnp.asarray(prior, dtype),
            cast(tables, dtype),
            jax.random.key_data(key_denoise),
        )
        nfe_init = 0
        if init is None:
            down = levels(grid[-1], grid[0], _INITIAL_STEPS - 1, to_zero=True)
            init = sample(model, num_chains, shape, down, key=key_init, method=DPMSolver())
            nfe_init = DPMSolver().nfe(down)
        x = jnp.asarray(init, dtype)
        if x.shape != (num_chains, *shape):
            raise MethodError(
                "DenoisingMCMC.run(init=...) does not hold a point for each chain",
                expected=f"shape {(num_chains, *shape)}",
                found=f"shape {x.shape}",
            )
        result = run(
            kernel,
            data,
            key=key_chain,
            num_steps=self.num_warmup + self.num_samples,
            num_chains=num_chains,
            num_discard=self.num_warmup,
            init=_noised(key_noise, x, data.rho, data.log_prior),
            progress=progress,
            title="DenoisingMCMC",
            checkpoint=identified(checkpoint, method=self.identity()),
            devices=devices,
        )
        step_nfe = self.num_skip * (1 + int(metropolis) + law.nfe(len(grid), int(np.prod(shape))))
        denoising = integrator.nfe(_down(grid[-1], self.num_denoise, self.denoise_power)) or 0
        return Denoised(
            np.asarray(result.draws["x"]),
            np.asarray(result.draws["noisy"]),
            grid[np.asarray(result.draws["level"])],
            np.asarray(result.stats["acceptance"]),
            np.exp(np.asarray(result.state.log_step)[0]),
            step_nfe + denoising,
            nfe_init + self.num_warmup * step_nfe,
            result.complete,
            result.compile_time,
            result.run_time,
        )

    def _tables(self, integrator: Integrator, grid: np.ndarray) -> tuple[PyTree, tuple[bool, ...]]:
        """What the integrator prepares for each level to start from, and which leaves depend on the level."""
        each = [integrator.prepare(_down(r, self.num_denoise, self.denoise_power)) for r in grid]
        first, tree = jax.tree_util.tree_flatten(each[0])
        stacked = [np.stack(x) for x in zip(*map(jax.tree_util.tree_leaves, each), strict=True)]
        by_level = tuple(bool((x != x[:1]).any()) for x in stacked)
        leaves = [x if varies else one for x, one, varies in zip(stacked, first, by_level, strict=True)]
        return jax.tree_util.tree_unflatten(tree, leaves), by_level

    def _for(self, model: Denoiser) -> tuple[LevelLaw, bool]:
        """The level law for a model, and whether moves are accepted or rejected."""
        metropolis = model.has_density if self.metropolis == "auto" else bool(self.metropolis)
        law = self.level_law
        if isinstance(law, str):
            law = LevelsFromDensity() if model.has_density else LevelsFromScore()
        if not model.has_density and (metropolis or isinstance(law, LevelsFromDensity)):
            raise CapabilityError(
                "the model is a score alone, and "
                + ("metropolis=True accepts by densities" if metropolis else "its levels have no density"),
                expected="GaussianMixture, or Score(..., kind='energy')",
                remedy="DenoisingMCMC(metropolis=False, level_law=LevelsFromScore(), step_size=...)",
            )
        if self.step_size is None and not metropolis:
            raise MethodError(
                "DenoisingMCMC learns step sizes from acceptance, and without metropolis no move is rejected",
                expected="step_size=, about the squared width of the narrowest part of the data",
            )
        return law, metropolis


def _down(rho: float, num: int, power: float) -> np.ndarray:
    """Levels from rho to no noise; none is so small that its step would be wasted."""
    return np.asarray(rho * np.linspace(1.0, 0.0, num + 1) ** power)


@jax.jit
def _noised(key: Key, x: Points, rho: ByLevel, log_prior: ByLevel) -> dict[str, Array]:
    """Draws of the product law if the points x are draws of the model."""
    key_level, key_noise = jax.random.split(key)
    level = jax.random.categorical(key_level, log_prior, shape=(len(x),)).astype(jnp.int32)
    scale = rho[level].reshape(-1, *(1,) * (x.ndim - 1))
    return {"y": x + scale * jax.random.normal(key_noise, x.shape, x.dtype), "level": level}
