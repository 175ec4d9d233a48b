"""Integers in settings and arguments: every integer type is one, and what is none is refused by name.

The table is made from the fields of public dataclasses and from the signatures of public functions: what is
new is covered by itself, or fails for want of a small call.
"""

import dataclasses
import inspect
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import level

import mcx
import mcx.diffusion
import mcx.dist as dist
import mcx.estimators
from mcx.errors import MethodError

KINDS = {"int64": np.int64, "int32": np.int32, "jax": jnp.int32}
REFUSED = {"bool": True, "float": 64.0, "text": "64", "negative": -1}
PUBLIC = {
    name: getattr(module, name)
    for module in (mcx.diffusion, mcx.estimators, mcx)
    for name in module.__all__
    if name != "__version__"
}


def integers(value):
    """Names of the fields or arguments that are an integer, or None."""
    found = inspect.signature(value).parameters.items()
    types = {name: str(getattr(p.annotation, "__name__", p.annotation)) for name, p in found}
    return [name for name, kind in types.items() if re.fullmatch(r"int( \| None)?", kind)]


def named(argument):
    """The errors of the validator, which name the argument as the user wrote it."""
    return pytest.raises(MethodError, match=rf"\({argument}=")


# --- classes of settings -----------------------------------------------------------------------------


def made_without_arguments(value):
    return dataclasses.is_dataclass(value) and all(
        p.default is not p.empty for p in inspect.signature(value).parameters.values()
    )


CLASSES = {name: value for name, value in PUBLIC.items() if made_without_arguments(value)}
FIELDS = [(name, field) for name, value in CLASSES.items() for field in integers(value)]


def fitting(settings, field):
    """An integer that the field takes beside the defaults of the others."""
    default = getattr(settings(), field)
    for value in ([] if default is None else [default]) + [64, 2, 1]:
        try:
            settings(**{field: value})
        except MethodError:
            continue
        return value
    raise AssertionError("no integer fits")


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_integer_is_an_integer_of_settings(name, field):
    settings = CLASSES[name]
    value = fitting(settings, field)
    plain = settings(**{field: value})
    for kind in KINDS.values():
        found = settings(**{field: kind(value)})
        assert type(getattr(found, field)) is int
        assert found == plain and repr(found) == repr(plain)


@pytest.mark.parametrize("bad", REFUSED)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_what_is_no_integer_is_refused_by_settings(name, field, bad):
    with named(field):
        CLASSES[name](**{field: REFUSED[bad]})


def test_methods_are_in_the_table():
    methods = {"NUTS", "HMC", "MALA", "RandomWalk", "ChEES", "PMMH", "SMC2", "TemperedSMC", "DataAnnealedSMC"}
    methods |= {"ParticleGibbs", "ConditionalSMC", "ParticleFilter", "PPG", "PaRIS", "FFBS", "ScoreAscent"}
    methods |= {"ScoreClimbing", "GuidedDiffusion", "AdaptiveImportance", "DenoisingMCMC", "UniPC"}
    assert methods <= {name for name, _ in FIELDS}


# --- functions ---------------------------------------------------------------------------------------

Y = np.array([0.3, -0.2, 0.5], np.float32)
QUIET = {"key": 0, "progress": False}
PARAMS = {"params": {"s": 1.0}}
LAW = mcx.diffusion.GaussianMixture.of([0.0, 1.0], 1.0)
LEVELS = mcx.diffusion.levels(5.0, 0.1, 4)
UNIT = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
SAMPLES = {
    "x": np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32),
    "y": np.random.default_rng(1).normal(size=(14, 3)).astype(np.float32),
    "key": 0,
}
WALK = mcx.RandomWalk(num_warmup=4, num_samples=4)


@mcx.model
def normal(y):
    mu = mcx.sample("mu", dist.Normal(0.0, 2.0))
    mcx.sample("y", dist.Normal(mu, 1.0), obs=y)


class Still:
    """A kernel of BlackJAX's kind that stays where it is."""

    @staticmethod
    def init(key):
        return jnp.zeros(())

    @staticmethod
    def step(key, state):
        return state, {}


STILL = Still()


@cache
def filtered():
    return mcx.filter(level(Y), num_particles=8, history="full", **PARAMS, **QUIET)


@cache
def with_paths():
    method = mcx.PMMH(num_particles=4, num_warmup=4, num_samples=4)
    return mcx.infer(level(Y), method, num_chains=1, warnings="ignore", **QUIET)


@cache
def fitted():
    method = mcx.ScoreClimbing(num_updates=2, num_samples=4, num_checks=100)
    return mcx.maximize(normal(Y), method=method, num_chains=2, **QUIET)


def square(x):
    return jnp.sum(x**2)


