"""Resampling schemes: one shared test for all, and the exact laws of each."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from problems import slow_unless
from scipy import special, stats

from mcx.errors import MethodError
from mcx.inference.smc.resampling import SCHEMES, adaptive, as_resampling, multinomial, systematic
from mcx.inference.smc.resampling_schemes import _one_each_stratum
from mcx.testing import StatisticalFailure, check_mean, check_resampling

INF, NAN = np.inf, np.nan
SIZE = 7  # one shape for all generated weights: compiling takes longer than running
WEIGHTS = npst.arrays(
    np.float32, SIZE, elements=st.one_of(st.just(0.0), st.floats(2**-10, 1, width=32))
).filter(lambda w: w.any())
SORTED = ("stratified", "systematic", "ssp")


def law_of(log_w):
    return special.softmax(np.asarray(log_w, np.float64))


def count(ancestors, n):
    return (np.asarray(ancestors)[..., None] == np.arange(n)).sum(-2)


@pytest.fixture(scope="module")
def draw():
    """A batch of runs for one weight vector, each scheme compiled once per shape."""
    programs = {}

    def run(name, key, log_w, runs=64):
        if name not in programs:
            many = jax.vmap(lambda k, x: SCHEMES[name](k, x, x.shape[0]), (0, None))
            programs[name] = jax.jit(many)
        return np.asarray(programs[name](jax.random.split(key, runs), jnp.asarray(log_w, jnp.float32)))

    return run


# --- the shared test ---------------------------------------------------------------------------------


ONE_BY_ONE = ("killing", "birth_death")


@pytest.mark.parametrize("name", slow_unless(["multinomial", "systematic"], SCHEMES))
def test_every_scheme_passes_the_shared_test(key, name):
    check_resampling(SCHEMES[name], key, any_num=name not in ONE_BY_ONE)


def biased(key, log_w, num):
    return multinomial(key, 1.1 * log_w, num)


def unshifted(key, log_w, num):
    return multinomial(key, jnp.log(jnp.exp(log_w) + 1e-30), num)


def picks_zeros(key, log_w, num):
    return multinomial(key, jnp.maximum(log_w, -5.0), num)


def off_by_one(key, log_w, num):
    return systematic(key, log_w, num) + 1


def floats(key, log_w, num):
    return systematic(key, log_w, num).astype(jnp.float32)


def one_short(key, log_w, num):
    return systematic(key, log_w, num)[1:]


def all_the_best(key, log_w, num):
    return jnp.full(num, jnp.nanargmax(log_w), jnp.int32)


@pytest.mark.parametrize(
    "scheme, complaint",
    [
        (biased, "off by"),
        (unshifted, "subnormal weights: the mean is off"),
        (picks_zeros, "weight zero"),
        (off_by_one, "out of range"),
        (floats, "not an array of ancestors"),
        (one_short, "not an array of ancestors"),
        (all_the_best, "always"),
    ],
)
def test_the_shared_test_finds_defects(key, scheme, complaint):
    with pytest.raises(StatisticalFailure, match=complaint):
        check_resampling(scheme, key, any_num=False)


# --- laws --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strata():
    return jax.jit(jax.vmap(lambda w, u: _one_each_stratum(w, u, u.shape[0]), (None, 0)))


def offsets(w):
    """Offsets between those at which an ancestor of a stratum changes, and the intervals' lengths."""
    ends = SIZE * np.cumsum(w.astype(np.float64)) / w.astype(np.float64).sum()
    breaks = np.unique(np.concatenate([[0.0, 1.0], ends % 1.0]))
    return (breaks[1:] + breaks[:-1]) / 2, np.diff(breaks)


def pad(values):
    return np.pad(values, (0, SIZE + 2 - len(values)))


