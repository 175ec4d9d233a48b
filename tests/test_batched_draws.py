"""One batched draw for all particles has the law of one draw a particle, whatever is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import transforms
from problems import slow_unless

from mcx import dist
from mcx.ops import batched_draws as module
from mcx.ops.batched_draws import ParticleKey, draw, of_site, particle_keys
from mcx.testing import check_mean
from mcx.testing.strategies import LATENT_FAMILIES, OBSERVED_FAMILIES

VMAP_AXIS = ParticleKey(None, 0)

OTHERS = {
    "mvn_shared_scale": lambda u: dist.MultivariateNormal(
        u + jnp.zeros(2), scale_tril=jnp.asarray([[1.0, 0.0], [0.5, 2.0]])
    ),
    "mvn_own_scale": lambda u: dist.MultivariateNormal(jnp.zeros(2), scale_tril=jnp.exp(u) * jnp.eye(2)),
    "expanded": lambda u: dist.Normal(u, 1.0).expand([3]).to_event(1),
    "expanded_in_the_middle": lambda u: dist.Normal(u * jnp.ones((2, 1)), 1.0).expand([2, 3]),
    "plated": lambda u: dist.Normal(u * jnp.ones((4, 1)), jnp.ones(3)),
    "of_lower_rank": lambda u: dist.Normal(u, jnp.asarray([0.5, 1.0, 2.0])),
    "masked": lambda u: dist.Normal(u, 1.0).mask(True),
    "masked_by_lane": lambda u: dist.Normal(0.0, 1.0).mask(u > 0),
    "transformed": lambda u: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), transforms.AffineTransform(u, 2.0)
    ),
    "transformed_twice": lambda u: dist.TransformedDistribution(
        dist.LogNormal(0.0, 0.5), transforms.AffineTransform(0.0, jnp.exp(u))
    ),
    "transformed_vector": lambda u: dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 1.0).to_event(1), transforms.AffineTransform(u, jnp.ones(3))
    ),
    "own_scale": lambda u: dist.LogNormal(0.0, jnp.exp(u - 1)),
    "mixture_shared_weights": lambda u: dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.asarray([0.3, 0.7])), dist.Normal(u + jnp.asarray([0.0, 3.0]), 1.0)
    ),
    "mixture_shared_parts": lambda u: dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.stack([u, -u])), dist.Normal(jnp.asarray([0.0, 3.0]), 1.0)
    ),
    "mixture_of_kinds": lambda u: dist.MixtureGeneral(
        dist.Categorical(probs=jnp.asarray([0.3, 0.7])), [dist.Normal(u, 1.0), dist.Laplace(2.0, 1.0)]
    ),
    "truncated_at": lambda u: dist.TruncatedNormal(0.0, 1.0, low=u - 1.0, high=2.0),
    "pareto_scale": lambda u: dist.Pareto(jnp.exp(u), 5.0),
    "multivariate_t": lambda u: dist.MultivariateStudentT(5.0, u + jnp.zeros(2), jnp.eye(2)),
    "gamma_poisson": lambda u: dist.GammaPoisson(2.0, jnp.exp(u)),
    "zero_inflated": lambda u: dist.ZeroInflatedPoisson(0.3 + 0.3 * u, 2.0),
    "inverse_gamma": lambda u: dist.InverseGamma(5.0, jnp.exp(u)),
}
FAMILIES = {
    **{f"latent-{k}": v for k, v in LATENT_FAMILIES.items() if not k.startswith("flat")},
    **{f"observed-{k}": v for k, v in OBSERVED_FAMILIES.items() if v is not LATENT_FAMILIES.get(k)},
    **OTHERS,
}
CORNERS = np.asarray([-0.8, 0.7], np.float32)  # what the lanes' parameters take turns at
COUNT = 20_000


def bounded(x):
    """Tails so heavy that there is no variance are squeezed; two functions of each entry."""
    x = jnp.asarray(x, float)
    return jnp.stack([jnp.tanh(x / 2), jnp.cos(x)], -1).reshape(-1)


def two_ways(family, key):
    """Means of one draw's functions in even and odd lanes; from one batch, and from a key of its own."""
    u = jnp.asarray(np.resize(CORNERS, COUNT))
    first, second = jax.random.split(key)
    batch = jax.vmap(lambda particle_key, u: draw(particle_key, family(u)), (VMAP_AXIS, 0))(
        particle_keys(first, COUNT), u
    )
    alone = jax.vmap(lambda key, u: family(u).sample(key))(jax.random.split(second, COUNT), u)
    alike = jax.vmap(lambda particle_key, u: draw(particle_key, family(u)), (VMAP_AXIS, 0))(
        particle_keys(first, 50), jnp.zeros(50)
    )
    return batch, alone, alike


