"""Denoising MCMC: a Markov chain over points and noise levels, whose points are denoised."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.denoising_mcmc.kernel import DenoisingKernel, ProductSpace
from mcx.inference.diffusion.denoising_mcmc.level_laws import LevelLaw, LevelsFromDensity, LevelsFromScore
from mcx.inference.diffusion.integrators.base import Integrator, cast, default_method
from mcx.inference.diffusion.integrators.linear import DPMSolver
from mcx.inference.diffusion.integrators.sampling import sample
from mcx.inference.diffusion.models.schedules import levels
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.checks import is_count
from mcx.ops.keys import as_key
from mcx.run.checkpoint import Checkpoint, identified
from mcx.run.devices import Devices
from mcx.run.driver import Run, run

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Denoised", "DenoisingMCMC"]

_START_STEPS = 20


@dataclass(frozen=True)
class Denoised:
    """Draws of denoising MCMC.

    Attributes:
        x: denoised points, chain x draw x event.
        noisy: the chain's points that they come from.
        rho: those points' noise levels, chain x draw.
        acceptance: of the moves, chain x step, warm-up first.
        step_size: of Langevin moves in the end, by sixteenth of the levels, the smallest first.
        nfe: calls of the denoiser for a draw: those of the chain and of the denoising.
        nfe_start: calls for a chain's starting point and its warm-up.
        complete: False where the run was stopped before its end.
        compile_time, run_time: seconds.
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
        """In ArviZ's schema: ``posterior`` has x, ``sample_stats`` the levels."""
        from arviz_base import from_dict

        with warnings.catch_warnings():
            # ArviZ takes more chains than draws for a mistake
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
class DenoisingMCMC:
    """A Markov chain on the product of points and noise levels; its points are denoised as they come.

    The chain's law is ``q_rho(y) p(rho)``: Langevin moves of y at its level, and draws of the level given y.
    Large levels let it cross between modes, and points of small ones need few steps to be denoised: samples
    cost a fraction of those that start from noise.

    Attributes:
        num_samples: of a chain.
        num_warmup: steps before, which learn step sizes from all chains together.
        num_skip: moves a step, of which one point is denoised.
        level_law: of a level given a point. "auto" takes the model's density where it has one and its
            divergence where not: :class:`~mcx.diffusion.LevelsFromDensity`, ``LevelsFromScore``, or
            ``LevelsFromClassifier``.
        metropolis: accept or refuse moves, so that the chain's law is exact; needs a density. "auto" does
            where there is one.
        step_size: squared length of the moves' noise, at every level; None learns one for every sixteenth
            of the levels, which needs ``metropolis``.
        integrator: that denoises; by default ``DPMSolver(order=2)``.
        num_denoise: its steps n, from a point's level rho to no noise.
        denoise_power: a, of the levels ``rho (1 - i / n)^a`` that it takes.
        select: "last" denoises the last point of a step's moves; "smallest" the one with the least noise,
            which is faster to denoise and biased: its law is not the chain's.

    Costs a call of the model and of the level law a move (two with ``metropolis``), and ``num_denoise`` a
    draw. The law of x is exact as far as the level law and the integrator are.

    Source: Kim and Ye (2022), Denoising MCMC for accelerating diffusion-based generative models; their code
    takes the most probable level where the algorithm draws one.
    """

    num_samples: int = 1000
    num_warmup: int = 200
    num_skip: int = 1
    level_law: Any = "auto"
    metropolis: bool | str = "auto"
    step_size: float | None = None
    integrator: Integrator | None = field(default=None)
    num_denoise: int = 3
    denoise_power: float = 3.0
    select: str = "last"

    def __post_init__(self) -> None:
        for name, fine, expected in (
            ("num_samples", is_count(self.num_samples), "an int >= 1"),
            ("num_warmup", is_count(self.num_warmup, 0), "an int >= 0"),
            ("num_skip", is_count(self.num_skip), "an int >= 1"),
            ("num_denoise", is_count(self.num_denoise), "an int >= 1"),
            ("metropolis", self.metropolis in (True, False, "auto"), "True, False or 'auto'"),
            ("step_size", self.step_size is None or 0 < self.step_size < np.inf, "a number > 0, or None"),
            ("denoise_power", 0 < self.denoise_power < 100, "a number > 0"),
            ("select", self.select in ("last", "smallest"), "'last' or 'smallest'"),
            (
                "level_law",
                self.level_law == "auto" or hasattr(self.level_law, "log_density"),
                "'auto', LevelsFromDensity(), LevelsFromScore() or LevelsFromClassifier(fn)",
            ),
        ):
            if not fine:
                found = repr(getattr(self, name))
                raise MethodError(
                    f"DenoisingMCMC({name}=...) is out of range", expected=expected, found=found
                )

    def run(
        self,
        model: Denoiser,
        event_shape: tuple[int, ...],
        rho: Any,
        *,
        key: Any,
        log_prior: Any = None,
        start: Any = None,
        num_chains: int = 64,
        progress: Any = True,
        checkpoint: str | Path | Checkpoint | None = None,
        devices: Devices = None,
    ) -> Denoised:
        """Run the chains.

        Args:
            model: a denoiser: :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Score`.
            event_shape: of a point.
            rho: noise levels, (K,), falling or rising, positive; their law is uniform over the K of them:
                geometric levels make it log-uniform. See :func:`~mcx.diffusion.levels`.
            key: a typed JAX key or an int.
            log_prior: of the levels, (K,), unnormalised, in place of the uniform one.
            start: points without noise for the chains to start from, (num_chains, *event_shape), to which
                noise of a level drawn from its law is added; by default draws of the model itself, in 20
                steps of ``DPMSolver(order=2)``.
            num_chains: run side by side.
            progress: as for :func:`mcx.infer`.
            checkpoint: as for :func:`mcx.infer`.
            devices: as for :func:`mcx.infer`.

        Raises:
            MethodError: if levels or starting points make no sense.
            CapabilityError: where a density is needed and there is none.
        """
        shape = tuple(event_shape)
        grid = _as_grid(rho)
        tables, by_level = self._tables(grid)
        kernel, law = self._kernel(model, by_level)
        key_start, key_noise, key_chain, key_denoise = jax.random.split(as_key(key), 4)
        dtype = jnp.zeros(()).dtype
        prior = np.zeros(len(grid)) if log_prior is None else np.asarray(log_prior, float)
        if prior.shape != grid.shape or not np.isfinite(prior).all():
            raise MethodError(
                "log_prior= does not fit the levels",
                expected=f"{len(grid)} finite numbers",
                found=f"shape {prior.shape}",
            )
        if np.asarray(rho)[0] > np.asarray(rho)[-1]:
            prior = prior[::-1]
        data = ProductSpace(
            model,
            law,
            jnp.asarray(grid, dtype),
            jnp.asarray(prior, dtype),
            cast(tables, dtype),
            jax.random.key_data(key_denoise),
        )
        nfe_start = 0
        if start is None:
            method = DPMSolver(order=2)
            down = levels(grid[-1], grid[0], _START_STEPS - 1, to_zero=True)
            start = sample(key_start, model, num_chains, shape, down, method=method)
            nfe_start = method.nfe(down)
        start = jnp.asarray(start, dtype)
        if start.shape != (num_chains, *shape):
            raise MethodError(
                "start= holds other points than chains need",
                expected=f"shape {(num_chains, *shape)}",
                found=f"shape {start.shape}",
            )
        result = run(
            kernel,
            data,
            key=key_chain,
            num_steps=self.num_warmup + self.num_samples,
            num_chains=num_chains,
            num_discard=self.num_warmup,
            start=_noised(key_noise, start, data.rho, data.log_prior),
            progress=progress,
            title="DenoisingMCMC",
            checkpoint=identified(checkpoint, method=self),
            devices=devices,
        )
        size = int(np.prod(shape))
        step_nfe = self.num_skip * (1 + int(kernel.metropolis) + law.nfe(len(grid), size))
        leg = kernel.integrator.nfe(_down(grid[-1], self.num_denoise, self.denoise_power)) or 0
        return _denoised(result, grid, step_nfe + leg, nfe_start + self.num_warmup * step_nfe)

    def _tables(self, grid: np.ndarray) -> tuple[Any, tuple[bool, ...]]:
        """Of the integrator, for each level to start from, and which leaves depend on that."""
        integrator = default_method(self.integrator)
        each = [integrator.prepare(_down(r, self.num_denoise, self.denoise_power)) for r in grid]
        first, tree = jax.tree_util.tree_flatten(each[0])
        stacked = [np.stack(x) for x in zip(*map(jax.tree_util.tree_leaves, each), strict=True)]
        by_level = tuple(bool((x != x[:1]).any()) for x in stacked)
        leaves = [x if varies else one for x, one, varies in zip(stacked, first, by_level, strict=True)]
        return jax.tree_util.tree_unflatten(tree, leaves), by_level

    def _kernel(self, model: Denoiser, by_level: tuple[bool, ...]) -> tuple[DenoisingKernel, LevelLaw]:
        metropolis = model.has_density if self.metropolis == "auto" else bool(self.metropolis)
        law = self.level_law
        if law == "auto":
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
                "step sizes are learned from acceptance, and without metropolis nothing is refused",
                expected="step_size=, about the squared width of the narrowest part of the data",
            )
        integrator = default_method(self.integrator)
        kernel = DenoisingKernel(
            integrator, self.num_skip, metropolis, self.step_size, self.num_warmup, self.select == "smallest",
            by_level,
        )  # fmt: skip
        return kernel, law


