"""The functions of a Markov block's Feynman-Kac model, of one time each, with the parameters as arguments.

The program runs once with values of the parameters; what the block's functions close over then becomes their
argument, the context. So the loop over time runs the block's own code alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from mcx.errors import CapabilityError, ModelError
from mcx.model.series.density_bounds import BOUND
from mcx.model.series.reading import latent_shapes
from mcx.ops.batched_draws import ParticleKey
from mcx.ops.closure_conversion import ConvertedClosure, convert_closure
from mcx.target import Target
from mcx.types import Key, PyTree, Scalar, SiteValues

Functions = dict[str, Callable[..., Any]]


class Block(Protocol):
    """A Markov block of a program: an ``mcx.markov`` statement, or a scan.

    Attributes:
        params: names of the parameters.
        state_names: sites that ``states`` gives.
        start_names: further latent sites that belong to the path, but to no time.
        own_names: all sites whose densities belong to the block: those of the path, observations, factors.
        guided: whether particles are drawn from a proposal that knows the observation.
        looks_ahead: whether there is a "lookahead" among the functions.
        no_density: why there is no transition density; empty where there is one.
        no_forecast: why observations cannot be forecast; empty where they can.
        examples: shapes and dtypes of the functions' arguments, by role.
    """

    name: str
    length: int
    params: tuple[str, ...]
    state_names: tuple[str, ...]
    start_names: tuple[str, ...]
    own_names: tuple[str, ...]
    guided: bool
    looks_ahead: bool
    no_density: str
    no_forecast: str
    examples: dict[str, tuple[Any, ...]]

    def functions(self, data: PyTree, params: SiteValues) -> Functions:
        """One time's functions by role, closing over what the parameters determine.

        The roles and their arguments: initial ``(particle_key, u)``; transition ``(particle_key, x_prev,
        u)``; potential_0 and density_0 ``(x, u)``; potential and density ``(x_prev, x, u)``; observe ``(key,
        x, u)``, which returns values by site. Not in all blocks: lookahead ``(x, u_next)``; transition_bound
        ``(x_prev, u)``; and where a particle holds more than values of sites, place_0 ``({site: value}, u)``
        and place ``(x_prev, {site: value}, u)``, which make the particle from the values of its sites.
        """

    def series(self, data: PyTree) -> dict[str, PyTree]:
        """The data of all times, (T, ...) each: inputs ``u``, observations ``y`` and masks ``missing``."""

    def supports(self, data: PyTree, params: SiteValues) -> dict[str, Any]:
        """The support of each parameter's site, which may depend on the other parameters."""

    def states(self, x: PyTree) -> dict[str, Array]:
        """Values of a particle by site."""

    def view(self, x: PyTree) -> PyTree:
        """A particle as the program's own functions see the state."""

    def path_values(self, path: PyTree) -> dict[str, Array]:
        """Values of a path by site, those of ``start_names`` included."""

    def path_of(self, values: SiteValues) -> PyTree:
        """The path with these values; for blocks whose particles hold nothing else."""

    def observed(self, u: PyTree) -> dict[str, Array]:
        """Observations among the series, by site."""