@settings(max_examples=60)
@given(w=WEIGHTS, order=st.permutations(range(SIZE)))
def test_stratified_and_systematic_integrate_to_the_law(strata, w, order):
    """Over the offsets, stratum k ends on i as often as i's part of the stratum is long: exactly."""
    for weights in (w, w[list(order)]):
        middle, length = (pad(x) for x in offsets(weights))
        # one offset for all strata: systematic; each stratum alone has stratified's law too
        u = np.broadcast_to(middle[:, None], (SIZE + 2, SIZE)).astype(np.float32)
        with np.errstate(divide="ignore"):
            ancestors = np.asarray(strata(np.log(weights), u))
        hit = length @ (ancestors[..., None] == np.arange(SIZE)).reshape(SIZE + 2, -1)
        ends = SIZE * np.cumsum(weights.astype(np.float64)) / weights.astype(np.float64).sum()
        starts = np.concatenate([[0.0], ends[:-1]])
        k = np.arange(SIZE)[:, None]
        exact = np.maximum(np.minimum(ends, k + 1) - np.maximum(starts, k), 0.0)
        np.testing.assert_allclose(hit.reshape(SIZE, SIZE), exact, atol=1e-5)


def test_strata_do_not_depend_on_each_other(strata, key):
    """So the marginal laws above are all there is to stratified resampling."""
    key_u, key_w = jax.random.split(key)
    u = np.asarray(jax.random.uniform(key_u, (SIZE + 2, SIZE)))
    log_w = jax.random.normal(key_w, (SIZE,))
    mixed = np.asarray(strata(log_w, u))
    for k in range(SIZE):
        alone = np.asarray(strata(log_w, np.broadcast_to(u[:, k : k + 1], u.shape)))
        np.testing.assert_array_equal(mixed[:, k], alone[:, k])


@settings(max_examples=60)
@given(w=WEIGHTS, seed=st.integers(0, 2**31 - 1))
def test_counts_are_within_their_bounds(draw, w, seed):
    expected = SIZE * w.astype(np.float64) / w.astype(np.float64).sum()
    # weights given in float32 have no exact logarithm there: a count that should be whole may be either
    low, high = np.floor(expected - 1e-4), np.ceil(expected + 1e-4)
    low, high = np.maximum(low, 0), np.where(w > 0, high, 0)
    with np.errstate(divide="ignore"):
        log_w = np.log(w)
    for name in ("systematic", "ssp"):
        counts = count(draw(name, jax.random.key(seed), log_w), SIZE)
        assert (counts >= low).all() and (counts <= high).all(), name
    counts = count(draw("stratified", jax.random.key(seed), log_w), SIZE)
    assert (np.abs(counts - expected) < 2 + 1e-4).all()
    ancestors = draw("residual", jax.random.key(seed), log_w)
    certain = np.repeat(np.arange(SIZE), np.floor(np.where(w > 0, expected - 1e-4, 0)).clip(0).astype(int))
    assert (count(ancestors, SIZE) >= count(certain, SIZE)).all()
    for name in SORTED:
        assert (np.diff(draw(name, jax.random.key(seed), log_w), axis=-1) >= 0).all(), name


@settings(max_examples=30)
@given(
    eighths=npst.arrays(np.int32, SIZE, elements=st.integers(-40, 40)),
    shift=st.integers(-2000, 2000),
    seed=st.integers(0, 2**31 - 1),
)
def test_constants_change_no_ancestor(draw, eighths, shift, seed):
    log_w = (eighths / 8).astype(np.float32)
    for name in SCHEMES:
        here, there = (draw(name, jax.random.key(seed), log_w + np.float32(c)) for c in (0, shift))
        np.testing.assert_array_equal(here, there, err_msg=name)


def test_equal_weights_leave_nothing_to_chance(key):
    """In float32, 1 / 41 times 41 is less than 1."""
    assert np.float32(41) * (np.float32(1) / np.float32(41)) < 1
    log_w = jnp.full(41, -3.3)
    names = [name for name in SCHEMES if name != "multinomial"]
    ancestors = jax.jit(lambda key: [SCHEMES[name](key, log_w, 41) for name in names])(key)
    for name, drawn in zip(names, ancestors, strict=True):
        np.testing.assert_array_equal(drawn, np.arange(41), err_msg=name)


UNEVEN = np.log([0.2, 0.3, 0.5])


def product(laws):
    """Joint law of independent draws, as a dict by outcome."""
    outcomes = itertools.product(range(3), repeat=3)
    return {a: math.prod(law[i] for law, i in zip(laws, a, strict=True)) for a in outcomes}