def _as_grid(rho: Any) -> np.ndarray:
    """Levels in rising order, float64."""
    grid = np.asarray(rho, float)
    steps = np.diff(grid) if grid.ndim == 1 else np.zeros(0)
    if len(steps) == 0 or not (np.isfinite(grid).all() and (grid > 0).all()):
        fine = False
    else:
        fine = bool((steps > 0).all() or (steps < 0).all())
    if not fine:
        raise MethodError(
            "DenoisingMCMC has no noise levels to be at",
            expected="(K,) positive numbers, K >= 2, strictly falling or rising",
            found=f"shape {grid.shape}, {np.array2string(grid, threshold=6)}",
        )
    return grid if grid[0] < grid[-1] else grid[::-1]


def _down(rho: float, num: int, power: float) -> np.ndarray:
    """Levels to no noise; none is so small that its step is for nothing."""
    return np.asarray(rho * np.linspace(1.0, 0.0, num + 1) ** power)


@jax.jit
def _noised(key: Any, x: Any, rho: Any, log_prior: Any) -> dict[str, Any]:
    """Points of the product law, if x are the model's."""
    key_level, key_noise = jax.random.split(key)
    level = jax.random.categorical(key_level, log_prior, shape=(len(x),)).astype(jnp.int32)
    scale = rho[level].reshape(-1, *(1,) * (x.ndim - 1))
    return {"y": x + scale * jax.random.normal(key_noise, x.shape, x.dtype), "level": level}


def _denoised(result: Run, grid: np.ndarray, nfe: int, nfe_start: int) -> Denoised:
    draws = result.draws
    return Denoised(
        np.asarray(draws["x"]),
        np.asarray(draws["noisy"]),
        grid[np.asarray(draws["level"])],
        np.asarray(result.stats["acceptance"]),
        np.exp(np.asarray(result.state.log_step)[0]),
        nfe,
        nfe_start,
        result.complete,
        result.compile_time,
        result.run_time,
    )
