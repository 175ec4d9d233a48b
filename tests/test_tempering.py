"""SMC samplers against closed forms and quadrature, and what is said of runs that failed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from posteriordb import PROBLEMS

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, MethodError, NonFiniteError, WeightCollapse
from mcx.inference.tempering.annealing import Annealing, with_moves
from mcx.inference.tempering.moves import CloudMoves
from mcx.inference.tempering.paths import annealed_data, tempered
from mcx.model.compile import compile_model
from mcx.testing import check_mean

SMALL = {"num_particles": 256, "move": mcx.RandomWalk()}


def run(bound, method, key, **options):
    return mcx.infer(bound, method, key=key, progress=False, warnings="ignore", **options)


@mcx.model
def counts(y):
    """Gamma prior, Poisson counts: everything is skewed, and all is known."""
    rate = mcx.sample("rate", dist.Gamma(2.0, 0.5))
    with mcx.plate("day", len(y)):
        mcx.sample("y", dist.Poisson(rate), obs=y)


COUNTS = np.array([7, 4, 9, 6, 5])


def evidence_of_counts(y):
    """Log evidence, and the posterior, a gamma law."""
    a, b = 2.0 + y.sum(), 0.5 + len(y)
    log_z = 2 * math.log(0.5) - math.lgamma(2.0) + math.lgamma(a) - a * math.log(b)
    return log_z - sum(math.lgamma(k + 1) for k in y), scipy.stats.gamma(a, scale=1 / b)


class TestClosedForms:
    def test_a_skewed_posterior(self, key):
        """Evidence and moments over 64 replicates of 256 particles: a wrong sign or power shows at once.

        The evidence itself is unbiased but for adaptation, of order 1 / N.
        """
        method = mcx.TemperedSMC(**SMALL)
        post = run(counts(COUNTS), method, key, num_chains=64)
        log_z, law = evidence_of_counts(COUNTS)
        ratio = np.exp(post.smc_stats["log_evidence"][:, -1] - log_z)
        check_mean(ratio, 1.0, delta=0.1, independent=True)
        mean = post["rate"].mean(1)
        check_mean(mean, law.mean(), delta=0.1 * law.std(), independent=True)
        check_mean((post["rate"] ** 2).mean(1), law.var() + law.mean() ** 2, delta=0.8, independent=True)
        assert post.log_evidence == pytest.approx(log_z, abs=5 * post.log_evidence_se)
        assert post.log_evidence_se < 0.02 and not method.diagnose(post)
        assert (np.diff(post.smc_stats["level"], axis=1) >= 0).all()

    @pytest.mark.slow
    def test_observations_one_after_another(self, key):
        """The evidence of the first k observations is known for every k."""
        n = len(COUNTS)
        levels = tuple(np.arange(1, n + 1) / n)
        method = mcx.DataAnnealedSMC(**SMALL, levels=levels)
        post = run(counts(COUNTS), method, key, num_chains=64)
        for k in range(1, n + 1):
            log_z = evidence_of_counts(COUNTS[:k])[0]
            ratio = np.exp(post.smc_stats["log_evidence"][:, k - 1] - log_z)
            check_mean(ratio, 1.0, delta=0.15, independent=True)

    @pytest.mark.slow
    def test_chains_that_are_kept(self, key):
        """Waste-free: 32 chains of 8 points."""
        method = mcx.TemperedSMC(**SMALL, waste_free_length=8)
        post = run(counts(COUNTS), method, key, num_chains=64)
        log_z, law = evidence_of_counts(COUNTS)
        assert post["rate"].shape == (64, 256)
        check_mean(np.exp(post.smc_stats["log_evidence"][:, -1] - log_z), 1.0, delta=0.15, independent=True)
        check_mean(post["rate"].mean(1), law.mean(), delta=0.15 * law.std(), independent=True)

    def test_most_of_the_prior_is_impossible(self, key):
        """A standard normal variable above 2: 2.3 % of the prior; the factor is -inf elsewhere."""

        @mcx.model
        def truncated():
            x = mcx.sample("x", dist.Normal(0, 1))
            mcx.factor("above", jnp.where(x > 2, 0.0, -jnp.inf))

        method = mcx.TemperedSMC(**SMALL)
        post = run(truncated(), method, key, num_chains=64)
        law = scipy.stats.truncnorm(2, np.inf)
        ratio = np.exp(post.smc_stats["log_evidence"][:, -1]) / scipy.stats.norm.sf(2)
        # a binomial share of 256 draws, of relative sd 0.4
        check_mean(ratio, 1.0, delta=0.4, independent=True)
        assert (post["x"] > 2).all()
        check_mean(post["x"].mean(1), law.mean(), delta=0.5 * law.std(), independent=True)
        assert "MCX-W013" in {a.code for a in method.diagnose(post)}

    @pytest.mark.slow
    def test_two_modes_apart(self, key):
        """Shares 1 to 3 at -6 and 6, sds 0.5 and 1: no chain of NUTS goes from one to the other."""

        @mcx.model
        def modes():
            x = mcx.sample("x", dist.Normal(0, 5).expand([2]).to_event(1))
            near = dist.Normal(-6, 0.5).log_prob(x).sum() + math.log(0.25)
            far = dist.Normal(6, 1.0).log_prob(x).sum() + math.log(0.75)
            mcx.factor("either", jnp.logaddexp(near, far) - dist.Normal(0, 5).log_prob(x).sum())

        post = run(modes(), mcx.TemperedSMC(512), key, num_chains=32)
        check_mean(np.exp(post.smc_stats["log_evidence"][:, -1]), 1.0, delta=0.3, independent=True)
        check_mean((post["x"][..., 0] > 0).mean(1), 0.75, delta=0.1, independent=True)
        check_mean(post["x"][..., 1].mean(1), 0.75 * 6 - 0.25 * 6, delta=1.0, independent=True)

    @pytest.mark.slow
    def test_heavy_tails_and_a_near_singular_covariance(self, key):
        """Student t's of 3 degrees of freedom under a Gaussian of correlation 0.999; quadrature."""

        @mcx.model
        def narrow():
            x = mcx.sample("x", dist.StudentT(3, 0, 1).expand([2]).to_event(1))
            cov = jnp.array([[1.0, 0.999], [0.999, 1.0]])
            mcx.sample("y", dist.MultivariateNormal(x, cov), obs=jnp.array([4.0, 4.1]))

        post = run(narrow(), mcx.TemperedSMC(512), key, num_chains=32)
        cov = np.array([[1.0, 0.999], [0.999, 1.0]])
        # along the eigenvectors, which the likelihood factorises over: sds sqrt(1.999) and sqrt(0.001)
        u, v = np.meshgrid(np.linspace(-10, 10, 2001), np.linspace(-0.5, 0.5, 1001), indexing="ij")
        centre = np.array([4.0, 4.1])
        x = centre + np.stack([u + v, u - v], -1) / math.sqrt(2)
        density = scipy.stats.t(3).pdf(x).prod(-1) * scipy.stats.multivariate_normal(centre, cov).pdf(x)
        cell = (20 / 2000) * (1 / 1000)
        z = density.sum() * cell
        mean = (density[..., None] * x).sum((0, 1)) * cell / z
        check_mean(np.exp(post.smc_stats["log_evidence"][:, -1]) / z, 1.0, delta=0.3, independent=True)
        check_mean(post["x"].mean(1), mean, delta=0.1, independent=True)


