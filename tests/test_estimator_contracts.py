"""What estimators promise beside numbers: programs used again, errors with names, settings that count."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcx
import mcx.dist as dist
from mcx.errors import DataError, MethodError, NonFiniteError
from mcx.estimators import expectations, sobol_indices
from mcx.estimators.evaluation import at_points, leaves_at
from mcx.estimators.importance.adaptive_importance import explore
from mcx.estimators.importance.integrals import integrals
from mcx.estimators.importance.law_proposals import Adaptation, LawProposal
from mcx.estimators.importance.posterior_importance import _iterate, expect_by_importance
from mcx.estimators.importance.weighted_average import estimate_from
from mcx.ops.batches import map_in_batches

PLANE = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
UNIT = dist.Uniform(0.0, 1.0).expand([2]).to_event(1)
FEW = mcx.AdaptiveImportance(budget=2000, num_iterations=2, num_components=1)


@mcx.model
def normal(y):
    mu = mcx.sample("mu", dist.Normal(0, 3))
    mcx.sample("y", dist.Normal(mu, 1.0), obs=y)


Y = np.array([0.5, 1.5, 1.0], np.float32)


@dataclasses.dataclass
class Unhashable:
    power: float

    def __call__(self, x):
        return x[0] ** self.power


class TestFunctions:
    def test_a_function_is_compiled_once(self):
        """For points of one shape, as long as it lives; no longer than that is it kept."""
        traces = []

        def function(x):
            traces.append(1)
            return x[0]

        x = jnp.ones((5, 2))
        at_points(function)(x)
        before = len(traces)
        np.testing.assert_array_equal(at_points(function)(2 * x), 2 * np.ones(5))
        assert len(traces) == before == 1
        alive = weakref.ref(function)
        del function
        gc.collect()
        assert alive() is None

    @pytest.mark.slow
    def test_a_second_call_traces_nothing(self):
        traces = []

        def function(x):
            traces.append(1)
            return jnp.sum(x**2)

        def of_sites(v):
            traces.append(1)
            return v["mu"]

        posterior = mcx.infer(normal(Y), mcx.RandomWalk(num_warmup=20, num_samples=50), key=0, progress=False)
        calls = (
            lambda key: expectations(function, PLANE, method=FEW, key=key),
            lambda key: sobol_indices(function, UNIT, budget=400, key=key),
            lambda key: mcx.expect(normal(Y), {"mu": of_sites}, method=FEW, key=key),
            lambda key: mcx.expect(posterior, {"mu": of_sites}),
        )
        for call in calls:
            call(0)
            before = len(traces)
            call(0)
            assert len(traces) == before > 0

    @pytest.mark.slow
    def test_iterations_share_a_program(self):
        """The first iteration starts from what an iteration returns, down to the types."""
        before = _iterate._cache_size()
        mcx.expect(normal(Y), {"mu": lambda v: v["mu"]}, method=mcx.AdaptiveImportance(budget=1300), key=0)
        assert _iterate._cache_size() == before + 1

    def test_functions_without_a_hash(self):
        """They may change between calls, so that they are traced each time."""
        function = Unhashable(2.0)
        with pytest.raises(TypeError):
            hash(function)
        x = jnp.full((3, 1), 3.0)
        np.testing.assert_allclose(at_points(function)(x), 9.0)
        function.power = 1.0
        np.testing.assert_allclose(at_points(function)(x), 3.0)

    @pytest.mark.parametrize("n", [1, 7, 8, 9])
    def test_batches_are_the_whole(self, n):
        traces = []

        def fn(x):
            traces.append(x["a"].shape)
            return x["a"].sum(), x["b"][None]

        x = {"a": jnp.arange(3.0 * n).reshape(n, 3), "b": jnp.arange(n)}
        total, b = map_in_batches(fn, x, 4)
        np.testing.assert_array_equal(total, x["a"].sum(1))
        np.testing.assert_array_equal(b[:, 0], x["b"])
        assert traces == [(3,)]

    def test_functions_of_nothing(self):
        for nothing in ({}, None, jnp.zeros((0, 3))):
            with pytest.raises(DataError, match="returns no number"):
                expectations(lambda x, nothing=nothing: nothing, PLANE, key=0)
            with pytest.raises(DataError, match="returns no number"):
                sobol_indices(lambda x, nothing=nothing: nothing, UNIT, key=0)
            with pytest.raises(DataError, match="'empty' returns no number"):
                leaves_at("empty", lambda v, nothing=nothing: nothing, {"a": jnp.ones(3)})

    def test_values_that_are_no_numbers(self):
        """They are told by the function's name; where a draw does not count they do not matter."""
        draws = {"a": jnp.array([1.0, -1.0, 2.0])}
        root = {"root": lambda v: jnp.sqrt(v["a"])}
        with pytest.raises(NonFiniteError, match="'root' is not finite at 1 of 3 draws"):
            leaves_at("root", root["root"], draws)
        leaves_at("root", root["root"], draws, jnp.array([True, False, True]))

    @pytest.mark.slow
    def test_values_that_are_no_numbers_under_posteriors(self):
        bad = {"fine": lambda v: v["mu"], "bad": lambda v: jnp.log(v["mu"] - 1.0)}
        posterior = mcx.infer(normal(Y), mcx.RandomWalk(num_warmup=20, num_samples=50), key=0, progress=False)
        for call in (
            lambda: mcx.expect(posterior, bad),
            lambda: mcx.expect(normal(Y), bad, method=FEW, key=0),
        ):
            with pytest.raises(NonFiniteError, match="'bad' is not finite"):
                call()
        with pytest.raises(DataError, match="'none' returns no number"):
            mcx.expect(posterior, {"none": lambda v: {}})


