"""Densities of generated models, against NumPyro at generated points.

Both sides run the same distributions, so what differs is the order of sums: tolerances are a number of
roundings of the largest terms. They follow the dtype, which makes the runs marked ``x64`` five hundred
million times sharper than those in float32.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.util import compute_log_probs, constrain_fn, potential_energy
from problems import forget_programs, slow_unless

import mcx
from mcx.model.compile import compile_model
from mcx.testing.strategies import (
    LATENT_FAMILIES,
    OBSERVED_FAMILIES,
    Program,
    Statement,
    bind,
    models,
    points,
    programs,
)

EPS = float(jnp.finfo(jnp.result_type(float)).eps)


@jax.jit
def evaluate(target, bound, z):
    """All that is compared, in one program: a structure then compiles once."""
    sites = target.constrain(z)
    latent = {name: sites[name] for name, _ in target.shapes}
    density, gradient = jax.value_and_grad(target.log_density)(z)
    log_probs, _ = compute_log_probs(bound.run, (), {}, latent)
    potential, potential_gradient = jax.value_and_grad(lambda z: potential_energy(bound.run, (), {}, z))(z)
    return {
        "density": density,
        "gradient": target.ravel(gradient),
        "parts": target.log_parts(z),
        "prior": target.prior_terms(z),
        "pointwise": target.pointwise(z),
        "sites": sites,
        "round trip": target.ravel(target.unconstrain(latent)),
        "joint": bound.log_density(latent),
        "numpyro": {
            "density": -potential,
            "gradient": -target.ravel(potential_gradient),
            "log_probs": log_probs,
            "sites": constrain_fn(bound.run, (), {}, z, return_deterministic=True),
        },
    }


def check_against_numpyro(bound, z):
    target = compile_model(bound)
    np.testing.assert_array_equal(target.ravel(target.unravel(target.ravel(z))), target.ravel(z))
    found = jax.device_get(evaluate(target, bound, z))
    truth = found["numpyro"]
    factors = {s.name for s in target.sites.of_kind("factor") if not s.likelihood}
    prior = {s.name for s in target.sites.of_kind("latent", "discrete")} | factors
    likelihood = set(truth["log_probs"]) - prior

    terms = [truth["density"], *truth["log_probs"].values()]
    size = 1 + sum(float(np.abs(t)) for t in terms)
    # sums of up to a dozen sites of up to 18 elements: each side is off by less than 30 roundings
    close = {"rtol": 0, "atol": 60 * EPS * size}
    np.testing.assert_allclose(found["density"], truth["density"], **close)
    np.testing.assert_allclose(found["parts"].prior + found["parts"].likelihood, truth["density"], **close)

    # the split: NumPyro has no Jacobians at constrained values; they belong to the prior
    by_numpyro = {name: float(v) for name, v in truth["log_probs"].items()}
    jacobian = truth["density"] - sum(by_numpyro.values())
    np.testing.assert_allclose(
        found["parts"].likelihood, sum(by_numpyro[name] for name in likelihood), **close
    )
    np.testing.assert_allclose(
        found["parts"].prior, sum(by_numpyro[name] for name in prior) + jacobian, **close
    )
    np.testing.assert_allclose(found["joint"], sum(by_numpyro.values()), **close)

    # the terms: named and summing as they should
    for part, names in (("prior", prior), ("pointwise", likelihood)):
        assert set(found[part]) == names
        for name, value in found[part].items():
            np.testing.assert_allclose(np.sum(value), by_numpyro[name], **close, err_msg=name)
    for site in target.sites.of_kind("observed"):
        assert found["pointwise"][site.name].shape == site.terms_shape

    # gradients: each coordinate adds up terms that may cancel, so errors scale with the largest
    largest = 1 + np.abs(truth["gradient"]).max(initial=0)
    np.testing.assert_allclose(
        found["gradient"], truth["gradient"], rtol=0, atol=100 * EPS * max(largest, size)
    )

    assert set(found["sites"]) == {s.name for s in target.sites.of_kind("latent", "deterministic")}
    for name, value in found["sites"].items():
        np.testing.assert_allclose(value, truth["sites"][name], rtol=4 * EPS, atol=4 * EPS, err_msg=name)
        assert value.shape == target.sites[name].shape and value.dtype == target.sites[name].dtype
    # inverses take differences: an ordered vector's 2 exp(2) + exp(-2) - 2 exp(2) loses a factor of 110
    np.testing.assert_allclose(found["round trip"], target.ravel(z), rtol=0, atol=600 * EPS)


def check_prior_draws(bound, key):
    """A prior that can be drawn from is; any other says so by None."""
    target = compile_model(bound)
    sites = target.sites
    weighted = any(s.weighted for s in sites.of_kind("latent"))
    factors = any(not s.likelihood for s in sites.of_kind("factor"))
    proper = not (weighted or factors or any(s.improper for s in sites))
    assert (target.sample_prior is not None) == proper
    if proper:
        z = target.sample_prior(key)
        assert {name: v.shape for name, v in z.items()} == dict(target.shapes)


@settings(max_examples=3, derandomize=True)  # the same examples every time: compiled programs are cached
@given(data=st.data(), bound=models())
def test_generated_models(data, bound):
    check_against_numpyro(bound, data.draw(points(compile_model(bound))))


@pytest.mark.slow
@pytest.mark.x64
@settings(max_examples=6, derandomize=True)
@given(data=st.data(), bound=models())
def test_generated_models_in_float64(data, bound):
    check_against_numpyro(bound, data.draw(points(compile_model(bound))))


@pytest.mark.slow
@settings(max_examples=120)
@given(data=st.data(), bound=models())
def test_many_generated_models(data, bound):
    forget_programs()
    check_against_numpyro(bound, data.draw(points(compile_model(bound))))
    check_prior_draws(bound, mcx.testing.key_for(repr(bound)))


def chain(latent, observed):
    """A hierarchy: every site depends on the one before, in plates or not."""
    plates = [(), ("p",), ("q", "p"), ("q",)]
    statements = [
        Statement("latent", f"x{i}", family=family, parent=f"x{i - 1}" if i else None, plates=plates[i % 4])
        for i, family in enumerate(latent)
    ]
    statements += [
        Statement("observed", f"y{i}", family=family, parent="x0", plates=plates[i % 4], data=(1, -7, 5))
        for i, family in enumerate(observed)
    ]
    return Program(tuple(statements))


@pytest.mark.parametrize("part", slow_unless([3], range(5)))
def test_every_family(part, key):
    bound = bind(chain(list(LATENT_FAMILIES)[part::5], list(OBSERVED_FAMILIES)[part::5]))
    target = compile_model(bound)
    z = target.unravel(jax.random.uniform(key, (target.dim,), minval=-2.0, maxval=2.0))
    check_against_numpyro(bound, z)


def test_what_is_generated():
    """Every kind and feature turns up, and what is printed makes the same program again."""
    seen = Counter()

    def count(program):
        for s in program.statements:
            seen.update([s.kind, f"{s.kind} {s.family}", f"reparam {s.reparam}", f"plates {s.plates}"])
            seen.update(f for f in ("parent", "scale", "mask") if getattr(s, f) is not None)
            seen["undeclared"] += not s.declared and bool(s.plates)
            if s.program is not None:
                count(s.program)

    @settings(max_examples=200, derandomize=True, database=None)
    @given(programs())
    def draw(program):
        count(program)
        again = eval(repr(program), {"Program": Program, "Statement": Statement})
        assert again == program and hash(again) == hash(program)
        assert repr(bind(program)).startswith(f"<{program!r}(data=")

    draw()
    kinds = ["latent", "observed", "deterministic", "factor likelihood", "factor prior", "submodel"]
    features = [
        "parent",
        "scale",
        "mask",
        "undeclared",
        "plates ('p',)",
        "plates ('q',)",
        "plates ('q', 'p')",
    ]
    reparams = ["reparam centered", "reparam decentered", "reparam transform"]
    assert not [name for name in kinds + features + reparams if not seen[name]]
