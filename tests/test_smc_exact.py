"""The particle system is unbiased: every outcome on a hidden Markov model is enumerated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow_unless
from test_smc import log, many

from mcx.inference.smc import engine
from mcx.inference.smc.engine import SMCSettings
from mcx.inference.smc.genealogy import fixed_lag_means
from mcx.inference.smc.history import HistorySettings
from mcx.inference.smc.resampling import Resampled, adaptive
from mcx.inference.smc.smc import loop, smc
from mcx.inference.smc.variance import log_evidence_variance
from mcx.ops.random import choose
from mcx.target import FeynmanKac
from mcx.testing import check_mean, enumerate_outcomes, forward_backward

KEY = jax.random.key(0)


# --- a hidden Markov model, enumerated ---------------------------------------------------------------
# Proposals q0 and Q differ from the model p0 and P, the potential corrects; with Q = P this is the bootstrap
# filter. So one set of functions serves all cases.

P0, P = np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.2, 0.8]])
Q0, Q = np.array([0.3, 0.7]), np.array([[0.45, 0.55], [0.5, 0.5]])
SEEN = np.array([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15], [0.1, 0.9]])
IMPOSSIBLE = np.array([[0.9, 0.1], [0.3, 0.0], [0.0, 0.5], [0.1, 0.9]])


def hmm_initial(key, ctx, u):
    return choose(key, ctx["q0"])


def hmm_transition(key, ctx, x, u):
    return choose(key, ctx["Q"][x])


def hmm_potential(ctx, x_prev, x, u):
    if x_prev is None:
        return u[x] + ctx["p0"][x] - ctx["q0"][x]
    return u[x] + ctx["P"][x_prev, x] - ctx["Q"][x_prev, x]


def hmm_lookahead(ctx, x, u_next):
    return ctx["ahead"] * jax.nn.logsumexp(ctx["P"][x] + u_next)


def hmm_adapt(ctx, particles, log_w, u):
    """Propose as the population suggests; any proposal will do, since potentials correct for it."""
    share = 0.2 + 0.6 * jnp.sum(jnp.exp(log_w) * particles)
    return {**ctx, "Q": jnp.log(jnp.stack([jnp.stack([1 - share, share]), jnp.stack([0.5, 0.5])]))}


def hmm(kind="bootstrap", likelihood=SEEN, num_steps=3):
    guided = kind != "bootstrap"
    fk = FeynmanKac(
        hmm_initial,
        hmm_transition,
        hmm_potential,
        num_steps,
        inputs=log(likelihood[:num_steps]),
        log_lookahead=hmm_lookahead if kind in ("auxiliary", "blind") else None,
        adapt=hmm_adapt if kind == "adapted" else None,
    )
    params = {"p0": log(P0), "P": log(P), "q0": log(Q0 if guided else P0), "Q": log(Q if guided else P)}
    return fk, {**params, "ahead": jnp.asarray({"auxiliary": 0.7, "blind": jnp.inf}.get(kind, 0.0))}


def enumerate_hmm(kind, num_particles, num_steps, scheme, threshold, likelihood=SEEN):
    """Exact means of the evidence, of it times the filter's mean, both at every time, and of its square."""
    fk, params = hmm(kind, likelihood, num_steps)
    settings = {"num_particles": num_particles, "resampling": scheme, "threshold": threshold}

    def fn(key):
        result = smc(key, fk, params, history="moments", **settings)
        z = jnp.exp(result.history.log_evidence)
        weighted = jnp.where(z > 0, z * result.history.mean, 0.0)
        square = jnp.zeros(())
        if result.state.origins is not None:
            spread = jnp.exp(-log_evidence_variance(result.state.origins, result.state.log_w))
            square = jnp.where(z[-1] > 0, z[-1] ** 2 * spread, 0.0)
        return z, weighted, square

    return enumerate_outcomes(fn, KEY).mean()


def hmm_truth(likelihood, num_steps):
    with np.errstate(divide="ignore"):
        exact = forward_backward(P0, P, np.log(likelihood[:num_steps]))
    return np.exp(np.cumsum(exact.log_increments)), exact.filtered[:, 1]


