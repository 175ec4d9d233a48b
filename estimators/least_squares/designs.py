"""Random points at which to evaluate a function for a weighted least-squares fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from mcx.estimators.least_squares.basis import Basis, christoffel
from mcx.ops.keys import as_key
from mcx.ops.validation import integer, one_of, refuse, validated
from mcx.types import Array, Float, Key, KeyLike

SCHEMES = ("iid", "dpp", "volume")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Design:
    """Points and weights. A pytree.

    Attributes:
        basis: the functions to fit.
        points: (n, d). The marginal density of each is k_m / m under the reference measure.
        weights: (n,), m / k_m at the points; so n^-1 sum_i w_i g(x_i) has mean int g d mu.
        scheme: of :func:`design`; static.
    """

    basis: Basis
    points: Float[Array, "n d"]
    weights: Float[Array, " n"]
    scheme: str = field(metadata={"static": True})

    @property
    def unbiased(self) -> bool:
        """Whether the coefficients of a least-squares fit to these points are unbiased."""
        return is_unbiased(self.scheme, len(self.weights), self.basis.size)


def design(basis: Basis, n: int, *, scheme: str = "volume", key: KeyLike) -> Design:
    """Draw the points at which to evaluate a function.

    * ``"volume"``: generalised volume sampling, of density proportional to det G times that of i.i.d.: one
      projection DPP and n - m independent draws from k_m / m, in random order. Coefficients are unbiased.
    * ``"dpp"``: n / m independent projection DPPs. The Gram matrix is nearer to I than for the others with as
      many points, so errors are smallest; coefficients are unbiased for n = m only, where the fit
      interpolates.
    * ``"iid"``: independent draws from k_m / m. Needs n of the order of m log m, with a large constant;
      coefficients are biased.

    Args:
        basis: m functions.
        n: number of points, at least m; a multiple of m for ``"dpp"``.
        scheme: see above.
        key: a typed key, or an int.

    Raises:
        MethodError: for an unknown scheme, or a number of points that does not suit it.

    Costs n draws from k_m / m, and for each DPP O(m^3 log m), or O(M m^2) on a grid of M candidates. May be
    jitted and vmapped over keys.

    Sources: Cohen & Migliorati (2017) for "iid"; Derezinski, Warmuth & Hsu (2018, 2022) for "volume" and that
    it is unbiased; Nouy & Michel (2023), arXiv 2312.14057, for all three and their error bounds.
    """
    m = basis.size
    scheme = validated("design", "scheme", scheme, one_of(*SCHEMES))
    n = validated("design", "n", n, integer(1))
    if n < m:
        least = f"at least {m}, the number of functions"
        refuse("design", "n", n, least, "raise n=, or take a smaller basis")
    if scheme == "dpp" and n % m:
        multiple = f"a multiple of {m}, the size of a projection DPP"
        refuse("design", "n", n, multiple, 'round n=, or take scheme="volume"')
    return _draw(as_key(key), basis, n, scheme)


def is_unbiased(scheme: str, n: int, size: int) -> bool:
    """Whether a fit of ``size`` functions to n points of a scheme has unbiased coefficients."""
    return scheme == "volume" or (scheme == "dpp" and n == size)


@partial(jax.jit, static_argnums=(2, 3))
def _draw(key: Key, basis: Basis, n: int, scheme: str) -> Design:
    m = basis.size
    key_dpp, key_iid, key_order = jax.random.split(key, 3)
    if scheme == "iid":
        points = basis.draw(key_iid, n)
    elif scheme == "dpp":
        points = jax.vmap(basis.draw_dpp)(jax.random.split(key_dpp, n // m)).reshape(n, basis.dim)
    else:
        points = basis.draw_dpp(key_dpp)
        if n > m:
            points = jnp.concatenate([points, basis.draw(key_iid, n - m)])
        points = jax.random.permutation(key_order, points)
    return Design(basis, points, m / christoffel(basis, points), scheme)
