"""Checks of a model and its data before anything expensive runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.errors import (
    BroadcastError,
    CapabilityError,
    DataError,
    InitializationError,
    ModelError,
    SiteNameError,
)
from mcx.model.compile import compile_model
from mcx.model.density import capability_error, leaks_explained
from mcx.model.imputation import without_gaps
from mcx.model.observed_values import nan_error, support_error
from mcx.model.path_law import Emission
from mcx.model.program import BoundProgram
from mcx.sites import Site, SiteTable, safe_name
from mcx.target import Target
from mcx.types import Key, PyTree, Vector

_TRIALS = 20
_RESERVED = ("chain", "draw", "sample")


@dataclass(frozen=True)
class Report:
    """What :meth:`BoundModel.check` found.

    Attributes:
        problems: errors that ``infer`` would raise, in the order of the sites.
        notes: findings that are legal but worth knowing.
        starts: per-site table of the trial starting points, as text.
    """

    problems: tuple[ModelError, ...] = ()
    notes: tuple[str, ...] = ()
    starts: str = ""

    @property
    def ok(self) -> bool:
        """Whether ``infer`` would start."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{type(p).__name__}: {p}" for p in self.problems] or ["no problems found"]
        lines += [f"note: {n}" for n in self.notes]
        return "\n".join(lines + ([self.starts] if self.starts else []))

    __repr__ = __str__


@contextmanager
def gradients_explained(model: str) -> Iterator[None]:
    """Turn JAX's errors about loops without a derivative, and about leaks, into errors about the model."""
    try:
        with leaks_explained(model):
            yield
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        raise CapabilityError(
            f"the log density of {model} has a while_loop, or a fori_loop of a length that is known only "
            "when it runs, and this method needs its gradient",
            expected="jax.lax.scan, or a fori_loop with numbers of steps that Python knows",
            remedy="bound the loop and leave out the steps that are too many (jnp.where), or use a method "
            "without gradients: mcx.RandomWalk()",
        ) from None


def check(bound: BoundProgram, key: Key) -> Report:
    """See :meth:`BoundModel.check`."""
    try:
        target = compile_model(bound)
    except ModelError as error:
        return Report((error,))
    problems = list(static_problems(target.sites))
    notes = _notes(target)
    if unfit := capability_error(target.sites):
        notes.append(f"methods on unconstrained space cannot take this model: {unfit}")
        return Report(tuple(problems), tuple(notes))
    try:
        with gradients_explained(bound.name):
            trial = _Trial.run(target, key)
    except CapabilityError as error:
        return Report(tuple(problems), (*notes, f"methods with gradients cannot take this model: {error}"))
    problems += trial.data_problems(target.sites)
    if not trial.finite.any():
        problems.append(_no_start(trial, target.sites))
    return Report(tuple(problems), tuple(notes), trial.table())


def static_problems(sites: SiteTable) -> Iterator[ModelError]:
    """Mistakes that the structure alone shows; nothing is computed."""
    dims = {safe_name(dim) for s in sites for dim in s.dims}
    names: dict[str, str] = {}
    for site in sites:
        other = names.setdefault(safe_name(site.name), site.name)
        if other != site.name:
            yield SiteNameError(
                f'in results, where "/" becomes ".", the name is that of {other!r}',
                site=site.name,
                remedy="rename one of them",
            )
        if site.kind != "plate":
            yield from _name_problems(site, dims)
        if site.kind == "observed":
            yield from _broadcast_problems(site)
            continuous = not site.discrete_support
            if continuous and np.dtype(site.dtype).kind in "iub":
                yield DataError(
                    f"{site.distribution} is continuous, but the observed values are integers",
                    site=site.name,
                    expected="floating-point data",
                    found=site.dtype,
                    remedy="convert the data: y.astype(float)",
                )


def _name_problems(site: Site, dims: set[str]) -> Iterator[ModelError]:
    if safe_name(site.name) in dims or site.name in _RESERVED:
        yield SiteNameError(
            "the name is also that of a dimension, so its values would be lost in results",
            site=site.name,
            expected="a name different from every plate and from " + ", ".join(_RESERVED),
            remedy="rename the site or the plate",
        )


