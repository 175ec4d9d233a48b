"""Values that are not what an argument asks for, and calls that take them."""

import datetime
import decimal

import jax.numpy as jnp
import numpy as np
import pandas as pd

import mcx
import mcx.diffusion as diffusion
import mcx.dist as dist
import mcx.estimators as estimators

VALUES = {
    "None": None,
    "True": True,
    "zero": 0,
    "negative": -1,
    "float": 2.0,
    "half": 1.5,
    "huge": 10**15,
    "nan": float("nan"),
    "text": "abc",
    "bytes": b"abc",
    "function": len,
    "class": dict,
    "object": object(),
    "dictionary": {"a": 1.0},
    "set": {1.0, 2.0},
    "list": [1.0, 2.0, 3.0],
    "words": ["a", "b", "c"],
    "rows": [[1.0, 2.0], [3.0]],
    "holes": [1.0, None, 3.0],
    "array": np.array([1.0, 2.0, 3.0], np.float32),
    "empty": np.zeros(0),
    "nans": np.array([1.0, np.nan, 3.0]),
    "objects": np.array([1.0, "a", None], object),
    "masked": np.ma.MaskedArray([1.0, 2.0, 3.0], [0, 1, 0]),
    "complex": np.array([1j, 2.0, 3.0]),
    "dates": np.array(["2020-01-01"] * 3, "M8[D]"),
    "day": datetime.date(2020, 1, 1),
    "structured": np.zeros(3, [("a", "f4")]),
    "column": pd.Series([1.0, 2.0, 3.0]),
    "column of words": pd.Series(["a", "b", "c"]),
    "categories": pd.Series(["a", "b", "c"], dtype="category"),
    "table": pd.DataFrame({"y": [1.0, 2.0, 3.0]}),
    "mixed table": pd.DataFrame({"y": [1.0, 2.0, 3.0], "n": ["a", "b", "c"]}),
    "decimal": decimal.Decimal("1.5"),
}
Y = np.array([1.0, 2.0, 3.0], np.float32)
POINTS = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
PLANE = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
MIXTURE = diffusion.GaussianMixture(jnp.zeros((2, 2)), jnp.ones((2, 2)), jnp.ones(2) / 2)
LEVELS = diffusion.levels(10.0, 0.1, 4)
QUIET = {"key": 0, "progress": False}
WALK = mcx.RandomWalk(num_warmup=2, num_samples=2)


@mcx.model
def normal(y=None):
    mu, sd = mcx.sample("mu", dist.Normal(0.0, 1.0)), mcx.sample("sd", dist.HalfNormal(1.0))
    mcx.sample("y", dist.Normal(mu, sd), obs=y)


def chain(**changes):
    """A model of one Markov chain, with other arguments of the statement."""
    arguments = {
        "name": "x",
        "initial": lambda u: dist.Normal(0.0, 1.0),
        "transition": lambda x, u: dist.Normal(x, 1.0),
        "emission": lambda x, u: dist.Normal(x, 1.0),
        "obs": Y,
        **changes,
    }
    name = arguments.pop("name")
    return mcx.model(lambda: mcx.markov(name, **arguments))()


def statement(run):
    """The sites of a model that is one statement."""
    return mcx.model(run)().sites()


class Count:
    def init(self, key):
        return jnp.zeros(())

    def step(self, key, state):
        return state + 1, {}


BOUND, CHAIN = normal(Y), chain()


def infer(**changes):
    arguments = {"bound": BOUND, "method": WALK, "warnings": "ignore", **QUIET, **changes}
    return mcx.infer(arguments.pop("bound"), arguments.pop("method"), **arguments)


def run(**changes):
    arguments = {"kernel": Count(), "num_steps": 2, **QUIET, **changes}
    return mcx.run(arguments.pop("kernel"), **arguments)


def filtered(**changes):
    arguments = {"bound": CHAIN, "num_particles": 4, **QUIET, **changes}
    return mcx.filter(arguments.pop("bound"), **arguments)


