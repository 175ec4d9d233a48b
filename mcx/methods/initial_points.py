"""Initial points of Markov chains: what ``init=`` means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.errors import CapabilityError, InitializationError
from mcx.ops.arrays import numbers_of
from mcx.sites import Site, SiteTable
from mcx.target import Target
from mcx.types import Array, Flags, Float, Int, Key, PyTree, Scalar

MAX_TRIES = 100
DEFAULT_RADIUS = 2.0  # Stan's
_NUM_CANDIDATES = 16


class InitialPoints(NamedTuple):
    """Each chain starts at ``position + radius * uniform(-1, 1)``, which is drawn up to ``tries`` times.

    All three have a leading chain axis outside of kernels; positions are unconstrained vectors. There is one
    radius for all coordinates, or one for each.
    """

    position: Float[Array, "*chain d"]
    radius: Float[Array, "*chain"] | Float[Array, "*chain d"]
    tries: Int[Array, "*chain"]


def refuse_unknown(init: PyTree, sites: SiteTable) -> None:
    """Raise InitializationError if ``init=`` has values for what is no latent site of a model."""
    latent = [site.name for site in sites.of_kind("latent", "discrete")]
    for name in init if isinstance(init, Mapping) else ():
        if name not in latent:
            raise InitializationError(
                "init= names what is no latent site",
                site=str(name),
                expected="one of " + ", ".join(latent),
                remedy="see bound.sites()",
            )


def as_initial_points(target: Target, init: PyTree, num_chains: int, key: Key) -> InitialPoints:
    """Turn ``init=`` into initial points.

    It is None (uniform on (-2, 2) in unconstrained space), a radius, "prior", or a dictionary of constrained
    values of the sites' shapes, or with a leading chain axis; sites without a value start as with None.

    Raises:
        InitializationError, CapabilityError: if ``init`` does not fit the model.
    """
    positions = jnp.zeros((num_chains, target.dim))
    radius: float | Array = DEFAULT_RADIUS
    tries = MAX_TRIES
    if isinstance(init, int | float) and not isinstance(init, bool) and 0 <= init < math.inf:
        radius = float(init)
    elif isinstance(init, str) and init == "prior":
        positions, radius, tries = _prior_draws(target, num_chains, key), 0.0, 1
    elif isinstance(init, Mapping):
        positions, free = _positions(target, init, num_chains)
        radius, tries = (0.0, 1) if free is None else (free, MAX_TRIES)
    elif init is not None:
        raise InitializationError(
            "init= is not understood",
            expected='None, "prior", a radius, or a dictionary of constrained values',
            found=repr(init),
        )
    radii = jnp.broadcast_to(jnp.asarray(radius, positions.dtype), (num_chains, *jnp.shape(radius)))
    return InitialPoints(positions, radii, jnp.full(num_chains, tries, jnp.int32))


def best_initial_point(
    attempt: Callable[[Int[Array, ""]], tuple[Scalar, PyTree]], start: InitialPoints
) -> PyTree:
    """The state of the largest score among 16 initial points of a chain, or the first usable one if none is.

    ``attempt`` makes of a try's number ``(score, state)``; ``state.started`` says whether its point is
    usable. Where there is no choice (radius 0), the first usable point is taken.
    """
    radius = jnp.max(start.radius) if jnp.ndim(start.radius) else start.radius
    wanted = jnp.where(radius > 0, _NUM_CANDIDATES, 1)

    def unfinished(carry: PyTree) -> Flags:
        tries, (_, state) = carry
        return (tries < wanted) | (~state.started & (tries < start.tries))

    def another(carry: PyTree) -> PyTree:
        tries, best = carry
        new = attempt(tries)
        better = (tries == 0) | (new[0] > best[0])
        return tries + 1, jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)

    zero = jnp.zeros((), jnp.int32)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(attempt, zero))
    return jax.lax.while_loop(unfinished, another, (zero, blank))[1][1]


def _prior_draws(target: Target, num_chains: int, key: Key) -> Float[Array, "chain d"]:
    draw = target.sample_prior
    if draw is None:
        raise CapabilityError(
            'init="prior" needs a proper prior that can be drawn from',
            site=next((s.name for s in target.sites if s.improper), None),
            remedy="start from the default, or from values: init={'site': value}",
        )
    return jax.vmap(lambda k: target.ravel(draw(k)))(jax.random.split(key, num_chains))


def _positions(
    target: Target, init: Mapping[str, ArrayLike], num_chains: int
) -> tuple[Float[Array, "chain d"], Float[Array, " d"] | None]:
    """Unconstrained initial points from constrained values, and radii where some sites have none."""
    sites = target.sites.of_kind("latent")
    values = {s.name: value_by_chain(s, init[s.name], num_chains) for s in sites if s.name in init}
    free = [s.name for s in sites if s.name not in init]
    if not free:
        return jax.vmap(lambda v: target.ravel(target.unconstrain(v)))(values), None
    # sites without a value stand at the origin while those with one are mapped
    origin = target.constrain(target.unravel(jnp.zeros(target.dim)))

    def point(given: dict[str, Array]) -> dict[str, Array]:
        z = target.unconstrain({**{name: origin[name] for name in free}, **given})
        return {name: jnp.zeros_like(x) if name in free else x for name, x in z.items()}

    radii = {name: jnp.full(shape, DEFAULT_RADIUS * (name in free)) for name, shape in target.shapes}
    if not values:
        return jnp.zeros((num_chains, target.dim)), target.ravel(radii)
    return jax.vmap(lambda given: target.ravel(point(given)))(values), target.ravel(radii)


def value_by_chain(site: Site, value: ArrayLike, num_chains: int) -> Float[Array, "chain ..."]:
    """A site's initial value for every chain, from a value of the site's shape or one with a chain axis.

    Raises:
        InitializationError: if it is no array of numbers, or has another shape.
    """
    dtype = site.dtype if site.kind == "discrete" else jnp.result_type(float)
    what, shape = "init= has no number for this site", f"an array of shape {site.shape}"
    found = numbers_of(value, what, site=site.name, expected=shape, error=InitializationError)
    value = jnp.asarray(found, dtype)
    if value.shape == site.shape:
        value = jnp.broadcast_to(value, (num_chains, *site.shape))
    if value.shape != (num_chains, *site.shape):
        raise InitializationError(
            "init= has the wrong shape",
            site=site.name,
            expected=f"{site.shape}, or {(num_chains, *site.shape)} for one value a chain",
            found=str(value.shape),
        )
    return value
