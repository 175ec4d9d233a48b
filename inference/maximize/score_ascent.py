"""Maximum likelihood of a state-space model: stochastic ascent along smoothed scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from mcx.errors import CapabilityError, InitializationError, MethodError, NonFiniteError
from mcx.inference.conditional_smc.initial_path import starting_path
from mcx.inference.smc.backward import check_backward
from mcx.inference.smoothing.additive import Score, summand_of
from mcx.inference.smoothing.paris import Recursion, check_numbers, check_share
from mcx.inference.smoothing.ppg import PPG
from mcx.inference.smoothing.smooth import Smoother, sweep_once
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.series.state_space import state_space
from mcx.results.estimate import standard_error
from mcx.results.posterior import RunInfo
from mcx.run.checkpoint import Checkpoint
from mcx.run.driver import run
from mcx.target import FeynmanKac, StateSpace, Target

__all__ = ["Maximum", "ScoreAscent", "maximize_model"]


def _adam() -> optax.GradientTransformation:
    return _ADAM


_ADAM = optax.adam(0.05, b1=0.8, b2=0.99)
_STILL = optax.set_to_zero()
_FIRST_STEP, _STEPS = 0.1, (0.02, 0.5)  # of differences, in unconstrained coordinates


@dataclass(frozen=True, kw_only=True)
class ScoreAscent:
    """Stochastic gradient ascent on the log likelihood, with smoothed scores for gradients.

    By Fisher's identity the score is the smoothed expectation of an additive functional: the derivative of
    the complete data's log density. Under PPG the path that a step ends with starts the next one, so few
    sweeps a step are enough. Parameters move in unconstrained space; the answer is the average of the last
    steps (Polyak and Juditsky 1992).

    Attributes:
        smoother: :class:`PPG`, :class:`PaRIS` or :class:`FFBS`; estimates the score of a step.
        optimizer: an optax gradient transformation; Adam with a step of 0.05 by default. Keep the object to
            reuse compiled programs.
        num_steps: steps of the ascent.
        num_smoothers: independent smoothers whose scores are averaged, vectorised.
        average: share of the steps, the last ones, that the answer averages.
        num_information: steps at each of 2 d points near the maximum, d parameters, whose scores' differences
            give the observed information; 0 leaves the standard errors out.

    Source: Cardoso, Janati El Idrissi, Le Corff, Moulines and Olsson (2023).
    """

    smoother: Smoother = field(default_factory=lambda: PPG(num_iterations=2, burn_in=0))
    optimizer: optax.GradientTransformation = field(default_factory=_adam)
    num_steps: int = 500
    num_smoothers: int = 4
    average: float = 0.5
    num_information: int = 50

    def __post_init__(self) -> None:
        check_numbers(self, num_steps=2, num_smoothers=1, num_information=0)
        if not isinstance(self.smoother, Smoother):
            raise MethodError(
                "ScoreAscent(smoother=...) is no smoother",
                expected="mcx.PPG(), mcx.PaRIS() or mcx.FFBS()",
                found=repr(self.smoother),
            )
        check_share(self, "average")


@dataclass(frozen=True, eq=False)
class Maximum:
    """A maximum of the likelihood.

    Attributes:
        params: estimates by site, constrained.
        se: their standard errors, from the observed information; NaN where that is not positive definite.
        mc_se: what the randomness of the ascent adds to that, from the autocorrelation of its last steps.
        trace: the parameters at every step, by site, (steps, ...).
        stats: by name, (steps,): norm of the score, log evidence of the filters.
        covariance: of the unconstrained estimates, (d, d).
        information: observed information in unconstrained space, (d, d).
        info: how the run went.
        notes: what to be wary of.
    """

    params: dict[str, Any]
    se: dict[str, Any]
    mc_se: dict[str, Any]
    trace: dict[str, Any]
    stats: dict[str, Any]
    covariance: Any
    information: Any
    info: RunInfo
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """False where the ascent was stopped before its end."""
        return self.info.complete

    def __repr__(self) -> str:
        steps = len(self.stats["score_norm"])
        head = f"maximum likelihood: {steps} steps, {self.info.run_time:.1f} s"
        lines = [head + f" (compile {self.info.compile_time:.1f} s)"]
        for name, x in self.params.items():
            for index in np.ndindex(np.shape(x)):
                label = name + (f"[{', '.join(map(str, index))}]" if index else "")
                errors = f"{self.se[name][index]:.2g} (Monte Carlo {self.mc_se[name][index]:.1g})"
                lines.append(f"  {label} = {x[index]:.6g} +- {errors}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


class _State(NamedTuple):
    z: Any
    optimizer: Any
    paths: Any  # one a smoother, for PPG; else None


@dataclass(frozen=True)
class _Ascent:
    """The ascent for the driver; its data are the target given the paths, and the Feynman-Kac model."""

    method: ScoreAscent
    params: tuple[str, ...]

    def init(self, data: Any, key: Any, start: Any) -> _State:
        target, fk = data
        method, paths = self.method, None
        if isinstance(method.smoother, PPG):
            num = method.smoother.num_particles
            ctx = self.context(target, fk, start)
            keys = jax.random.split(key, method.num_smoothers)
            paths = jax.vmap(lambda k: starting_path(k, fk, ctx, num, backward=False)[0])(keys)
        return _State(start, method.optimizer.init(start), paths)

    def context(self, target: Target, fk: FeynmanKac, z: Any) -> Any:
        return fk.prepare(constrained(target, self.params, z))

    def step(self, data: Any, key: Any, state: _State, u: Any) -> tuple[_State, Any]:
        target, fk = data
        smoother = self.method.smoother
        summand = summand_of(Score(), fk, lambda x: x)
        of_z = replace(fk, prepare=Partial(partial(self.context, target, fk)))
        extra = summand.prepare(of_z, state.z)
        recursion = Recursion(fk, of_z.prepare(state.z), extra, summand, smoother.smoothing)

        def one(key: Any, path: Any) -> tuple[Any, Any, Any]:
            def sweep(path: Any, key: Any) -> tuple[Any, Any]:
                swept = sweep_once(key, recursion, smoother, path)
                return swept.path, (swept.value, jnp.sum(swept.info.log_increment))

            if not isinstance(smoother, PPG):
                return None, *sweep(None, key)[1]
            path, (scores, log_z) = jax.lax.scan(sweep, path, jax.random.split(key, smoother.num_iterations))
            return path, jnp.mean(scores[smoother.burn_in :], 0), log_z[-1]

        paths, scores, log_z = jax.vmap(one)(jax.random.split(key, self.method.num_smoothers), state.paths)
        score = jnp.mean(scores, 0)
        # a score that is no number leaves the parameters where they are; the statistics tell
        bad = ~jnp.all(jnp.isfinite(score))
        down, optimizer = self.method.optimizer.update(-jnp.where(bad, 0.0, score), state.optimizer, state.z)
        z = jnp.where(bad, state.z, optax.apply_updates(state.z, down))
        stats = {"score_norm": jnp.linalg.norm(score), "log_evidence": jnp.mean(log_z), "nonfinite": bad}
        return _State(z, optimizer, paths), (score, stats)

    def collect(self, state: _State, info: Any) -> tuple[Any, Mapping[str, Any]]:
        return (state.z, info[0]), info[1]

    def emit(self, data: Any, draw: Any) -> Any:
        target, _ = data
        return constrained(target, self.params, draw[0]), draw

    def report(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "log evidence": float(np.mean(stats["log_evidence"][-1])),
            "score": float(np.mean(stats["score_norm"][-1])),
        }

    def stop(self, stats: Mapping[str, Any]) -> bool:
        return bool(np.all(stats["nonfinite"]))


def maximize_model(
    bound: BoundModel,
    *,
    method: ScoreAscent,
    init: Mapping[str, Any] | None,
    key: Any,
    block: str | None,
    progress: Any,
    checkpoint: Checkpoint | None,
) -> Maximum:
    """Maximise the likelihood. Use :func:`mcx.maximize`, which checks the options."""
    space = state_space(bound, block)
    fk = space.feynman_kac
    fk.check()
    check_backward("maximize", fk, method.smoother.backward, space.no_density)
    summand_of(Score(), fk, space.view)
    target = _parameters(bound, space)
    kernel = _Ascent(method, space.params)
    data = (target, fk)
    result = run(
        kernel,
        data,
        key=key,
        num_steps=method.num_steps,
        num_chains=1,
        start=_start(target, space, init)[None],
        progress=progress,
        checkpoint=checkpoint,
        title="maximize",
        on_start=partial(_refuse_start, kernel, data),
    )
    if result.draws is None:
        raise KeyboardInterrupt("maximize was interrupted before its first step")
    trace, (z, _) = jax.tree_util.tree_map(lambda x: x[0], result.draws)
    stats = {name: x[0] for name, x in result.stats.items()}
    if stats["nonfinite"][-1]:
        raise NonFiniteError(
            f"step {int(np.argmax(stats['nonfinite']))}: the score is no number",
            found=", ".join(f"{k} = {v[-1]}" for k, v in trace.items()),
            remedy="start elsewhere (init=), take more particles or a smaller step of the optimizer",
        )
    last = z[-max(1, round(method.average * len(z))) :]
    found = jnp.asarray(last.mean(0, dtype=np.float64), z.dtype)
    params, jacobians = jax.device_get(_with_derivatives(kernel.params, target, found))
    information, notes = np.full((len(found), len(found)), np.nan), ["no standard errors were asked for"]
    covariance = information
    if method.num_information and result.complete:
        information = _information(kernel, data, jax.random.fold_in(key, 5), found, progress, checkpoint)
        covariance, notes = _inverse(information)
    se = {k: np.sqrt(np.einsum("...i,ij,...j->...", j, covariance, j)) for k, j in jacobians.items()}
    return Maximum(
        params={name: np.asarray(params[name]) for name in space.params},
        se={name: se[name] for name in space.params},
        mc_se={name: standard_error(trace[name][None, -len(last) :]) for name in space.params},
        trace={name: trace[name] for name in space.params},
        stats=stats,
        covariance=covariance,
        information=information,
        info=RunInfo.of(method, result, key=key, coords={}, dtype=z.dtype),
        notes=(*notes, *_drift(last, covariance)),
    )


def constrained(target: Target, params: tuple[str, ...], z: Any) -> dict[str, Any]:
    """Parameters by site at a point of unconstrained space."""
    values = target.constrain(target.unravel(z))
    return {name: values[name] for name in params}


@partial(jax.jit, static_argnums=0)
def _with_derivatives(params: tuple[str, ...], target: Target, z: Any) -> Any:
    """Constrained values, and their derivatives in z."""
    at = partial(constrained, target, params)
    return at(z), jax.jacfwd(at)(z)


def _information(
    kernel: _Ascent, data: Any, key: Any, z: Any, progress: Any, checkpoint: Checkpoint | None
) -> np.ndarray:
    """Minus the derivative of the score, by central differences about one standard error wide.

    Louis' identity needs no differences, but subtracts two numbers that grow with T and differ by little: at
    thousands of times its noise is many times the information.
    """
    dim, steps = len(z), kernel.method.num_information
    still = replace(kernel, method=replace(kernel.method, optimizer=_STILL))
    width = np.full(dim, _FIRST_STEP)
    information = np.zeros((dim, dim))
    for part, count in enumerate((max(2, steps // 5), steps)):
        shifts = np.concatenate([np.diag(width), -np.diag(width)])
        burn_in = max(1, count // 5)
        result = run(
            still,
            data,
            key=jax.random.fold_in(key, part),
            num_steps=count + burn_in,
            num_discard=burn_in,
            num_chains=2 * dim,
            start=jnp.asarray(np.asarray(z) + shifts, z.dtype),
            progress=progress,
            checkpoint=None if checkpoint is None else checkpoint.part(f"information-{part + 1}"),
            title="standard errors",
        )
        if not result.complete:
            return np.full((dim, dim), np.nan)
        scores = np.asarray(result.draws[1][1], np.float64).mean(1)
        slope = (scores[dim:] - scores[:dim]) / (2 * width[:, None])
        information = 0.5 * (slope + slope.T)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = 1 / np.sqrt(np.diag(information))
        width = np.where(np.isfinite(found), np.clip(found, *_STEPS), width)
    return information


def _parameters(bound: BoundModel, space: StateSpace) -> Target:
    """The model as a function of its parameters, given everything else."""
    whole = compile_model(bound)
    discrete = [s.name for s in whole.sites.of_kind("discrete") if s.name in space.params]
    if discrete or not space.params:
        raise CapabilityError(
            "maximize needs continuous parameters",
            site=discrete[0] if discrete else None,
            found="a discrete one" if discrete else "no latent site but the path",
            remedy="hold discrete parameters fixed: bound.condition(...)" if discrete else "use mcx.filter",
        )
    others = [s.name for s in whole.sites.of_kind("latent", "discrete") if s.name not in space.params]
    return condition_target(whole, tuple(others))


def _start(target: Target, space: StateSpace, init: Mapping[str, Any] | None) -> Any:
    if init is None:
        return jnp.zeros(target.dim)
    if set(init) != set(space.params):
        raise InitializationError(
            "init= does not fit the parameters",
            expected=", ".join(space.params),
            found=", ".join(init) or "nothing",
        )
    return target.ravel(target.unconstrain({k: jnp.asarray(v, float) for k, v in init.items()}))


def _refuse_start(kernel: _Ascent, data: Any, state: _State) -> None:
    if not bool(jnp.all(jnp.isfinite(state.z))):
        raise InitializationError(
            "init= lies outside of a site's support",
            expected="constrained values inside of the supports",
            found=str(state.z[0]),
        )


def _inverse(information: np.ndarray) -> tuple[np.ndarray, list[str]]:
    if np.isfinite(information).all() and np.linalg.eigvalsh(information).min() > 0:
        return np.linalg.inv(information), []
    note = "no standard errors: the observed information is not positive definite; raise num_information"
    return np.full(information.shape, np.nan), [note]


def _drift(last: np.ndarray, covariance: np.ndarray) -> list[str]:
    """Whether the averaged steps still went somewhere."""
    half = len(last) // 2
    sd = np.sqrt(np.diag(covariance))
    if half < 1 or not np.isfinite(sd).all():
        return []
    moved = float(np.max(np.abs(last[half:].mean(0) - last[:half].mean(0)) / sd))
    if moved < 0.5:
        return []
    return [f"the averaged steps still drifted, by {moved:.1f} standard errors: take more steps"]
