"""The law of a Markov chain's path, and of its emissions, as NumPyro distributions.

Components of a structured state share one law: they are drawn together, and the density of one is conditional
on the values of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import Distribution

from mcx.errors import BroadcastError, ModelError
from mcx.model.capture import is_improper
from mcx.model.support import log_prob_in_support
from mcx.ops.batched_draws import ParticleKey, draw, of_site
from mcx.types import Key, PyTree

type Laws = Callable[..., dict[str, Distribution]]


def components(laws: Distribution | dict[str, Distribution]) -> dict[str, Any]:
    """Distributions by component; a bare one is the component ``""``."""
    return dict(laws) if isinstance(laws, dict) else {"": laws}


def bare(values: dict[str, Any]) -> PyTree:
    """The value a user's function sees: a dictionary, or the value itself where there is one component."""
    return values[""] if "" in values else values


def draw_components(particle_key: ParticleKey, laws: dict[str, Distribution]) -> dict[str, Array]:
    """Draw every component; they are independent given the past."""
    return {name: draw(of_site(particle_key, i), law) for i, (name, law) in enumerate(laws.items())}


def log_density(laws: dict[str, Distribution], values: dict[str, Array]) -> dict[str, Array]:
    """Log density of every component, summed to a scalar each."""
    return {name: jnp.sum(log_prob_in_support(law, values[name])) for name, law in laws.items()}


@dataclass(eq=False)
class PathLaw:
    """Joint law of the components' paths.

    Attributes:
        name: of the Markov block, for errors.
        inputs: pytree with a leading axis of ``length``, or None.
        values: paths by component, filled in as the sites get their values; densities need all of them.
        drawn: paths that were drawn together, until a component gets another value.
    """

    name: str
    initial: Laws
    transition: Laws
    inputs: PyTree
    length: int
    values: dict[str, Array] = field(default_factory=dict)
    drawn: dict[str, Array] | None = None

    def __post_init__(self) -> None:
        self.first_input = jax.tree_util.tree_map(lambda x: x[0], self.inputs)
        self.later_inputs = jax.tree_util.tree_map(lambda x: x[1:], self.inputs)
        self.start = self.initial(self.first_input)
        self.shapes = {k: jax.ShapeDtypeStruct(law.shape(), _dtype(law)) for k, law in self.start.items()}
        if self.length > 1:
            self._check_step()

    def _check_step(self) -> None:
        """Raise unless the transition gives states of the same structure as the initial law."""
        u = jax.tree_util.tree_map(lambda x: x[0], self.later_inputs)
        zeros = {k: jnp.zeros(s.shape, s.dtype) for k, s in self.shapes.items()}
        laws = self.transition(bare(zeros), u)
        if set(laws) != set(self.start):
            raise ModelError(
                "initial and transition have different components",
                site=self.name,
                expected=", ".join(map(repr, self.start)),
                found=", ".join(map(repr, laws)),
            )
        for key, law in laws.items():
            site = f"{self.name}.{key}" if key else self.name
            if law.shape() != self.shapes[key].shape:
                raise ModelError(
                    "initial and transition give states of different shapes",
                    site=site,
                    expected=f"shape {self.shapes[key].shape}, as the initial law",
                    found=f"shape {law.shape()}",
                    remedy="expand the smaller one: .expand([...])",
                )
            ours, theirs = _elementwise(self.start[key].support), _elementwise(law.support)
            if type(ours) is not type(theirs):
                raise ModelError(
                    "initial and transition have different supports",
                    site=site,
                    expected=f"{ours}, as the initial law",
                    found=str(theirs),
                    remedy="write the state so that its support is the same at all times",
                )

    def sample(self, key: Key) -> dict[str, Array]:
        """Draw all paths, (T, ...) each, forwards in time; those in ``values`` stay as they are."""
        key_start, key_run = jax.random.split(key)
        one = jnp.zeros((), jnp.int32)
        fixed = self.values
        x0 = self._cast(
            draw_components(ParticleKey(key_start, one), self.start), {k: v[0] for k, v in fixed.items()}
        )

        def step(x: dict[str, Array], inputs: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
            t, u, known = inputs
            particle_key = ParticleKey(jax.random.fold_in(key_run, t), one)
            x = self._cast(draw_components(particle_key, self.transition(bare(x), u)), known)
            return x, x

        times = jnp.arange(1, self.length, dtype=jnp.uint32)
        later_fixed = {k: v[1:] for k, v in fixed.items()}
        _, later = jax.lax.scan(step, x0, (times, self.later_inputs, later_fixed))
        return jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a[None], b]), x0, later)

    def _cast(self, x: dict[str, Array], fixed: dict[str, Array]) -> dict[str, Any]:
        return {k: v.astype(self.shapes[k].dtype) for k, v in (x | fixed).items()}

    def draw(self, key: Key, component: str) -> Array:
        """Draw one component's path; those of the other components are kept until they are drawn."""
        if self.drawn is None:
            self.drawn = self.sample(key)
        return self.drawn[component]

    def settle(self, component: str, path: PyTree) -> None:
        """Record a component's path: the one drawn, or one assigned from outside."""
        self.values[component] = path
        if self.drawn is not None and self.drawn[component] is not path:
            self.drawn = None

    def log_prob(self, component: str, values: dict[str, Array]) -> Array:
        """Log density of one component's path given those of the others, vectorised over time."""
        first = jax.tree_util.tree_map(lambda x: x[0], values)
        before = jax.tree_util.tree_map(lambda x: x[:-1], values)
        after = jax.tree_util.tree_map(lambda x: x[1:], values)

        def one(x_prev: PyTree, x: PyTree, u: PyTree) -> Array:
            return jnp.sum(self.transition(bare(x_prev), u)[component].log_prob(x[component]))

        steps = jax.vmap(one)(before, after, self.later_inputs)
        return jnp.sum(self.start[component].log_prob(first[component])) + jnp.sum(steps)