@pytest.mark.parametrize(
    "call",
    [
        lambda: jax.jit(lambda k: expectations(lambda x: x[0], PLANE, key=k).value)(jax.random.key(0)),
        lambda: jax.jit(lambda: expectations(lambda x: x[0], PLANE, key=0).value)(),
        lambda: jax.vmap(
            lambda m: expectations(lambda x: x[0], dist.Normal(m * jnp.ones(2), 1.0).to_event(1), key=0).value
        )(jnp.ones(2)),
        lambda: jax.jit(lambda k: sobol_indices(lambda x: x[0], UNIT, key=k).value)(jax.random.key(0)),
        lambda: jax.vmap(lambda a: integrals(lambda x: a * x[0], PLANE).values(jnp.ones((3, 2))))(
            jnp.ones(2)
        ),
    ],
)
def test_estimators_within_traced_functions_are_refused(call):
    with pytest.raises(MethodError, match="within a function that JAX traces"):
        call()


class TestControls:
    def test_none_are_none(self, key):
        """A plain weighted average, and its standard error; the law's weight is a control variate, too."""
        problem = integrals(lambda x: x[0] ** 2, PLANE)
        wide = dist.Normal(0.0, 1.5).expand([2]).to_event(1)
        x = wide.sample(key, (200,))
        log_q, values = wide.log_prob(x), problem.values(x)
        found = estimate_from(problem, x, values, log_q, controls=False)
        y = np.exp(np.asarray(PLANE.log_prob(x) - log_q, float)) * np.asarray(values[:, 0], float)
        assert found.stats["num_controls"] == 0
        assert found.value == pytest.approx(y.mean(), rel=1e-5)
        assert found.se == pytest.approx(y.std(ddof=1) / 200**0.5, rel=1e-2)

    @pytest.mark.slow
    def test_counts_are_those_of_the_regression(self, key):
        """Polynomials of the highest degree, which the functions take; the weight; and two components."""
        gamma = dist.Gamma(3.0).expand([2])
        laws = dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1)
        polynomials = 20  # of degree up to 5 in two variables, the most with 40 draws for each of 1000
        for power, controls, law, expected in (
            (5, "none", PLANE, 0),
            (5, "own", PLANE, 1),
            (5, "all", PLANE, polynomials + 1 + 2),
            (5, "all", laws, polynomials),
            (5, "own", laws, 1),
            (2, "all", gamma.to_event(1), polynomials + 1 + 2),
        ):
            method = dataclasses.replace(FEW, controls=controls)
            found = expectations(lambda x, p=power: x[0] ** p, law, method=method, key=key)
            assert found.stats["num_controls"] == expected


class TestWhichProposal:
    """The final sample comes from the proposal whose draws varied least, where adapting brought no more."""

    @pytest.mark.parametrize(
        ("deviations", "expected"),
        [
            ([1.0, 0.5, 0.9], 1),  # worse: go back
            ([0.1, 0.5, 0.499, 0.6], 2),  # the first iteration does not count; no better by fewer draws
            ([1.0, 0.5, np.inf, 0.6], 1),  # nothing is known of the third
            ([1.0, 0.5, 0.3, 0.2], 4),  # falling all the time: the next
        ],
    )
    def test_it_is_the_best_seen(self, deviations, expected):
        """Proposals are numbers here: each iteration is followed by the next one."""

        def iterate(key, history, proposal):
            assert key == 10 * proposal
            return history, proposal + 1, deviations[proposal], 1.0

        method = mcx.AdaptiveImportance(budget=2000, num_iterations=4)
        _, found, _ = explore(method, iterate, None, 0, iter([0, 10, 20, 30]))
        assert found == expected