def smoothed(**changes):
    arguments = {"bound": CHAIN, "functional": lambda a, b, t: b, **QUIET, **changes}
    return mcx.smooth(arguments.pop("bound"), arguments.pop("functional"), **arguments)


def maximized(**changes):
    arguments = {"bound": CHAIN, **QUIET, **changes}
    return mcx.maximize(arguments.pop("bound"), **arguments)


def predicted(**changes):
    arguments = {"posterior": None, "bound": BOUND, "key": 0, **changes}
    return mcx.predict(arguments.pop("posterior"), arguments.pop("bound"), **arguments)


def drawn(**changes):
    arguments = {"model": MIXTURE, "num": 4, "event_shape": (2,), "levels": LEVELS, "key": 0, **changes}
    return diffusion.sample(**arguments)


def corrected(**changes):
    arguments = {"composition": diffusion.anneal(MIXTURE, 1.0), "event_shape": (2,), "rho": LEVELS, "key": 0}
    return diffusion.correct(**{**arguments, **changes})


def sliced(distance=estimators.sliced_wasserstein, **changes):
    return distance(**{"x": POINTS, "y": POINTS + 1, "key": 0, **changes})


def sobol(**changes):
    arguments = {"function": lambda x: x.sum(), "law": PLANE, "budget": 64, "key": 0, **changes}
    return estimators.sobol_indices(arguments.pop("function"), arguments.pop("law"), **arguments)


def expected(**changes):
    arguments = {"function": lambda x: x.sum(), "law": PLANE, "key": 0, **changes}
    return estimators.expectations(arguments.pop("function"), arguments.pop("law"), **arguments)