class PathComponent(dist.Distribution):
    """The path of one component of a state, conditional on those in ``law.values``; event shape (T, ...)."""

    arg_constraints: dict[str, Any] = {}
    checks_support = True

    def __init__(self, law: PathLaw, component: str) -> None:
        self.law, self.component = law, component
        super().__init__(batch_shape=(), event_shape=(law.length, *law.shapes[component].shape))

    @property
    def support(self) -> Any:
        """The state's support, at every time."""
        start = self.law.start[self.component]
        base = start.support
        return None if base is None else dist.constraints.independent(base, 1 + len(start.batch_shape))

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw paths; components of one law drawn from one key belong together."""
        if not sample_shape:
            return self.law.draw(key, self.component)
        keys = jax.random.split(key, sample_shape)
        draw_one = lambda k: self.law.sample(k)[self.component]  # noqa: E731
        for _ in sample_shape:
            draw_one = jax.vmap(draw_one)
        return draw_one(keys)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density of a path."""
        return self.law.log_prob(self.component, {**self.law.values, self.component: value})


class Emission(dist.Distribution):
    """Observations of one kind along a path; batch shape (T, ...), one entry an observation.

    NaN means missing, and ``missing`` marks missing integers. They are replaced by a supported value before
    the density, not after it, which would give gradients of NaN.
    """

    arg_constraints: dict[str, Any] = {}
    checks_support = True

    def __init__(
        self, laws: Laws, key: str, path: dict[str, Array], inputs: PyTree, missing: Array | None = None
    ) -> None:
        self.laws, self.key, self.path, self.inputs, self.missing = laws, key, path, inputs, missing
        x0, u0 = jax.tree_util.tree_map(lambda x: x[0], (path, inputs))
        self.first = laws(bare(x0), u0)[key]
        length = jax.tree_util.tree_leaves(path)[0].shape[0]
        super().__init__((length, *self.first.batch_shape), self.first.event_shape)

    @property
    def support(self) -> Any:
        """Support of one observation."""
        return self.first.support

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw observations; missing ones too."""
        keys = jax.random.split(key, (*sample_shape, self.batch_shape[0]))

        def one(key: Key, x: PyTree, u: PyTree) -> Array:
            return self.laws(bare(x), u)[self.key].sample(key)

        fn = jax.vmap(one)
        for _ in sample_shape:
            fn = jax.vmap(fn, (0, None, None))
        return fn(keys, self.path, self.inputs)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density of each observation; 0 where missing."""
        value = jnp.asarray(value)
        check_observations(self.key or None, self.first, value.shape, self.batch_shape[0])

        def one(x: PyTree, u: PyTree, y: Array, missing: Array | None) -> Array:
            return masked_log_prob(self.laws(bare(x), u)[self.key], y, missing)

        return jax.vmap(one)(self.path, self.inputs, value, self.missing)

    def unusable(self, value: Array) -> tuple[Array, Array]:
        """How many observations are missing in part and have no density; whether the rest is supported."""
        value = jnp.asarray(value)

        def one(x: PyTree, u: PyTree, y: Array, missing: Array | None) -> tuple[Array, Array]:
            law = self.laws(bare(x), u)[self.key]
            gone, filled = missing_filled(law, y, missing)
            bad = jnp.isnan(_log_prob(law, filled, gone)) & jnp.any(gone)
            inside = jnp.asarray(True) if law.support is None else law.support(filled)
            return jnp.sum(bad), jnp.all(inside)

        bad, inside = jax.vmap(one)(self.path, self.inputs, value, self.missing)
        return jnp.sum(bad), jnp.all(inside)


