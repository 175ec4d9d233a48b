"""Densities outside of supports, whether or not NumPyro validates."""

import jax.numpy as jnp
import numpy as np

from mcx import dist
from mcx.model.support import log_prob_in_support


def test_densities_are_zero_outside_of_the_support():
    """Batches keep their entries, vectors count as one, and what declares no support stays as it is."""
    for validate in (True, False):
        law = dist.Uniform(jnp.zeros(3), jnp.array([1.0, 2.0, 9.0]), validate_args=validate)
        found = log_prob_in_support(law, jnp.full(3, 5.0))
        np.testing.assert_allclose(found, [-np.inf, -np.inf, -np.log(9.0)], rtol=1e-6)
        vector = dist.Gamma(jnp.ones(2), 1.0, validate_args=validate).to_event(1)
        assert log_prob_in_support(vector, jnp.array([1.0, -1.0])) == -np.inf
        np.testing.assert_allclose(log_prob_in_support(vector, jnp.ones(2)), -2.0, rtol=1e-6)

    class Bare(dist.Distribution):
        def log_prob(self, value):
            return -value

    assert log_prob_in_support(Bare(validate_args=False), 2.0) == -2.0
