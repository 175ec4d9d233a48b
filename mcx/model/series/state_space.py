"""From a model to the Feynman-Kac model of one of its chains: an ``mcx.markov`` statement, or a scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from mcx.errors import CapabilityError, ModelError, SupportError
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model, model_sites
from mcx.model.density import subsampling_error
from mcx.model.series.capture_scan import scans_taken
from mcx.model.series.chain import ChainCode, run_program
from mcx.model.series.markov import collect_blocks
from mcx.model.series.markov_functions import MarkovChain
from mcx.model.series.scan import ScanChain, refuse_missing
from mcx.ops.lru_cache import LRUCache
from mcx.target import FeynmanKac, StateSpace, Target

if TYPE_CHECKING:
    from mcx.types import PyTree

__all__ = [
    "ChainData",
    "chain_names",
    "chain_sites",
    "check_params",
    "path_sites",
    "refuse_unobserved",
    "state_space",
]

_CACHE: LRUCache[Any] = LRUCache()


def state_space(
    bound: BoundModel,
    name: str | None = None,
    *,
    guided: bool = True,
    auxiliary: bool = True,
    whole: bool = False,
) -> StateSpace:
    """The Feynman-Kac model of a Markov block, or of a ``numpyro.contrib.control_flow.scan``.

    Of a scan, the initial carry is the state before time 0, to which no observation belongs. Outer latent
    sites that reach nothing but it are drawn along with x_0; the others are parameters.

    Args:
        bound: a model with data.
        name: of the block, where there are several; a scan has the name of its first latent site.
        guided: draw from the block's ``proposal``, if it has one, rather than from its transition.
        auxiliary: use the block's ``lookahead``, if it has one.
        whole: let particles keep values of the sites drawn along with x_0, and paths be made from values, for
            methods on whole paths.

    Returns:
        A state-space model whose parameters are constrained values of the other latent sites.

    Raises:
        CapabilityError: if the model has no chain, or something else in it depends on the path.
        ModelError: if the name is ambiguous or unknown.
        DataError: if an observation in a scan is NaN.
    """
    target = compile_model(bound)
    code = _code(target, name, guided, auxiliary, whole)
    chain = code.chain
    inputs = code.series(target.data)
    if isinstance(chain, ScanChain):
        refuse_missing(chain, inputs)
    feynman_kac = FeynmanKac(
        initial=code.initial,
        transition=code.transition,
        log_potential=code.log_potential,
        num_times=chain.length,
        inputs=inputs,
        prepare=jax.tree_util.Partial(code.prepare, target.data),
        log_transition=None if chain.no_density else code.log_transition,
        log_transition_bound=code.log_transition_bound
        if "transition_bound" in code.code and not chain.no_density
        else None,
        log_initial=code.log_initial if "density_0" in code.code and not chain.no_density else None,
        log_lookahead=code.log_lookahead if chain.looks_ahead else None,
        batched_draws=True,
    )
    return StateSpace(
        feynman_kac,
        chain.states,
        chain.view,
        code.observe,
        chain.observed,
        chain.name,
        chain.state_names,
        chain.params,
        chain.guided,
        chain.no_density,
        chain.start_names,
        chain.path_values,
        code.path_of,
    )


def chain_names(bound: BoundModel) -> tuple[str, ...]:
    """Names of a model's Markov blocks, and of its scans with latent sites, in program order."""
    return tuple(name for name in _all_names(compile_model(bound)) if name)


class ChainData(NamedTuple):
    """What kernels on models with Markov chains are given.

    model: data of the model's target.
    spaces: state-space models by Markov block.
    """

    model: PyTree
    spaces: dict[str, StateSpace]


def path_sites(space: StateSpace) -> tuple[str, ...]:
    """Latent sites of a path: states at all times, and what was drawn along with the first."""
    return (*space.start_names, *space.state_names)


def chain_sites(space: StateSpace) -> tuple[str, ...]:
    """Sites whose densities a chain accounts for: those of its path, its observations and its factors."""
    return _code_of(space).chain.own_names