def check_observations(site: str | None, law: Distribution, shape: tuple[int, ...], length: int) -> None:
    """Raise BroadcastError unless observations have the shape that the emission would draw at every time."""
    wanted = (length, *law.shape())
    if shape == wanted:
        return
    remedy = "reshape them, with time as the first axis"
    if len(shape) > len(wanted):
        several = ", ".join(map(str, shape[1:]))
        remedy = (
            "obs[:, 0] for one value a time, obs.T where time is the second axis, or, for several "
            f"independent values a time, .expand([{several}]) of the emission's distribution"
        )
    raise BroadcastError(
        "observations do not have the shape of what the emission draws, and would be scored several times",
        site=site,
        expected=f"shape {wanted}: times, then the shape of the emission's distribution",
        found=f"shape {shape}",
        remedy=remedy,
    )


def masked_log_prob(law: Distribution, y: Array, missing: Array | None = None) -> Array:
    """Log density of one time's observation, of the law's batch shape; 0 where it is missing.

    A vector that is missing in part is summed over those of its independent components that were observed;
    with dependent components it is NaN (checked beforehand where data are known).
    """
    gone, filled = missing_filled(law, y, missing)
    return _log_prob(law, filled, gone)


def _log_prob(law: Distribution, y: Array, gone: Array) -> Array:
    while isinstance(law, dist.ExpandedDistribution) and isinstance(law.base_dist, dist.Independent):
        # expansion of batches of vectors: the vectors' components stay independent
        inner = law.base_dist
        law = inner.base_dist.expand(law.batch_shape + inner.event_shape).to_event(
            inner.reinterpreted_batch_ndims
        )
    if isinstance(law, dist.Independent):
        terms = _log_prob(law.base_dist, y, gone)
        axes = tuple(range(-law.reinterpreted_batch_ndims, 0))
        return jnp.sum(terms, axes)
    log_prob = log_prob_in_support(law, y)
    if law.event_dim:
        axes = tuple(range(-law.event_dim, 0))
        some, every = jnp.any(gone, axes), jnp.all(gone, axes)
        return jnp.where(every, 0.0, jnp.where(some, jnp.nan, log_prob))
    return jnp.where(gone, 0.0, log_prob)


def missing_filled(law: Distribution, y: Array, missing: Array | None) -> tuple[Any, Any]:
    """Flags of the missing entries, and the observation with supported values in their place."""
    shape = law.shape()
    y = jnp.broadcast_to(y, jnp.broadcast_shapes(jnp.shape(y), shape))
    gone = jnp.isnan(y) if jnp.issubdtype(y.dtype, jnp.floating) else jnp.zeros(y.shape, bool)
    if missing is not None:
        mask = jnp.asarray(missing)
        gone = gone | jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), y.shape)
    if law.support is None:
        return gone, jnp.where(gone, 0, y)
    return gone, jnp.where(gone, law.support.feasible_like(y).astype(y.dtype), y)


def _elementwise(support: Any) -> Any:
    """The support of a single entry: without the declaration that its axes belong to one event."""
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    return support


def _dtype(law: Distribution) -> Any:
    if is_improper(law):  # nothing can be drawn from it
        return jnp.result_type(float)
    return jax.eval_shape(lambda: law.sample(jax.random.key(0))).dtype
