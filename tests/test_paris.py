"""PaRIS, PPG and backward sampling are exact: every random choice is enumerated on a small chain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless
from test_conditional_smc import INITIAL, LIKELIHOOD, TRANSITION, model, total_variation

from mcx.inference.smc.backward import backward_weights
from mcx.inference.smc.smc import smc
from mcx.inference.smoothing import ppg as ppg_module
from mcx.inference.smoothing import recursion as recursion_module
from mcx.inference.smoothing.additive import AdditiveFunctional, PathFunctional
from mcx.inference.smoothing.ffbs import FFBS, ffbs_run
from mcx.inference.smoothing.paris import PaRIS
from mcx.inference.smoothing.ppg import PPG, ppg_sweep
from mcx.inference.smoothing.recursion import Recursion, forward, value
from mcx.ops.random import choose
from mcx.testing import enumerate_outcomes, forward_backward, path_law

LAW = path_law(INITIAL, TRANSITION, np.log(LIKELIHOOD))
# asymmetric, dependent on time, with a term of time 0
FUNCTIONAL = AdditiveFunctional(
    lambda x_prev, x, t: jnp.stack([1.0 * x_prev * x * t, 1.0 * (x_prev < x)]),
    lambda x: jnp.stack([2.0 * x, 0.0]),
)


def values(paths):
    """The functional of paths."""
    x, then = paths[:, :-1], paths[:, 1:]
    steps = np.arange(1, paths.shape[1])
    return np.stack([2 * paths[:, 0] + (x * then) @ steps, (x < then).sum(1)], 1)


EXACT = LAW.probabilities @ values(LAW.paths)


def recursion(fk, method, functional=FUNCTIONAL):
    return Recursion(fk, None, None, PathFunctional(functional, lambda x: x), method.smoothing)


def properly_weighted(run):
    """Expectations under the estimated evidence over the evidence: of 1, and of the estimate."""
    found = enumerate_outcomes(run, jax.random.key(0))
    estimate, log_z = found.outcomes
    weight = found.probabilities * np.exp(np.asarray(log_z, float) - LAW.log_evidence)
    return weight.sum(), weight @ np.asarray(estimate, float)


def after_one_sweep(fk, method, law=LAW, **options):
    """Outcomes of a conditional sweep from a path drawn from the exact law."""
    paths, log_p = jnp.asarray(law.paths), jnp.asarray(np.log(law.probabilities))

    def run(key):
        key_path, key_sweep = jax.random.split(key)
        new, estimate, _, _ = ppg_sweep(key_sweep, recursion(fk, method), paths[choose(key_path, log_p)])
        return new @ jnp.asarray(2 ** np.arange(fk.num_times)), estimate

    return enumerate_outcomes(run, jax.random.key(0), **options)


PPG_CASES = {
    "exact": {"backward": "exact", "threshold": 1.0},
    "ancestors": {"num_mh_steps": 0, "threshold": 1.0},
    "one step": {"num_mh_steps": 1, "threshold": 1.0},
    "adaptive": {"num_mh_steps": 1, "threshold": 0.8},
    "never": {"num_mh_steps": 1, "threshold": 0.0},
    "guided": {"num_mh_steps": 1, "threshold": 0.8},
}


@pytest.mark.parametrize("case", slow_unless(["one step"], list(PPG_CASES)))
def test_ppg_is_exact_at_stationarity(case):
    """The path keeps its law and the estimate has no bias, with two particles."""
    fk = model(guided=case == "guided", look=case == "guided")
    method = PPG(num_particles=2, num_backward=1, **PPG_CASES[case])
    found = after_one_sweep(fk, method)
    code, estimate = found.outcomes
    assert total_variation(code, found.probabilities, LAW) < 1e-7
    np.testing.assert_allclose(found.mean(estimate), EXACT, rtol=1e-6)


@pytest.mark.x64
@pytest.mark.parametrize("case", slow_unless(["one step"], list(PPG_CASES)))
def test_ppg_is_exact_in_double_precision(case):
    method = PPG(num_particles=2, num_backward=1, **PPG_CASES[case])
    found = after_one_sweep(model(guided=case == "guided", look=case == "guided"), method)
    code, estimate = found.outcomes
    assert total_variation(code, found.probabilities, LAW) < 1e-12
    np.testing.assert_allclose(found.mean(estimate), EXACT, rtol=1e-12)


@pytest.mark.x64
@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "options"),
    [
        (4, {"num_mh_steps": 0}),
        (4, {"num_mh_steps": 1}),
        (4, {"num_mh_steps": 2}),
        (4, {"backward": "exact"}),
        (3, {"num_mh_steps": 5}),
        (3, {"num_mh_steps": 1, "num_particles": 3}),
        (3, {"backward": "exact", "num_particles": 3}),
        (2, {"num_mh_steps": 2, "num_particles": 3}),
        (2, {"num_mh_steps": 1, "num_backward": 2}),
    ],
)
def test_ppg_with_more_of_everything(times, options):
    """More times, steps, draws and particles, as far as there is room for all outcomes."""
    likelihood = np.concatenate([LIKELIHOOD, [[0.3, 0.7]]])[:times]
    fk = dataclasses.replace(model(), num_times=times, inputs=jnp.asarray(likelihood))
    law = path_law(INITIAL, TRANSITION, np.log(likelihood))
    method = PPG(**{"num_particles": 2, "num_backward": 1, "threshold": 1.0, **options})
    found = after_one_sweep(fk, method, law, max_outcomes=2**23)
    code, estimate = found.outcomes
    exact_law = np.bincount(law.paths @ 2 ** np.arange(times), law.probabilities)
    assert 0.5 * np.abs(np.bincount(code, found.probabilities) - exact_law).sum() < 1e-12
    np.testing.assert_allclose(found.mean(estimate), law.probabilities @ values(law.paths), rtol=1e-12)


@pytest.mark.parametrize(
    "defect", slow_unless(["sorted ancestors"], ["sorted ancestors", "weights of the wrong time"])
)
def test_wrong_recursions_are_found(monkeypatch, defect):
    """The first is the defect of well-known conditional filters; the nailed particle may keep its parent."""
    right = recursion_module.parents

    def wrong(key, fk, ctx, before, after, u, **options):
        return right(key, fk, ctx, (before[0], jnp.zeros_like(before[1])), after, u, **options)

    def ordered(nailed, ctx, state, u, draw_ancestor):
        return lambda key, log_w, num: jnp.sort(choose(key, log_w, (num,))).at[0].set(0)

    if defect == "sorted ancestors":
        monkeypatch.setattr(ppg_module, "pinned", ordered)
    else:
        monkeypatch.setattr(recursion_module, "parents", wrong)
    method = PPG(num_particles=2, num_backward=1, backward="exact", threshold=1.0)
    found = after_one_sweep(model(), method)
    assert total_variation(found.outcomes[0], found.probabilities, LAW) > 1e-3


PARIS_CASES = {
    "all": {"backward": "all", "threshold": 0.8},
    "exact": {"backward": "exact", "num_backward": 1, "threshold": 1.0},
    "imh": {"num_backward": 1, "num_mh_steps": 1, "threshold": 0.8},
    "ancestors": {"num_backward": 1, "num_mh_steps": 0, "threshold": 0.8},
}


@pytest.mark.parametrize("case", slow_unless(["imh"], list(PARIS_CASES)))
def test_paris_is_properly_weighted(case):
    """E[Zhat estimate] = Z E[h | y] with two particles, guided, with a look-ahead."""
    method = PaRIS(num_particles=2, **PARIS_CASES[case])
    fk = model(guided=True, look=True)

    def run(key):
        trail, _, _ = forward(key, recursion(fk, method))
        return value(trail), trail.system.log_evidence

    one, estimate = properly_weighted(run)
    assert one == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(estimate, EXACT, rtol=1e-5)


@pytest.mark.parametrize("kind", slow_unless(["imh"], ["imh", "exact"]))
def test_ffbs_is_properly_weighted(kind):
    method = FFBS(num_particles=2, num_paths=1, backward=kind, num_mh_steps=1, threshold=0.8)
    fk = model(guided=True, look=True)

    def run(key):
        _, estimate, info = ffbs_run(key, recursion(fk, method), method.num_paths)
        return estimate, jnp.sum(info.log_increment)

    one, estimate = properly_weighted(run)
    assert one == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(estimate, EXACT, rtol=1e-5)


def marginals(fk, particles, log_w):
    """Smoothing weights (T, N) of a filter's particles: Doucet, Godsill and Andrieu (2000), section IV."""
    weights = [jnp.exp(log_w[-1])]
    for t in range(log_w.shape[0] - 1, 0, -1):
        u = jax.tree_util.tree_map(lambda x, t=t: jnp.asarray(x)[t], fk.inputs)
        before = (particles[t - 1], log_w[t - 1])
        back = jax.vmap(lambda x, u=u, before=before: backward_weights(fk, None, before, x, u))(particles[t])
        weights.append(weights[-1] @ jnp.exp(back))
    return jnp.stack(weights[::-1])