def _broadcast_problems(site: Site) -> Iterator[ModelError]:
    """Find a value that broadcasting repeats along an axis that no plate declares."""
    batch, terms = site.batch_shape, site.terms_shape
    value = site.shape[: len(site.shape) - len(site.event_shape)]
    declared = {dim for _, dim, _ in site.plates}

    def size(shape: tuple[int, ...], dim: int) -> int:
        return shape[dim] if len(shape) >= -dim else 1

    dims = range(-len(terms), 0)
    repeated = [d for d in dims if size(terms, d) > 1 and size(value, d) == 1]
    stretches = any(size(value, d) > 1 and size(batch, d) == 1 for d in dims if d not in declared)
    if any(d not in declared or stretches for d in repeated):
        yield BroadcastError(
            f"{int(np.prod(value))} observed values would be scored as {site.num_terms} log-likelihood terms",
            site=site.name,
            expected=f"distribution and value of one batch shape; the value has {value}",
            found=f"distribution of batch shape {batch}, broadcast to {terms}",
            remedy="reshape one of them (often x[:, 0] or x.squeeze()), or declare the axis by a plate",
        )


def _notes(target: Target) -> list[str]:
    notes = []
    if target.sites.fixed_key:
        notes.append(
            "random numbers outside of sites (numpyro.prng_key(), or a site that handlers.block hides) are "
            "the same in every run: the posterior is that given these numbers"
        )
    for site in target.sites:
        if site.improper:
            notes.append(f"site '{site.name}' has an improper prior: no prior draws, no evidence")
        if site.kind == "param":
            notes.append(f"param '{site.name}' is held at its initial value; give it a prior to infer it")
    return notes


@dataclass(frozen=True)
class _Trial:
    """The model at a number of random starting points."""

    log_prob: dict[str, np.ndarray]  # by sample site, (trials,)
    gradient_ok: dict[str, np.ndarray]  # by latent site, (trials,)
    supported: dict[str, np.ndarray]  # by observed site, (trials,)
    missing: dict[str, int]  # by observed site, number of NaN
    finite: np.ndarray  # (trials,)

    @classmethod
    def run(cls, target: Target, key: Key, positions: Array | None = None) -> _Trial:
        if positions is None:
            positions = jax.random.uniform(key, (_TRIALS, target.dim), minval=-2.0, maxval=2.0)
        log_prob, gradient, supported, missing, finite = jax.device_get(_evaluate(target, positions))
        return cls(
            log_prob,
            {k: np.isfinite(v).reshape(len(positions), -1).all(-1) for k, v in gradient.items()},
            supported,
            {k: int(v[0]) for k, v in missing.items()},
            finite,
        )

    def data_problems(self, sites: SiteTable) -> Iterator[ModelError]:
        for name, count in self.missing.items():
            if count and sites[name].markov:
                yield DataError(
                    f"{count} observed vectors are missing in part",
                    site=name,
                    expected="vectors that are missing as a whole, or independent components",
                    remedy="write independent components with .to_event(1) or batch shape; for "
                    "dependent ones set the whole vector to NaN",
                )
            elif count:
                yield nan_error(sites[name], count)
        for name, supported in self.supported.items():
            if not self.missing[name] and not supported.any():
                yield support_error(sites[name])

    def table(self) -> str:
        """Sites at the trial points, one line each."""
        lines = [
            f"{len(self.finite)} trial points, {int(self.finite.sum())} with finite density and gradient"
        ]
        for name, values in self.log_prob.items():
            finite = values[np.isfinite(values)]
            span = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "never finite"
            line = f"  {name}: log prob {span}"
            if finite.size and finite.size < values.size:
                line += f" (finite at {finite.size})"
            if name in self.gradient_ok and not self.gradient_ok[name].all():
                line += f", gradient finite at {int(self.gradient_ok[name].sum())}"
            if name in self.supported and not self.supported[name].all():
                line += f", observed values supported at {int(self.supported[name].sum())}"
            lines.append(line)
        return "\n".join(lines)


