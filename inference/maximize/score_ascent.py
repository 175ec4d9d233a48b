"""Maximum likelihood of a state-space model: stochastic ascent along smoothed scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, override

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcx.errors import CapabilityError, InitializationError, NonFiniteError
from mcx.inference.maximize.ascent_kernel import AscentKernel, AscentState, constrained
from mcx.inference.maximize.maximum import Maximum
from mcx.inference.smc.backward import check_backward
from mcx.inference.smoothing.additive import Score, summand_of
from mcx.inference.smoothing.ppg import PPG
from mcx.inference.smoothing.smoother import Smoother
from mcx.methods.method import interrupted
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model
from mcx.model.conditioning import condition_target
from mcx.model.series.state_space import state_space
from mcx.ops.keys import Stream, stream
from mcx.ops.validation import Rule, Settings, instance, integer, number
from mcx.results.estimate import standard_error
from mcx.results.posterior import RunInfo
from mcx.run.checkpoint import Checkpoint
from mcx.run.driver import run
from mcx.target import StateSpace, Target
from mcx.types import Float, Key, PyTree, SiteValues, Vector

_ADAM = optax.adam(0.05, b1=0.8, b2=0.99)
_STILL = optax.set_to_zero()
_FIRST_STEP, _STEPS = 0.1, (0.02, 0.5)  # of differences, in unconstrained coordinates


@dataclass(frozen=True, kw_only=True)
class ScoreAscent(Settings):
    """Stochastic gradient ascent on the log likelihood, with smoothed scores for gradients.

    By Fisher's identity the score is the smoothed expectation of an additive functional: the derivative of
    the complete data's log density. Under PPG the path that an update ends with starts the next one, so
    few sweeps an update are enough. Parameters move in unconstrained space; the answer is the average of the
    last updates (Polyak and Juditsky 1992).

    Attributes:
        smoother: :class:`PPG`, :class:`PaRIS` or :class:`FFBS`; estimates the score of an update.
        optimizer: an optax gradient transformation; Adam with steps of 0.05 by default. Keep the object to
            reuse compiled programs.
        num_updates: updates of the parameters.
        num_smoothers: independent smoothers whose scores are averaged, vectorised.
        average: share of the updates, the last ones, that the answer averages.
        num_information: estimates of the score at each of 2 d points near the maximum, d parameters,
            whose differences give the observed information; 0 leaves the standard errors out.

    Source: Cardoso, Janati El Idrissi, Le Corff, Moulines and Olsson (2023).
    """

    smoother: Smoother = field(default_factory=lambda: PPG(num_warmup=0, num_samples=2))
    optimizer: optax.GradientTransformation = field(default_factory=lambda: _ADAM)
    num_updates: int = 500
    num_smoothers: int = 4
    average: float = 0.5
    num_information: int = 50

    former: ClassVar[Mapping[str, str]] = {"num_updates": "num_steps"}

    @override
    def rules(self) -> Mapping[str, Rule]:
        return {
            "smoother": instance(Smoother, "mcx.PPG(), mcx.PaRIS() or mcx.FFBS()"),
            "optimizer": instance(optax.GradientTransformation, "an optax gradient transformation"),
            "num_updates": integer(2),
            "num_smoothers": integer(1),
            "average": number(above=0, most=1),
            "num_information": integer(0),
        }


def maximize_model(
    bound: BoundModel,
    method: ScoreAscent,
    *,
    init: SiteValues | None,
    key: Key,
    block: str | None,
    progress: Any,
    checkpoint: Checkpoint | None,
) -> Maximum:
    """Maximise the likelihood. Users call :func:`mcx.maximize`, which checks the options."""
    space = state_space(bound, block)
    fk = space.feynman_kac
    fk.check()
    check_backward("maximize", fk, method.smoother.backward, space.no_density)
    summand_of(Score(), fk, space.view)
    target = _parameters(bound, space)
    kernel = AscentKernel(method.smoother, method.optimizer, method.num_smoothers, space.params)
    data = (target, fk)
    result = run(
        kernel,
        data,
        key=key,
        num_steps=method.num_updates,
        num_chains=1,
        init=_start(target, space, init)[None],
        progress=progress,
        checkpoint=checkpoint,
        title=method.name,
        on_start=_refuse_start,
    )
    if result.draws is None:
        interrupted(method.name, "first update", result)
    trace, (z, _) = jax.tree.map(lambda x: x[0], result.draws)
    stats = {name: x[0] for name, x in result.stats.items()}
    if stats["nonfinite"][-1]:
        error = NonFiniteError(
            f"update {int(np.argmax(stats['nonfinite']))}: the score is no number",
            found=", ".join(f"{k} = {v[-1]}" for k, v in trace.items()),
            remedy="start elsewhere (init=), take more particles or a smaller step of the optimizer",
        )
        error.result = result
        raise error
    last = z[-max(1, round(method.average * len(z))) :]
    found = jnp.asarray(last.mean(0, dtype=np.float64), z.dtype)
    params, jacobians = jax.device_get(_with_derivatives(kernel.params, target, found))
    information, notes = np.full((len(found), len(found)), np.nan), ["no standard errors were asked for"]
    covariance = information
    if method.num_information and result.complete:
        own, count = stream(key, Stream.OBSERVED_INFORMATION), method.num_information
        information = _information(kernel, data, own, found, count, progress, checkpoint)
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


@partial(jax.jit, static_argnums=0)
def _with_derivatives(params: tuple[str, ...], target: Target, z: Vector) -> PyTree:
    """Constrained values, and their derivatives in z."""
    at = partial(constrained, target, params)
    return at(z), jax.jacfwd(at)(z)


def _information(
    kernel: AscentKernel,
    data: PyTree,
    key: Key,
    z: Vector,
    num_scores: int,
    progress: Any,
    checkpoint: Checkpoint | None,
) -> Float[np.ndarray, "d d"]:
    """Minus the derivative of the score, by central differences about one standard error wide.

    Louis' identity needs no differences, but subtracts two numbers that grow with T and differ by little.
    """
    dim = len(z)
    still = replace(kernel, optimizer=_STILL)
    width = np.full(dim, _FIRST_STEP)
    information = np.zeros((dim, dim))
    for part, count in enumerate((max(2, num_scores // 5), num_scores)):
        shifts = np.concatenate([np.diag(width), -np.diag(width)])
        num_warmup = max(1, count // 5)
        result = run(
            still,
            data,
            key=jax.random.fold_in(key, part),
            num_steps=count + num_warmup,
            num_discard=num_warmup,
            num_chains=2 * dim,
            init=jnp.asarray(np.asarray(z) + shifts, z.dtype),
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


def _start(target: Target, space: StateSpace, init: SiteValues | None) -> Vector:
    if init is None:
        return jnp.zeros(target.dim)
    if set(init) != set(space.params):
        raise InitializationError(
            "init= does not fit the parameters",
            expected=", ".join(space.params),
            found=", ".join(init) or "nothing",
        )
    return target.ravel(target.unconstrain({k: jnp.asarray(v, float) for k, v in init.items()}))


def _refuse_start(state: AscentState) -> None:
    if not bool(jnp.all(jnp.isfinite(state.z))):
        raise InitializationError(
            "init= lies outside of a site's support",
            expected="constrained values inside of the supports",
            found=str(state.z[0]),
        )


def _inverse(information: Float[np.ndarray, "d d"]) -> tuple[Float[np.ndarray, "d d"], list[str]]:
    if np.isfinite(information).all() and np.linalg.eigvalsh(information).min() > 0:
        return np.linalg.inv(information), []
    note = "no standard errors: the observed information is not positive definite; raise num_information"
    return np.full(information.shape, np.nan), [note]


def _drift(last: Float[np.ndarray, "update d"], covariance: Float[np.ndarray, "d d"]) -> list[str]:
    """Whether the averaged updates still went somewhere."""
    half = len(last) // 2
    sd = np.sqrt(np.diag(covariance))
    if half < 1 or not np.isfinite(sd).all():
        return []
    moved = float(np.max(np.abs(last[half:].mean(0) - last[:half].mean(0)) / sd))
    if moved < 0.5:
        return []
    return [f"the averaged updates still drifted, by {moved:.1f} standard errors: take more of them"]
