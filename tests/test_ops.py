"""The small numerical pieces: log-space weights, compensated sums, searches, discrete draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import special, stats

from mcx.ops import logspace
from mcx.ops.cdf import ancestors_from_cumulative, invert_cdf, monotone_cdf
from mcx.ops.logspace import add, compensated, effective_sample_size, log_sum_exp, normalize, relative_weights
from mcx.ops.lru_cache import LRUCache
from mcx.ops.random import accept, choose

INF, NAN = np.inf, np.nan
SIZE = 7  # one shape for all generated inputs: compiling takes longer than running

FINITE = st.floats(-1e4, 1e4, width=32)
LOG_W = npst.arrays(np.float32, SIZE, elements=st.one_of(FINITE, st.sampled_from([-INF, NAN, 0.0, -1e-42])))
WEIGHTS = npst.arrays(np.float32, SIZE, elements=st.one_of(st.just(0.0), st.floats(2**-20, 1, width=32)))
FAULTS = {
    "all zero": [-INF] * 3,
    "all NaN": [NAN] * 3,
    "some zero": [-INF, 1.0, NAN],
    "one-hot": [-INF, 2.0, -INF],
    "infinite": [INF, 0.0, INF],
    "equal": [-1e5] * 3,
    "far apart": [3e38, -3e38, 0.0],
}


@pytest.fixture(scope="module")
def jitted():
    """Each function compiled once."""
    names = ("relative_weights", "log_sum_exp", "normalize", "effective_sample_size")
    return {name: jax.jit(getattr(logspace, name)) for name in names} | {
        "monotone_cdf": jax.jit(monotone_cdf),
        "invert_cdf": jax.jit(invert_cdf),
    }


# --- weights in log space ----------------------------------------------------------------------------


class TestLogspace:
    @settings(max_examples=200)
    @given(log_w=LOG_W)
    def test_against_float64(self, jitted, log_w):
        x = np.where(np.isnan(log_w), -INF, log_w.astype(np.float64))
        total = special.logsumexp(x)
        np.testing.assert_allclose(jitted["log_sum_exp"](log_w), total, rtol=1e-6, atol=1e-6)
        shares, log_total = jitted["normalize"](log_w)
        np.testing.assert_allclose(log_total, total, rtol=1e-6, atol=1e-6)
        if total == -INF:
            assert (np.asarray(shares) == -INF).all()
            assert (np.asarray(jitted["relative_weights"](log_w)) == 1).all()
            assert jitted["effective_sample_size"](log_w) == 0
            return
        w = np.exp(x - x.max())
        np.testing.assert_allclose(shares, x - total, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(jitted["relative_weights"](log_w), w, rtol=1e-5, atol=1e-37)
        ess = float(jitted["effective_sample_size"](log_w))
        np.testing.assert_allclose(ess, w.sum() ** 2 / (w**2).sum(), rtol=1e-5)
        assert 1 <= ess <= SIZE

    @settings(max_examples=50)
    @given(eighths=npst.arrays(np.int32, SIZE, elements=st.integers(-80, 80)), shift=st.integers(-4000, 4000))
    def test_constants_do_not_matter(self, jitted, eighths, shift):
        log_w = (eighths / 8).astype(np.float32)
        for name in ("relative_weights", "effective_sample_size"):
            np.testing.assert_array_equal(jitted[name](log_w), jitted[name](log_w + np.float32(shift)))

    def test_gradients_are_finite(self):
        def finite_part(x):
            return jnp.where(jnp.isfinite(x), x, 0.0).sum()

        def slopes(log_w):
            functions = (
                relative_weights,
                log_sum_exp,
                lambda x: normalize(x)[0],
                lambda x: normalize(x)[1],
                effective_sample_size,
            )
            first = [jax.grad(lambda x, fn=fn: finite_part(fn(x))) for fn in functions]
            return [fn(log_w) for fn in first], [jax.jacfwd(fn)(log_w) for fn in first]

        slopes = jax.jit(slopes)
        for name, log_w in FAULTS.items():
            for slope in jax.tree.leaves(slopes(jnp.asarray(log_w))):
                assert np.isfinite(slope).all(), name

    def test_gradients_are_right(self):
        log_w = jnp.array([0.3, -1.0, 2.0])
        w = special.softmax(np.asarray(log_w, np.float64))
        np.testing.assert_allclose(jax.grad(log_sum_exp)(log_w), w, rtol=1e-6)
        np.testing.assert_allclose(
            jax.jacrev(lambda x: normalize(x)[0])(log_w), np.eye(3) - w, rtol=1e-5, atol=1e-6
        )
        ess = 1 / (w**2).sum()
        slope = 2 * ess * (w - ess * w**2)
        np.testing.assert_allclose(jax.grad(effective_sample_size)(log_w), slope, rtol=1e-4, atol=1e-6)
        # relative to the third, which is the largest
        r = np.exp(np.asarray(log_w, np.float64) - 2.0)
        jacobian = np.diag(r) - np.outer(r, [0, 0, 1])
        np.testing.assert_allclose(jax.jacfwd(relative_weights)(log_w), jacobian, rtol=1e-5, atol=1e-6)

    def test_infinite_weights_alone_count(self):
        log_w = jnp.array([INF, 3.0, INF, NAN])
        np.testing.assert_array_equal(relative_weights(log_w), [1, 0, 1, 0])
        shares, total = normalize(log_w)
        np.testing.assert_allclose(shares, [-np.log(2), -INF, -np.log(2), -INF], rtol=1e-6)
        assert total == log_sum_exp(log_w) == INF
        assert effective_sample_size(log_w) == 2

    def test_axes(self):
        x = jax.random.normal(jax.random.key(0), (3, SIZE))
        for fn in (relative_weights, log_sum_exp, effective_sample_size):
            np.testing.assert_array_equal(fn(x), jax.vmap(fn)(x))
            np.testing.assert_allclose(fn(x.T, axis=0), jnp.moveaxis(fn(x), 0, -1), rtol=1e-6)

    def test_integers_are_taken(self):
        np.testing.assert_allclose(log_sum_exp(np.array([0, 1])), np.log(1 + np.e), rtol=1e-6)


# --- compensated sums --------------------------------------------------------------------------------


class TestCompensated:
    def test_small_terms_survive_compilation(self):
        tenth, steps = np.float32(0.1), 200_000

        def total(add_one, start):
            return jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, c: add_one(c, x), start))(tenth)

        exact = 1e8 + steps * float(tenth)
        plain = total(lambda c, x: c + x, jnp.float32(1e8))
        assert abs(float(plain) - exact) > 1e4  # every term is lost: the test can tell
        both = total(add, compensated(jnp.float32(1e8)))
        rounded = logspace.value(both)
        assert abs(float(rounded) - exact) <= np.spacing(np.float32(1e8))
        assert abs(float(both.total) + float(both.carry) - exact) < 1e-2

    @settings(max_examples=100)
    @given(terms=npst.arrays(np.float32, SIZE, elements=st.floats(-(2.0**60), 2.0**60, width=32)))
    def test_against_float64(self, terms):
        c = compensated(terms[0])
        for x in terms[1:]:
            c = add(c, x)
        bound = 2 * SIZE * 2.0**-48 * np.abs(terms.astype(np.float64)).sum() + 1e-37
        assert abs(float(c.total) + float(c.carry) - terms.astype(np.float64).sum()) <= bound

    def test_infinities(self):
        gone = add(compensated(1.5), -INF)
        for c in (gone, add(gone, 2.0), add(gone, -INF), add(compensated(-INF), 3.0)):
            assert logspace.value(c) == -INF and c.carry == 0

    def test_arrays_and_gradients(self):
        x = jnp.array([1e8, -INF, 3.0])
        np.testing.assert_array_equal(logspace.value(add(compensated(x), 1.0)), x + 1.0)
        each = jax.vmap(lambda a: logspace.value(add(compensated(a), 1.0)))(x)
        np.testing.assert_array_equal(each, x + 1.0)

        def thrice(x):
            return logspace.value(add(add(compensated(x), x), x))

        assert jax.grad(thrice)(1.1) == 3 and jax.grad(thrice)(-INF) == 3


# --- searches ----------------------------------------------------------------------------------------


class TestSearch:
    @settings(max_examples=200)
    @given(
        weights=WEIGHTS.filter(lambda w: w.any()),
        u=npst.arrays(np.float32, 5, elements=st.floats(0, 1, width=32)),
    )
    def test_inversion(self, jitted, weights, u):
        cdf = np.asarray(jitted["monotone_cdf"](weights))
        exact = np.cumsum(weights.astype(np.float64))
        # four roundings to float32, and a few of the 2^-30 that weights are multiples of
        np.testing.assert_allclose(cdf, exact / exact[-1], rtol=3e-7, atol=3 * 2.0**-30)
        assert (np.diff(cdf) >= 0).all()
        assert (cdf[np.flatnonzero(weights)[-1] :] == 1).all()
        u = np.concatenate([u, cdf[cdf < 1][:2], [0, 1]])[:7]
        u = np.pad(u, (0, 7 - len(u)))
        index = np.asarray(jitted["invert_cdf"](cdf, u))
        assert index.dtype == np.int32
        assert (weights[index] > 0).all()
        inside = u < 1
        np.testing.assert_array_equal(index[inside], np.searchsorted(cdf, u[inside], side="right"))

    @pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
    def test_inversion_at_every_boundary(self, n):
        cdf = monotone_cdf(jnp.ones(n))
        u = np.unique(np.concatenate([np.nextafter(np.asarray(cdf), np.float32(0)), cdf[:-1], [0]]))
        np.testing.assert_array_equal(invert_cdf(cdf, u), np.searchsorted(cdf, u, side="right"))

    @settings(max_examples=100)
    @given(counts=npst.arrays(np.int32, SIZE, elements=st.integers(0, 3)))
    def test_counts_to_ancestors(self, counts):
        # the total is static; one shape for all by giving the rest to one more parent
        counts = np.append(counts, 3 * SIZE - counts.sum()).astype(np.int32)
        ancestors = ancestors_from_cumulative(np.cumsum(counts, dtype=np.int32), 3 * SIZE)
        np.testing.assert_array_equal(ancestors, np.repeat(np.arange(SIZE + 1), counts))
        assert ancestors.dtype == jnp.int32

    def test_a_million_weights_in_float32(self, key):
        n = 1_000_000
        key_w, key_zero, key_u = jax.random.split(key, 3)
        w = jnp.where(jax.random.bernoulli(key_zero, 0.5, (n,)), jax.random.exponential(key_w, (n,)), 0.0)
        w = w.at[-1000:].set(0.0)
        cdf = jax.jit(monotone_cdf)(w)
        steps = np.diff(np.asarray(cdf), prepend=np.float32(0))
        w = np.asarray(w)
        assert (steps >= 0).all() and (steps[w == 0] == 0).all() and (cdf[-1000:] == 1).all()
        exact = np.cumsum(w.astype(np.float64))
        np.testing.assert_allclose(cdf, exact / exact[-1], atol=2e-6)
        index = np.asarray(jax.jit(invert_cdf)(cdf, jax.random.uniform(key_u, (n,))))
        assert (w[index] > 0).all()


# --- discrete draws ----------------------------------------------------------------------------------

LEVELS = {  # in_axes from the outside in, over (key, log weights)
    "keys": [(0, None)],
    "weights": [(None, 0)],
    "both": [(0, 0)],
    "keys in weights": [(None, 0), (0, None)],
    "weights in keys": [(0, None), (None, 0)],
    "both in keys": [(0, None), (0, 0)],
    "keys in both": [(0, 0), (0, None)],
    "second axes": [(1, 1), (0, 0)],
}


def pick(value, axes, index):
    """What an entry of nested vmaps sees of a batched argument; axis None is one it is not batched
    over."""
    for i, axis in zip(index, axes, strict=True):
        if axis is not None:
            value = value[(slice(None),) * axis + (i,)]
    return value


class TestDraws:
    @pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
    @pytest.mark.parametrize("draw", ["choose", "accept"])
    def test_vmap_equals_the_loop(self, key, draw, levels):
        sizes = [2, 3][: len(levels)]
        key_axes, w_axes = zip(*levels, strict=True)
        keys_shape = [s for s, a in zip(sizes, key_axes, strict=True) if a is not None]
        w_shape = [s for s, a in zip(sizes, w_axes, strict=True) if a is not None]
        if levels[0] == (1, 1):
            keys_shape, w_shape = keys_shape[::-1], w_shape[::-1]
        key_k, key_w = jax.random.split(key)
        keys = jax.random.split(key_k, keys_shape) if keys_shape else key_k
        log_w = jax.random.normal(key_w, (*w_shape, 5))

        def one(k, w):
            return choose(k, w, (4,)) if draw == "choose" else accept(k, w)

        fn = one
        for axes in reversed(levels):
            fn = jax.vmap(fn, axes)
        got = np.asarray(jax.jit(fn)(keys, log_w))
        one = jax.jit(one)
        for index in np.ndindex(*sizes):
            alone = one(pick(keys, key_axes, index), pick(log_w, w_axes, index))
            np.testing.assert_array_equal(got[index], alone)

    def test_choose_has_the_right_law(self, key):
        log_w = jnp.array([0.0, -INF, 1.0, NAN, -2.0])
        draws = np.asarray(choose(key, log_w, (200, 500)))
        assert draws.shape == (200, 500) and draws.dtype == np.int32
        observed = np.bincount(draws.ravel(), minlength=5)
        assert observed[1] == observed[3] == 0
        law = special.softmax([0.0, 1.0, -2.0])
        assert stats.chisquare(observed[[0, 2, 4]], law * draws.size).pvalue > 1e-6

    def test_choose_without_weights_is_uniform(self, key):
        observed = np.bincount(choose(key, jnp.full(4, -INF), (100_000,)), minlength=4)
        assert stats.chisquare(observed).pvalue > 1e-6

    def test_accept_probabilities(self, key):
        log_p = jnp.array([0.0, 3.0, INF, -INF, NAN, -150.0, np.log(0.3)])
        took = np.asarray(accept(key, jnp.broadcast_to(log_p, (100_000, 7))))
        assert took[:, :3].all() and not took[:, 3:6].any()
        assert stats.binomtest(int(took[:, 6].sum()), len(took), 0.3).pvalue > 1e-6

    def test_draws_have_no_derivative(self, key):
        def fn(x):
            picked = choose(key, x, (3,))
            return x[picked].sum() + jnp.where(accept(key, x), x, 0.0).sum()

        x = jnp.array([0.1, -0.2, -0.3])
        slope = jax.grad(fn)(x)
        counts = np.bincount(choose(key, x, (3,)), minlength=3)
        np.testing.assert_allclose(slope, counts + np.asarray(accept(key, x)))


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 4))
def test_recent_values_are_kept(asked, size):
    """Those of the last ``size`` different keys, made once while they are there; falsy ones, too."""
    cache, made = LRUCache(size), []
    for i, key in enumerate(asked):
        recent = list(dict.fromkeys(reversed(asked[:i])))[:size]
        before = len(made)
        assert cache.get(key, lambda key=key: made.append(key) or (key % 2 or None)) == (key % 2 or None)
        assert (len(made) > before) == (key not in recent)
    with pytest.raises(ZeroDivisionError):
        cache.get("fails", lambda: 1 / 0)
    assert cache.get("fails", lambda: 3) == 3  # errors keep nothing
