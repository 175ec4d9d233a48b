"""Independent inputs, and polynomials that are orthonormal under their law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.errors import DataError
from mcx.estimators.polynomials.hermite import hermite_basis, highest_degree
from mcx.estimators.polynomials.orthonormal import products, univariate
from mcx.types import Array, Float, Key

_DRAWS = 4096
_HIGHEST = {"hermite": 8, "legendre": 16}  # high Hermite polynomials live where samples do not go


@dataclass(frozen=True)
class Products:
    """Products of univariate polynomials, orthonormal under independent inputs in standard form. Hashable.

    families: of each input: "hermite", "legendre", or None for one that has no polynomials.
    degree: the highest total one.
    """

    families: tuple[str | None, ...]
    degree: int

    @classmethod
    def at_most(cls, families: tuple[str | None, ...], most: int) -> Products:
        """Products of the highest degree with at most ``most`` polynomials beside the constant."""
        known = [f for f in families if f is not None]
        limit = min((_HIGHEST[f] for f in known), default=0)
        return cls(families, highest_degree(len(known), most, limit) if known else 0)

    @property
    def exponents(self) -> np.ndarray:
        """Degrees (K, d) in each input; the constant comes first, then lower total degrees."""
        known = [i for i, f in enumerate(self.families) if f is not None]
        rows = hermite_basis(len(known), self.degree) if known else np.zeros((0, 0), int)
        found = np.zeros((1 + len(rows), len(self.families)), int)
        found[1:, known] = rows
        return found

    def values(self, t: Float[Array, "n d"]) -> Float[Array, "n K"]:
        """Polynomials (n, K) at points (n, d) in standard form. Costs O(n K d)."""
        tables = {f: univariate(t, f, self.degree) for f in sorted({f for f in self.families if f})}
        if not tables or not self.degree:
            return jnp.ones((len(t), 1), t.dtype)
        table = tables.popitem()[1]
        for family, other in tables.items():
            table = jnp.where(np.asarray([f == family for f in self.families]), other, table)
        return products(table, self.exponents)


@dataclass(frozen=True)
class Inputs:
    """Independent variables.

    Attributes:
        parts: NumPyro distributions of numbers, of batch shape () or (m,), one after another.
        sizes: numbers of variables of each.
    """

    parts: tuple[dist.Distribution, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, law: dist.Distribution | Sequence[dist.Distribution]) -> Inputs:
        """Take a law of vectors with independent components, or laws of numbers; DataError for others."""
        if isinstance(law, Sequence):
            for i, part in enumerate(law):
                if getattr(part, "event_shape", None) != () or part.batch_shape != ():
                    raise DataError(
                        f"input {i} of law is not the law of a number",
                        expected="NumPyro distributions of event shape () and batch shape ()",
                        found=repr(part)[:100],
                    )
            if law:
                return cls(tuple(law), (1,) * len(law))
        elif isinstance(law, dist.Independent) and not law.batch_shape and len(law.event_shape) == 1:
            if not law.base_dist.event_shape:
                return cls((law.base_dist,), law.event_shape)
        raise DataError(
            "the components of law are not known to be independent",
            expected="a NumPyro distribution of numbers with .expand([d]).to_event(1), or a list of some",
            found=f"{type(law).__name__} of event shape {getattr(law, 'event_shape', None)} and batch shape "
            f"{getattr(law, 'batch_shape', None)}",
            remedy="write dependent inputs as functions of independent ones",
        )

    @property
    def dim(self) -> int:
        """Number of variables d."""
        return sum(self.sizes)

    @property
    def families(self) -> tuple[str | None, ...]:
        """The family of polynomials of each variable; see :class:`Products`."""
        return tuple(f for part, m in zip(self.parts, self.sizes, strict=True) for f in (_family(part),) * m)

    def sound_families(self) -> tuple[str | None, ...]:
        """The families, with None where the standard form of draws does not have the law that it should.

        A distribution function known in theory may be useless in float32, as far out in a tail: moments of
        draws in standard form are then 6 standard errors off those of N(0, 1), or of the uniform law.
        """
        families = self.families
        if not any(families):
            return families
        t = np.asarray(self.standard(self.sample(jax.random.key(0), _DRAWS)), np.float64)
        sound = []
        for column, family in zip(t.T, families, strict=True):
            # standard errors of t and t^2: sds of N(0, 1) are 1 and sqrt(2), those of U(-1, 1) below
            second, *sds = (1 / 3, 3**-0.5, (4 / 45) ** 0.5) if family == "legendre" else (1.0, 1.0, 2**0.5)
            off = abs(column.mean()) / sds[0], abs((column**2).mean() - second) / sds[1]
            fine = np.isfinite(column).all() and max(off) < 6 / _DRAWS**0.5
            fine = fine and len(np.unique(column)) > _DRAWS // 2
            sound.append(family if fine else None)
        return tuple(sound)

    def sample(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Draws (n, d)."""
        keys = jax.random.split(key, len(self.parts))
        drawn = [p.sample(k, (n,)).reshape(n, -1) for p, k in zip(self.parts, keys, strict=True)]
        return jnp.concatenate([x.astype(jnp.result_type(float)) for x in drawn], 1)

    def quantiles(self, u: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Quantiles at u in (0, 1); NaN for inputs without a quantile function, see :meth:`invertible`."""
        columns = jnp.split(u, np.cumsum(self.sizes)[:-1], 1)
        found = [_quantile(part, column) for part, column in zip(self.parts, columns, strict=True)]
        return jnp.concatenate(found, 1)

    def invertible(self) -> np.ndarray:
        """Whether each input (d,) has a quantile function that agrees with its draws.

        The distance of Kolmogorov and Smirnov between both is compared with 2.5 / sqrt(draws), which chance
        exceeds once in 10^5.
        """
        grid = (np.arange(_DRAWS) + 0.5) / _DRAWS
        dtype = jnp.result_type(float)
        levels = jnp.broadcast_to(jnp.asarray(grid, dtype)[:, None], (_DRAWS, self.dim))
        x = np.asarray(self.quantiles(levels))
        drawn = np.sort(np.asarray(self.sample(jax.random.key(0), _DRAWS)), 0)
        fine = []
        for column, seen in zip(np.sort(x, 0).T, drawn.T, strict=True):
            below = np.searchsorted(seen, column, side="right") / _DRAWS
            gap = np.abs(below - np.searchsorted(column, column, side="right") / _DRAWS).max()
            fine.append(bool(np.isfinite(column).all() and gap < 2.5 / _DRAWS**0.5))
        return np.array(fine)

    def standard(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Points in standard form: each variable is N(0, 1), or uniform on [-1, 1], by its family."""
        columns = jnp.split(x, np.cumsum(self.sizes)[:-1], 1)
        found = [_standard(part, column) for part, column in zip(self.parts, columns, strict=True)]
        return jnp.concatenate(found, 1)


def _root[T: (Array, float)](law: dist.Distribution, x: T) -> tuple[dist.Distribution, T]:
    """The law that this one is a transformation of, and the points that x came from."""
    while True:
        if isinstance(law, dist.ExpandedDistribution):
            law = law.base_dist
        elif isinstance(law, dist.TransformedDistribution):
            for transform in reversed(law.transforms):
                x = transform.inv(x)
            law = law.base_dist
        else:
            return law, x


def _family(law: dist.Distribution) -> str | None:
    if _folded(law):
        return None
    root, _ = _root(law, 0.5)
    if isinstance(root, dist.Normal):
        return "hermite"
    if root.support is None or root.support.is_discrete:
        return None
    try:
        jax.eval_shape(root.cdf, jnp.zeros(root.batch_shape))
    except NotImplementedError:
        return None
    bounded = hasattr(root.support, "lower_bound") and hasattr(root.support, "upper_bound")
    return "legendre" if bounded else "hermite"


def _folded(law: dist.Distribution) -> bool:
    """Whether points come from several of the law underneath, as absolute values do."""
    while isinstance(law, dist.ExpandedDistribution | dist.TransformedDistribution):
        if any(isinstance(t, dist.transforms.AbsTransform) for t in getattr(law, "transforms", ())):
            return True
        law = law.base_dist
    return isinstance(law, dist.FoldedDistribution)


def _standard(law: dist.Distribution, x: Array) -> Array:
    family = _family(law)
    if family is None:
        return jnp.zeros_like(x)
    root, z = _root(law, x)
    if isinstance(root, dist.Normal):
        return (z - root.loc) / root.scale
    margin = jnp.finfo(x.dtype).eps / 2
    u = jnp.clip(root.cdf(z), margin, 1 - margin)
    return 2 * u - 1 if family == "legendre" else jax.scipy.special.ndtri(u)


def _quantile(law: dist.Distribution, u: Array) -> Array:
    """Draws of a law of numbers from uniform ones; not increasing in them where a transform is not."""
    if isinstance(law, dist.ExpandedDistribution):
        return _quantile(law.base_dist, u)
    if isinstance(law, dist.TransformedDistribution):
        x = _quantile(law.base_dist, u)
        for transform in law.transforms:
            x = transform(x)
        return x
    try:
        return jnp.broadcast_to(law.icdf(u), u.shape).astype(u.dtype)
    except (NotImplementedError, ImportError):
        return jnp.full_like(u, jnp.nan)
