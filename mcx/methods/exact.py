"""The posterior of a model without unconstrained coordinates: exact draws, whatever the method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mcx.methods.method import Method
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data
from mcx.model.compile import compile_model
from mcx.model.density import capability_error
from mcx.results.posterior import Posterior, RunInfo
from mcx.types import Key

_DEFAULT_DRAWS = 1000


def exact_posterior(
    bound: BoundModel,
    method: Method,
    *,
    key: Key,
    num_chains: int,
    coords: Mapping[str, Sequence[object]],
) -> Posterior | None:
    """Independent draws and the exact evidence, where all latent sites are discrete or there are none.

    Returns None where there are unconstrained coordinates, or sites that cannot be summed out. There are as
    many draws as the method would keep.
    """
    target = compile_model(bound)
    if target.dim > 0 or capability_error(target.sites) is not None:
        return None
    refuse_data(target)
    started = time.perf_counter()
    num_draws = getattr(method, "num_samples", getattr(method, "num_particles", _DEFAULT_DRAWS))
    keys = jax.random.split(key, (num_chains, num_draws))
    draws = jax.jit(jax.vmap(jax.vmap(lambda k: target.constrain_with(k, {}))))(keys)
    log_evidence = jax.jit(lambda: target.log_density({}))()
    info = RunInfo.exact(key=key, coords=coords, run_time=time.perf_counter() - started)
    return Posterior(
        draws={s.name: draws[s.name] for s in target.sites if s.name in draws},
        unconstrained=jnp.zeros((num_chains, num_draws, 0)),
        stats={"lp": jnp.broadcast_to(log_evidence, (num_chains, num_draws))},
        warmup_stats={},
        bound=bound,
        info=info,
        log_evidence=log_evidence,
        log_evidence_se=jnp.zeros(()),
    )
