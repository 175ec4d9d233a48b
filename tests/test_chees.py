"""ChEES: moments, what chains share, where they start, and what is said when they disagree.

Comparisons with exact moments spend alpha = 1e-6 each, see test_mcmc.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posteriordb import PROBLEMS, compare
from problems import EFFECT, SIGMA, eight_schools, problems
from test_mcmc import HARD, SMOOTH, check_problem, product

import mcx
import mcx.dist as dist
from mcx.errors import InferenceWarning, MethodError
from mcx.inference.mcmc.chees import ChEESKernel
from mcx.methods.initial_points import as_initial_points
from mcx.model.compile import compile_model
from mcx.ops import collectives
from mcx.testing import check_mean

SHORT = mcx.ChEES(num_warmup=60, num_samples=20)


def infer(bound, method, key, **options):
    return mcx.infer(bound, method, key=key, progress=False, **{"warnings": "ignore", **options})


@mcx.model
def gaussian(sd):
    mcx.sample("x", dist.Normal(jnp.zeros(sd.shape), sd))


@mcx.model
def two_modes(logits):
    """Two modes 20 standard deviations apart; no chain crosses."""
    places = dist.Normal(jnp.array([-10.0, 10.0]), jnp.ones(2))
    mcx.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=logits), places))


SCALES = np.array([1e-3, 1.0, 1e3], np.float32)


class TestMoments:
    @pytest.mark.slow
    def test_smooth_problems(self, key):
        post = infer(product(), mcx.ChEES(num_samples=1500), key)
        for i, problem in enumerate(SMOOTH):
            check_problem(post.draws[f"p{i}.{problem.site}"], problem, "ChEES")

    @pytest.mark.slow
    def test_smooth_problems_with_a_diagonal_metric(self, key):
        post = infer(product(), mcx.ChEES(num_samples=1500, dense_mass=False), key)
        for i, problem in enumerate(SMOOTH):
            check_problem(post.draws[f"p{i}.{problem.site}"], problem, "ChEES")

    @pytest.mark.slow
    def test_hard_constraint(self, key):
        post = infer(HARD.bound, mcx.ChEES(num_samples=1500), key)
        assert (post.draws["x"] > 0.3).all()
        # trajectories across the bound are rejected whatever their step size, which must not shrink for that
        assert post.stats["n_steps"].mean() < 10
        check_problem(post.draws["x"], HARD, "ChEES")

    @pytest.mark.x64
    @pytest.mark.slow
    def test_in_float64(self, key):
        post = infer(product(), mcx.ChEES(num_samples=1500), key)
        for i, problem in enumerate(SMOOTH):
            assert post.draws[f"p{i}.{problem.site}"].dtype == np.float64
            check_problem(post.draws[f"p{i}.{problem.site}"], problem, "ChEES")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_posteriordb(self, name, key):
        """From the default start; budget and power as in test_posteriordb.py."""
        comparison = compare(PROBLEMS[name], infer(PROBLEMS[name].bound(), mcx.ChEES(), key))
        assert not comparison.failures, f"{comparison.failures} differ from the reference\n{comparison}"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_posteriordb_with_a_diagonal_metric(self, name, key):
        method = mcx.ChEES(dense_mass=False)
        comparison = compare(PROBLEMS[name], infer(PROBLEMS[name].bound(), method, key))
        assert not comparison.failures, f"{comparison.failures} differ from the reference\n{comparison}"


@pytest.fixture(scope="module")
def post():
    return infer(eight_schools(SIGMA, y=EFFECT), mcx.ChEES(), 0)


class TestTuning:
    def test_frozen_after_warmup_and_the_same_in_all_chains(self, post):
        for name in ("step_size", "trajectory_length"):
            assert np.unique(post.stats[name]).size == 1
        tuned = {k: v[:, 100:] for k, v in post.warmup_stats.items()}
        for name in ("step_size", "trajectory_length", "n_steps"):
            assert (tuned[name] == tuned[name][:1]).all()
            assert np.unique(tuned[name]).size > 3
        approach = post.warmup_stats["step_size"][:, 1:100]
        assert (np.ptp(approach, axis=0) > 0).all()  # there every chain has its own

    def test_trajectories_are_jittered_alike(self, post):
        n, step, length = (post.stats[k] for k in ("n_steps", "step_size", "trajectory_length"))
        assert (n == n[:1]).all()
        most = np.ceil(length[0, 0] / step[0, 0])
        assert set(np.unique(n)) == set(range(1, int(most) + 1))  # a low-discrepancy sequence leaves none out

    def test_statistics_have_their_names(self, post):
        names = {"acceptance_rate", "diverging", "energy", "n_steps", "step_size", "lp", "trajectory_length"}
        assert names <= set(post.stats) and post.stats["lp"].shape == (64, 500)
        assert names <= set(post.to_datatree()["sample_stats"].data_vars)

    def test_step_size_reaches_its_target(self, post):
        rate = post.warmup_stats["acceptance_rate"][:, 160:].astype(np.float64)
        harmonic = 1 / (1 / np.maximum(rate, 0.05)).mean(0)
        assert abs(harmonic.mean() - 0.651) < 0.06

    @pytest.mark.parametrize("dense", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_metric_learns_scales(self, dense, key):
        post = infer(gaussian(SCALES), mcx.ChEES(dense_mass=dense), key)
        assert post.stats["n_steps"].mean() < 8
        np.testing.assert_allclose(post.draws["x"].std((0, 1)), SCALES, rtol=0.05)

    @pytest.mark.slow
    def test_a_far_start(self, key):
        """All chains start 10^6 standard deviations away."""
        post = infer(gaussian(SCALES), mcx.ChEES(), key, init=1e3)
        for i, sd in enumerate(SCALES):
            check_mean(post.draws["x"][..., i] / sd, 0.0, delta=0.1)
        np.testing.assert_allclose(post.draws["x"].std((0, 1)), SCALES, rtol=0.05)

    @pytest.mark.slow
    def test_many_dimensions_have_a_diagonal_metric(self, key):
        sd = np.geomspace(0.1, 10.0, 60).astype(np.float32)
        post = infer(gaussian(sd), mcx.ChEES(), key)
        np.testing.assert_allclose(post.draws["x"].std((0, 1)), sd, rtol=0.1)

    @pytest.mark.parametrize("num_warmup", [0, 1, 2, 3, 5, 20, 21, 200])
    def test_plans_of_any_length(self, num_warmup):
        plan = mcx.ChEES(num_warmup=num_warmup, num_samples=7).inputs()
        assert all(part.shape == (num_warmup + 7,) for part in plan)
        assert (plan.phase[num_warmup:] == 0).all() and (plan.event[num_warmup:] == 0).all()
        assert (plan.phase[:num_warmup] > 0).all()
        assert num_warmup == 0 or plan.event[num_warmup - 1] == 3
        assert ((plan.jitter > 0) & (plan.jitter < 1)).all()

    def test_warmup_may_be_skipped(self, key):
        method = mcx.ChEES(num_warmup=0, num_samples=30, step_size=0.25, trajectory_length=1.5)
        post = infer(gaussian(np.ones(2, np.float32)), method, key, num_chains=4)
        assert (post.stats["step_size"] == 0.25).all() and (post.stats["trajectory_length"] == 1.5).all()
        assert set(np.unique(post.stats["n_steps"])) == set(range(1, 7))


class TestRunning:
    def test_default_number_of_chains(self):
        bound = gaussian(np.ones(2, np.float32))
        for method, chains in ((SHORT, 64), (mcx.RandomWalk(num_warmup=5, num_samples=20), 4)):
            post = jax.eval_shape(mcx.program(bound, method), jax.random.key(0))
            assert post.draws["x"].shape == (chains, 20, 2)

    @pytest.mark.parametrize("num_chains", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_few_chains_run_too(self, num_chains, key):
        method = mcx.ChEES(num_warmup=300, num_samples=4000)
        post = infer(problems()[0].bound, method, key, num_chains=num_chains)
        x = post.draws["x"].reshape(1, -1, 2).repeat(2, 0) if num_chains == 1 else post.draws["x"]
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x.mean((0, 1)), [1.0, -2.0], atol=0.3)

    @pytest.mark.slow
    def test_bits_do_not_depend_on_chunks(self):
        bound = problems()[0].bound
        whole = infer(bound, SHORT, 0, num_chains=8)
        kernel_run = {
            "key": jax.random.key(0),
            "num_steps": 80,
            "num_chains": 8,
            "num_discard": 60,
            "inputs": SHORT.inputs(),
            "progress": False,
        }
        target = compile_model(bound)
        start = as_initial_points(target, None, 8, jax.random.fold_in(jax.random.key(0), 1))
        for chunk_size in (1, 7, 80):
            cut = mcx.run(SHORT.kernel(target), target.data, init=start, chunk_size=chunk_size, **kernel_run)
            np.testing.assert_array_equal(cut.draws[0]["x"], whole.draws["x"])

    def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(self, tmp_path, monkeypatch):
        bound, method = problems()[0].bound, mcx.ChEES(num_warmup=24, num_samples=20)
        whole = infer(bound, method, 0, num_chains=8)
        saved = mcx.Checkpoint(tmp_path / "run", interval=0.0)
        with monkeypatch.context() as patch:  # ends after the first chunk, 16 steps: within the tuning
            patch.setattr(ChEESKernel, "stop", lambda self, stats: True, raising=False)
            with pytest.raises(KeyboardInterrupt):
                infer(bound, method, 0, num_chains=8, checkpoint=saved)
        resumed = infer(bound, method, 0, num_chains=8, checkpoint=saved)
        np.testing.assert_array_equal(resumed.draws["x"], whole.draws["x"])
        for name, values in whole.warmup_stats.items():
            np.testing.assert_array_equal(resumed.warmup_stats[name], values)

    @pytest.mark.slow
    def test_tuning_does_not_depend_on_the_number_of_devices(self):
        """Up to rounding, which trajectories blow up, most of all far out: a short run near the middle."""
        bound = gaussian(np.array([1.0, 0.7, 2.0], np.float32))
        method = mcx.ChEES(num_warmup=16, num_samples=8)
        one, four = (infer(bound, method, 0, num_chains=8, devices=d) for d in (None, 4))
        for name in ("step_size", "trajectory_length"):
            assert np.unique(four.stats[name]).size == 1
            np.testing.assert_allclose(four.warmup_stats[name], one.warmup_stats[name], rtol=1e-3)
        np.testing.assert_array_equal(four.stats["n_steps"], one.stats["n_steps"])
        np.testing.assert_allclose(four.draws["x"], one.draws["x"], atol=0.01)

    @pytest.mark.parametrize(
        "settings",
        [{"trajectory_length": 0.0}, {"max_leapfrog_steps": 0}, {"target_accept": 1.0}, {"num_warmup": -1}],
    )
    def test_settings_are_checked(self, settings):
        with pytest.raises(MethodError, match=next(iter(settings))):
            mcx.ChEES(**settings)

    def test_it_is_no_block_of_another_method(self):
        with pytest.raises(MethodError, match="params"):
            mcx.ParticleGibbs(states=mcx.ConditionalSMC(10), params=mcx.ChEES())
        with pytest.raises(MethodError, match="kernel"):
            mcx.ScoreClimbing(kernel=mcx.ChEES())


class TestDisagreement:
    @pytest.mark.slow
    def test_two_modes_are_reported(self, key):
        with pytest.warns(InferenceWarning, match="MCX-W005.*of 64 chains .* sit elsewhere"):
            post = infer(two_modes(jnp.zeros(2)), mcx.ChEES(), key, warnings="warn")
        assert set(np.unique((post.draws["x"] < 0).mean(1))) == {0.0, 1.0}
        assert not post.warmup_stats["relocated"].any()

    def test_a_lower_mode_is_not_hidden(self, key):
        """With e^-4 of the mass: its chains stay, and the message says how much lower they are."""
        post = infer(two_modes(jnp.array([0.0, -4.0])), mcx.ChEES(), key)
        assert not post.warmup_stats["relocated"].any()
        text = {a.code: a.text for a in mcx.ChEES().diagnose(post)}["MCX-W005"]
        low = post.draws["x"].mean(1) > 0
        difference = post.stats["lp"][low].mean() - post.stats["lp"][~low].mean()
        assert difference == pytest.approx(-4.0, abs=0.2)
        # the smaller group is the one told of
        assert (
            f"log density {abs(difference):.3g}" in text and f"; {min(low.sum(), (~low).sum())} of 64" in text
        )

    def test_chains_do_not_stay_in_a_hopeless_mode(self, key):
        """With e^-60 of the mass, in one dimension: no draw should come from it."""
        post = infer(two_modes(jnp.array([0.0, -60.0])), mcx.ChEES(), key, init=10.0)
        assert post.warmup_stats["relocated"].any()
        assert (post.draws["x"] < 0).all() and mcx.ChEES().diagnose(post) == []

    @pytest.mark.slow
    def test_no_false_alarm_on_a_gaussian(self, key):
        post = infer(gaussian(np.ones(5, np.float32)), mcx.ChEES(num_samples=150), key)
        table = post.summary()
        assert max(table[name]["r_hat"] for name in table) > 1.005  # 4 long chains had less
        assert mcx.ChEES().diagnose(post) == []


def test_pools_over_lanes_and_devices():
    """Every chain sees the same numbers, whatever axes there are; alone, its own."""
    x = jnp.arange(8.0)

    def look(x):
        return (
            collectives.mean(x),
            collectives.agreed(x),
            collectives.every(x),
            collectives.index(),
            jnp.int32(collectives.size()),
        )

    mesh = jax.make_mesh(
        (4,), (collectives.MESH_AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4]
    )
    spec = jax.sharding.PartitionSpec(collectives.MESH_AXIS)
    lanes = jax.vmap(look, axis_name=collectives.VMAP_AXIS)
    for fn in (lanes, jax.shard_map(lanes, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)):
        mean, largest, every, index, size = fn(x)
        assert (mean == 3.5).all() and (largest == 7).all() and (size == 8).all()
        np.testing.assert_array_equal(every, np.tile(np.arange(8.0), (8, 1)))
        np.testing.assert_array_equal(index, np.arange(8))
    mean, largest, every, index, size = look(jnp.float32(2.0))
    assert mean == largest == every[0] == 2.0 and index == 0 and size == 1


def test_batches_are_refused():
    with pytest.raises(MethodError, match="move together"):
        mcx.infer(problems()[0].bound, mcx.ChEES(), key=0, batch_size=8, progress=False)