W = np.exp(UNEVEN)
JOINT = {
    "multinomial": product([W, W, W]),
    # 3 W = .6, .9, 1.5: the third has one offspring for sure, the others are drawn from the fractions
    "residual": product([np.array([0.0, 0.0, 1.0]), *2 * [np.array([0.3, 0.45, 0.25])]]),
    "killing": product([(W[i] / 0.5) * np.eye(3)[i] + (1 - W[i] / 0.5) * W for i in range(3)]),
    # 3 W again: the first is replaced with probability .4, the second with .1, by the one above 1
    "birth_death": product([np.array([0.6, 0.0, 0.4]), np.array([0.0, 0.9, 0.1]), np.eye(3)[2]]),
    "ssp": None,
    "systematic": None,
}


def rounded_law(pairwise):
    """Joint laws of the counts' roundings up, by ancestors; the third has one offspring more than that."""
    law = dict.fromkeys(product([W] * 3), 0.0)
    for up, p in pairwise.items():
        counts = np.asarray(up) + np.array([0, 0, 1])
        law[tuple(np.repeat(np.arange(3), counts).tolist())] = p
    return law


# The fractions are .6, .9 and .5, and two of them are rounded up. Systematic: the bounds .6 and 1.5 modulo 1
# cut the offsets at .5 and .6. ssp: .6 and .9 meet, the first goes up with odds .1 : .4 and leaves .5 to the
# second, else the second goes up and leaves .5 to the first; that one meets the third's .5, and one goes up.
JOINT["systematic"] = rounded_law({(1, 1, 0): 0.5, (1, 0, 1): 0.1, (0, 1, 1): 0.4})
JOINT["ssp"] = rounded_law({(1, 1, 0): 0.5, (1, 0, 1): 0.1, (0, 1, 1): 0.4})


@pytest.mark.parametrize("name", JOINT)
def test_joint_law_of_three_ancestors(draw, key, name):
    ancestors = draw(name, key, UNEVEN, 100_000)
    law = JOINT[name]
    assert abs(sum(law.values()) - 1) < 1e-12
    observed = np.bincount(ancestors @ [9, 3, 1], minlength=27)
    expected = np.array([law[a] for a in sorted(law)])
    assert observed[expected == 0].sum() == 0
    p = stats.chisquare(observed[expected > 0], expected[expected > 0] * len(ancestors)).pvalue
    assert p > 1e-6


def test_killing_keeps_the_heaviest(draw, key):
    ancestors = draw("killing", key, UNEVEN, 100_000)
    assert (ancestors[:, 2] == 2).all()
    stays = (ancestors == np.arange(3)).astype(float)[:, :2]
    check_mean(stays, (W / 0.5 + (1 - W / 0.5) * W)[:2], delta=0.02, independent=True)


@pytest.mark.parametrize(
    "name", slow_unless(["systematic"], ["systematic", "stratified", "multinomial", "residual"])
)
def test_a_million_particles_in_float32(draw, key, name):
    n = 1_000_000
    log_w = 5 * np.asarray(jax.random.normal(key, (n,)))
    log_w[::3] = -INF
    log_w[-100:] = -INF
    ancestors = draw(name, key, log_w, 1)[0]
    assert ancestors.min() >= 0 and ancestors.max() < n
    assert np.isfinite(log_w[ancestors]).all()
    expected = n * law_of(log_w)
    counts = np.bincount(ancestors, minlength=n)
    if name in SORTED:
        assert (np.diff(ancestors) >= 0).all()
        # the distribution function is good to some units in the last place, 6e-8 n = .06 each
        slack = {"systematic": 1, "stratified": 2}[name]
        assert np.abs(counts - expected).max() < slack + 1
    # many together are not off, whatever the single ones are
    blocks = lambda x: x.reshape(10, -1).sum(-1)  # noqa: E731
    assert (np.abs(blocks(counts) - blocks(expected)) < 6 * np.sqrt(blocks(expected)) + 2).all()