# by call, the values that it can use
CALLS = {
    "infer(bound=)": (lambda v: infer(bound=v), ""),
    "infer(method=)": (lambda v: infer(method=v), ""),
    "infer(key=)": (lambda v: infer(key=v), "zero negative huge"),
    "infer(num_chains=)": (lambda v: infer(num_chains=v), "None huge"),
    "infer(init=)": (lambda v: infer(init=v), "None zero float half"),
    "infer(init['mu'])": (
        lambda v: infer(init={"mu": v, "sd": 1.0}),
        "zero negative float half huge decimal True",
    ),
    "infer(coords=)": (lambda v: infer(coords=v), "None"),
    "infer(coords[dim])": (
        lambda v: infer(coords={"y_dim_0": v}),
        "list words holes array nans objects masked complex dates structured column categories "
        "column_of_words set dictionary rows",
    ),
    "infer(warnings=)": (lambda v: infer(warnings=v), ""),
    "infer(checkpoint=)": (lambda v: infer(checkpoint=v), "None text"),
    "infer(devices=)": (lambda v: infer(devices=v), "None"),
    "infer(batch_size=)": (lambda v: infer(batch_size=v), "None"),
    "infer(y)": (
        lambda v: infer(bound=normal(v)),
        "None True zero negative float half huge list array empty column table decimal",
    ),
    "condition(y)": (
        lambda v: normal().condition({"y": v}),
        "True zero negative float half huge nan decimal",
    ),
    "condition(data)": (lambda v: normal().condition(v), ""),
    "log_density(values)": (lambda v: BOUND.log_density(v), ""),
    "log_density(mu)": (
        lambda v: BOUND.log_density({"mu": v, "sd": 1.0}),
        "True zero negative float half huge nan decimal",
    ),
    "check(key=)": (lambda v: BOUND.check(key=v), "zero negative huge"),
    "simulate(key=)": (lambda v: BOUND.simulate(key=v), "zero negative huge"),
    "render(format)": (lambda v: BOUND.render(v), ""),
    "model(fn)": (lambda v: mcx.model(v), "function class"),
    "load(path)": (lambda v: mcx.load(v), ""),
    "sample(name)": (lambda v: statement(lambda: mcx.sample(v, dist.Normal(0.0, 1.0))), "text"),
    "sample(fn)": (lambda v: statement(lambda: mcx.sample("a", v)), ""),
    "factor(name)": (lambda v: statement(lambda: mcx.factor(v, 1.0)), "text"),
    "factor(value)": (
        lambda v: statement(lambda: mcx.factor("a", v)),
        "True zero negative float half huge nan list array empty nans column table decimal",
    ),
    "deterministic(name)": (lambda v: statement(lambda: mcx.deterministic(v, 1.0)), "text"),
    "deterministic(value)": (
        lambda v: statement(lambda: mcx.deterministic("a", v)),
        "True zero negative float half huge nan list array empty nans complex column table decimal",
    ),
    "plate(name)": (lambda v: statement(lambda: mcx.plate(v, 2)), "text"),
    "plate(size)": (lambda v: statement(lambda: mcx.plate("p", v)), ""),
    "markov(name)": (lambda v: chain(name=v).sites(), "text"),
    "markov(initial=)": (lambda v: chain(initial=v).sites(), "function class"),
    "markov(transition=)": (lambda v: chain(transition=v).sites(), "function class"),
    "markov(emission=)": (lambda v: chain(emission=v).sites(), "function class"),
    "markov(proposal=)": (lambda v: chain(proposal=v).sites(), "None function class"),
    "markov(lookahead=)": (lambda v: chain(lookahead=v).sites(), "None function class"),
    "markov(initial) returns": (lambda v: chain(initial=lambda u: v).sites(), ""),
    "markov(transition) returns": (lambda v: chain(transition=lambda x, u: v).sites(), ""),
    "markov(emission) returns": (lambda v: chain(emission=lambda x, u: v).sites(), ""),
    "markov(obs=)": (lambda v: chain(obs=v, length=3).sites(), "None list array nans column"),
    "markov(missing=)": (lambda v: chain(missing=v).sites(), "None"),
    "markov(inputs=)": (lambda v: chain(inputs=v).sites(), "None list array nans column table"),
    "markov(length=)": (lambda v: chain(obs=None, length=v).sites(), ""),
    "filter(num_particles=)": (lambda v: filtered(num_particles=v), ""),
    "filter(num_chains=)": (lambda v: filtered(num_chains=v), ""),
    "filter(history=)": (lambda v: filtered(history=v), ""),
    "filter(quantiles=)": (lambda v: filtered(quantiles=v), "empty"),
    "filter(name=)": (lambda v: filtered(name=v), "None"),
    "filter(params=)": (lambda v: filtered(params=v), "None"),
    "filter(method=)": (lambda v: filtered(method=v), "None"),
    "filter(coords=)": (lambda v: filtered(coords=v), "None"),
    "OnlineFilter(bound)": (lambda v: mcx.OnlineFilter(v), ""),
    "OnlineFilter(num_particles=)": (lambda v: mcx.OnlineFilter(CHAIN, num_particles=v), ""),
    "smooth(functional)": (lambda v: smoothed(functional=v), "function class"),
    "smooth(params=)": (lambda v: smoothed(params=v), "None"),
    "smooth(name=)": (lambda v: smoothed(name=v), "None"),
    "smooth(method=)": (lambda v: smoothed(method=v), "None"),
    "maximize(bound)": (lambda v: maximized(bound=v), ""),
    "maximize(init=)": (lambda v: maximized(init=v), ""),
    "maximize(name=)": (lambda v: maximized(name=v), ""),
    "maximize(method=)": (lambda v: maximized(method=v), ""),
    "predict(posterior)": (lambda v: predicted(posterior=v), "None"),
    "predict(bound)": (lambda v: predicted(bound=v), ""),
    "predict(num_draws=)": (lambda v: predicted(num_draws=v), ""),
    "predict(resample=)": (lambda v: predicted(resample=v), "words"),
    "run(kernel)": (lambda v: run(kernel=v), ""),
    "run(num_steps=)": (lambda v: run(num_steps=v), "zero"),
    "run(num_chains=)": (lambda v: run(num_chains=v), ""),
    "run(num_discard=)": (lambda v: run(num_discard=v), "zero"),
    "run(init=)": (lambda v: run(init=v), "None"),
    "run(inputs=)": (lambda v: run(inputs=v), "None"),
    "run(collect=)": (lambda v: run(collect=v), "None function"),
    "sliced(x)": (lambda v: sliced(x=v), ""),
    "sliced(x_weights=)": (lambda v: sliced(x_weights=v), "None"),
    "sliced(p=)": (lambda v: sliced(p=v), "float half huge"),
    "sliced(num_projections=)": (lambda v: sliced(num_projections=v), ""),
    "max_sliced(x)": (lambda v: sliced(estimators.max_sliced_wasserstein, x=v), ""),
    "energy_sliced(x)": (lambda v: sliced(estimators.energy_sliced_wasserstein, x=v), ""),
    "two_sample_test(x)": (lambda v: sliced(estimators.two_sample_test, x=v), ""),
    "wasserstein_1d(x)": (
        lambda v: estimators.wasserstein_1d(v, jnp.ones(3)),
        "list array nans column table",
    ),
    "sobol_indices(function)": (lambda v: sobol(function=v), "function class"),
    "sobol_indices(function) returns": (
        lambda v: sobol(function=lambda x: v),
        "True zero negative float half huge list array column table decimal",
    ),
    "sobol_indices(law)": (lambda v: sobol(law=v), ""),
    "sobol_indices(budget=)": (lambda v: sobol(budget=v), "huge"),
    "expectations(function)": (lambda v: expected(function=v), "function"),
    "expectations(law)": (lambda v: expected(law=v), ""),
    "expectations(method=)": (lambda v: expected(method=v), "None"),
    "regress(values)": (lambda v: estimators.regress(v, POINTS[:3]), "list array nans column table"),
    "regress(controls)": (lambda v: estimators.regress(Y, v), "None table"),
    "regress(weights)": (lambda v: estimators.regress(Y, POINTS[:3], v), "None list array nans column"),
    "pareto_khat(x)": (lambda v: estimators.pareto_khat(v), "list array nans column table"),
    "psis(log_weights)": (lambda v: estimators.psis(v), "list array nans column table"),
    "diffusion.sample(model)": (lambda v: drawn(model=v), ""),
    "diffusion.sample(num)": (lambda v: drawn(num=v), "huge"),
    "diffusion.sample(event_shape)": (lambda v: drawn(event_shape=v), ""),
    "diffusion.sample(levels)": (lambda v: drawn(levels=v), ""),
    "diffusion.sample(method=)": (lambda v: drawn(method=v), "None"),
    "diffusion.sample(init=)": (lambda v: drawn(init=v), ""),
    "diffusion.sample(batch_size=)": (lambda v: drawn(batch_size=v), "None huge"),
    "integrate(y)": (lambda v: diffusion.integrate(MIXTURE, v, LEVELS), "list array nans column table"),
    "integrate(levels)": (lambda v: diffusion.integrate(MIXTURE, jnp.ones(2), v), "list array column"),
    "log_likelihood(x)": (
        lambda v: diffusion.log_likelihood(MIXTURE, v, LEVELS),
        "list array nans column table",
    ),
    "levels(rho_max)": (lambda v: diffusion.levels(v, 0.1, 4), "float half huge"),
    "levels(num_steps)": (lambda v: diffusion.levels(10.0, 0.1, v), "huge"),
    "product(model)": (lambda v: diffusion.product(v), ""),
    "anneal(model)": (lambda v: diffusion.anneal(v, 1.0), ""),
    "geometric(second)": (lambda v: diffusion.geometric(MIXTURE, v, 1.0), ""),
    "Score(fn)": (lambda v: diffusion.Score(v, diffusion.edm()), "function class"),
    "Score(schedule)": (lambda v: diffusion.Score(lambda y, rho: y, v), ""),
    "discrete(alphas_cumprod)": (lambda v: diffusion.discrete(v), ""),
    "correct(composition)": (lambda v: corrected(composition=v), ""),
    "correct(event_shape)": (lambda v: corrected(event_shape=v), ""),
    "correct(rho)": (lambda v: corrected(rho=v), ""),
    "correct(noise_gain=)": (lambda v: corrected(noise_gain=v), "None zero float half huge True decimal"),
}