@jax.jit
def _evaluate(target: Target, positions: Array) -> PyTree:
    def one(position: Vector) -> PyTree:
        value, gradient = jax.value_and_grad(lambda x: target.log_density(target.unravel(x)))(position)
        z = target.unravel(position)
        terms = {**target.prior_terms(z), **target.pointwise(z)}
        log_prob = {name: jnp.sum(term) for name, term in terms.items()}
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        return log_prob, target.unravel(gradient), *_observed_flags(target, z), finite

    return jax.vmap(one)(positions)


def _observed_flags(target: Target, z: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of every observed site: whether all values are in the support, and the number of NaN."""
    supported, missing = {}, {}
    for name, site in target.replayed(z).items():
        if name in target.sites and target.sites[name].kind == "observed":
            observed = jnp.asarray(without_gaps(site["fn"], site["value"]))
            if isinstance(site["fn"], Emission):
                missing[name], supported[name] = site["fn"].unusable(observed)
                continue
            support = site["fn"].support
            supported[name] = jnp.asarray(True) if support is None else jnp.all(support(observed))
            missing[name] = jnp.sum(jnp.isnan(observed)) if observed.dtype.kind == "f" else jnp.int32(0)
    return supported, missing


def _no_start(trial: _Trial, sites: SiteTable) -> InitializationError:
    culprits = [n for n, v in trial.log_prob.items() if not np.isfinite(v).any()]
    culprits += [n for n, v in trial.gradient_ok.items() if not v.any() and n not in culprits]
    return InitializationError(
        f"no starting point has a finite log density and gradient\n{trial.table()}",
        site=culprits[0] if culprits else None,
        expected="a finite log density and gradient at some point of (-2, 2)^d, unconstrained",
        remedy="check this site's parameters and data; or start from values you trust: "
        "infer(..., init={'site': value}) or init='prior'",
    )


def refuse_data(target: Target) -> None:
    """Raise if the model has no density, or if there is a mistake in its structure."""
    if unfit := capability_error(target.sites):
        raise unfit
    for problem in static_problems(target.sites):
        raise problem


def refuse_unsupported(target: Target, positions: Array) -> None:
    """Raise if observed values lie outside of their support at every point, where densities may be finite."""
    if all(s.support in ("real", "real_vector") for s in target.sites.of_kind("observed")):
        return
    supported, _ = jax.device_get(_flags(target, positions))
    if any(not inside.any() for inside in supported.values()):
        for problem in _Trial.run(target, jax.random.key(0), positions).data_problems(target.sites):
            raise problem


def refuse_observations(target: Target, positions: Array) -> None:
    """Raise if observed values are missing or unsupported at all points; needs no density of latent sites."""
    supported, missing = jax.device_get(_flags(target, positions))
    trial = _Trial({}, {}, supported, {k: int(v[0]) for k, v in missing.items()}, np.zeros(0, bool))
    for problem in trial.data_problems(target.sites):
        raise problem


@jax.jit
def _flags(target: Target, positions: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    return jax.vmap(lambda x: _observed_flags(target, target.unravel(x)))(positions)


def refuse_start(target: Target, positions: Array, key: Key) -> None:
    """Explain and raise, after the search for starting points failed at ``positions``."""
    trial = _Trial.run(target, key, jnp.asarray(positions))
    for problem in trial.data_problems(target.sites):
        raise problem
    raise _no_start(trial, target.sites)


def refuse_start_given_path(
    started: Array, positions: Array, given: Callable[[int], Target], key: Key
) -> None:
    """Explain and raise where a chain found no start; ``given(chain)`` is the density given its path.

    Also raises if values at the start lie outside of their sites' supports, in the first chain.
    """
    found = np.asarray(started)
    chain = int(np.argmin(found))
    target, position = given(chain), positions[chain : chain + 1]
    if not found.all():
        refuse_start(target, position, key)
    refuse_unsupported(target, position)
