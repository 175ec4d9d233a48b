"""Guided diffusion: programs, refusals, checkpoints, particle Gibbs with other parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from guided_problems import LEVELS, above, check_within, linear, problem, score_alone

import mcx
import mcx.dist as dist
from mcx.diffusion import GaussianMixture, ve
from mcx.errors import CapabilityError, DataError, DiagnosticWarning, MethodError, WeightCollapse


@pytest.mark.slow
def test_new_data_and_parameters_of_guided_diffusion_trace_nothing():
    traced = []
    schedule = ve(0.01, 20.0)

    def network(params, x, t):
        traced.append(1)
        return -x / (params + schedule.sigma(t) ** 2)

    @mcx.model
    def seen(params, y):
        traced.append(1)
        score = jax.tree_util.Partial(network, params)
        x = mcx.sample("x", mcx.ScorePrior(score, schedule, (2,), num_steps=8))
        mcx.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    def run(params, y):
        bound = seen(np.float32(params), np.full(2, y, np.float32))
        method = mcx.GuidedDiffusion(32, guidance="twisted")
        return mcx.infer(bound, method, key=0, num_chains=2, warnings="ignore", progress=False)

    first, count = run(1.0, 0.5), len(traced)
    second = run(2.0, 1.5)
    assert len(traced) == count and not np.allclose(first["x"], second["x"])


@pytest.mark.slow
def test_program(key):
    """The pure function: under jit, over keys and data sets, the same law."""
    mixture, matrix, scale, y = problem(2, 1, 1)
    bound = linear(mcx.ScorePrior(mixture.model, num_steps=30), matrix, scale, y)
    pure = jax.jit(mcx.program(bound, mcx.GuidedDiffusion(256), num_chains=2))
    exact, log_z = mixture.given(matrix, scale, y)
    post = jax.vmap(pure)(jax.random.split(key, 64))
    check_within(post["x"].mean((1, 2)), exact.mean, 0.1)
    check_within(np.exp(np.asarray(post.log_evidence) - log_z), 1.0, 0.1)
    other = linear(mcx.ScorePrior(mixture.model, num_steps=30), matrix, scale, y + 1)
    moved = pure(jax.random.key(0), other)
    assert abs(float(moved.log_evidence) - mixture.given(matrix, scale, y + 1)[1]) < 0.5


def test_refusals_of_guided_diffusion():
    y = np.zeros(2, np.float32)
    gaussian = GaussianMixture.of([0.0, 0.0], 1.0)
    prior = mcx.ScorePrior(gaussian, num_steps=8)

    @mcx.model
    def more(y):
        scale = mcx.sample("scale", dist.HalfNormal(1.0))
        x = mcx.sample("x", prior)
        mcx.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    @mcx.model
    def two():
        mcx.sample("a", prior)
        mcx.sample("b", prior)

    @mcx.model
    def none():
        mcx.sample("mu", dist.Normal(0, 1))

    @mcx.model
    def scaled(y):
        x = mcx.sample("x", prior)
        mcx.sample("y", dist.Normal(0.0, jnp.exp(x)).to_event(1), obs=y)

    method = mcx.GuidedDiffusion()
    for bound, what in (
        (more(y), "other latent sites"),
        (two(), "several sites"),
        (none(), "no diffusion prior"),
    ):
        with pytest.raises(CapabilityError, match=what):
            mcx.infer(bound, method, key=0)
    with pytest.raises(CapabilityError, match="linear Gaussian"):
        mcx.infer(scaled(y), mcx.GuidedDiffusion(guidance="linear_gaussian"), key=0)
    with pytest.raises(CapabilityError, match="gradient"):
        mcx.infer(above(prior, np.array(1)), mcx.GuidedDiffusion(guidance="twisted"), key=0)
    with pytest.raises(DataError, match="NaN"):
        mcx.infer(linear(prior, np.eye(2), 1.0, np.array([0.0, np.nan])), method, key=0)
    with pytest.raises(MethodError, match="start from noise"):
        mcx.infer(linear(prior, np.eye(2), 1.0, y), method, key=0, init="prior")
    for wrong in (
        {"num_particles": 1},
        {"guidance": "dps"},
        {"num_children": 0},
        {"lookahead": "far"},
        {"threshold": 2.0},
        {"num_pilot": 1},
    ):
        with pytest.raises(MethodError, match=next(iter(wrong))):
            mcx.GuidedDiffusion(**wrong)


@pytest.mark.slow
def test_collapses_are_told():
    """Few particles on a sharp likelihood: a warning with a code; an impossible observation: an error."""
    mixture, matrix, _, y = problem(16, 16, 3, seed=1)
    bound = linear(mcx.ScorePrior(mixture.model, num_steps=40), matrix, 0.01, y)
    method = mcx.GuidedDiffusion(200, guidance="soft_value", num_children=1)
    with pytest.raises(DiagnosticWarning, match="MCX-W01[35]"):
        mcx.infer(bound, method, key=0, warnings="raise")

    @mcx.model
    def impossible(prior, y):
        x = mcx.sample("x", prior)
        mcx.sample("y", dist.Uniform(0.0, jnp.where(x[0] > 1e6, 2.0, 1e-9)), obs=y)

    prior = mcx.ScorePrior(GaussianMixture.of([0.0], 1.0), num_steps=8)
    with pytest.raises((WeightCollapse, mcx.errors.SupportError)):
        mcx.infer(impossible(prior, np.float32(1.0)), mcx.GuidedDiffusion(16), key=0)


@pytest.mark.slow
def test_checkpoint(tmp_path):
    """The same call again finds the run done, with the same bits; another model is refused."""
    mixture, matrix, scale, y = problem(2, 1, 1)
    prior = mcx.ScorePrior(score_alone(mixture.model), event_shape=2, levels=LEVELS)
    options = {"key": 0, "num_chains": 2, "checkpoint": tmp_path / "run", "warnings": "ignore"}
    method = mcx.GuidedDiffusion(64)
    first = mcx.infer(linear(prior, matrix, scale, y), method, **options)
    again = mcx.infer(linear(prior, matrix, scale, y), method, **options)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert first.log_evidence == again.log_evidence
    with pytest.raises(mcx.errors.CheckpointMismatch):
        mcx.infer(linear(prior, matrix, scale, y + 1), method, **options)


# --- with other parameters -------------------------------------------------------------------------


@mcx.model
def shifted(prior, y):
    """An unknown shift of all that is observed, of unknown size."""
    shift = mcx.sample("shift", dist.Normal(0.0, 1.0))
    x = mcx.sample("x", prior)
    mcx.sample("y", dist.Normal(x + shift, 0.5).to_event(1), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["twisted", "soft_value"])
def test_guided_particle_gibbs(guidance, key):
    """Shift and site of a Gaussian, in closed form; finds a seventh of an sd."""
    y = np.array([2.0, -1.0], np.float32)
    prior = mcx.ScorePrior(GaussianMixture.of([1.0, 0.0], 0.5), num_steps=40)
    method = mcx.GuidedGibbs(20, guidance=guidance, num_warmup=200, num_samples=3000, num_children=2)
    post = mcx.infer(shifted(prior, y), method, key=key, num_chains=16, warnings="ignore")
    seen = np.concatenate([np.eye(2), np.ones((2, 1))], 1)
    before = np.diag([0.5, 0.5, 1.0])
    gain = before @ seen.T @ np.linalg.inv(seen @ before @ seen.T + 0.25 * np.eye(2))
    centre = np.array([1.0, 0.0, 0.0])
    mean, cov = centre + gain @ (y - seen @ centre), before - gain @ seen @ before
    draws = np.concatenate([post["x"], post["shift"][..., None]], -1)
    sd = np.sqrt(np.diag(cov))
    check_within(draws.mean(1), mean, 0.14 * sd)
    check_within(((draws - mean) ** 2).mean(1), sd**2, 0.2 * sd**2)
    check_within(((draws - mean)[..., 0] * (draws - mean)[..., 2]).mean(1), cov[0, 2], 0.2 * sd[0] * sd[2])
    rates = post.smc_stats["x.update_rate"]
    assert rates.shape == (16, 41) and (rates[:, -1] > 0.5).all()


@pytest.mark.slow
def test_particle_gibbs_refuses():
    y = np.zeros(2, np.float32)
    gaussian = GaussianMixture.of([0.0, 0.0], 1.0)
    prior = mcx.ScorePrior(gaussian, num_steps=4)
    method = mcx.GuidedGibbs()

    @mcx.model
    def within(y):
        width = mcx.sample("width", dist.HalfNormal(1.0))
        x = mcx.sample("x", mcx.ScorePrior(lambda x, t: -x / (width + t), ve(0.1, 10.0), (2,), num_steps=4))
        mcx.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    with pytest.raises(CapabilityError, match="depends on width"):
        mcx.infer(within(y), method, key=0)
    with pytest.raises(MethodError, match="other sites"):
        mcx.infer(linear(prior, np.eye(2), 1.0, y), method, key=0)
    with pytest.raises(MethodError, match="takes the observation apart"):
        mcx.GuidedGibbs(guidance="linear_gaussian")
    with pytest.raises(MethodError, match="params"):
        mcx.GuidedGibbs(params=mcx.TemperedSMC())