EXACT = [
    ("bootstrap", 2, 4, "multinomial", 1.0, SEEN),
    ("guided", 2, 4, "multinomial", 0.7, SEEN),
    ("guided", 1, 4, "multinomial", 1.0, SEEN),
    ("guided", 3, 3, "multinomial", 0.0, IMPOSSIBLE),
    ("guided", 2, 3, "killing", 1.0, SEEN),
    ("guided", 2, 3, "birth_death", 1.0, SEEN),
    ("bootstrap", 3, 3, "birth_death", 0.8, IMPOSSIBLE),
    ("guided", 2, 3, "ssp", 0.7, IMPOSSIBLE),
    ("guided", 3, 3, "residual", 0.8, IMPOSSIBLE),
    ("auxiliary", 2, 4, "multinomial", 0.7, IMPOSSIBLE),
    ("auxiliary", 3, 3, "multinomial", 0.8, SEEN),
    ("auxiliary", 2, 3, "residual", 1.0, SEEN),
    ("auxiliary", 2, 3, "killing", 0.7, IMPOSSIBLE),
    ("auxiliary", 3, 3, "ssp", 1.0, SEEN),
    ("blind", 2, 3, "multinomial", 1.0, SEEN),
    ("adapted", 2, 3, "multinomial", 0.7, SEEN),
]


def check_exact(case, rtol):
    kind, num_particles, num_steps, scheme, threshold, likelihood = case
    evidence, weighted, square = enumerate_hmm(*case)
    z, filtered = hmm_truth(likelihood, num_steps)
    np.testing.assert_allclose(evidence, z, rtol=rtol)
    np.testing.assert_allclose(weighted, z * filtered, rtol=rtol, atol=rtol * z.min())
    if scheme == "multinomial" and num_particles > 1:
        np.testing.assert_allclose(square, z[-1] ** 2, rtol=rtol)


FEW = [EXACT[i] for i in (9,)]


def name_of(case):
    return f"{case[0]}-{case[3]}-N{case[1]}-{case[4]}"


@pytest.mark.parametrize("case", slow_unless(FEW, EXACT), ids=name_of)
def test_the_evidence_is_unbiased(case):
    """E[Z^] = Z and E[Z^ filter mean] = Z E[x_t | y_0..y_t] at every time t, for every N and threshold.

    The estimate of the squared evidence, from which the standard error is taken, is unbiased as well. Sums
    over all outcomes, so the tolerance is rounding alone.
    """
    check_exact(case, 1e-6)


@pytest.mark.x64
@pytest.mark.parametrize("case", slow_unless(FEW[:1], EXACT[1:]), ids=name_of)
def test_the_evidence_is_unbiased_to_double_precision(case):
    check_exact(case, 1e-12)


def enumerated_evidence(kind, threshold):
    """The loop itself, traced anew: a planted defect is not hidden by a compiled program."""
    fk, params = hmm(kind)
    settings = SMCSettings(2, threshold)
    e = enumerate_outcomes(
        lambda key: loop(key, fk, fk.prepare(params), settings, HistorySettings()).log_evidence, KEY
    )
    return e.mean(np.exp(e.outcomes))


def weights_not_reset(scheme, threshold):
    step = adaptive(scheme, threshold)

    def broken(key, log_w, particles, *known):
        result = step(key, log_w, particles, *known)
        return Resampled(result.ancestors, log_w[result.ancestors], result.particles, result.resampled)

    return broken


def particles_not_moved(scheme, threshold):
    step = adaptive(scheme, threshold)
    return lambda key, log_w, x, *known: step(key, log_w, x, *known)._replace(particles=x)


def never_says_it_resampled(scheme, threshold):
    step = adaptive(scheme, threshold)
    return lambda key, log_w, *rest: step(key, log_w, *rest)._replace(resampled=jnp.asarray(False))


@pytest.mark.parametrize(
    ("defect", "kind", "threshold"),
    [
        pytest.param(weights_not_reset, "guided", 1.0, marks=pytest.mark.slow),
        pytest.param(weights_not_reset, "guided", 0.7, marks=pytest.mark.slow),
        pytest.param(particles_not_moved, "guided", 0.7, marks=pytest.mark.slow),
        pytest.param(never_says_it_resampled, "auxiliary", 0.7, marks=pytest.mark.slow),
    ],
)
def test_planted_defects_are_found(monkeypatch, defect, kind, threshold):
    z = hmm_truth(SEEN, 3)[0][-1]
    assert enumerated_evidence(kind, threshold) == pytest.approx(z, rel=1e-6)
    monkeypatch.setattr(engine, "adaptive", defect)
    assert abs(enumerated_evidence(kind, threshold) / z - 1) > 0.01


