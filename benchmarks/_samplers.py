"""Samplers on one model, with one interface.

NUTS of mcx, NumPyro and BlackJAX with 4 vectorised chains and default settings; mcx's ChEES with its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.flatten_util
import numpy as np
import numpyro
from posteriordb import Problem

CHAINS, WARMUP, DRAWS = 4, 1000, 1000


class Sample(NamedTuple):
    """What a run gives, as numpy arrays.

    scalars: draws under the reference's names, chain x draw.
    warmup_steps, steps: leapfrog steps of every transition, chain x step.
    diverging: chain x draw.
    """

    scalars: dict[str, np.ndarray]
    warmup_steps: np.ndarray
    steps: np.ndarray
    diverging: np.ndarray


class Sampler(Protocol):
    """A sampler on a posterior.

    ``cold`` is what a user waits for the first time: tracing, compilation and a run; ``prepare`` is untimed;
    ``run`` is the run alone.
    """

    def cold(self, seed: int) -> None: ...
    def prepare(self) -> None: ...
    def run(self, seed: int) -> Sample: ...


class Mcx:
    num_chains: int | None = CHAINS

    def __init__(self, problem: Problem) -> None:
        import arviz_stats.base  # noqa: F401  loaded behind the compiler's back otherwise: leave imports out

        import mcx

        self.problem, self.bound, self.infer = problem, problem.bound(), mcx.infer
        self.method = self._method(mcx)

    def _method(self, mcx: Any) -> Any:
        return mcx.NUTS(num_warmup=WARMUP, num_samples=DRAWS)

    def _infer(self, seed: int) -> Any:
        return self.infer(
            self.bound, self.method, key=seed, num_chains=self.num_chains, progress=False, warnings="ignore"
        )

    def cold(self, seed: int) -> None:
        self._infer(seed)

    def prepare(self) -> None:
        pass

    def run(self, seed: int) -> Sample:
        p = self._infer(seed)
        scalars = self.problem.scalars(p.draws)
        return Sample(scalars, p.warmup_stats["n_steps"], p.stats["n_steps"], p.stats["diverging"])


class ChEES(Mcx):
    """As a user calls it: default settings, its own number of chains, the default start."""

    num_chains = None

    def _method(self, mcx: Any) -> Any:
        return mcx.ChEES()


def numpyro_model(problem: Problem) -> tuple[Any, dict[str, Any]]:
    """The model as a function for NumPyro, and its arguments."""
    bound = problem.bound()
    if not problem.name.startswith("garch"):
        return bound.fn, bound.arguments()

    def replayed(**arguments: Any) -> None:
        """NumPyro 0.22 overlooks that an ImproperUniform's support depends on another site, and gives draws
        outside of it, unless a deterministic site makes it run the model for every draw."""
        bound.fn(**arguments)
        numpyro.deterministic("replay", 0.0)

    return replayed, bound.arguments()


class NumPyro:
    """``run`` is ``MCMC`` within ``jax.jit``, compiled ahead: called plainly, it compiles anew every time."""

    dense = False

    def __init__(self, problem: Problem) -> None:
        from numpyro.infer import MCMC, NUTS

        self.problem = problem
        self.model, self.arguments = numpyro_model(problem)
        self.make = lambda: MCMC(
            NUTS(self.model, dense_mass=self.dense),
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )

    def cold(self, seed: int) -> None:
        mcmc = self.make()
        mcmc.run(jax.random.key(seed), extra_fields=("num_steps", "diverging"), **self.arguments)
        jax.block_until_ready(mcmc.get_samples())

    def prepare(self) -> None:
        fields = ("num_steps", "diverging")

        def run(key: Any) -> Any:
            mcmc = self.make()
            mcmc.warmup(key, extra_fields=fields, collect_warmup=True, **self.arguments)
            warm = mcmc.get_extra_fields(group_by_chain=True)
            mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=fields, **self.arguments)
            kept = mcmc.get_extra_fields(group_by_chain=True)
            return (
                mcmc.get_samples(group_by_chain=True),
                warm["num_steps"],
                kept["num_steps"],
                kept["diverging"],
            )

        self.compiled = jax.jit(run).lower(jax.random.key(0)).compile()

    def run(self, seed: int) -> Sample:
        draws, warm, steps, diverging = jax.device_get(self.compiled(jax.random.key(seed)))
        return Sample(self.problem.scalars(draws), warm, steps, diverging)


class DenseNumPyro(NumPyro):
    """The same with a full mass matrix."""

    dense = True


class BlackJAX:
    """On NumPyro's potential function: ``window_adaptation``, then a scan over the kernel, in one program."""

    def __init__(self, problem: Problem) -> None:
        import blackjax
        from numpyro.infer.util import initialize_model

        self.problem = problem
        self.model, self.arguments = numpyro_model(problem)
        self.blackjax, self.initialize_model = blackjax, initialize_model

    def _compile(self) -> Any:
        blackjax = self.blackjax
        info = self.initialize_model(jax.random.key(0), self.model, model_kwargs=self.arguments)
        start, unravel = jax.flatten_util.ravel_pytree(info.param_info.z)

        def log_density(z: Any) -> Any:
            return -info.potential_fn(z)

        def chain(key: Any) -> Any:
            key_start, key_warm, key_run = jax.random.split(key, 3)
            z = unravel(jax.random.uniform(key_start, start.shape, start.dtype, minval=-2, maxval=2))
            adaptation = blackjax.window_adaptation(
                blackjax.nuts,
                log_density,
                adaptation_info_fn=lambda state, info, adapted: info.num_integration_steps,
            )
            (state, parameters), warm = adaptation.run(key_warm, z, WARMUP)
            kernel = blackjax.nuts(log_density, **parameters)

            def step(state: Any, key: Any) -> Any:
                state, info = kernel.step(key, state)
                return state, (state.position, info.num_integration_steps, info.is_divergent)

            _, (positions, steps, diverging) = jax.lax.scan(step, state, jax.random.split(key_run, DRAWS))
            return jax.vmap(info.postprocess_fn)(positions), warm, steps, diverging

        def run(key: Any) -> Any:
            return jax.vmap(chain)(jax.random.split(key, CHAINS))

        return jax.jit(run).lower(jax.random.key(0)).compile()

    def cold(self, seed: int) -> None:
        self.compiled = self._compile()
        jax.block_until_ready(self.compiled(jax.random.key(seed)))

    def prepare(self) -> None:
        pass

    def run(self, seed: int) -> Sample:
        draws, warm, steps, diverging = jax.device_get(self.compiled(jax.random.key(seed)))
        return Sample(self.problem.scalars(draws), warm, steps, diverging)


SAMPLERS: dict[str, Any] = {
    "mcx": Mcx,
    "chees": ChEES,
    "numpyro": NumPyro,
    "numpyro-dense": DenseNumPyro,
    "blackjax": BlackJAX,
}