class TestComposition:
    @pytest.mark.slow
    def test_the_loop_of_all_particle_methods_runs_it(self, key):
        """A path, moves and `mcx.smc` make the sampler; stages after the last are moves at the posterior."""
        path, data = tempered(compile_model(counts(COUNTS)))
        move = mcx.RandomWalk()
        fk = with_moves(Annealing(path, CloudMoves(move.transition(), move.target_accept)), data, 20)
        result = jax.jit(jax.vmap(lambda k: mcx.smc(k, fk, num_particles=256, threshold=1.0)))(
            jax.random.split(key, 16)
        )
        log_z, _ = evidence_of_counts(COUNTS)
        assert (result.state.particles.stage.level == 1).all()
        check_mean(np.exp(result.log_evidence - log_z), 1.0, delta=0.2, independent=True)

    @pytest.mark.slow
    def test_program(self, key):
        """The pure function gives what `infer` gives, under jit."""
        method = mcx.TemperedSMC(**SMALL)
        post = run(counts(COUNTS), method, key, num_chains=3)
        pure = jax.jit(mcx.program(counts(COUNTS), method, num_chains=3))(key)
        np.testing.assert_allclose(pure.log_evidence, post.log_evidence, rtol=1e-5)
        np.testing.assert_allclose(pure.draws["rate"].mean(), post["rate"].mean(), rtol=1e-4)


