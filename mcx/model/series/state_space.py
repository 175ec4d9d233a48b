"""The Feynman-Kac model of one of a model's Markov blocks, ``mcx.markov`` statements and scans."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from mcx.errors import CapabilityError, ModelError, SupportError
from mcx.model.bound import BoundModel
from mcx.model.compile import compile_model, model_sites, numbers_by_site
from mcx.model.density import subsampling_error
from mcx.model.series.block import BlockFunctions
from mcx.model.series.capture_scan import scans_taken
from mcx.model.series.density_bounds import BOUND
from mcx.model.series.markov import collect_statements
from mcx.model.series.markov_functions import MarkovBlock
from mcx.model.series.reading import run_program
from mcx.model.series.scan import ScanBlock, refuse_missing
from mcx.ops.lru_cache import LRUCache
from mcx.target import FeynmanKac, StateSpace, Target
from mcx.types import PyTree, SiteValues

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

    The initial carry of a scan is the state before time 0, to which no observation belongs. Latent sites
    outside of the scan that reach nothing but the initial carry are drawn along with x_0; all others are
    parameters.

    The block has a ``name`` where there are several, a scan that of its first latent site. Particles are
    drawn from its proposal, if it has one, where ``guided``, and see its lookahead where ``auxiliary``. If
    ``whole``, they keep the values of the sites drawn along with x_0, and paths can be made from values.

    Raises:
        CapabilityError: if the model has no Markov block, or something else in it depends on the path.
        ModelError: if the name is ambiguous or unknown.
        DataError: if an observation in a scan is NaN.
    """
    target = compile_model(bound)
    functions = _functions(target, name, guided, auxiliary, whole)
    block = functions.block
    inputs = functions.series(target.data)
    if isinstance(block, ScanBlock):
        refuse_missing(block, inputs)
    feynman_kac = FeynmanKac(
        initial=functions.initial,
        transition=functions.transition,
        log_potential=functions.log_potential,
        num_times=block.length,
        inputs=inputs,
        prepare=jax.tree_util.Partial(functions.prepare, target.data),
        log_transition=None if block.no_density else functions.log_transition,
        log_transition_bound=functions.log_transition_bound
        if BOUND in functions.code and not block.no_density
        else None,
        log_initial=functions.log_initial if "density_0" in functions.code and not block.no_density else None,
        log_lookahead=functions.log_lookahead if block.looks_ahead else None,
        batched_draws=True,
    )
    return StateSpace(
        feynman_kac,
        block.states,
        block.view,
        functions.observe,
        block.observed,
        block.name,
        block.state_names,
        block.params,
        block.guided,
        block.no_density,
        block.start_names,
        block.path_values,
        functions.path_of,
    )


def block_names(bound: BoundModel) -> tuple[str, ...]:
    """Names of a model's Markov blocks, and of its scans with latent sites, in program order."""
    return tuple(name for name in _all_names(compile_model(bound)) if name)


class BlockData(NamedTuple):
    """The data of kernels on models with Markov blocks: the target's, and state-space models by block."""

    model: PyTree
    spaces: dict[str, StateSpace]


def path_sites(space: StateSpace) -> tuple[str, ...]:
    """Latent sites of a path: states at all times, and what was drawn along with the first."""
    return (*space.start_names, *space.state_names)


def block_sites(space: StateSpace) -> tuple[str, ...]:
    """The sites whose densities belong to a block: those of its path, its observations and its factors."""
    return _functions_of(space).block.own_names


def refuse_unobserved(target: Target) -> None:
    """Raise on emissions without data: they are latent sites, which no filter draws."""
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


def _functions(
    target: Target, name: str | None, guided: bool, auxiliary: bool, whole: bool
) -> BlockFunctions:
    modes = _modes(target)
    name, is_scan = _chosen(target, _all_names(target), name)
    if is_scan:
        return _CACHE.get(
            ("scan", *modes, name, whole), lambda: BlockFunctions(target, ScanBlock(target, name, whole))
        )
    return _CACHE.get(
        ("markov", *modes, name, guided, auxiliary),
        lambda: BlockFunctions(target, MarkovBlock(target, name, guided, auxiliary)),
    )


def _names(target: Target) -> dict[str, bool]:
    """Names of the blocks in program order, and whether they are scans; "" is one without latent sites."""
    for plate in target.sites.of_kind("plate"):
        if plate.subsample_size is not None:
            raise subsampling_error(plate)

    taken = scans_taken()

    def run(data: PyTree) -> PyTree:
        run_program(target, data, {}, scans=taken)
        return 0

    with collect_statements() as statements:
        jax.eval_shape(run, target.data)
    scans = {scan.latent[0] if scan.latent else "": True for scan in taken.scans}
    return {**{s.name: False for s in statements}, **scans}


def _chosen(target: Target, blocks: dict[str, bool], name: str | None) -> tuple[str, bool]:
    names = [n for n in blocks if n]
    if not names:
        raise CapabilityError(
            f"{target.sites.model} has no Markov block to filter"
            + (": no latent site in its scan" if blocks else ""),
            expected="a model with mcx.markov(name, initial=..., transition=..., emission=..., obs=...), or "
            "with numpyro.contrib.control_flow.scan over a body with latent and observed sites",
            remedy="write the series with mcx.markov; models without one are for mcx.infer",
        )
    if name is None and len(names) == 1:
        name = names[0]
    if not isinstance(name, str) or name not in names:
        raise ModelError(
            f"{target.sites.model} has several Markov blocks" if name is None else "no such Markov block",
            expected="one of " + ", ".join(names),
            found=repr(name),
            remedy=f"say which: name={names[0]!r}",
        )
    return name, blocks[name]


def check_params(bound: BoundModel, space: StateSpace, params: SiteValues | None) -> dict[str, Any]:
    """A state space's parameters as arrays; raises ModelError or SupportError if they do not fit."""
    sites = model_sites(bound)
    asked = numbers_by_site("params=", {} if params is None else params)
    for name in (*space.params, *asked):
        if name not in asked or name not in space.params:
            known = name in space.params
            raise ModelError(
                "params= has no value for this site" if known else "params= names what is no parameter here",
                site=name,
                expected="values of " + (", ".join(space.params) or "nothing"),
                found=", ".join(asked) or "nothing",
                remedy="give constrained values, for example {'phi': 0.9}, of every latent site but the path",
            )
    values = {}
    for name, value in asked.items():
        site = sites[name]
        values[name] = np.asarray(value, site.dtype)
        if values[name].shape != site.shape:
            raise ModelError(
                "params= has the wrong shape",
                site=name,
                expected=str(site.shape),
                found=str(values[name].shape),
            )
    prepare = space.feynman_kac.prepare
    assert isinstance(prepare, jax.tree_util.Partial)
    (data,) = prepare.args
    for name, inside in jax.device_get(_functions_of(space).valid(data, values)).items():
        if not inside:
            raise SupportError(
                "params= lies outside of the site's support",
                site=name,
                expected=sites[name].support,
                found=str(values[name]),
            )
    return values


def _functions_of(space: StateSpace) -> BlockFunctions:
    functions: BlockFunctions = space.feynman_kac.initial.__self__  # type: ignore[attr-defined]
    return functions