# --- transformations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(["systematic", "killing"], SCHEMES))
def test_vmap_equals_the_loop(key, name):
    def one(k, x):
        return SCHEMES[name](k, x, 5)

    keys = jax.random.split(key, (2, 3))
    log_w = jax.random.normal(key, (3, 5)).at[1, 2].set(-INF)
    nested = jax.vmap(jax.vmap(one), (0, None))  # keys batched twice, weights once
    got = np.asarray(jax.jit(nested)(keys, log_w))
    one = jax.jit(one)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(got[i, j], one(keys[i, j], log_w[j]))


# --- by name -----------------------------------------------------------------------------------------


def test_schemes_by_name():
    assert as_resampling("ssp") is SCHEMES["ssp"]
    assert as_resampling(biased) is biased
    for wrong in ("stratifed", 3, None):
        with pytest.raises(MethodError, match="(?s)not a resampling scheme.*'systematic'.*key, log_w, num"):
            as_resampling(wrong)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_the_number_of_particles_is_kept(name, key):
    with pytest.raises(MethodError, match=f"(?s){name}.*expected: num=3"):
        SCHEMES[name](key, jnp.zeros(3), 4)


# --- only when needed --------------------------------------------------------------------------------


class TestAdaptive:
    LOW, HIGH = jnp.array([9.0, 0.0, 1.0, -INF]), jnp.array([0.1, 0.0, -0.1, 0.2])

    @pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0, 2.0])
    def test_thresholds(self, key, threshold):
        step = jax.jit(adaptive("systematic", threshold))
        particles = {"x": jnp.arange(4.0), "y": jnp.arange(8).reshape(4, 2)}
        for log_w, low in ((self.LOW, True), (self.HIGH, False)):
            result = step(key, log_w, particles)
            assert bool(result.resampled) == (threshold >= 1 or (threshold > 0 and low))
            if result.resampled:
                np.testing.assert_array_equal(result.ancestors, systematic(key, log_w, 4))
                np.testing.assert_allclose(result.log_w, -np.log(4), rtol=1e-6)
            else:
                np.testing.assert_array_equal(result.ancestors, np.arange(4))
                np.testing.assert_array_equal(result.log_w, log_w)
            for name, x in particles.items():
                np.testing.assert_array_equal(result.particles[name], x[result.ancestors])

    def test_batches_equal_the_loop(self, key):
        step = adaptive("residual", 0.5)
        log_w, keys = jnp.stack([self.LOW, self.HIGH]), jax.random.split(key)
        batch = jax.jit(jax.vmap(step))(keys, log_w, log_w)
        for i in range(2):
            for many, one in zip(batch, jax.jit(step)(keys[i], log_w[i], log_w[i]), strict=True):
                np.testing.assert_array_equal(many[i], one)

    def test_no_weight_left(self, key):
        def total(log_w):
            result = adaptive("systematic", 0.5)(key, log_w)
            return result.log_w.sum(), result

        slope, result = jax.jit(jax.grad(total, has_aux=True))(jnp.full(4, -INF))
        assert result.resampled and (slope == 0).all() and np.isfinite(result.log_w).all()
        np.testing.assert_array_equal(result.ancestors, np.arange(4))

    def test_weighted_averages_keep_their_derivative(self, key):
        f = jnp.array([1.0, 3.0, -2.0, 0.5])

        def estimate(theta, key):
            log_w = jnp.append(theta * jnp.arange(3.0), -INF)
            result = adaptive("systematic", 0.95)(key, log_w, f)
            return jnp.exp(result.log_w) @ result.particles

        slopes = jax.jit(jax.vmap(jax.grad(estimate), (None, 0)))(0.7, jax.random.split(key, 20_000))
        w, slope = law_of(0.7 * np.arange(3.0)), np.arange(3.0)
        exact = np.sum(w * (slope - w @ slope) * np.asarray(f[:3]))
        check_mean(slopes, exact, delta=0.05, independent=True)

    @pytest.mark.parametrize("threshold", [-0.1, NAN])
    def test_senseless_thresholds(self, threshold):
        with pytest.raises(MethodError, match="fraction of the number of particles"):
            adaptive("systematic", threshold)