# function -> arguments of a small call; made when needed
CALLS = {
    "infer": lambda: {"bound": normal(Y), "method": WALK, "num_chains": 2, "warnings": "ignore", **QUIET},
    "program": lambda: {"bound": normal(Y), "method": WALK},
    "filter": lambda: {"bound": level(Y), "num_particles": 8, "num_chains": 2, **PARAMS, **QUIET},
    "smooth": lambda: {
        "bound": level(Y), "functional": lambda xp, x, t: xp * x, "num_chains": 2, **PARAMS, **QUIET,
        "method": mcx.FFBS(num_particles=8, num_paths=4),
    },
    "maximize": lambda: {
        "bound": normal(Y), "method": mcx.ScoreClimbing(num_updates=2, num_samples=4, num_checks=100),
        "num_chains": 2, **QUIET,
    },
    "run": lambda: {"kernel": STILL, "num_steps": 6, "num_chains": 2, **QUIET},
    "predict": lambda: {"posterior": None, "bound": normal(Y), "num_draws": 4, "key": 0},
    "forecast": lambda: {"posterior": with_paths(), "horizon": 2, "key": 0},
    "Filtered.forecast": lambda: {"self": filtered(), "horizon": 2, "num_draws": 3, "key": 0},
    "Filtered.paths": lambda: {"self": filtered(), "num_draws": 3, "key": 0},
    "Approximation.sample": lambda: {"self": fitted(), "num": 3, "key": 0},
    "OnlineFilter": lambda: {"bound": level(Y), "num_particles": 8, **PARAMS},
    "smc": lambda: {
        "fk": mcx.FeynmanKac(
            initial=lambda key, ctx, u: jax.random.normal(key),
            transition=lambda key, ctx, x, u: x,
            log_potential=lambda ctx, t, *states: 0.0,
            num_times=3,
        ),
        "num_particles": 8, "key": 0,
    },
    "sliced_wasserstein": lambda: {"num_projections": 16, **SAMPLES},
    "energy_sliced_wasserstein": lambda: {"num_projections": 16, **SAMPLES},
    "max_sliced_wasserstein": lambda: {"num_starts": 2, "num_updates": 3, **SAMPLES},
    "two_sample_test": lambda: {"num_projections": 8, "num_permutations": 19, **SAMPLES},
    "regress": lambda: {"values": SAMPLES["x"][:, 0], "controls": SAMPLES["x"][:, 1:2], "fit": "cross_fit"},
    "stein_controls": lambda: {
        "x": SAMPLES["x"], "score": -SAMPLES["x"], "loc": np.zeros(3, np.float32),
        "scale_tril": np.eye(3, dtype=np.float32), "degree": 2,
    },
    "sobol_indices": lambda: {"function": square, "law": UNIT, "budget": 400, "key": 0},
    "train_proposal": lambda: {
        "build": lambda params: dist.Normal(params, 1.0).to_event(1), "params": jnp.zeros(2), "law": UNIT,
        "function": square, "num_updates": 2, "batch_size": 8, "key": 0,
    },
    "EstimatedMeans": lambda: {"functions": (square,), "num_draws": 100},
    "correct": lambda: {
        "composition": mcx.diffusion.anneal(LAW, 1.0), "event_shape": (2,), "rho": LEVELS,
        "num_particles": 8, "num_chains": 2, **QUIET,
    },
    "levels": lambda: {"rho_max": 5.0, "rho_min": 0.1, "num_steps": 4},
    "log_likelihood": lambda: {"model": LAW, "x": jnp.zeros(2), "levels": LEVELS, "key": 0},
    "sample": lambda: {"model": LAW, "num": 4, "event_shape": (2,), "levels": LEVELS, "key": 0},
    "ScorePrior": lambda: {"model": LAW},
}  # fmt: skip
METHODS_OF_RESULTS = {
    "Filtered.forecast": lambda self, **options: self.forecast(**options),
    "Filtered.paths": lambda self, **options: self.paths(**options),
    "Approximation.sample": lambda self, **options: self.sample(**options),
}
# two functions have this name; that of the language takes a distribution
FUNCTIONS = {**PUBLIC, "sample": mcx.diffusion.sample, **METHODS_OF_RESULTS}
ARGUMENTS = [
    (name, argument)
    for name, function in FUNCTIONS.items()
    if name in CALLS and name not in METHODS_OF_RESULTS
    for argument in integers(function)
] + [
    *(("Filtered.forecast", "horizon"), ("Filtered.forecast", "num_draws"), ("Filtered.paths", "num_draws")),
    ("Approximation.sample", "num"),
]
# the language: NumPyro's own arguments, and what belongs to the model that is written; records that mcx makes
OTHERS = {"plate", "markov", "Run", "FeynmanKac", "Denoised", "SlicedTarget"}


def test_functions_are_in_the_table():
    found = {name for name, value in PUBLIC.items() if callable(value) and integers(value)}
    assert found - set(CLASSES) - OTHERS <= set(CALLS)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_no_integer_is_refused_by_functions(name, argument):
    """Before anything compiles, but for what JAX compiles by itself the first time: single operations."""
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(seconds)

    def refused(bad):
        with named(argument):
            FUNCTIONS[name](**call | {argument: bad})

    call = CALLS[name]()
    first, *others = REFUSED.values()
    refused(first)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for bad in others:
            refused(bad)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def numbers(result):
    """The numbers in a result, as far as it has any."""
    found = [getattr(result, part, None) for part in ("draws", "stats", "value", "x", "p_value")]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found) if hasattr(leaf, "dtype")]


SLOW = {
    "maximize",
    "smooth",
    "train_proposal",
    "correct",
    "forecast",
    "Filtered.forecast",
    "Approximation.sample",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CALLS]
)
def test_every_integer_is_an_integer_of_functions(name):
    """All of a call's integers in another type: it works, and gives the same."""
    call = CALLS[name]()
    function = FUNCTIONS[name]
    whole = {argument: value for argument, value in call.items() if type(value) is int and argument != "key"}
    for argument in [a for n, a in ARGUMENTS if n == name and a not in call]:
        default = inspect.signature(function).parameters[argument].default
        whole[argument] = default if type(default) is int else 2
    plain = numbers(function(**call | whole))
    for kind in KINDS.values():
        found = numbers(function(**call | {argument: kind(value) for argument, value in whole.items()}))
        for a, b in zip(found, plain, strict=True):
            np.testing.assert_array_equal(a, b)
