"""Resampling schemes: from weighted particles to equally weighted ones.

A scheme is a function ``(key, log_w, num) -> ancestors`` as :class:`Resampling` describes it: of n weighted
particles it draws the indices of ``num`` parents such that parent i has ``num * W_i`` offspring on average,
where W are the normalised weights.

===========  ============================  ===================================  ======================
scheme       offspring of parent i         order of the ancestors               ancestors, given W
===========  ============================  ===================================  ======================
multinomial  binomial                      none                                 independent, identical
stratified   within 2 of ``num * W_i``     sorted                               independent
systematic   ``num * W_i``, rounded        sorted                               dependent
residual     at least its integer part     certain ones sorted, others not      dependent
ssp          ``num * W_i``, rounded        sorted                               dependent
killing      itself and binomially more    survivors keep their places          independent
birth_death  itself, if not too light      survivors keep their places          independent
===========  ============================  ===================================  ======================

Degenerate weights mean the same to all of them. A parent of weight zero (-inf; NaN counts as that) has no
offspring. If all have weight zero, all count as equally weighted: the caller has to look at the weights. If
some are +inf, those alone count, equally. Adding a constant to the log weights changes nothing. In float32 a
weight below about 1e-7 of the total may be taken for zero, and past a million particles the expectation for a
single parent is off by percents, though not that for many together (Murray, Lee & Jacob 2016).

Their discrete draws are made by :func:`mcx.ops.random.choose` and :func:`mcx.ops.random.accept`; only the
offsets of :func:`stratified` and :func:`systematic` are continuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.inference.smc.resampling_schemes import (
    birth_death,
    killing,
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
)
from mcx.ops.logspace import as_float, effective_sample_size, normalize
from mcx.ops.tracing import is_traced
from mcx.ops.validation import Rule
from mcx.types import Array, Bool, Index, Key, LogWeights, PyTree, Scalar

__all__ = [
    "SCHEMES",
    "Resampled",
    "Resampling",
    "adaptive",
    "as_resampling",
    "birth_death",
    "killing",
    "multinomial",
    "resampling_rule",
    "residual",
    "ssp",
    "stratified",
    "systematic",
]


class Resampling(Protocol):
    """A resampling scheme, such as :func:`systematic`.

    :func:`mcx.testing.check_resampling` tests whether a function is one.
    """

    def __call__(self, key: Key, log_w: LogWeights, num: int) -> Index:
        """Draw ancestors.

        Args:
            key: a typed key.
            log_w: log weights, (n,), unnormalised.
            num: number of offspring, static.

        Returns:
            int32 indices (num,): index i occurs ``num * W_i`` times on average.
        """


SCHEMES: dict[str, Resampling] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
    "killing": killing,
    "birth_death": birth_death,
}
"""The schemes by name."""


def as_resampling(scheme: str | Resampling) -> Resampling:
    """Look a scheme up by its name in :data:`SCHEMES`; functions are returned as they are.

    A function is tried on seven particles first: JAX would clamp indices that are out of range.

    Raises:
        MethodError: if it is neither, or gives no indices of parents.
    """
    if isinstance(scheme, str) and scheme in SCHEMES:
        return SCHEMES[scheme]
    if callable(scheme) and not isinstance(scheme, type):
        if scheme not in SCHEMES.values() and not is_traced():
            _try(scheme)
        return scheme
    raise MethodError(
        "not a resampling scheme",
        expected=f"one of {', '.join(map(repr, SCHEMES))}; or a function (key, log_w, num) -> ancestors",
        found=repr(scheme),
    )


def _try(scheme: Resampling) -> None:
    """Raise MethodError if a scheme gives no indices of parents, also where one has all the weight."""
    size = 7
    for heavy in (slice(None), 0, size - 1):
        log_w = jnp.full(size, -jnp.inf).at[heavy].set(0.0)
        found = scheme(jax.random.key(0), log_w, size)
        kind = getattr(found, "dtype", np.dtype(object))
        proper = jnp.issubdtype(kind, jnp.integer) and np.shape(found) == (size,)
        if not proper or not ((np.asarray(found) >= 0) & (np.asarray(found) < size)).all():
            raise MethodError(
                f"the resampling scheme {getattr(scheme, '__name__', scheme)!r} gives no indices of parents",
                expected=f"{size} integers from 0 to {size - 1}, for particles with log weights "
                f"{np.asarray(log_w).tolist()}",
                found=f"{np.asarray(found).tolist() if proper else found!r}",
                remedy="mcx.testing.check_resampling(scheme) tries it further",
            )


def resampling_rule() -> Rule:
    """The rule of settings that name a resampling scheme."""

    def plain(value: Any) -> Any:
        as_resampling(value)
        return value

    return Rule("a resampling scheme", plain)


class Resampled(NamedTuple):
    """Weighted particles after a step that may have resampled them."""

    ancestors: Index
    log_w: LogWeights
    particles: PyTree  # those that came in, gathered by the ancestors
    resampled: Bool[Array, ""]


def adaptive(resampling: str | Resampling, threshold: float) -> Callable[..., Resampled]:
    """Resample only when the effective sample size is low.

    Args:
        resampling: the scheme, or its name.
        threshold: resample when the effective sample size is below this fraction of n. At 1 or more always,
            at 0 never; neither looks at the weights.

    Returns:
        A function ``(key, log_w, particles=None, ess=None) -> Resampled``, where ``particles`` is any pytree
        with a leading axis of n, and ``ess`` the effective sample size if it is known. Without resampling the
        ancestors are 0 to n - 1, and weights and particles stay as they are, uncopied. With it the log
        weights are ``-log(n)``, even if all weights were zero: look at their sum before. Their derivative is
        that of the ancestors' normalised log weights: so derivatives of weighted averages remain unbiased,
        although ancestors have none (Scibior & Wood 2021). Under ``vmap`` over weights JAX turns the
        condition into a selection, both sides run, and it saves variance but
        no time.

    Raises:
        MethodError: for a threshold that is negative or NaN, or an unknown scheme.

    Source: Liu & Chen (1995).
    """
    scheme = as_resampling(resampling)
    if not threshold >= 0:
        raise MethodError(
            "the threshold is a fraction of the number of particles", expected=">= 0", found=repr(threshold)
        )

    def keep(key: Key, log_w: LogWeights, particles: PyTree) -> Resampled:
        ancestors = jnp.arange(log_w.shape[0], dtype=jnp.int32)
        return Resampled(ancestors, log_w, particles, jnp.zeros((), bool))

    def draw(key: Key, log_w: LogWeights, particles: PyTree) -> Resampled:
        # XLA would otherwise fuse the search into every gather that uses it, and search as many times
        ancestors = jax.lax.optimization_barrier(scheme(key, log_w, log_w.shape[0]))
        particles = jax.tree.map(lambda x: x[ancestors], particles)
        return Resampled(ancestors, _equal(log_w, ancestors), particles, jnp.ones((), bool))

    def step(key: Key, log_w: LogWeights, particles: PyTree = None, ess: Scalar | None = None) -> Resampled:
        log_w = as_float(log_w)
        if threshold >= 1:
            return draw(key, log_w, particles)
        if threshold == 0:
            return keep(key, log_w, particles)
        low = (effective_sample_size(log_w) if ess is None else ess) < threshold * log_w.shape[0]
        return jax.lax.cond(low, draw, keep, key, log_w, particles)

    return step


@jax.custom_jvp
def _equal(log_w: LogWeights, ancestors: Index) -> LogWeights:
    return jnp.full_like(log_w, -math.log(log_w.shape[0]))


@_equal.defjvp
def _equal_jvp(
    primals: tuple[LogWeights, Index], tangents: tuple[LogWeights, Index]
) -> tuple[LogWeights, LogWeights]:
    log_w, ancestors = primals
    w = jnp.exp(normalize(log_w)[0])
    # derivatives of zero weights' logarithms are often NaN, and nobody's ancestors
    slope = jnp.where(w > 0, tangents[0], 0.0)
    return _equal(log_w, ancestors), slope[ancestors] - jnp.sum(w * slope)
