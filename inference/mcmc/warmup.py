"""Stan's window adaptation as ``init``/``step``: step size by dual averaging, metric by windows.

The arithmetic is BlackJAX's (dual averaging of Nesterov 2009 as in Hoffman and Gelman 2014, algorithm 5;
Welford's covariance with Stan's regularisation). What happens at a step comes in as a code, so one
program serves any length of warm-up and the sampling after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
from blackjax.adaptation.step_size import dual_averaging_adaptation
from blackjax.adaptation.window_adaptation import build_schedule

__all__ = ["WarmupState", "as_types", "init", "schedule", "step"]

KEEP, STEP_SIZE, METRIC, WINDOW_END, FINISH = range(5)


class WarmupState(NamedTuple):
    """Adaptation state of one chain.

    step_size: used by the next transition.
    inverse_mass_matrix: (d,) or (d, d), used by the next transition.
    averaging: dual averaging of the log step size.
    metric: Welford state of the window under way.
    """

    step_size: Any
    inverse_mass_matrix: Any
    averaging: Any
    metric: Any


def schedule(num_warmup: int, num_samples: int) -> np.ndarray:
    """Code of every step, (num_warmup + num_samples,): Stan's windows, then sampling."""
    codes = np.full(num_warmup + num_samples, KEEP, np.int32)
    if num_warmup:
        stages = np.asarray(build_schedule(num_warmup)).reshape(-1, 2)
        slow, ends = stages[:, 0] == 1, stages[:, 1] == 1
        codes[:num_warmup] = np.where(slow, np.where(ends, WINDOW_END, METRIC), STEP_SIZE)
        codes[num_warmup - 1] = FINISH
    return codes


def init(dim: int, step_size: float, dense: bool) -> WarmupState:
    """State before the first step: unit metric, the given step size."""
    averaging, _, _ = dual_averaging_adaptation(0.8)
    metric, _, _ = mass_matrix_adaptation(not dense)
    state = metric(dim)
    return WarmupState(jnp.asarray(step_size, float), state.inverse_mass_matrix, averaging(step_size), state)


def step(
    state: WarmupState, code: Any, position: Any, acceptance_rate: Any, target_accept: float, dense: bool
) -> WarmupState:
    """Adapt after a transition.

    Args:
        state: adaptation state that the transition used.
        code: what this step does; an entry of :func:`schedule`.
        position: where the transition ended, (d,).
        acceptance_rate: its mean acceptance probability; NaN counts as 0.
        target_accept: acceptance rate aimed at.
        dense: whether the metric is a full matrix.
    """
    averaging_init, averaging_update, averaging_final = dual_averaging_adaptation(target_accept)
    _, metric_update, metric_final = mass_matrix_adaptation(not dense)
    acceptance_rate = jnp.nan_to_num(acceptance_rate, nan=0.0)

    def keep(s: WarmupState) -> WarmupState:
        return s

    def tune_step_size(s: WarmupState) -> WarmupState:
        averaging = averaging_update(s.averaging, acceptance_rate)
        return s._replace(averaging=averaging, step_size=jnp.exp(averaging.log_step_size))

    def tune_metric(s: WarmupState) -> WarmupState:
        return tune_step_size(s)._replace(metric=metric_update(s.metric, position))

    def end_window(s: WarmupState) -> WarmupState:
        s = tune_metric(s)
        metric = metric_final(s.metric)
        averaging = averaging_init(averaging_final(s.averaging))
        return WarmupState(jnp.exp(averaging.log_step_size), metric.inverse_mass_matrix, averaging, metric)

    def finish(s: WarmupState) -> WarmupState:
        s = tune_step_size(s)
        return s._replace(step_size=averaging_final(s.averaging))

    branches = [
        lambda s, branch=branch: as_types(branch(s), s)
        for branch in (keep, tune_step_size, tune_metric, end_window, finish)
    ]
    new: WarmupState = jax.lax.switch(code, branches, state)
    return new


def as_types[T](new: T, old: T) -> T:
    """A pytree with the dtypes of another: branches must agree."""
    cast: T = jax.tree_util.tree_map(
        lambda a, b: jax.lax.convert_element_type(a, jnp.result_type(b)), new, old
    )
    return cast