def test_weights_that_are_forgotten_are_found(monkeypatch):
    weigh = engine._weigh
    monkeypatch.setattr(
        engine, "_weigh", lambda w, g, *rest: weigh(jnp.full_like(w, -jnp.log(w.size)), g, *rest)
    )
    z = hmm_truth(SEEN, 3)[0][-1]
    assert abs(enumerated_evidence("guided", 0.7) / z - 1) > 0.01


def forward(theta, likelihood):
    """Evidence of the hidden Markov model with log transition and log likelihood moved by theta."""
    a = jnp.asarray(P0) * jnp.exp(theta["g"][0]) * likelihood[0]
    for t in range(1, len(likelihood)):
        a = (a @ (jnp.asarray(P) * jnp.exp(theta["P"]))) * jnp.exp(theta["g"][t]) * likelihood[t]
    return a.sum()


@pytest.mark.parametrize(
    ("kind", "num_particles", "scheme", "threshold", "likelihood"),
    [
        pytest.param("guided", 2, "multinomial", 1.0, SEEN, marks=pytest.mark.slow),
        pytest.param("guided", 3, "ssp", 0.8, IMPOSSIBLE, marks=pytest.mark.slow),
        ("auxiliary", 2, "multinomial", 0.7, SEEN),
    ],
)
@pytest.mark.slow
def test_the_gradient_is_unbiased(kind, num_particles, scheme, threshold, likelihood):
    """E[grad Z^] = grad Z exactly, through potentials and resampling, collapses included."""
    fk, params = hmm(kind, likelihood)
    theta = {"g": jnp.zeros((3, 2)), "P": jnp.zeros((2, 2))}

    def evidence(theta, key):
        moved = dataclasses.replace(fk, inputs=fk.inputs + theta["g"])
        result = smc(
            key,
            moved,
            {**params, "P": params["P"] + theta["P"]},
            num_particles=num_particles,
            resampling=scheme,
            threshold=threshold,
        )
        return jnp.exp(result.log_evidence)

    found = enumerate_outcomes(lambda key: jax.grad(evidence)(theta, key), KEY).mean()
    exact = jax.grad(forward)(theta, jnp.asarray(likelihood[:3]))
    for name in theta:
        np.testing.assert_allclose(found[name], exact[name], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("scheme", slow_unless(["systematic"], ["systematic", "stratified"]))
@pytest.mark.parametrize(
    ("num_particles", "kind"), [pytest.param(2, "guided", marks=pytest.mark.slow), (8, "auxiliary")]
)
@pytest.mark.slow
def test_schemes_with_continuous_offsets_are_unbiased(key, scheme, num_particles, kind):
    """What cannot be enumerated. A bias of 3 % is found; weights not reset are off by several times that."""
    fk, params = hmm(kind)

    def run(key):
        result = smc(
            key, fk, params, num_particles=num_particles, resampling=scheme, threshold=0.9, history="moments"
        )
        z = jnp.exp(result.history.log_evidence)
        return jnp.stack([z, z * result.history.mean])

    z, filtered = hmm_truth(SEEN, 3)
    truth = np.stack([z, z * filtered])
    check_mean(many(key, 200_000, run) / truth, np.ones((2, 3)), delta=0.03, independent=True)


@pytest.mark.slow
def test_the_two_state_model_of_the_literature(key):
    likelihood = np.array([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15], [0.1, 0.9]])
    exact = forward_backward([0.5, 0.5], P, np.log(likelihood))
    assert exact.log_evidence == pytest.approx(-3.481979, abs=1e-6)
    np.testing.assert_allclose(exact.smoothed[:, 1], [0.1793, 0.7510, 0.4901, 0.8818], atol=5e-5)
    fk, params = hmm("bootstrap", likelihood, 4)
    params = {**params, "p0": log([0.5, 0.5]), "q0": log([0.5, 0.5])}

    def run(key):
        result = smc(key, fk, params, num_particles=100, history="full")
        z = jnp.exp(result.log_evidence - exact.log_evidence)
        kept = result.history
        # a lag of T - 1 is the whole path
        smoothed = fixed_lag_means(kept.ancestors, kept.log_w, kept.particles, 3)
        return jnp.concatenate([z[None], z * smoothed])

    truth = np.concatenate([[1.0], exact.smoothed[:, 1]])
    check_mean(many(key, 20_000, run), truth, delta=0.01, independent=True)
