"""Enumeration of random functions: every law here is worked out by hand, or by another exact method."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcx.ops.random import accept, choose
from mcx.testing import (
    EnumerationError,
    KeyReuse,
    TooManyOutcomes,
    UnscriptedDraw,
    check_mean,
    enumerate_outcomes,
    forward_backward,
    path_law,
)

KEY = jax.random.key(0)


def log(*p):
    return jnp.log(jnp.asarray(p))


def assert_law(found, expected):
    """``expected``: {outcome: probability}; log weights are float32, so their softmax is good to 1e-6."""
    values, probabilities = found
    assert [tuple(np.ravel(v).tolist()) for v in values] == sorted(expected)
    np.testing.assert_allclose(probabilities, [expected[k] for k in sorted(expected)], rtol=1e-6)


def test_one_choice():
    e = enumerate_outcomes(lambda key, w: choose(key, w), KEY, log(1.0, 2.0, 5.0) + 3.0)
    assert e.probabilities.dtype == np.float64 and e.outcomes.dtype == np.int32
    assert_law(e.law(e.outcomes), {(0,): 1 / 8, (1,): 2 / 8, (2,): 5 / 8})
    np.testing.assert_allclose(e.mean(), 12 / 8, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.0, -np.inf, 0.0], {(0,): 0.5, (2,): 0.5}),
        ([np.nan, 0.0, -np.inf], {(1,): 1.0}),
        ([-np.inf, np.nan, -np.inf], {(0,): 1 / 3, (1,): 1 / 3, (2,): 1 / 3}),
        ([np.inf, 0.0, np.inf], {(0,): 0.5, (2,): 0.5}),
        ([-3e38, -3e38, -np.inf], {(0,): 0.5, (1,): 0.5}),
    ],
)
def test_weights_at_the_edges(weights, expected):
    e = enumerate_outcomes(choose, KEY, jnp.asarray(weights))
    assert_law(e.law(e.outcomes), expected)


def test_draws_of_a_shape_are_independent():
    e = enumerate_outcomes(lambda k: choose(k, log(0.25, 0.75), (2, 2)), KEY)
    expected = {i: 0.25 ** (4 - sum(i)) * 0.75 ** sum(i) for i in itertools.product((0, 1), repeat=4)}
    assert e.outcomes.shape == (16, 2, 2)
    assert_law(e.law(e.outcomes), expected)


def test_a_choice_that_depends_on_another():
    def fn(key):
        a, b = jax.random.split(key)
        i = choose(a, log(0.2, 0.8))
        return i, choose(b, jnp.where(i == 0, log(0.5, 0.5), log(1.0, 0.0)))

    e = enumerate_outcomes(fn, KEY)
    assert len(e.probabilities) == 3  # branches of probability zero are not there
    assert_law(e.law(np.stack(e.outcomes, 1)), {(0, 0): 0.1, (0, 1): 0.1, (1, 0): 0.8})


def test_vmap_over_keys_and_weights():
    weights = log([0.5, 0.5], [0.1, 0.9])

    def fn(key):
        return jax.vmap(choose)(jax.random.split(key), weights)

    e = enumerate_outcomes(fn, KEY)
    assert_law(e.law(e.outcomes), {(0, 0): 0.05, (0, 1): 0.45, (1, 0): 0.05, (1, 1): 0.45})


def test_vmap_over_keys_alone_and_twice():
    def fn(key):
        keys = jax.random.split(key, (2, 1))
        return jax.vmap(jax.vmap(lambda k: choose(k, log(0.3, 0.7), (1,))))(keys)

    e = enumerate_outcomes(jax.jit(fn), KEY)
    assert e.outcomes.shape == (4, 2, 1, 1)
    assert_law(e.law(e.outcomes), {(0, 0): 0.09, (0, 1): 0.21, (1, 0): 0.21, (1, 1): 0.49})


@pytest.mark.parametrize("reverse", [False, True])
def test_enumeration_through_scan(reverse):
    """A Polya urn of two colours: the number of draws of one of them is uniform."""

    def step(counts, x):
        key, t = x
        i = choose(key, jnp.log(counts))
        return counts.at[i].add(1.0), (i, t)

    def fn(key):
        keys = jax.random.split(key, 3)
        return jax.lax.scan(step, jnp.ones(2), (keys, jnp.arange(3)), reverse=reverse)

    e = enumerate_outcomes(fn, KEY)
    counts, (draws, t) = e.outcomes
    assert_law(e.law(counts[:, 0] - 1), {(n,): 0.25 for n in range(4)})
    order = draws[:, ::-1] if reverse else draws
    assert_law(e.law(order[:, :2]), {(0, 0): 1 / 3, (0, 1): 1 / 6, (1, 0): 1 / 6, (1, 1): 1 / 3})
    np.testing.assert_array_equal(t, np.broadcast_to(np.arange(3), t.shape))


def test_scan_within_vmap():
    def urn(key):
        step = lambda c, k: (c.at[choose(k, jnp.log(c))].add(1.0), None)  # noqa: E731
        return jax.lax.scan(step, jnp.ones(2), jax.random.split(key))[0]

    e = enumerate_outcomes(lambda key: jax.vmap(urn)(jax.random.split(key)), KEY)
    assert_law(e.law(e.outcomes[:, :, 0]), dict.fromkeys(itertools.product((1.0, 2.0, 3.0), repeat=2), 1 / 9))


def test_accept():
    log_p = jnp.asarray([math.log(0.25), 1.5, -jnp.inf, jnp.nan])
    e = enumerate_outcomes(accept, KEY, log_p)
    assert e.outcomes.dtype == bool
    assert_law(e.law(e.outcomes), {(False, True, False, False): 0.75, (True, True, False, False): 0.25})


def test_metropolis_leaves_its_target_invariant():
    target = log(0.1, 0.2, 0.7)

    def fn(key):
        start, proposal, test = jax.random.split(key, 3)
        x = choose(start, target)
        y = (x + 1 + choose(proposal, jnp.zeros(2))) % 3
        return jnp.where(accept(test, target[y] - target[x]), y, x)

    e = enumerate_outcomes(fn, KEY)
    assert_law(e.law(e.outcomes), {(0,): 0.1, (1,): 0.2, (2,): 0.7})


def branching(key):
    a, b, c = jax.random.split(key, 3)
    i = choose(a, log(0.2, 0.3, 0.5))

    def once():
        return choose(b, log(0.5, 0.5)), 1.5

    def twice():
        j = choose(b, log(0.1, 0.9))
        return jax.lax.cond(j == 0, lambda: j, lambda: 2 + choose(c, log(0.5, 0.5))), 2.5

    return i, *jax.lax.switch(i, [lambda: (jnp.int32(7), 0.5), once, twice])


def test_cond_on_a_choice():
    """Choices are made in the branch that is taken, and only there: six outcomes, not 3 x 2 x 2 x 2."""
    e = enumerate_outcomes(branching, KEY)
    assert len(e.probabilities) == 6
    i, j, x = e.outcomes
    expected = {(0, 7): 0.2, (1, 0): 0.15, (1, 1): 0.15, (2, 0): 0.05, (2, 2): 0.225, (2, 3): 0.225}
    assert_law(e.law(np.stack([i, j], 1)), expected)
    np.testing.assert_array_equal(x, i + 0.5)


def test_cond_within_vmap():
    """Under vmap every branch runs, with its choices; the law is the same."""

    def fn(key):
        return jax.vmap(lambda k: branching(k)[:2])(jax.random.split(key, 1))

    e = enumerate_outcomes(fn, KEY, check_keys=False)
    law = e.law(np.concatenate(e.outcomes, 1))
    expected = {(0, 7): 0.2, (1, 0): 0.15, (1, 1): 0.15, (2, 0): 0.05, (2, 2): 0.225, (2, 3): 0.225}
    assert_law(law, expected)


def test_cond_on_what_no_choice_decides():
    def fn(key, flag):
        return jax.lax.cond(flag, lambda: choose(key, jnp.zeros(2)), lambda: choose(key, jnp.zeros(3)))

    assert len(enumerate_outcomes(fn, KEY, True).probabilities) == 2
    assert len(enumerate_outcomes(fn, KEY, False).probabilities) == 3


def test_a_loop_of_known_length():
    """A random walk of n steps, n an argument: the number of steps up is binomial."""

    def fn(key, n):
        body = lambda t, x: x + choose(jax.random.fold_in(key, t), log(0.25, 0.75))  # noqa: E731
        return jax.lax.fori_loop(0, n, body, jnp.int32(0))

    for n in 0, 1, 3:
        e = enumerate_outcomes(fn, KEY, n)
        assert len(e.probabilities) == max(1, n + 1)  # paths that meet go on as one
        assert_law(
            e.law(e.outcomes), {(k,): math.comb(n, k) * 0.75**k * 0.25 ** (n - k) for k in range(n + 1)}
        )


def test_a_loop_whose_length_is_chosen_is_refused():
    def fn(key):
        go_on = lambda c: c[1]  # noqa: E731
        body = lambda c: (c[0] + 1, accept(jax.random.fold_in(key, c[0]), jnp.log(0.5)))  # noqa: E731
        return jax.lax.while_loop(go_on, body, (0, True))[0]

    with pytest.raises(EnumerationError, match="while loop depends on a choice"):
        enumerate_outcomes(fn, KEY)


def test_choices_within_custom_derivatives_and_remat():
    @jax.custom_jvp
    def f(key, x):
        return choose(key, log(0.25, 0.75)) * x

    f.defjvp(lambda p, t: (f(*p), t[1]))
    e = enumerate_outcomes(lambda key: jax.checkpoint(f)(key, 2.0), KEY)
    assert_law(e.law(e.outcomes), {(0.0,): 0.25, (2.0,): 0.75})


def test_gradients_of_a_random_function():
    def fn(key, theta):
        i = choose(key, jnp.stack([theta, 0.0]))
        return jnp.where(i == 0, theta**2, 3 * theta)

    e = enumerate_outcomes(jax.value_and_grad(fn, argnums=1), KEY, 0.0)
    assert_law(e.law(e.outcomes[1]), {(0.0,): 0.5, (3.0,): 0.5})


def test_outcomes_keep_trees_constants_and_keys():
    def fn(key):
        i = choose(key, jnp.zeros(2))
        return {"i": i, "constant": jnp.arange(3), "keys": (key, jax.random.fold_in(key, i))}

    e = enumerate_outcomes(fn, KEY)
    np.testing.assert_array_equal(e.outcomes["constant"], [[0, 1, 2]] * 2)
    fixed, folded = e.outcomes["keys"]
    assert (fixed == jnp.stack([KEY, KEY])).all()
    assert (folded == jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(2))).all()


def test_what_reaches_no_output_is_left_out():
    def fn(key):
        a, b, c = jax.random.split(key, 3)
        choose(a, jnp.zeros(50), (50,))
        jax.random.normal(b)
        return choose(c, jnp.zeros(2))

    assert len(enumerate_outcomes(fn, KEY).probabilities) == 2


def test_small_batches_give_the_same():
    def fn(key):
        keys = jax.random.split(key, 3)
        x = choose(keys[0], jnp.arange(3.0), (3,))
        y = choose(keys[1], jnp.cumsum(x).astype(float))
        return jnp.sin(x + y), jax.random.fold_in(keys[2], y)

    whole, parts = enumerate_outcomes(fn, KEY), enumerate_outcomes(fn, KEY, batch=7)
    np.testing.assert_array_equal(whole.probabilities, parts.probabilities)
    np.testing.assert_array_equal(whole.outcomes[0], parts.outcomes[0])
    assert (whole.outcomes[1] == parts.outcomes[1]).all()


def test_other_randomness_is_refused():
    def fn(key):
        a, b = jax.random.split(key)
        return choose(a, jnp.zeros(2)) + jax.random.normal(b)

    with pytest.raises(UnscriptedDraw, match="random_bits") as error:
        enumerate_outcomes(fn, KEY)
    assert error.value.primitive == "random_bits"
    e = enumerate_outcomes(fn, KEY, allow_other_draws=True)
    assert np.ptp(e.outcomes - np.arange(2)) == 0


def test_other_randomness_is_refused_within_loops_and_gammas():
    def fn(key):
        return jax.lax.scan(lambda c, k: (c + jax.random.gamma(k, 1.0), None), 0.0, jax.random.split(key))

    with pytest.raises(UnscriptedDraw, match="random_gamma"):
        enumerate_outcomes(fn, KEY)


def test_too_many_outcomes_are_refused_before_they_are_made():
    with pytest.raises(TooManyOutcomes, match="at most 1000") as error:
        enumerate_outcomes(lambda k: choose(k, jnp.zeros(10), (60,)), KEY, max_outcomes=1000)
    assert error.value.count == 10_000
    weights = jnp.full(10, -jnp.inf).at[3].set(0.0)
    assert len(enumerate_outcomes(lambda k: choose(k, weights, (60,)), KEY, max_outcomes=1).outcomes) == 1


def test_shared_keys_are_refused():
    def twice(key):
        return choose(key, jnp.zeros(2)), accept(key, jnp.log(0.5))

    with pytest.raises(KeyReuse):
        enumerate_outcomes(twice, KEY)
    assert len(enumerate_outcomes(twice, KEY, check_keys=False).probabilities) == 4
    with pytest.raises(KeyReuse):  # all elements would draw the same uniform number
        enumerate_outcomes(lambda k: jax.vmap(lambda w: choose(k, w))(jnp.zeros((2, 3))), KEY)


# --- a particle filter -----------------------------------------------------------------------------

INITIAL = np.array([0.6, 0.4])
TRANSITION = np.array([[0.7, 0.3], [0.2, 0.8]])
LIKELIHOOD = np.array([[0.9, 0.1], [0.1, 0.9], [0.85, 0.15], [0.1, 0.9]])


def bootstrap_filter(key, num_particles, num_steps, weigh_twice=False):
    """Resamples at every step; returns the estimate of the evidence and a path."""
    log_g = jnp.log(jnp.asarray(LIKELIHOOD))[:num_steps]
    log_p = jnp.log(jnp.asarray(TRANSITION))

    def step(carry, inputs):
        paths, log_w, log_z = carry
        key, t = inputs
        first, second = jax.random.split(key)
        ancestors = choose(first, log_w, (num_particles,))
        paths = paths[ancestors]
        x = jax.vmap(choose)(jax.random.split(second, num_particles), log_p[paths[:, t - 1]])
        new = log_g[t, x] + (log_w[ancestors] if weigh_twice else 0.0)
        log_z = log_z + jax.nn.logsumexp(new) - jnp.log(num_particles)
        return (paths.at[:, t].set(x), new, log_z), None

    start, rest, last = jax.random.split(key, 3)
    x = choose(start, jnp.log(jnp.asarray(INITIAL)), (num_particles,))
    paths = jnp.zeros((num_particles, num_steps), jnp.int32).at[:, 0].set(x)
    log_w = log_g[0, x]
    log_z = jax.nn.logsumexp(log_w) - jnp.log(num_particles)
    keys, times = jax.random.split(rest, num_steps - 1), jnp.arange(1, num_steps)
    (paths, log_w, log_z), _ = jax.lax.scan(step, (paths, log_w, log_z), (keys, times))
    return jnp.exp(log_z), paths[choose(last, log_w)]


@pytest.mark.parametrize(("num_particles", "num_steps"), [(1, 4), (2, 3), (3, 2)])
def test_a_particle_filter_is_unbiased(num_particles, num_steps):
    """E[Z^] = Z, and E[Z^ f(path)] = Z E[f | y] for every path: the filter is properly weighted."""
    e = enumerate_outcomes(lambda key: bootstrap_filter(key, num_particles, num_steps), KEY)
    np.testing.assert_allclose(e.probabilities.sum(), 1.0, rtol=1e-12)
    z, path = e.outcomes
    log_likelihood = np.log(LIKELIHOOD[:num_steps])
    exact = np.exp(forward_backward(INITIAL, TRANSITION, log_likelihood).log_evidence)
    np.testing.assert_allclose(e.mean(z), exact, rtol=1e-6)
    law = path_law(INITIAL, TRANSITION, log_likelihood)
    here = (path[:, None] == law.paths).all(-1)
    np.testing.assert_allclose(e.mean(z[:, None] * here), exact * law.probabilities, rtol=1e-6)


def test_a_broken_particle_filter_is_found_out():
    """One that forgets to reset the weights after resampling."""
    e = enumerate_outcomes(lambda key: bootstrap_filter(key, 2, 3, weigh_twice=True), KEY)
    exact = np.exp(forward_backward(INITIAL, TRANSITION, np.log(LIKELIHOOD[:3])).log_evidence)
    assert abs(e.mean(e.outcomes[0]) / exact - 1) > 0.1


def test_enumeration_and_simulation_agree(key):
    """On the biased filter, so that the mean is not what any theorem says: its choices are read aright."""

    def fn(key):
        z, path = bootstrap_filter(key, 2, 3, weigh_twice=True)
        return jnp.stack([z, *(z * path)])

    e = enumerate_outcomes(fn, KEY)
    draws = jax.jit(jax.vmap(fn))(jax.random.split(key, 20_000))
    sd = np.sqrt(e.mean(e.outcomes**2) - e.mean() ** 2)
    check_mean(draws / sd, e.mean() / sd, delta=0.06, independent=True)
