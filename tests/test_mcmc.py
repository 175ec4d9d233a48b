"""Markov chain methods against exact answers.

Every comparison spends alpha = 1e-6 (check_mean's default); with about 60 of them, all methods being
correct, the file fails once in 15,000 runs. ``delta`` is a tenth to a fifth of a posterior sd.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import EFFECT, SIGMA, Problem, eight_schools, problems, regression, regression_data, slow_unless

import mcx
from mcx.errors import CapabilityError, InitializationError, MethodError
from mcx.inference.mcmc import warmup
from mcx.testing import CONJUGATE_PAIRS, check_mean

METHODS = {
    "NUTS": mcx.NUTS(num_warmup=500, num_samples=1500),
    "HMC": mcx.HMC(num_warmup=500, num_samples=40_000),
    "MALA": mcx.MALA(num_warmup=1000, num_samples=20_000),
    "RandomWalk": mcx.RandomWalk(num_warmup=2000, num_samples=60_000),
}


def infer(bound, method, key, **options):
    return mcx.infer(bound, method, key=key, progress=False, warnings="ignore", **options)


SMOOTH = [p for p in problems() if p.name != "hard constraint"]
HARD = next(p for p in problems() if p.name == "hard constraint")


@mcx.model
def product():
    """All smooth problems at once, as independent submodels: one compilation instead of many."""
    for i, problem in enumerate(SMOOTH):
        mcx.sample(f"p{i}", problem.bound)


@mcx.model
def conjugates():
    for i, pair in enumerate(CONJUGATE_PAIRS):
        mcx.sample(f"p{i}", pair.bind())


def check_problem(draws, problem: Problem, name: str):
    draws = draws.astype(np.float64)
    check_mean(draws, problem.mean, delta=0.2 * problem.sd, name=f"{name} mean of {problem.name}")
    second = problem.mean**2 + problem.sd**2
    if problem.name != "heavy tails":  # its fourth moment is too large for a CLT at this length
        check_mean(draws**2, second, delta=0.5 * second, name=f"{name} second moment of {problem.name}")


@pytest.mark.parametrize("name", slow_unless(["NUTS"], METHODS))
def test_moments_of_samplers(name: str, key):
    post = infer(product(), METHODS[name], key, num_chains=8)
    for i, problem in enumerate(SMOOTH):
        check_problem(post.draws[f"p{i}.{problem.site}"], problem, name)


@pytest.mark.parametrize("name", slow_unless(["NUTS"], METHODS))
def test_hard_constraints(name: str, key):
    post = infer(HARD.bound, METHODS[name], key, num_chains=16)
    assert (post.draws["x"] > 0.3).all()
    check_problem(post.draws["x"], HARD, name)


@pytest.mark.slow
def test_conjugate_posteriors(key):
    post = infer(conjugates(), mcx.NUTS(num_warmup=500, num_samples=2500), key, num_chains=8)
    for i, pair in enumerate(CONJUGATE_PAIRS):
        for site, mean in pair.moments.mean.items():
            draws, sd = post.draws[f"p{i}.{site}"].astype(np.float64), pair.moments.sd[site]
            check_mean(draws, mean, delta=0.15 * sd, name=f"{pair.name}: {site}")
            check_mean((draws - mean) ** 2, sd**2, delta=0.5 * sd**2, name=f"{pair.name}: var {site}")


@pytest.mark.slow
def test_dense_metric(key):
    problem = problems()[0]
    post = infer(
        problem.bound, mcx.NUTS(num_warmup=500, num_samples=1500, dense_mass=True), key, num_chains=8
    )
    check_mean(post.draws["x"], problem.mean, delta=0.15 * problem.sd)
    product = (post.draws["x"] - problem.mean).prod(-1)
    check_mean(product, 0.9, delta=0.3)


@pytest.mark.parametrize("method", slow_unless([mcx.MALA], [mcx.MALA, mcx.RandomWalk]))
def test_dense_metric_of_metropolis_methods(method, key):
    problem = problems()[0]
    settings = method(num_warmup=1000, num_samples=12_000, dense_mass=True)
    post = infer(problem.bound, settings, key, num_chains=8)
    check_mean((post.draws["x"] - problem.mean).prod(-1), 0.9, delta=0.5)


@pytest.mark.slow
def test_adaptation_reaches_its_target(key):
    bound = eight_schools(SIGMA, y=EFFECT)
    for aim in (0.7, 0.95):
        post = infer(bound, mcx.NUTS(target_accept=aim), key)
        # dual averaging holds the mean acceptance of the search at its target; the step size frozen at the
        # end is an average of logarithms, which errs on the small side
        searched = post.warmup_stats["acceptance_rate"][:, 200:900].mean()
        assert abs(searched - aim) < 0.02
        assert post.stats["acceptance_rate"].mean() > aim - 0.02
        assert np.ptp(post.stats["step_size"], axis=1).max() == 0  # frozen once warm-up is over


@pytest.mark.slow
def test_metric_learns_scales(key):
    @mcx.model
    def scales():
        mcx.sample("x", mcx.dist.Normal(jnp.zeros(2), jnp.array([1e-3, 1e3])))

    post = infer(scales(), mcx.NUTS(), key)
    # with a unit metric these trajectories would take thousands of steps
    assert post.stats["n_steps"].mean() < 16
    np.testing.assert_allclose(post.draws["x"].std((0, 1)), [1e-3, 1e3], rtol=0.1)


def test_warmup_may_be_skipped(key):
    problem = problems()[0]
    post = infer(problem.bound, mcx.HMC(num_warmup=0, num_samples=50, step_size=0.25), key)
    assert post.draws["x"].shape == (4, 50, 2)
    assert (post.stats["step_size"] == 0.25).all()
    assert post.warmup_stats["step_size"].shape == (4, 0)


@pytest.mark.parametrize("num_warmup", [1, 5, 19, 20, 21, 150])
def test_short_warmups(num_warmup):
    codes = mcx.NUTS(num_warmup=num_warmup, num_samples=3).inputs()
    assert codes.shape == (num_warmup + 3,)
    assert codes[num_warmup - 1] == warmup.FINISH and (codes[num_warmup:] == 0).all()
    assert (codes[:num_warmup] > 0).all()


def test_same_key_same_draws_and_other_key_other_draws():
    bound, method = problems()[1].bound, mcx.NUTS(num_warmup=50, num_samples=20)
    a, b, c = (infer(bound, method, key) for key in (1, jax.random.key(1), 2))
    np.testing.assert_array_equal(a.draws["x"], b.draws["x"])
    assert not np.array_equal(a.draws["x"], c.draws["x"])


class TestStartingPoints:
    def start(self, **options):
        method = mcx.HMC(num_warmup=0, num_samples=1, step_size=1e-6, max_leapfrog_steps=1)
        x, y = regression_data()
        return infer(regression(x, y=y), method, 0, **options).draws

    def test_default_is_uniform_and_differs_between_chains(self):
        draws = self.start()
        assert np.unique(draws["slope"]).size == 4
        assert (np.abs(draws["slope"]) < 2.01).all()

    def test_radius(self):
        assert (np.abs(self.start(init=0.01)["slope"]) < 0.02).all()

    def test_values(self):
        values = {"intercept": 0.1, "slope": np.array([1.0, 2.0, 3.0, 4.0]), "noise": 0.5}
        draws = self.start(init=values)
        np.testing.assert_allclose(draws["slope"][:, 0], [1, 2, 3, 4], atol=1e-3)
        np.testing.assert_allclose(draws["noise"], 0.5, atol=1e-3)

    def test_prior(self):
        noise = self.start(init="prior")["noise"]
        assert np.unique(noise).size == 4 and (noise > 0).all()

    def test_improper_priors_cannot_start_from_the_prior(self):
        @mcx.model
        def flat():
            mcx.sample("x", mcx.dist.ImproperUniform(mcx.dist.constraints.real, (), ()))
            mcx.factor("likelihood", -0.5)

        with pytest.raises(CapabilityError, match="site 'x'"):
            infer(flat(), mcx.NUTS(), 0, init="prior")

    def test_bad_values(self):
        with pytest.raises(InitializationError, match="site 'sigma'.*no latent site"):
            mcx.infer(regression(*regression_data()), mcx.NUTS(), init={"sigma": 0.0}, key=0, progress=False)
        with pytest.raises(InitializationError, match="shape"):
            self.start(init={"intercept": 0.0, "slope": np.zeros(3), "noise": 1.0})
        with pytest.raises(InitializationError, match="not understood"):
            self.start(init=[1, 2])

    def test_a_far_start_is_searched_for(self, key):
        # finite in a corner of 9 %: all 100 draws of one of the chains miss it once in 3,000 runs
        @mcx.model
        def corner():
            x = mcx.sample("x", mcx.dist.Normal(jnp.zeros(2), 1.0))
            mcx.factor("corner", jnp.where((x > 0.8).all(), 0.0, -jnp.inf))

        post = infer(corner(), mcx.NUTS(num_warmup=100, num_samples=100), key)
        assert (post.draws["x"] > 0.8).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_warmup": -1},
        {"num_samples": 0},
        {"num_samples": 2.5},
        {"target_accept": 1.0},
        {"step_size": 0.0},
        {"max_tree_depth": 0},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(MethodError, match=next(iter(settings))):
        mcx.NUTS(**settings)


@pytest.mark.slow
@pytest.mark.x64
def test_moments_in_float64(key):
    post = infer(product(), METHODS["NUTS"], key, num_chains=8)
    for i, problem in enumerate(SMOOTH):
        draws = post.draws[f"p{i}.{problem.site}"]
        assert draws.dtype == np.float64
        check_problem(draws, problem, "NUTS in float64")