def refuse_unobserved(target: Target) -> None:
    """Raise on emissions without data, which are latent sites that no filter draws."""
    for site in target.sites.of_kind("latent", "discrete"):
        if site.emitted:
            raise CapabilityError(
                "the emission is not observed, so it would have to be drawn along with the path",
                site=site.name,
                expected="obs= for every emission; NaN where nothing was observed",
                remedy="give the observations, or leave the emission out",
            )


def _all_names(target: Target) -> dict[str, bool]:
    return _CACHE.get(("names", *_modes(target)), lambda: _names(target))


def _modes(target: Target) -> tuple[Any, ...]:
    return (str(jax.config.jax_default_prng_impl), target.functions)


def _code(target: Target, name: str | None, guided: bool, auxiliary: bool, whole: bool) -> ChainCode:
    modes = _modes(target)
    name, is_scan = _chosen(target, _all_names(target), name)
    if is_scan:
        return _CACHE.get(
            ("scan", *modes, name, whole), lambda: ChainCode(target, ScanChain(target, name, whole))
        )
    return _CACHE.get(
        ("markov", *modes, name, guided, auxiliary),
        lambda: ChainCode(target, MarkovChain(target, name, guided, auxiliary)),
    )


def _names(target: Target) -> dict[str, bool]:
    """Names of the chains in program order, and whether they are scans; "" is a scan without latent sites."""
    for plate in target.sites.of_kind("plate"):
        if plate.subsample_size is not None:
            raise subsampling_error(plate)

    taken = scans_taken()

    def run(data: PyTree) -> PyTree:
        run_program(target, data, {}, scans=taken)
        return 0

    with collect_blocks() as blocks:
        jax.eval_shape(run, target.data)
    scans = {scan.latent[0] if scan.latent else "": True for scan in taken.scans}
    return {**{b.name: False for b in blocks}, **scans}


def _chosen(target: Target, chains: dict[str, bool], name: str | None) -> tuple[str, bool]:
    names = [n for n in chains if n]
    if not names:
        raise CapabilityError(
            f"{target.sites.model} has no Markov chain to filter"
            + (": no latent site in its scan" if chains else ""),
            expected="a model with mcx.markov(name, initial=..., transition=..., emission=..., obs=...), or "
            "with numpyro.contrib.control_flow.scan over a body with latent and observed sites",
            remedy="write the series with mcx.markov; models without one are for mcx.infer",
        )
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise ModelError(
            f"{target.sites.model} has several Markov chains" if name is None else "no such Markov chain",
            expected="one of " + ", ".join(names),
            found=repr(name),
            remedy=f"say which: name={names[0]!r}",
        )
    assert name is not None
    return name, chains[name]


def check_params(bound: BoundModel, space: StateSpace, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters as arrays, checked.

    Args:
        bound: the model.
        space: its state-space model.
        params: constrained values of the other latent sites, of the sites' shapes.

    Raises:
        ModelError: if one is missing, unknown or of the wrong shape.
        SupportError: if one lies outside of its site's support.
    """
    sites = model_sites(bound)
    given = dict(params or {})
    for name in (*space.params, *given):
        if name not in given or name not in space.params:
            known = name in space.params
            raise ModelError(
                "params= has no value for this site" if known else "params= names what is no parameter here",
                site=name,
                expected="values of " + (", ".join(space.params) or "nothing"),
                found=", ".join(given) or "nothing",
                remedy="give constrained values, for example {'phi': 0.9}, of every latent site but the path",
            )
    values = {}
    for name, value in given.items():
        site = sites[name]
        values[name] = np.asarray(value, site.dtype)
        if values[name].shape != site.shape:
            raise ModelError(
                "params= has the wrong shape",
                site=name,
                expected=str(site.shape),
                found=str(values[name].shape),
            )
    (data,) = space.feynman_kac.prepare.args
    for name, inside in jax.device_get(_code_of(space).valid(data, values)).items():
        if not inside:
            raise SupportError(
                "params= lies outside of the site's support",
                site=name,
                expected=sites[name].support,
                found=str(values[name]),
            )
    return values


def _code_of(space: StateSpace) -> ChainCode:
    code: ChainCode = space.feynman_kac.initial.__self__  # type: ignore[attr-defined]
    return code