def test_settings_that_mean_nothing_for_a_posterior():
    functions = {"mu": lambda v: v["mu"]}
    for settings in ({"controls": "own"}, {"criterion": "absolute"}):
        with pytest.raises(MethodError, match="for expectations under a posterior"):
            expect_by_importance(
                normal(Y), functions, mcx.AdaptiveImportance(**settings), key=jax.random.key(0)
            )


@pytest.mark.slow
class TestPosteriorSettings:
    """The posterior of a normal mean is normal: precision 1/9 + 3, evidence that of a Gaussian."""

    precision = 1 / 9 + 3
    mean = float(Y.sum()) / precision

    def found(self, key, **settings):
        method = mcx.AdaptiveImportance(budget=4000, **settings)
        functions = {"mu": lambda v: v["mu"], "large": lambda v: v["mu"] > 1.0}
        found = mcx.expect(normal(Y), functions, method=method, key=key)
        assert abs(found["mu"].value - self.mean) < 5 * found["mu"].se + 1e-5
        return found

    def test_all_samples(self, key):
        """Of all iterations together; the indicator's error is smaller for as many evaluations."""
        final, every = self.found(key), self.found(key, samples="all")
        assert final["mu"].stats["num_samples"] == 2000 and every["mu"].stats["num_samples"] == 4000
        assert every["large"].se < 0.9 * final["large"].se

    def test_relative_errors_stop_the_exploration(self, key):
        stopped = self.found(key, relative_error=0.5)["mu"].stats
        assert stopped["num_iterations"] == 2 and stopped["num_samples"] == 4000 - 2 * 400
        assert self.found(key, relative_error=1e-9)["mu"].stats["num_iterations"] == 5

    def test_fits(self, key):
        """Coefficients of the same points differ between fits."""
        value = {fit: self.found(key, fit=fit)["large"].value for fit in ("cross_fit", "least_squares")}
        assert value["cross_fit"] != value["least_squares"]

    def test_no_controls(self, key):
        plain = self.found(key, controls="none")["mu"]
        assert plain.stats["num_controls"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("controls", "runs"), [("all", 50), ("none", 400)])
def test_errors_of_all_samples_together_hold(key, controls, runs):
    """Draws of all iterations depend on each other through the proposals: 95 % intervals still hold."""
    import scipy.stats

    method = dataclasses.replace(FEW, samples="all", controls=controls, num_iterations=3)
    functions = lambda x: jnp.stack([jnp.abs(x[0]), (x[0] + x[1] > 2.5).astype(float)])  # noqa: E731
    truth = np.array([(2 / np.pi) ** 0.5, scipy.stats.norm.sf(2.5 / 2**0.5)])
    found = [expectations(functions, PLANE, method=method, key=k) for k in jax.random.split(key, runs)]
    inside = np.array([np.abs(f.value - truth) < 1.96 * f.se for f in found]).mean(0)
    # of two values each: true coverage of 93 % fails once in 10,000
    for part in inside:
        assert scipy.stats.binomtest(round(part * runs), runs, 0.93, "less").pvalue > 2.5e-5, inside
    value = np.array([f.value for f in found])
    # the bias that is told of is small beside the error; half an error would be found
    assert (np.abs(value.mean(0) - truth) < (0.25 + 3 / runs**0.5) * value.std(0)).all()


@pytest.mark.slow
def test_events_far_out_are_found_by_looking_further(key):
    """A half-plane at 10 sds: Gaussian components twice as wide as the law would never get there."""
    import scipy.stats

    method = mcx.AdaptiveImportance(budget=8000, num_components=1, df=None)
    found = expectations(lambda x: x[0] > 10.0, PLANE, method=method, key=key)
    truth = scipy.stats.norm.sf(10.0)
    assert abs(found.value - truth) < 5 * found.se < 0.5 * truth


def test_the_first_proposal_is_the_law_and_as_much_of_the_users():
    problem = integrals(lambda x: x[0], PLANE)
    adaptation = Adaptation(2, 5.0, 0.1, True, True)
    shares = jax.nn.softmax(LawProposal.first(problem, adaptation, (PLANE, UNIT)).log_weights)
    np.testing.assert_allclose(shares, [0, 0, 0.5, 0.25, 0.25])