USUAL = [
    "latent-normal",
    "latent-half_normal",
    "observed-categorical",
    "mvn_shared_scale",
]


@pytest.mark.parametrize("name", slow_unless(USUAL, FAMILIES))
def test_every_family_has_the_law_of_its_lane(key, name):
    """Against one key a particle_key: shape, and the means of bounded functions, particle_key by particle_key
    parameter.

    A 10 % difference is found, on a scale where functions lie in [-1, 1]. Neighbours' products show draws
    that lanes share, in whole or in part: these are independent, so the product's mean is the means' product.
    """
    batch, alone, alike = jax.jit(lambda key: two_ways(FAMILIES[name], key))(key)
    assert batch.shape == alone.shape and batch.dtype == alone.dtype
    assert batch.shape == (COUNT, *FAMILIES[name](jnp.float32(0)).shape())
    f, g = (np.asarray(jax.vmap(bounded)(x), np.float64).reshape(COUNT // 2, 2, -1) for x in (batch, alone))
    moving = g.std(0) > 0
    gap = np.where(moving, f - g, 0.0)[:, moving]  # pairs are independent, so this is a two-sample test
    assert gap.size
    check_mean(gap, np.zeros(gap.shape[1:]), delta=0.1, independent=True)
    centred = (f - g.mean(0)) / np.where(moving, g.std(0), 1.0)
    products = np.concatenate([centred[:, 0] * centred[:, 1], centred[1:, 0] * centred[:-1, 0]])
    products = products[:, moving.all(0)]
    check_mean(products, np.zeros(products.shape[1:]), delta=0.1, independent=True)
    if jnp.issubdtype(alike.dtype, jnp.floating):  # with equal parameters, no two continuous draws are equal
        assert len(np.unique(np.asarray(alike).reshape(50, -1), axis=0)) == 50


def one_law(particle_key):
    return draw(particle_key, dist.Normal(0.0, 1.0))


def test_a_law_that_is_the_same_for_all(key):
    x = jax.vmap(one_law, (VMAP_AXIS,))(particle_keys(key, 100))
    assert len(np.unique(x)) == 100


def test_chunks_differ_and_do_not_repeat(key):
    run = lambda first: jax.vmap(one_law, (VMAP_AXIS,))(particle_keys(key, 64, first))  # noqa: E731
    whole = np.concatenate([run(0), run(64), jax.jit(run)(128)])
    assert len(np.unique(whole)) == 192
    np.testing.assert_array_equal(run(64), whole[64:128])


def test_sites_differ(key):
    a, b = (
        jax.vmap(
            lambda particle_key, site=site: draw(of_site(particle_key, site), dist.Normal(0.0, 1.0)),
            (VMAP_AXIS,),
        )(particle_keys(key, 20))
        for site in (0, 1)
    )
    assert not set(np.asarray(a).tolist()) & set(np.asarray(b).tolist())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_counts_that_equal_a_dimension_of_the_law(key, size):
    """As many lanes as the law has rows, columns or entries: the shapes tell nothing, the draws have to."""
    laws = {
        "rows": lambda u: dist.Normal(u * jnp.ones((2, 3)), 1e-3),
        "broadcast": lambda u: dist.Normal(u, 1e-3 * jnp.ones(3)),
        "event": lambda u: dist.MultivariateNormal(u * jnp.ones(3), scale_tril=1e-3 * jnp.eye(3)),
        "expanded": lambda u: dist.Normal(u, 1e-3).expand([2, 3]).to_event(1),
        "column": lambda u: dist.Normal(u * jnp.ones((3, 1)), 1e-3 * jnp.ones((1, 2))),
    }
    # next to zero float32 has digits to spare: two draws round to the same number once in 5,000 runs
    u = 0.04 * jnp.arange(float(size))

    @jax.jit
    def run(key):
        vmapped = {
            k: jax.vmap(lambda particle_key, u, f=f: draw(particle_key, f(u)), (VMAP_AXIS, 0))
            for k, f in laws.items()
        }
        return {k: f(particle_keys(key, size), u) for k, f in vmapped.items()}

    for name, x in run(key).items():
        law = laws[name]
        assert x.shape == (size, *law(u[0]).shape())
        np.testing.assert_allclose(
            x, jnp.broadcast_to(u.reshape(-1, *(1,) * (x.ndim - 1)), x.shape), atol=1e-2
        )
        assert len(np.unique(x)) == x.size


def test_chains_of_particles(key):
    """Nested vmap: every chain draws what it draws alone, from its own key and parameters."""

    def chain(key, mean):
        law = lambda particle_key, u: draw(particle_key, dist.LogNormal(mean + u, 0.3))  # noqa: E731
        return jax.vmap(law, (VMAP_AXIS, 0))(particle_keys(key, 5), jnp.arange(5.0))

    keys, means = jax.random.split(key, 3), jnp.asarray([0.0, 1.0, 2.0])
    x = jax.vmap(chain)(keys, means)
    assert x.shape == (3, 5) and len(np.unique(x)) == 15
    for i in range(3):
        np.testing.assert_allclose(x[i], chain(keys[i], means[i]), rtol=1e-6)
    alike = jax.vmap(chain, (None, 0))(key, means)
    np.testing.assert_allclose(alike[1] / alike[0], np.e, rtol=1e-5)


def test_a_key_a_lane_will_do_as_well(key):
    """``vmap`` over whole lanes: no common key to draw a batch from."""
    keys = jax.random.split(key, 30)
    x = jax.vmap(one_law)(ParticleKey(keys, jnp.zeros(30, jnp.int32)))
    np.testing.assert_array_equal(x, [one_law(ParticleKey(k, jnp.int32(0))) for k in keys])
    assert len(np.unique(x)) == 30


def test_without_vmap_it_is_a_plain_draw(key):
    x = draw(ParticleKey(key, jnp.int32(4)), dist.Normal(2.0, 3.0))
    np.testing.assert_allclose(x, dist.Normal(2.0, 3.0).sample(jax.random.fold_in(key, 4)), rtol=1e-6)


@pytest.mark.parametrize("law", [dist.Normal, dist.LogNormal])
def test_gradients_run_through_draws(key, law):
    """Reparameterised: the derivative by the location is that of the transform, entry by
    entry."""

    def run(mean, scale):
        mine = lambda particle_key, u: draw(particle_key, law(mean + u, scale))  # noqa: E731
        return jax.vmap(mine, (VMAP_AXIS, 0))(particle_keys(key, 6), jnp.arange(6.0))

    x = run(0.5, 0.7)
    by_mean, by_scale = jax.jacrev(run, (0, 1))(0.5, 0.7)
    np.testing.assert_allclose(by_mean, jax.jacfwd(run)(0.5, 0.7), rtol=1e-6)
    raw, slope = (x, 1.0) if law is dist.Normal else (jnp.log(x), x)
    np.testing.assert_allclose(by_mean, slope * jnp.ones(6), rtol=1e-5)
    np.testing.assert_allclose(by_scale, slope * (raw - 0.5 - jnp.arange(6.0)) / 0.7, rtol=1e-4, atol=1e-4)
    nested = jax.vmap(jax.grad(lambda m: run(m, 0.7).sum()))(jnp.asarray([0.5, 0.5]))
    np.testing.assert_allclose(nested, by_mean.sum() * jnp.ones(2), rtol=1e-5)


def test_common_laws_are_drawn_in_one_batch():
    """Not particle_key by particle_key, which is slower: simple laws, those made of others, and mixtures."""
    expected = {
        "latent-normal": "promoted",
        "mvn_shared_scale": "promoted",
        "latent-log_normal": "widened",
        "latent-half_normal": "widened",
        "observed-mixture": "widened",
        "transformed": "widened",
        "expanded": None,
    }
    for name, way in expected.items():
        one = jax.tree_util.tree_flatten(FAMILIES[name](jnp.float32(0.1)))[0]
        many = jax.vmap(FAMILIES[name])(jnp.asarray([0.1, 0.2]))
        leaves = jax.tree_util.tree_leaves(many)
        structure = jax.tree_util.tree_structure(FAMILIES[name](jnp.float32(0.1)))
        batched = [jnp.ndim(x) > jnp.ndim(y) for x, y in zip(leaves, one, strict=True)]
        sampler = module._sampler(structure, leaves, batched)
        assert (sampler and sampler.__name__) == way


def test_errors_of_a_law_are_told(key):
    law = lambda particle_key, u: draw(particle_key, dist.ImproperUniform(dist.constraints.real, (), ()))  # noqa: E731
    with pytest.raises(NotImplementedError):
        jax.vmap(law, (VMAP_AXIS, 0))(particle_keys(key, 3), jnp.zeros(3))
