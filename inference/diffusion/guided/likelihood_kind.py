"""What kind of likelihood a site's value has, and which guidance suits it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax

from mcx.errors import CapabilityError
from mcx.inference.diffusion.guided.observation import log_likelihood, looks_linear, slope_vanishes
from mcx.ops.lru_cache import LRUCache
from mcx.target import Target
from mcx.types import Array, Float, Scalar, SiteValues

KINDS = ("auto", "twisted", "linear_gaussian", "soft_value")
_SMOOTH: LRUCache[bool] = LRUCache()


@dataclass(frozen=True)
class LikelihoodKind:
    """What the likelihood of a site's value is like: Gaussian with affine means, and twice differentiable?

    It is ``flat`` where its gradient is zero although it changes.
    """

    linear: bool
    smooth: bool
    flat: bool


def likelihood_kind(
    target: Target, name: str, centre: Float[Array, "..."], spread: Scalar, others: SiteValues
) -> LikelihoodKind:
    """Look at the likelihood of a site's value at a few points around ``centre``.

    No likelihood counts as linear where there are other latent sites, with constrained values ``others``.
    """
    where = (target.functions, name, target.data, centre, spread)
    smooth = _differentiable(target, name, centre, others)
    flat = smooth and bool(slope_vanishes(*where, others))
    return LikelihoodKind(not others and bool(looks_linear(*where)), smooth, flat)


def suitable_guidance(asked: str, kind: LikelihoodKind, site: str) -> str:
    """The guidance asked for, or the first that the likelihood admits; CapabilityError if it does not."""
    steep = kind.smooth and not kind.flat
    if asked == "auto":
        return "linear_gaussian" if kind.linear else "twisted" if steep else "soft_value"
    if asked == "linear_gaussian" and not kind.linear:
        raise CapabilityError(
            'guidance="linear_gaussian" needs a linear Gaussian likelihood, and this is none',
            site=site,
            expected="observations by dist.Normal or dist.MultivariateNormal, without masks and factors, "
            "whose means are affine in the site's value and whose variances do not depend on it",
            remedy='guidance="twisted", or "auto"',
        )
    if asked == "twisted" and not steep:
        raise CapabilityError(
            'guidance="twisted" follows the gradient of the likelihood, and there is none'
            + (": it is zero wherever it was looked at" if kind.smooth else ""),
            site=site,
            remedy='guidance="soft_value", or "auto"',
        )
    return asked


def _differentiable(target: Target, name: str, like: Float[Array, "..."], others: SiteValues) -> bool:
    """Whether JAX can take two derivatives of the likelihood."""

    def bend(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        slope = jax.grad(partial(log_likelihood, target.functions, name, target.data, others=others))
        found: tuple[Float[Array, "..."], Float[Array, "..."]] = jax.jvp(slope, (x,), (x,))
        return found

    def found() -> bool:
        try:
            jax.eval_shape(bend, like)
        except (TypeError, ValueError, NotImplementedError):
            return False
        return True

    return _SMOOTH.get(target.functions, found)
