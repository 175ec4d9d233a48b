"""What importance samples are drawn from: Gaussians, Student t's, any distributions, and mixtures of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import DTypeLike

from mcx.errors import MethodError
from mcx.model.support import log_prob_in_support
from mcx.ops.random import choose
from mcx.types import Array, Float, Int, Key

type Part = Elliptical | Drawable | dist.Distribution
"""A part of a :class:`Mixture`, of one or several components; see :func:`as_part`."""

_MOST_NORMALS = 10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Elliptical:
    """Gaussians, or Student t's with the same degrees of freedom.

    Attributes:
        loc: (C, d).
        scale_tril: (C, d, d), lower triangular factors of the scale matrices.
        df: degrees of freedom; None for Gaussians; static.
    """

    loc: Float[Array, "C d"]
    scale_tril: Float[Array, "C d d"]
    df: float | None = field(default=None, metadata={"static": True})

    @property
    def count(self) -> int:
        """Number of components."""
        return int(self.loc.shape[0])

    def log_prob(self, x: Float[Array, "n d"]) -> Float[Array, "n C"]:
        """Log densities (n, C) at points (n, d). Costs O(n C d^2)."""
        d = self.loc.shape[1]
        eye = jnp.broadcast_to(jnp.eye(d, dtype=self.scale_tril.dtype), self.scale_tril.shape)
        # solving for all points instead is up to forty times slower: XLA goes through them one by one
        inverses = jax.lax.linalg.triangular_solve(self.scale_tril, eye, left_side=True, lower=True)

        def one(loc: Array, tril: Array, inverse: Array) -> Array:
            square = jnp.sum((inverse @ (x - loc).T) ** 2, 0)
            log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(tril))))
            if self.df is None:
                return -0.5 * square - log_det - 0.5 * d * math.log(2 * math.pi)
            half = 0.5 * (self.df + d)
            norm = math.lgamma(half) - math.lgamma(0.5 * self.df) - 0.5 * d * math.log(self.df * math.pi)
            return norm - log_det - half * jnp.log1p(square / self.df)

        return jax.vmap(one, out_axes=1)(self.loc, self.scale_tril, inverses)

    def sample(self, key: Key, component: Int[Array, " n"]) -> Float[Array, "n d"]:
        """One draw (n, d) from each of the components with these indices (n,)."""
        key_z, key_scale = jax.random.split(key)
        n, d = component.shape[0], self.loc.shape[1]
        z = jax.random.normal(key_z, (n, d), self.loc.dtype)
        if self.df is not None:
            chi2 = _chi_square(key_scale, self.df, n, self.loc.dtype)
            z = z * jnp.sqrt(self.df / chi2)[:, None]
        return self.loc[component] + jnp.einsum("nij,nj->ni", self.scale_tril[component], z)


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Drawable:
    """Any object with ``sample(key, n)`` and ``log_prob(x)``, as one component; see :func:`as_part`.

    Attributes:
        of: the object. Programs are compiled for each object, and used again for the same one.
    """

    of: Any
    count = 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Drawable) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)

    def log_prob(self, x: Float[Array, "n d"]) -> Float[Array, "n 1"]:
        """Log densities (n, 1) at points (n, d)."""
        found = jnp.asarray(self.of.log_prob(x), x.dtype)
        if found.shape != x.shape[:1]:
            raise MethodError(
                "log_prob of a proposal has the wrong shape",
                expected=f"{x.shape[:1]} of points {x.shape}",
                found=repr(found.shape),
            )
        return jnp.where(jnp.isnan(found), -jnp.inf, found)[:, None]

    def sample(self, key: Key, component: Int[Array, " n"]) -> Float[Array, "n d"]:
        """A draw for each entry of ``component``, whose values are all 0."""
        n = component.shape[0]
        found = jnp.asarray(self.of.sample(key, n), jnp.result_type(float))
        if found.ndim != 2 or found.shape[0] != n:
            raise MethodError(
                "draws of a proposal have the wrong shape", expected=f"({n}, d)", found=repr(found.shape)
            )
        return found


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A mixture of distributions on (d,).

    Attributes:
        parts: :class:`Elliptical`, NumPyro distributions of event shape (d,) and batch shape () or (C,),
            which count as C components, or :class:`Drawable`.
        log_weights: (components,), of all parts one after another; need not be normalised.
    """

    parts: tuple[Part, ...]
    log_weights: Float[Array, " C"]

    @property
    def kept(self) -> Mixture:
        """The mixture itself: see :class:`~mcx.estimators.importance.history.AdaptiveProposal`."""
        return self

    def log_past(self, kept: Mixture, x: Float[Array, "n d"]) -> Float[Array, "iteration n"]:
        """Log densities of points under stacked mixtures."""
        return jax.vmap(lambda one: one.log_prob(x))(kept)

    @jax.jit
    def log_components(self, x: Float[Array, "n d"]) -> Float[Array, "n C"]:
        """Log densities of all components (n, components) at points (n, d)."""
        return log_parts(self.parts, x)

    @jax.jit
    def log_prob(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Log density (n,) at points (n, d)."""
        return mixed(self.log_components(x), self.log_weights)

    @partial(jax.jit, static_argnames="n")
    def sample(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Independent draws (n, d). Costs O(n d^2) a part, and O(n C d) for a batch of distributions."""
        key_which, *keys = jax.random.split(key, 1 + len(self.parts))
        which = choose(key_which, self.log_weights, (n,))
        begin, found = 0, jnp.zeros((n, 0))
        for part, key_part in zip(self.parts, keys, strict=True):
            count = num_components(part)
            own = jnp.clip(which - begin, 0, count - 1)
            drawn = _draw(part, key_part, own, n)
            here = (which >= begin) & (which < begin + count)
            found = jnp.where(here[:, None], drawn, found) if begin else drawn
            begin += count
        return found


def log_parts(parts: tuple[Part, ...], x: Float[Array, "n d"]) -> Float[Array, "n C"]:
    """Log densities (n, components) of all parts one after another."""
    return jnp.concatenate([x[:, :0], *(log_densities(part, x) for part in parts)], 1)


def mixed(log_components: Float[Array, "n C"], log_weights: Float[Array, " C"]) -> Float[Array, " n"]:
    """Log density of a mixture (n,) from those of its components (n, C) and their log weights (C,)."""
    return jax.nn.logsumexp(log_components + jax.nn.log_softmax(log_weights), 1)


def as_mixture(*parts: Any) -> Mixture:
    """A mixture in equal proportions.

    Args:
        *parts: :class:`Elliptical`, NumPyro distributions, or whatever has ``sample`` and ``log_prob``; see
            :func:`as_part`.

    Raises:
        MethodError: for anything that is not a distribution of vectors.
    """
    made = tuple(map(as_part, parts))
    return Mixture(made, jnp.zeros(sum(map(num_components, made))))


def as_part(part: Any) -> Part:
    """Make a distribution, or an object that acts like one, a part of a :class:`Mixture`.

    Args:
        part: :class:`Elliptical`; a NumPyro distribution of event shape (d,) and batch shape () or (C,), such
            as a ``TransformedDistribution`` with a trained flow; or another object with ``sample(key, n)``,
            which returns n draws (n, d), and ``log_prob(x)``, which takes points (n, d) and returns (n,).
            Both are traced by JAX, with what the object holds as constants. The density has to be normalised.

    Raises:
        MethodError: for anything else.
    """
    if isinstance(part, Elliptical | Drawable):
        return part
    if not hasattr(part, "event_shape") and callable(getattr(part, "sample", None)):
        if callable(getattr(part, "log_prob", None)):
            return Drawable(part)
    if len(getattr(part, "event_shape", ())) != 1:
        raise MethodError(
            "a proposal is a distribution of vectors",
            expected="a NumPyro distribution with one event dimension, or an object with sample(key, n) and "
            "log_prob(x)",
            found=f"{type(part).__name__} with event shape {getattr(part, 'event_shape', None)}",
            remedy="make it one with .to_event(1), or expand it to shape (1,)",
        )
    if len(part.batch_shape) > 1:
        raise MethodError("a batch of proposals has one axis", expected="(C,)", found=repr(part.batch_shape))
    return part


def fit_elliptical(
    x: Float[Array, "n d"],
    log_w: Float[Array, "n C"],
    *,
    df: float | None = None,
    jitter: float = 1e-6,
    shrink_to: Float[Array, "C d d"] | None = None,
) -> Elliptical:
    """Gaussians with the moments of weighted points: the closest of all in Kullback-Leibler divergence.

    Each column of log weights gives a component, or a Student t of the same covariance where it exists.
    ``jitter`` is added to covariances, as a share of the points' own variances; those of ``shrink_to`` count
    as d + 1 points beside a component's effective number, as few points say little about a covariance. Costs
    O(n C d^2).
    """
    w = jax.nn.softmax(jnp.where(jnp.isnan(log_w), -jnp.inf, log_w), 0)  # (n, C)
    loc = w.T @ x
    spread = jnp.var(x, 0) * jitter + jnp.finfo(x.dtype).tiny

    def one(mean: Array, weight: Array, other: Array | None) -> Array:
        centred = x - mean
        cov = (centred * weight[:, None]).T @ centred
        if other is not None:
            share = 1 / (1 + (x.shape[1] + 1) * jnp.sum(weight**2))
            cov = share * cov + (1 - share) * other
        cov = cov + jnp.diag(spread)
        return jnp.linalg.cholesky(cov if df is None else cov * max((df - 2) / df, 0.5))

    return Elliptical(loc, jax.vmap(one, (0, 1, None if shrink_to is None else 0))(loc, w, shrink_to), df)


def _chi_square(key: Key, df: float, n: int, dtype: DTypeLike) -> Array:
    if df == int(df) and df <= _MOST_NORMALS:  # compiles in a tenth of the time of a gamma variable
        return jnp.sum(jax.random.normal(key, (int(df), n), dtype) ** 2, 0)
    return 2 * jax.random.gamma(key, 0.5 * df, (n,), dtype)


def num_components(part: Part) -> int:
    """How many components of a mixture a part counts as."""
    if isinstance(part, Elliptical | Drawable):
        return part.count
    return int(part.batch_shape[0]) if part.batch_shape else 1


def log_densities(part: Part, x: Float[Array, "n d"]) -> Float[Array, "n C"]:
    """Log densities (n, C) of a part of a :class:`Mixture`; -inf outside of the support."""
    if isinstance(part, dist.MultivariateNormal):
        part = _elliptical(part)
    if isinstance(part, Elliptical | Drawable):
        return part.log_prob(x)
    value = log_prob_in_support(part, x[:, None] if part.batch_shape else x)
    return value if part.batch_shape else value[:, None]


def _elliptical(law: dist.MultivariateNormal) -> Elliptical:
    d = law.event_shape[0]
    loc = jnp.broadcast_to(law.loc, (*law.batch_shape, d))
    tril = jnp.broadcast_to(law.scale_tril, (*law.batch_shape, d, d))
    return Elliptical(loc.reshape(-1, d), tril.reshape(-1, d, d))


def _draw(part: Part, key: Key, component: Array, n: int) -> Array:
    if isinstance(part, Elliptical | Drawable):
        return part.sample(key, component)
    if not part.batch_shape:
        return part.sample(key, (n,))
    drawn = part.sample(key, (n,))  # (n, C, d)
    return jnp.take_along_axis(drawn, component[:, None, None], 1)[:, 0]