class _Stop(Exception):
    pass


class _StopsAtOnce:
    """A display that ends the run at its first report."""

    def compiling(self):
        pass

    started = close = lambda self, *args: None

    def update(self, *args):
        raise _Stop


class TestRuns:
    @pytest.mark.slow
    def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(self, key, tmp_path):
        """Stopped at the first look and gone on with, against one that was not; and read once more."""
        method = mcx.TemperedSMC(**SMALL, target_ess=0.99)
        whole = run(counts(COUNTS), method, key, num_chains=2)
        with pytest.raises(_Stop):
            mcx.infer(
                counts(COUNTS),
                method,
                key=key,
                num_chains=2,
                checkpoint=tmp_path / "run",
                progress=_StopsAtOnce(),
            )
        assert not mcx.load(tmp_path / "run").complete
        for _ in range(2):
            again = run(counts(COUNTS), method, key, num_chains=2, checkpoint=tmp_path / "run")
            np.testing.assert_array_equal(again["rate"], whole["rate"])
            assert again.complete and again.log_evidence == whole.log_evidence

    def test_too_few_stages_are_reported(self, key):
        method = mcx.TemperedSMC(**SMALL, max_stages=2)
        post = run(counts(COUNTS), method, key, num_chains=64)
        assert not post.complete
        assert {"MCX-W001", "MCX-W010"} <= {a.code for a in method.diagnose(post)}

    @pytest.mark.slow
    def test_particles_over_devices_and_in_batches(self, key):
        """One cloud shared by all devices, or moved a part at a time: the same but for rounding."""
        alone, shared, parts = (
            run(counts(COUNTS), mcx.TemperedSMC(**SMALL, **more), key, num_chains=1, **options)
            for more, options in (({}, {}), ({}, {"devices": jax.devices("cpu")}), ({"batch_size": 64}, {}))
        )
        for other in (shared, parts):
            assert other.log_evidence == pytest.approx(alone.log_evidence, abs=1e-4)
            np.testing.assert_allclose(other["rate"], alone["rate"], rtol=1e-3)

    @pytest.mark.slow
    def test_moves_that_do_not_forget_are_reported(self, key):
        method = mcx.TemperedSMC(**SMALL, max_moves=1)
        post = run(counts(COUNTS), method, key, num_chains=2)
        assert "MCX-W011" in {a.code for a in method.diagnose(post)}

    def test_in_arviz(self, key):
        post = run(counts(COUNTS), mcx.TemperedSMC(**SMALL), key, num_chains=64)
        tree = post.to_datatree()
        assert tree["smc_stats"]["level"].dims == ("chain", "stage")
        assert tree["posterior"]["rate"].shape == (64, 256)
        assert tree.attrs["log_evidence"] == pytest.approx(post.log_evidence)
        assert "log evidence" in repr(post)


