"""The records that inference consumes, and into which models are compiled.

A :class:`Target` is a posterior on unconstrained space, with its prior and likelihood apart. A
:class:`FeynmanKac` model is an initial law, Markov kernels and potentials. Their data are leaves of pytrees
and their functions are static, so that a compiled program takes new data without retracing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mcx.errors import ModelError
from mcx.ops.validation import integer, validated
from mcx.sites import SiteTable
from mcx.types import Key, PyTree, Scalar, SiteValues, Vector


class LogParts(NamedTuple):
    """The two parts of a log density.

    prior: log prior density on unconstrained space, log Jacobians included.
    likelihood: log likelihood, ``factor`` terms of kind "likelihood" included.
    """

    prior: Scalar
    likelihood: Scalar


class TargetFunctions(NamedTuple):
    """Pure functions of ``(data, z)``, shared by all targets of one structure.

    run: ``data -> program``, a function without arguments.
    constrain, unconstrain: the map from ``z`` to values by site, and its inverse.
    pointwise, prior_terms: log likelihood by observed site, and log prior density by latent site.
    replayed: the sites as effect handlers saw them.
    sample_prior: ``(data, key) -> z``, or None where the prior cannot be drawn from.
    probabilities: of the values of discrete sites that are summed out, given the others, an axis of values
        last; None where there are none. ``constrain`` then draws these sites, and ``pointwise`` has densities
        given the other observations.
    constrain_with: ``constrain`` with a key of its own for the discrete sites; None where there are none.
    """

    run: Callable[[PyTree], Callable[[], PyTree]]
    log_parts: Callable[[PyTree, SiteValues], LogParts]
    constrain: Callable[[PyTree, SiteValues], dict[str, Array]]
    unconstrain: Callable[[PyTree, SiteValues], dict[str, Array]]
    pointwise: Callable[[PyTree, SiteValues], dict[str, Array]]
    prior_terms: Callable[[PyTree, SiteValues], dict[str, Array]]
    replayed: Callable[[PyTree, SiteValues], Mapping[str, dict[str, Any]]]
    sample_prior: Callable[[PyTree, Key], dict[str, Array]] | None
    probabilities: Callable[[PyTree, SiteValues], dict[str, Array]] | None = None
    constrain_with: Callable[[PyTree, Key, SiteValues], dict[str, Array]] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Target:
    """A posterior density on an unconstrained pytree ``z``, one array a latent site.

    Attributes:
        data: the model's data; leaves of the pytree.
        functions: pure functions of ``(data, z)``; static.
        shapes: ``(site, shape)`` of the unconstrained sites in program order; static.
        sites: the model's sites; static.
    """

    data: PyTree
    functions: TargetFunctions = field(metadata={"static": True})
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(metadata={"static": True})
    sites: SiteTable = field(metadata={"static": True})

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def log_parts(self, z: SiteValues) -> LogParts:
        """Log prior and log likelihood at ``z``, from one run of the model."""
        return self.functions.log_parts(self.data, z)

    def log_prior(self, z: SiteValues) -> Scalar:
        """Log prior density at ``z``, log Jacobians included."""
        return self.log_parts(z).prior

    def log_likelihood(self, z: SiteValues) -> Scalar:
        """Log likelihood at ``z``."""
        return self.log_parts(z).likelihood

    def log_density(self, z: SiteValues) -> Scalar:
        """Log posterior density at ``z``, up to the evidence."""
        prior, likelihood = self.log_parts(z)
        return prior + likelihood

    def constrain(self, z: SiteValues) -> dict[str, Array]:
        """Latent and deterministic sites at ``z``, by replay: supports may depend on values."""
        return self.functions.constrain(self.data, z)

    def constrain_with(self, key: Key, z: SiteValues) -> dict[str, Array]:
        """The same; discrete sites that are summed out are drawn with this key."""
        draw = self.functions.constrain_with
        return self.constrain(z) if draw is None else draw(self.data, key, z)

    def unconstrain(self, values: SiteValues) -> dict[str, Array]:
        """The point ``z`` of constrained values of every latent site."""
        return self.functions.unconstrain(self.data, values)

    def pointwise(self, z: SiteValues) -> dict[str, Array]:
        """Log likelihood at ``z`` by observed site, one entry an observation."""
        return self.functions.pointwise(self.data, z)

    def prior_terms(self, z: SiteValues) -> dict[str, Array]:
        """Log prior density at ``z`` by latent site, on constrained space (no Jacobians)."""
        return self.functions.prior_terms(self.data, z)

    def replayed(self, z: SiteValues) -> Mapping[str, dict[str, Any]]:
        """The program's sites at ``z``, as the effect handlers saw them."""
        return self.functions.replayed(self.data, z)

    @property
    def sample_prior(self) -> Callable[[Key], dict[str, Array]] | None:
        """``key -> z``, a draw from the prior; None where the prior is improper or carries factors."""
        draw = self.functions.sample_prior
        return None if draw is None else lambda key: draw(self.data, key)

    def ravel(self, z: SiteValues) -> Vector:
        """Lay ``z`` out as one vector, sites in program order."""
        if not self.shapes:
            return jnp.zeros(0)
        return jnp.concatenate([jnp.reshape(z[name], -1) for name, _ in self.shapes])

    def unravel(self, vector: Vector) -> dict[str, Array]:
        """Inverse of :meth:`ravel`."""
        z, start = {}, 0
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            z[name] = vector[start:stop].reshape(shape)
            start = stop
        return z

    def with_data(self, data: PyTree) -> Target:
        """The same target with other data of the same structure."""
        return replace(self, data=data)


