"""The resampling schemes; :mod:`mcx.inference.smc.resampling` says what they have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mcx.errors import MethodError
from mcx.ops.cdf import ancestors_from_cumulative, monotone_cdf
from mcx.ops.logspace import as_float, relative_weights
from mcx.ops.random import accept, choose
from mcx.types import Array, Float, Index, Int, Key, LogWeights


def multinomial(key: Key, log_w: LogWeights, num: int) -> Index:
    """Draw ancestors independently.

    The ancestors are independent and identically distributed, in no order: what conditional SMC and ancestor
    sampling need. For anything else the other schemes have less variance. Costs O(n + num log n).

    Source: Gordon, Salmond & Smith (1993).
    """
    return choose(key, as_float(log_w), (num,))


def stratified(key: Key, log_w: LogWeights, num: int) -> Index:
    """Draw one ancestor from each of ``num`` strata of equal probability.

    Never more variance than :func:`multinomial`. Ancestors are sorted, and parent i has more than
    ``num * W_i - 2`` and fewer than ``num * W_i + 2`` offspring. Costs O(n + num).

    Source: Kitagawa (1996); Douc, Cappé & Moulines (2005), Section 2.3.
    """
    log_w = as_float(log_w)
    return _one_each_stratum(log_w, jax.random.uniform(key, (num,), log_w.dtype), num)


def systematic(key: Key, log_w: LogWeights, num: int) -> Index:
    """Draw one ancestor from each of ``num`` strata, at the same place in all.

    The fastest scheme and usually of least variance, although no theorem says so: it depends on the order of
    the particles, and has no consistency proof for arbitrary orders. Ancestors are sorted, and parent i has
    ``num * W_i`` offspring, rounded down or up. Costs O(n + num).

    Source: Carpenter, Clifford & Fearnhead (1999); Douc, Cappé & Moulines (2005), Section 2.4.
    """
    log_w = as_float(log_w)
    return _one_each_stratum(log_w, jax.random.uniform(key, (), log_w.dtype), num)


def residual(key: Key, log_w: LogWeights, num: int) -> Index:
    """Give each parent the integer part of its offspring, and draw the rest independently.

    Never more variance than :func:`multinomial`. The certain ancestors come first, sorted, and then the drawn
    ones in no order. Costs O(n + num log n).

    Source: Liu & Chen (1998), Section 3.2.
    """
    log_w = as_float(log_w)
    w, certain, rest = _integer_parts(log_w, num)
    cumulative = jnp.minimum(jnp.cumsum(certain, dtype=jnp.int32), num)
    # rounding may leave something to draw but nothing to draw from
    log_rest = jnp.log(jnp.where(jnp.any(rest > 0), rest, w))
    # how many are drawn depends on the weights, shapes may not: draw all, take what is needed
    drawn = choose(key, log_rest, (num,))
    slots = jnp.arange(num)
    return jnp.where(slots < cumulative[-1], ancestors_from_cumulative(cumulative, num), drawn)


def ssp(key: Key, log_w: LogWeights, num: int) -> Index:
    """Round each parent's expected offspring down or up, pair by pair (Srinivasan's sampling process).

    Like :func:`systematic` it rounds each count, but counts are negatively associated: so it is consistent
    whatever the particles' order, and never has more variance than :func:`multinomial`. Ancestors are sorted.
    Costs O(n + num), but its n steps are sequential: slow on accelerators.

    Source: Gerber, Chopin & Whiteley (2019), Algorithm 1; Srinivasan (2001).
    """
    log_w = as_float(log_w)
    w, certain, rest = _integer_parts(log_w, num)
    n = w.shape[0]

    # Two fractions p and q meet: one of them becomes an integer, the other carries on with the remainder, and
    # the odds keep both expectations. So at most one fraction is open at any time.
    def meet(
        open_: tuple[Array, Array], new: tuple[Array, Array, Key]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (a, p), (b, q, key_b) = open_, new
        both = p + q
        up = both > 1
        # small sums: one becomes 0, and a stays open with odds p : q. Large: one becomes 1, and a stays open
        # if it is b, with odds 1 - p : 1 - q
        odds_a, odds_b = jnp.where(up, 1 - p, p), jnp.where(up, 1 - q, q)
        stays = accept(key_b, jnp.where(odds_b > 0, jnp.log(odds_a / (odds_a + odds_b)), 0))
        closed = jnp.where(stays, b, a)
        return (jnp.where(stays, a, b), both - up), (closed, up)

    # the open fraction starts as a zero part of the largest: whoever is open has a positive weight, then
    start = (jnp.argmax(w).astype(jnp.int32), jnp.zeros((), w.dtype))
    parents = jnp.arange(n, dtype=jnp.int32)
    (last, _), (closed, up) = jax.lax.scan(meet, start, (parents, rest, jax.random.split(key, n)))
    counts = certain.at[closed].add(up.astype(jnp.int32))
    # what is still open is 0 or 1 but for rounding: the number of offspring tells which
    counts = counts.at[last].add(jnp.maximum(num - jnp.sum(counts, dtype=jnp.int32), 0))
    return ancestors_from_cumulative(jnp.minimum(jnp.cumsum(counts, dtype=jnp.int32), num), num)


def killing(key: Key, log_w: LogWeights, num: int) -> Index:
    """Keep each particle with probability ``W_i / max W``, else put an independently drawn one in its place.

    Most particles stay where they are, which suits weights that hardly vary, and the limit of many small
    steps in time. Ancestors are independent given the weights. Costs O(n log n).

    Raises:
        MethodError: if ``num`` is not n, the number of weights.

    Source: Del Moral (2004), Section 2.5.3; Chopin, Singh, Soto & Vihola (2022), "killing".
    """
    log_w = as_float(log_w)
    n = log_w.shape[-1]
    _check_same("killing", n, num)
    key_keep, key_draw = jax.random.split(key)
    kept = accept(key_keep, jnp.log(relative_weights(log_w)))
    return jnp.where(kept, jnp.arange(n, dtype=jnp.int32), choose(key_draw, log_w, (n,)))


def birth_death(key: Key, log_w: LogWeights, num: int) -> Index:
    """Keep each particle with probability ``min(1, n W_i)``, else put one above the average in its place.

    Those are drawn in proportion to ``(n W_i - 1)^+``, so that numbers of offspring are right on average and
    as few particles as possible are replaced. In the limit of many small steps in time it is the jump process
    that kills at the rate by which potentials are below average. Ancestors are independent given the weights.
    Costs O(n log n).

    Raises:
        MethodError: if ``num`` is not n, the number of weights.

    Source: for the jump process, Rousset (2006); Skreta et al. (2025), Feynman-Kac correctors in diffusion.
    """
    log_w = as_float(log_w)
    _check_same("birth_death", log_w.shape[-1], num)
    w = relative_weights(log_w)
    offspring = num * (w / jnp.sum(w))
    key_keep, key_draw = jax.random.split(key)
    kept = accept(key_keep, jnp.log(offspring))
    surplus = jnp.maximum(offspring - 1, 0.0)
    # of equal weights rounding may leave none above the average, and one below
    log_surplus = jnp.log(jnp.where(jnp.any(surplus > 0), surplus, w))
    return jnp.where(kept, jnp.arange(num, dtype=jnp.int32), choose(key_draw, log_surplus, (num,)))


def _check_same(name: str, n: int, num: int) -> None:
    if num != n:
        raise MethodError(
            f"{name} replaces particles one by one, so there are as many after it as before",
            expected=f"num={n}",
            found=f"num={num}",
            remedy="use another scheme, such as 'systematic', to change their number",
        )


def _one_each_stratum(log_w: LogWeights, u: Float[Array, "*num"], num: int) -> Index:
    """Ancestors of the points ``(k + u_k) / num``, counted rather than searched for; one u may serve all."""
    # Points below the distribution function at i: one for each stratum below the one it ends in, and that
    # one's own if it comes first. Taking the fraction is exact, and where the function is 1 the count is num.
    # The usual formula, ceil(num * cdf - u), rounds u away where num is large.
    end = num * monotone_cdf(relative_weights(log_w))
    stratum = jnp.floor(end)
    index = stratum.astype(jnp.int32)
    own = u if u.ndim == 0 else u.at[jnp.minimum(index, num - 1)].get(mode="promise_in_bounds")
    inside = own < end - stratum
    return ancestors_from_cumulative(index + inside.astype(jnp.int32), num)


def _integer_parts(
    log_w: LogWeights, num: int
) -> tuple[Float[Array, " N"], Int[Array, " N"], Float[Array, " N"]]:
    """Weights, and their expected numbers of offspring: integer and fractional parts."""
    w = relative_weights(log_w)
    expected = num * (w / jnp.sum(w))
    # Rounding must not make .9999999 of what is 1: of n equal weights, all would be left to chance.
    whole = jnp.round(expected)
    close = jnp.abs(expected - whole) <= 4 * jnp.finfo(w.dtype).eps * whole
    expected = jnp.where(close, whole, expected)
    certain = jnp.floor(expected)
    return w, certain.astype(jnp.int32), expected - certain