class TestRefusals:
    @pytest.mark.slow
    def test_an_improper_prior_needs_a_start(self, key):
        @mcx.model
        def flat(y):
            mu = mcx.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
            mcx.sample("y", dist.Normal(mu, 1.0), obs=y)

        with pytest.raises(CapabilityError, match="site 'mu'"):
            run(flat(1.0), mcx.TemperedSMC(**SMALL), key)
        post = run(flat(1.0), mcx.TemperedSMC(**SMALL, initial_law=3.0), key, num_chains=32)
        # the normal density integrates to 1
        check_mean(np.exp(post.smc_stats["log_evidence"][:, -1]), 1.0, delta=0.1, independent=True)
        check_mean(post["mu"].mean(1), 1.0, delta=0.1, independent=True)

    def test_nowhere_possible(self, key):
        @mcx.model
        def nowhere():
            x = mcx.sample("x", dist.Normal(0, 1))
            mcx.factor("never", jnp.where(x > 100, 0.0, -jnp.inf))

        with pytest.raises(WeightCollapse):
            run(nowhere(), mcx.TemperedSMC(**SMALL), key)

    @pytest.mark.slow
    def test_likelihoods_that_are_no_numbers(self, key):
        @mcx.model
        def broken():
            x = mcx.sample("x", dist.Normal(0, 1))
            mcx.factor("log", jnp.log(x - 1.0))

        with pytest.raises(NonFiniteError):
            run(broken(), mcx.TemperedSMC(**SMALL), key)

    def test_settings(self, key):
        for settings in (
            {"target_ess": 1.0},
            {"waste_free_length": 3, "num_particles": 256},
            {"levels": (0.5, 0.2, 1.0)},
            {"levels": (0.5,)},
            {"move": "nuts"},
            {"num_particles": 1},
            {"max_correlation": 0.0},
        ):
            with pytest.raises(MethodError):
                mcx.TemperedSMC(**settings)
        with pytest.raises(MethodError, match="dim= one of day"):
            annealed_data(compile_model(counts(COUNTS)), "week")
        with pytest.raises(MethodError, match="init="):
            run(counts(COUNTS), mcx.TemperedSMC(**SMALL), key, init="prior")

        @mcx.model
        def discrete(y):
            k = mcx.sample("k", dist.Poisson(0.5))
            mcx.sample("y", dist.Normal(k, 1.0), obs=y)

        with pytest.raises(CapabilityError, match="site 'k'"):
            run(discrete(0.3), mcx.TemperedSMC(**SMALL), key)


EVIDENCE = {
    "eight_schools-eight_schools_noncentered": -31.31135,
    "sblrc-blr": -194.96759,
    "arK-arK": 58.58759,
    "gp_pois_regr-gp_regr": -27.55546,
}


METHODS = [
    *(pytest.param(name, mcx.TemperedSMC(), id=f"{name}-tempered") for name in EVIDENCE),
    # observations one by one; those of a Gaussian process are one vector
    pytest.param("eight_schools-eight_schools_noncentered", mcx.DataAnnealedSMC(), id="eight_schools-data"),
    pytest.param("arK-arK", mcx.DataAnnealedSMC(), id="arK-data"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), METHODS)
def test_evidences_of_real_posteriors(name, method, key):
    """The default settings on real data. Log evidences: tests/data/posteriordb/README.md."""
    problem = PROBLEMS[name]
    post = run(problem.bound(), method, key)
    assert post.log_evidence_se < 0.15
    assert abs(post.log_evidence - EVIDENCE[name]) < max(4 * post.log_evidence_se, 0.1)
    assert abs(post.log_evidence - EVIDENCE[name]) < 0.2
    for label, x in problem.scalars(post.draws).items():
        mean, _, sd = problem.reference[label]
        assert abs(x.mean() - mean) < 0.2 * sd, label
