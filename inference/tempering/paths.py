"""Paths of laws that lead from a law that can be drawn from to a posterior.

A path is ``pi_s(z) ~ exp(base(z) + sum_k w_k(s) l_k(z))`` for levels s from 0 to 1: at 0 all weights are 0,
at 1 all are 1. :func:`tempered` has one term, the log likelihood, weighted by the inverse temperature.
:func:`annealed_data` has a term for each group of observations, and takes in one after another; between two
whole numbers of groups the next one counts in part, so that a surprising group is taken in by small steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from numpyro.distributions import Distribution

from mcx.errors import CapabilityError, MethodError
from mcx.model.density import space_error
from mcx.sites import Site, SiteTable
from mcx.target import Target, TargetFunctions
from mcx.types import Array, Float, Key, PyTree, Scalar, SiteValues, Vector


class LawPathData(NamedTuple):
    """Data of the target, and a distribution of unconstrained vectors to start from; None for the prior."""

    model: PyTree
    start: PyTree


@dataclass(frozen=True)
class LawPath:
    """Laws between a base and a posterior; hashable, without data.

    Attributes:
        functions, shapes, sites: of the target.
        groups: number of terms; for data annealing, of groups of observations.
        dim: name of the dimension whose entries are the groups; None for tempering.
        own_start: whether the base is another law than the prior.
    """

    functions: TargetFunctions
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    sites: SiteTable
    groups: int = 1
    dim: str | None = None
    own_start: bool = False

    def target(self, data: LawPathData) -> Target:
        """The posterior."""
        return Target(data.model, self.functions, self.shapes, self.sites)

    def initial(self, data: LawPathData, key: Key) -> Vector:
        """A draw from the base, an unconstrained vector (d,)."""
        if self.own_start:
            return data.start.sample(key)
        target = self.target(data)
        assert target.sample_prior is not None
        return target.ravel(target.sample_prior(key))

    def parts(self, data: LawPathData, vector: Vector) -> tuple[Scalar, Float[Array, " groups"]]:
        """Log density of the base, and the terms (groups,), at an unconstrained vector."""
        target = self.target(data)
        z = target.unravel(vector)
        prior, likelihood = target.log_parts(z)
        terms = likelihood[None] if self.dim is None else self._by_group(target, z, likelihood)
        if self.own_start:
            base = data.start.log_prob(vector)
            # the prior comes in with the first group
            terms = terms.at[0].add(prior - base)
            prior = base
        # no move could start from draws that were rounded to the end of a support
        fine = jnp.all(jnp.isfinite(vector))
        return jnp.where(fine, prior, -jnp.inf), jnp.where(fine, terms, -jnp.inf)

    def _by_group(self, target: Target, z: SiteValues, likelihood: Scalar) -> Float[Array, " groups"]:
        terms, total = jnp.zeros(self.groups), jnp.zeros(())
        for name, values in target.pointwise(z).items():
            axis = _axis(self.sites[name].dims, self.dim)
            if axis is None:
                continue
            ours = jnp.sum(values, tuple(i for i in range(values.ndim) if i != axis))
            terms, total = terms + ours, total + jnp.sum(ours)
        # what belongs to no group, such as a factor, comes in with the first
        other = jnp.where(jnp.isfinite(total), likelihood - total, 0.0)
        has_others = any(s.likelihood and _axis(s.dims, self.dim) is None for s in self.sites if s.num_terms)
        return terms.at[0].add(other) if has_others else terms

    def weights(self, level: Scalar | float) -> Float[Array, " groups"]:
        """Weights of the terms, (groups,)."""
        return jnp.clip(level * self.groups - jnp.arange(self.groups), 0.0, 1.0)

    def increment(
        self, terms: Float[Array, "*n groups"], before: Scalar | float, after: Scalar | float
    ) -> Float[Array, "*n"]:
        """Change of the log density from one level to another, for terms (..., groups)."""
        change = self.weights(after) - self.weights(before)
        return jnp.sum(jnp.where(change > 0, change * terms, 0.0), -1)

    def log_density(self, data: LawPathData, level: Scalar, vector: Vector) -> Scalar:
        """Unnormalised log density of the law at a level."""
        base, terms = self.parts(data, vector)
        value = base + self.increment(terms, 0.0, level)
        return jnp.where(jnp.isnan(value) | (value == jnp.inf), -jnp.inf, value)


def tempered(target: Target, initial_law: Distribution | float | None = None) -> tuple[LawPath, LawPathData]:
    """The path from the prior to the posterior by powers of the likelihood.

    Args:
        target: the posterior.
        initial_law: a distribution of unconstrained vectors of event shape (d,) to start from in the prior's
            place, or the standard deviation of a Gaussian; the powers are then those of prior times
            likelihood over its density. Needed if the prior is improper.

    Raises:
        CapabilityError: if the prior cannot be drawn from and there is no ``initial_law``, or if the model
            has discrete latent sites.
        MethodError: if ``initial_law`` is no distribution of vectors (d,).

    Source: Neal (2001), Annealed importance sampling; Del Moral, Doucet and Jasra (2006).
    """
    return _path(target, initial_law, 1, None)


def annealed_data(
    target: Target, dim: str | None = None, initial_law: Distribution | float | None = None
) -> tuple[LawPath, LawPathData]:
    """The path from the prior to the posterior that takes in observations, entry by entry of a dimension.

    Args:
        target: the posterior.
        dim: a plate or time axis of observed sites; by default the only one that there is. Observations
            without it come in with its first entry.
        initial_law: as for :func:`tempered`.

    Raises:
        CapabilityError, MethodError: as :func:`tempered`; or if no observed site has the dimension.

    Source: Chopin (2002), A sequential particle filter method for static models (IBIS).
    """
    observed = [s for s in target.sites if s.likelihood and s.kind == "observed" and s.terms_shape]
    sizes = {d: s.terms_shape[i] for s in observed for i, d in enumerate(s.dims[: len(s.terms_shape)])}
    if dim is None and len(sizes) == 1:
        (dim,) = sizes
    if dim is None or dim not in sizes:
        raise MethodError(
            "it is not clear which observations come in one after another",
            expected="dim= one of " + (", ".join(sizes) or "the plates around observed sites"),
            found=repr(dim),
            remedy="put the observations into a plate, or use mcx.TemperedSMC, which needs none",
        )
    return _path(target, initial_law, sizes[dim], dim)


def _path(
    target: Target, initial_law: Distribution | float | None, groups: int, dim: str | None
) -> tuple[LawPath, LawPathData]:
    if unfit := space_error(target.sites):
        raise unfit
    for site in target.sites.of_kind("discrete") if dim is not None else ():
        raise CapabilityError(
            "a discrete site that is summed out joins observations, which then do not come one by one",
            site=site.name,
            remedy="use mcx.TemperedSMC, which needs no order",
        )
    if target.dim == 0:
        raise CapabilityError("the model has no latent site to draw")
    if initial_law is None and target.sample_prior is None:
        raise CapabilityError(
            "the prior cannot be drawn from: it is improper, masked or scaled, or carries factors",
            site=next((s.name for s in target.sites if _not_drawn(s)), None),
            remedy="give a law to start from, on unconstrained space: initial_law=dist.Normal(0, 3).expand("
            f"[{target.dim}]).to_event(1), or initial_law=3.0 for short",
        )
    law = None if initial_law is None else _start_law(initial_law, target.dim)
    path = LawPath(target.functions, target.shapes, target.sites, groups, dim, law is not None)
    return path, LawPathData(target.data, law)


def _not_drawn(site: Site) -> bool:
    return (
        site.improper
        or (site.kind == "latent" and site.weighted)
        or (site.kind == "factor" and not site.likelihood)
    )


def _start_law(start: Any, dim: int) -> Distribution:
    """A law on all of unconstrained space, as the posterior would be cut off where it has no mass."""
    import numpyro.distributions as dist

    if isinstance(start, int | float) and not isinstance(start, bool) and start > 0:
        return dist.Normal(0.0, float(start)).expand([dim]).to_event(1)
    support = getattr(start, "support", None)
    shapes = getattr(start, "batch_shape", None), getattr(start, "event_shape", None)
    everywhere = support is not None and _is_real(dist, support)
    if shapes != ((), (dim,)) or not everywhere:
        raise MethodError(
            "initial_law= is no distribution of unconstrained vectors",
            expected=f"a distribution of event shape ({dim},) and no batch shape, supported on all real "
            "vectors; or a standard deviation > 0",
            found=repr(start)
            if shapes[1] is None
            else f"{type(start).__name__} of batch shape {shapes[0]}, event shape {shapes[1]}, on {support}",
        )
    return start


def _is_real(dist: Any, support: Any) -> bool:
    try:
        transform = dist.biject_to(support)
    except NotImplementedError:
        return False
    while isinstance(transform, dist.transforms.IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, dist.transforms.IdentityTransform)


def _axis(dims: tuple[str, ...], dim: str | None) -> int | None:
    return dims.index(dim) if dim in dims else None
