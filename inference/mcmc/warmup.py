"""Warm-up of a single chain: step size by dual averaging, metric over windows of growing length.

Dual averaging is BlackJAX's (Hoffman and Gelman 2014, algorithm 5). Windows are short at first, because a
metric learned from gradients needs few draws. A code says what happens at a step, so that one program serves
any run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation

from mcx.inference.mcmc import metric
from mcx.types import Array, Covariance, Flags, Int, Scalar, Vector

if TYPE_CHECKING:
    from blackjax.optimizers.dual_averaging import DualAveragingState


KEEP, STEP_SIZE, METRIC, METRIC_END, WINDOW_END, FINISH = range(6)

_FIRST_WINDOW, _GROWTH = 10, 1.5
_LONG_WINDOW = 50  # after windows at least as long, dual averaging of the step size restarts
_MAX_FINAL = 50
_INSIDE_GAIN, _LEAST_INSIDE = 0.05, 0.2  # for the share of trajectories that end within the support


class Tuning(NamedTuple):
    """What warm-up aims at, and whether the metric is dense, and learned from gradients, too; static."""

    target_accept: float
    dense: bool
    uses_gradient: bool


class WarmupState(NamedTuple):
    """Adaptation state of one chain: what the next transition uses, and what is averaged.

    moments: of the window under way.
    inside: share of late trajectories that ended within the support, a moving average.
    """

    step_size: Scalar
    inverse_mass_matrix: Covariance
    averaging: DualAveragingState
    moments: metric.Moments
    inside: Scalar


def schedule(num_warmup: int, num_samples: int, first_window: int = _FIRST_WINDOW) -> np.ndarray:
    """Codes of all steps, (num_warmup + num_samples,): windows, the step size alone, then sampling.

    The first window is longer for methods that learn less from a step.
    """
    codes = np.full(num_warmup + num_samples, KEEP, np.int32)
    if not num_warmup:
        return codes
    codes[:num_warmup] = STEP_SIZE
    codes[num_warmup - 1] = FINISH
    first, last = 0, num_warmup - min(_MAX_FINAL, max(1, num_warmup // 10))
    length = first_window
    while first + length <= last:
        following = int(_GROWTH * length)
        if first + length + following > last:
            length = last - first  # too few steps would be left for another window
        codes[first : first + length] = METRIC
        codes[first + length - 1] = METRIC_END if length < _LONG_WINDOW else WINDOW_END
        first, length = first + length, following
    return codes


def sweeps(num_warmup: int, num_samples: int) -> dict[str, np.ndarray]:
    """Inputs of sweeps whose part is a Markov chain kernel: its codes, and whether a sweep counts."""
    kept = np.arange(num_warmup + num_samples) >= num_warmup
    return {"code": schedule(num_warmup, num_samples), "keep": kept}


def init(gradient: Vector, step_size: float, tuning: Tuning) -> WarmupState:
    """The state before the first step.

    Where the gradient is steep, scales are small: the first guess of a variance is the geometric mean of 1
    and 1 / g^2.
    """
    averaging, _, _ = dual_averaging_adaptation(tuning.target_accept)
    dim = gradient.shape[0]
    guess = 1.0 / (1.0 + jnp.abs(jnp.nan_to_num(gradient))) if tuning.uses_gradient else jnp.ones(dim)
    return WarmupState(
        jnp.asarray(step_size, float),
        jnp.diag(guess) if tuning.dense else guess,
        averaging(step_size),
        metric.init(dim, tuning.dense),
        jnp.ones(()),
    )


def step(
    state: WarmupState,
    code: Int[Array, ""],
    position: Vector,
    gradient: Vector,
    acceptance_rate: Scalar,
    tuning: Tuning,
    outside: Flags | bool = False,
) -> WarmupState:
    """Adapt after a transition that ended at ``position``, as ``code`` says, an entry of :func:`schedule`.

    A trajectory of fixed length may end ``outside``, where the density is zero. A hard bound is overstepped
    with any step size, and adapting to that would shrink it without end: so such trajectories do not count
    unless fewer than a fifth end inside. An acceptance rate that is NaN counts as 0.
    """
    averaging_init, averaging_update, averaging_final = dual_averaging_adaptation(tuning.target_accept)
    acceptance_rate = jnp.nan_to_num(acceptance_rate, nan=0.0)

    def keep(s: WarmupState) -> WarmupState:
        return s

    def tune_step_size(s: WarmupState) -> WarmupState:
        inside = s.inside + _INSIDE_GAIN * (1.0 - outside - s.inside)
        neutral = tuning.target_accept * jnp.minimum(1.0, inside / _LEAST_INSIDE)
        averaging = averaging_update(s.averaging, jnp.where(outside, neutral, acceptance_rate))
        return s._replace(averaging=averaging, step_size=jnp.exp(averaging.log_step_size), inside=inside)

    def gather(s: WarmupState) -> WarmupState:
        return tune_step_size(s)._replace(moments=metric.update(s.moments, position, gradient))

    def end_metric(s: WarmupState) -> WarmupState:
        s = gather(s)
        new = metric.estimate(s.moments, s.inverse_mass_matrix, tuning.uses_gradient)
        return s._replace(inverse_mass_matrix=new, moments=metric.init(position.shape[0], tuning.dense))

    def end_window(s: WarmupState) -> WarmupState:
        s = end_metric(s)
        averaging = averaging_init(averaging_final(s.averaging))
        return s._replace(averaging=averaging, step_size=jnp.exp(averaging.log_step_size))

    def finish(s: WarmupState) -> WarmupState:
        s = tune_step_size(s)
        return s._replace(step_size=averaging_final(s.averaging))

    branches = [
        lambda s, branch=branch: as_types(branch(s), s)
        for branch in (keep, tune_step_size, gather, end_metric, end_window, finish)
    ]
    return jax.lax.switch(code, branches, state)


def as_types[T](new: T, old: T) -> T:
    """A pytree with the dtypes of another one; branches of a conditional have to agree."""
    return jax.tree.map(lambda a, b: jax.lax.convert_element_type(a, jnp.result_type(b)), new, old)