@pytest.mark.slow
def test_forward_smoothing_is_backward_smoothing(key):
    """The forward recursion with all parents, and the backward recursion of weights, agree."""
    by_time = AdditiveFunctional(lambda x_prev, x, t: 1.0 * x, lambda x: 1.0 * x, by_time=True)
    fk, method = model(guided=True), PaRIS(num_particles=20, backward="all", threshold=0.5)
    trail, _, (particles, log_w) = forward(
        key, recursion(fk, method, by_time), keep=lambda system, drawn: (system.particles, system.log_w)
    )
    weights = marginals(fk, particles, log_w)
    np.testing.assert_allclose(np.sum(weights, 1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(value(trail), np.sum(weights * particles, 1), atol=1e-5)


@pytest.mark.slow
def test_smoothing_weights_converge(key):
    """4000 particles: within 5 sd of the exact smoothing probabilities, sd at most 1 / sqrt(1000)."""
    result = smc(key, model(), num_particles=4000, history="full")
    kept = result.history
    weights = marginals(model(), kept.particles, kept.log_w)
    exact = forward_backward(INITIAL, TRANSITION, np.log(LIKELIHOOD)).smoothed[:, 1]
    np.testing.assert_allclose(np.sum(weights * kept.particles, 1), exact, atol=5 / 1000**0.5)