class BlockFunctions:
    """The compiled functions of a block, shared by all data of one structure."""

    def __init__(self, target: Target, block: Block) -> None:
        self.block = block
        self.code: dict[str, ConvertedClosure] = {}
        shapes = latent_shapes(target)
        jax.eval_shape(self._contexts, target.data, {k: shapes[k] for k in block.params})
        self.contexts = jax.jit(self._contexts)
        self.series = jax.jit(block.series)
        self.valid = jax.jit(self._valid)

    def prepare(self, data: PyTree, params: PyTree) -> PyTree:
        """The context: the values that each function closes over."""
        strong = {k: jnp.asarray(v, jnp.result_type(v)) for k, v in dict(params or {}).items()}
        return self.contexts(data, strong)

    def initial(self, particle_key: ParticleKey, ctx: PyTree, u: PyTree) -> PyTree:
        """A draw of x_0."""
        return self.code["initial"](ctx["initial"], particle_key, u)

    def transition(self, particle_key: ParticleKey, ctx: PyTree, x_prev: PyTree, u: PyTree) -> PyTree:
        """A draw of x_t given x_{t-1}."""
        return self.code["transition"](ctx["transition"], particle_key, x_prev, u)

    def log_potential(self, ctx: PyTree, x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
        """Log density of the observations of one time."""
        if x_prev is None:
            return self.code["potential_0"](ctx["potential_0"], x, u)
        return self.code["potential"](ctx["potential"], x_prev, x, u)

    def log_transition(self, ctx: PyTree, x_prev: PyTree, x: PyTree, u: PyTree) -> Scalar:
        """Log density of x_t given x_{t-1}."""
        return self.code["density"](ctx["density"], x_prev, x, u)

    def log_transition_bound(self, ctx: PyTree, x_prev: PyTree, u: PyTree) -> Scalar:
        """The largest log density of x_t given x_{t-1}."""
        return self.code[BOUND](ctx[BOUND], x_prev, u)

    def log_initial(self, ctx: PyTree, x: PyTree, u: PyTree) -> Scalar:
        """Log density of x_0."""
        return self.code["density_0"](ctx["density_0"], x, u)

    def log_lookahead(self, ctx: PyTree, x: PyTree, u_next: PyTree) -> Scalar:
        """The log of a guess at the density of the next observation."""
        return self.code["lookahead"](ctx["lookahead"], x, u_next)

    def path_of(self, ctx: PyTree, values: SiteValues, inputs: PyTree) -> PyTree:
        """The path with these values by site; what else its particles hold is computed from the context."""
        if "place" not in self.code:
            return self.block.path_of(values)
        series = {site: values[site] for site in self.block.state_names}
        first, rest = (
            jax.tree_util.tree_map(lambda x, part=part: jnp.asarray(x)[part], (series, inputs))
            for part in (0, slice(1, None))
        )
        start = {site: values[site] for site in self.block.start_names}
        x0 = self.code["place_0"](ctx["place_0"], {**first[0], **start}, first[1])

        def step(x_prev: PyTree, now: PyTree) -> tuple[Any, Any]:
            x = self.code["place"](ctx["place"], x_prev, *now)
            return x, x

        _, later = jax.lax.scan(step, x0, rest)
        return jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a[None], b]), x0, later)

    def observe(self, key: Key, ctx: PyTree, x: PyTree, u: PyTree) -> dict[str, Array]:
        """A draw of the observations of one time."""
        if self.block.no_forecast:
            raise CapabilityError(
                f"observations cannot be forecast: {self.block.no_forecast}",
                site=self.block.name,
                expected="states to come that do not depend on observations to come",
                remedy="carry the state alone; or simulate further times with BoundModel.simulate",
            )
        drawn: dict[str, Array] = self.code["observe"](ctx["observe"], key, x, u)
        return drawn

    def _contexts(self, data: PyTree, params: PyTree) -> dict[str, Any]:
        consts = {}
        for role, fn in self.block.functions(data, params).items():
            code, consts[role] = convert_closure(fn, *self.block.examples[role])
            kept = self.code.setdefault(role, code)
            if kept.avals != code.avals:
                raise ModelError(
                    "the functions of the Markov block close over different values each time the model runs",
                    site=self.block.name,
                    expected=str(kept.avals),
                    found=str(code.avals),
                    remedy="build them from the model's arguments and parameters alone",
                )
        return consts

    def _valid(self, data: PyTree, params: PyTree) -> dict[str, Array]:
        """Whether each parameter lies in its site's support."""
        return {
            k: jnp.asarray(True) if s is None else jnp.all(s(jnp.asarray(params[k])))
            for k, s in self.block.supports(data, params).items()
        }


def examples(x: PyTree, u: PyTree) -> dict[str, tuple[Any, ...]]:
    """Arguments of the functions of all roles, for a particle and the data of one time."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    particle_key = ParticleKey(key, jax.ShapeDtypeStruct((), jnp.int32))
    return {
        "initial": (particle_key, u),
        "transition": (particle_key, x, u),
        "potential_0": (x, u),
        "potential": (x, x, u),
        "density_0": (x, u),
        "density": (x, x, u),
        BOUND: (x, u),
        "observe": (key, x, u),
        "lookahead": (x, u),
    }
