"""Observations and masks of a Markov chain have the shapes that they should have."""

import jax.numpy as jnp
import numpy as np
import pytest

import mcx
import mcx.dist as dist
from mcx.errors import BroadcastError, CapabilityError, McxError, ModelError

SHAPES = {
    "two columns": ((), np.ones((4, 2)), "expand"),
    "one column": ((), np.ones((4, 1)), r"obs\[:, 0\]"),
    "time in second place": ((), np.ones((2, 4)), r"obs\.T"),
    "one value for several": ((2,), np.ones(4), "reshape"),
    "one column for several": ((2,), np.ones((4, 1)), "reshape"),
}


def shaped(shape):
    @mcx.model
    def model(y, missing=None):
        mcx.markov(
            "x",
            initial=lambda u: dist.Normal(0, 1),
            transition=lambda x, u: dist.Normal(x, 1),
            emission=lambda x, u: dist.Normal(x, 1).expand(shape),
            obs=y,
            missing=missing,
            length=4,
        )

    return model


@pytest.mark.parametrize("case", list(SHAPES))
def test_observations_are_scored_once(case):
    """Broadcasting would multiply the likelihood: it is refused wherever observations come from."""
    shape, y, remedy = SHAPES[case]
    bound = shaped(shape)(y[:4] if len(y) == 4 else y)
    if len(y) == 4:
        with pytest.raises(BroadcastError, match=remedy) as caught:
            bound.log_density({"x": np.zeros(4)})
        assert caught.value.site == "x_obs" and str(y.shape) in str(caught.value)
        with pytest.raises(ModelError, match="shape"):
            shaped(shape)(None).condition({"x_obs": y}).log_density({"x": np.zeros(4)})
    for ask in (bound.check, lambda: mcx.filter(bound, key=0)):
        with pytest.raises(McxError, match="shape|numbers of times"):
            found = ask()
            raise found.problems[0]


@pytest.mark.parametrize("mask", [np.zeros(3, bool), np.zeros((4, 2), bool), np.full(4, 0.5), np.zeros(())])
def test_masks_that_do_not_fit(mask):
    with pytest.raises(McxError, match="missing="):
        shaped(())(np.ones(4), mask).log_density({"x": np.zeros(4)})


def test_laws_that_are_no_pytrees_are_refused_by_name():
    """NumPyro's HurdleNegativeBinomial2 has a field that is a property."""

    @mcx.model
    def model(y):
        mcx.markov(
            "x",
            initial=lambda u: dist.HurdleNegativeBinomial2(0.3, 2.0, 1.0),
            transition=lambda x, u: dist.HurdleNegativeBinomial2(0.3, 1.0 + x, 1.0),
            emission=lambda x, u: dist.Normal(x, 1.0),
            obs=y,
        )

    with pytest.raises(CapabilityError, match=r"site 'x'.*Hurdle.*pytree"):
        mcx.filter(model(jnp.zeros(3)), num_particles=8, key=0, progress=False)