def _same(params: PyTree) -> PyTree:
    return params


_SAME = jax.tree_util.Partial(_same)  # one object for all: a Partial equals nothing but itself


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeynmanKac:
    """A Feynman-Kac model: initial law, Markov kernels and potentials, written for one particle.

    It stands for the measures ``M_0(dx_0) G_0(x_0) prod_t M_t(x_{t-1}, dx_t) G_t(x_{t-1}, x_t)``. Particles
    are arbitrary pytrees, and the loop vectorises the functions. Parameters are arguments and are never
    closed over, which allows ``vmap`` and gradients over them without tracing anew.

    Attributes:
        initial: ``(key, ctx, u_0) -> x_0``, a draw from M_0.
        transition: ``(key, ctx, x_prev, u) -> x``, a draw from M_t.
        log_potential: ``(ctx, x_prev, x, u) -> scalar``, log G_t; ``x_prev`` is None at t = 0.
        num_times: T, number of times; static.
        inputs: data by time, a pytree whose leaves have a leading axis of T; u_t is its t-th entry.
        prepare: ``params -> ctx``, run once, before the loop; a function, or a ``jax.tree_util.Partial`` that
            carries data.
        log_transition: ``(ctx, x_prev, x, u) -> scalar``, log density of M_t with respect to a fixed measure,
            or None: backward sampling, PaRIS and ancestor sampling need it.
        log_transition_bound: ``(ctx, x_prev, u) -> scalar``, an upper bound of log m_t(x_prev, x) over x, or
            None: backward sampling by rejection needs it.
        log_initial: ``(ctx, x, u) -> scalar``, log density of M_0, or None: the score needs it.
        log_lookahead: ``(ctx, x, u_next) -> scalar``, the log of a guess at the next potential from x, or
            None: resampling then takes it into account, and the weights correct for it (the auxiliary
            particle filter of Pitt and Shephard 1999).
        adapt: ``(ctx, particles, log_w, u) -> ctx``, the context of this time's transition, potential and
            look-ahead, computed from the whole population; or None.
        population: whether ``transition`` takes and returns all particles at once, with one key, for moves
            that use the whole cloud. Each particle's law given the others' former states still has to be M_t,
            at least as their number grows.
        batched_draws: whether ``initial`` and ``transition`` take a
            :class:`~mcx.ops.batched_draws.ParticleKey` in place of a key of their own, and draw with
            :func:`~mcx.ops.batched_draws.draw`: one batched draw for all particles.

    Source: Del Moral (2004); Chopin and Papaspiliopoulos (2020), chapter 5.
    """

    initial: Callable[..., PyTree] = field(metadata={"static": True})
    transition: Callable[..., PyTree] = field(metadata={"static": True})
    log_potential: Callable[..., Scalar] = field(metadata={"static": True})
    num_times: int = field(metadata={"static": True})
    inputs: PyTree = None
    prepare: Callable[[PyTree], PyTree] = field(default=_SAME)
    log_transition: Callable[..., Scalar] | None = field(default=None, metadata={"static": True})
    log_transition_bound: Callable[..., Scalar] | None = field(default=None, metadata={"static": True})
    log_initial: Callable[..., Scalar] | None = field(default=None, metadata={"static": True})
    log_lookahead: Callable[..., Scalar] | None = field(default=None, metadata={"static": True})
    adapt: Callable[..., PyTree] | None = field(default=None, metadata={"static": True})
    batched_draws: bool = field(default=False, metadata={"static": True})
    population: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        if not isinstance(self.prepare, jax.tree_util.Partial) and callable(self.prepare):
            object.__setattr__(self, "prepare", jax.tree_util.Partial(self.prepare))

    def functions_only(self, num_times: int = 1) -> FeynmanKac:
        """The functions without the data: equal for equal programs, so that compiled code is found again."""
        return replace(self, num_times=num_times, inputs=None, prepare=_SAME)

    def check(self) -> None:
        """Raise MethodError for a wrong number of times, ModelError for inputs that do not fit it."""
        validated("FeynmanKac", "num_times", self.num_times, integer(1))
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.inputs)[0]:
            if jnp.shape(leaf)[:1] != (self.num_times,):
                raise ModelError(
                    f"FeynmanKac(inputs=...){jax.tree_util.keystr(path)} has the wrong length",
                    expected=f"a leading axis of {self.num_times}, one entry a time",
                    found=f"shape {jnp.shape(leaf)}",
                )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StateSpace:
    """A Markov block: a Feynman-Kac model, and the meaning of its particles.

    Attributes:
        feynman_kac: the Markov chain, weighted by its observations.
        states: ``particle -> {site: value}``; static.
        view: ``particle -> state``, as the model's own functions see it; static.
        observe: ``(key, ctx, x, u) -> {site: value}``, a draw of the observations of one time; static.
        observed: ``u -> {site: value}``, the observations among the inputs (NaN where missing); static.
        name: of the Markov block; static.
        state_names: sites that ``states`` gives; static.
        params: names of the parameters that ``feynman_kac.prepare`` takes; static.
        guided: whether particles are drawn from a proposal that knows the observation; static.
        no_density: why the transition has no density; empty where it has one; static.
        start_names: further latent sites that belong to a path, such as a state before time 0; static.
        path_values: ``path -> {site: value}``, for all sites that belong to a path of particles; static.
        path_of: ``(ctx, {site: value}, inputs) -> path``, the inverse of ``path_values``; whatever else
            particles hold is computed from the context, so that it is never out of date. Both need a space
            that was made with ``whole=True``; static.
    """

    feynman_kac: FeynmanKac
    states: Callable[[PyTree], dict[str, Array]] = field(metadata={"static": True})
    view: Callable[[PyTree], PyTree] = field(metadata={"static": True})
    observe: Callable[..., dict[str, Array]] = field(metadata={"static": True})
    observed: Callable[[PyTree], dict[str, Array]] = field(metadata={"static": True})
    name: str = field(metadata={"static": True})
    state_names: tuple[str, ...] = field(metadata={"static": True})
    params: tuple[str, ...] = field(metadata={"static": True})
    guided: bool = field(metadata={"static": True})
    no_density: str = field(metadata={"static": True})
    start_names: tuple[str, ...] = field(metadata={"static": True})
    path_values: Callable[[PyTree], dict[str, Array]] = field(metadata={"static": True})
    path_of: Callable[..., PyTree] = field(metadata={"static": True})
