"""``mcx.infer`` and ``mcx.program``: one call for every method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcx.errors import MethodError
from mcx.methods.exact import exact_posterior
from mcx.methods.initial_points import refuse_unknown as refuse_unknown_sites
from mcx.methods.method import Method
from mcx.model.bound import BoundModel
from mcx.model.check import gradients_explained
from mcx.model.compile import model_sites
from mcx.model.observed_values import refuse_values
from mcx.ops.keys import as_key
from mcx.ops.unknown_arguments import refuse_unknown as refuse_unknown_arguments
from mcx.ops.validation import integer, one_of, optional, validated
from mcx.results.datatree import check_coords
from mcx.results.diagnose import report_advice
from mcx.results.posterior import Posterior
from mcx.run.checkpoint import Checkpoint
from mcx.run.devices import Devices
from mcx.types import KeyLike, PyTree
from mcx.verbs.argument_checks import check_bound, refuse_tracing, saved_to

if TYPE_CHECKING:
    from mcx.run.progress import Progress


def infer(
    bound: BoundModel,
    method: Method,
    *,
    key: KeyLike | None = None,
    num_chains: int | None = None,
    progress: bool | str | Progress = True,
    warnings: str = "warn",
    coords: Mapping[str, Sequence[object]] | None = None,
    init: PyTree = None,
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
    batch_size: int | None = None,
    **unknown: object,
) -> Posterior:
    """Draw from the posterior of a model.

    Args:
        bound: a model with its data, ``model(data)``.
        method: the inference method, e.g. ``mcx.NUTS()``.
        key: a typed JAX key or an int.
        num_chains: number of independent chains, which are vectorised; by default as many as suit the
            method, 4 for most.
        progress: True (a bar in terminals and notebooks, lines elsewhere), False, "bar" or "lines".
        warnings: "warn" (one block after the run), "raise" (for CI; the posterior is attached to the
            error) or "ignore".
        coords: labels of the results' dimensions (plates), ``{"school": [...]}``.
        init: initial points: None (uniform on (-2, 2) in unconstrained space), "prior", a radius, or a
            dictionary of constrained values (of shape (num_chains, ...), or of one chain).
        checkpoint: a directory to save the run to as it goes on, made if need be; or
            ``mcx.Checkpoint(path, interval=seconds)``. The same call then resumes the run, with the same
            bits as if it had not been interrupted (on the same machine, with the same versions).
        devices: the devices that share the chains evenly: a number of them, "all", some of
            ``jax.devices()``, or a mesh; None for the default device.
        batch_size: number of chains that move at once, where all of them would need too much memory for
            intermediate values.
        **unknown: arguments that there are not; the error says what they are called here.

    Returns:
        The posterior. If Ctrl-C interrupts the run, it holds what was drawn, with ``complete=False``.

    Raises:
        CapabilityError, ModelError, DataError, BroadcastError, SupportError: if the model or its data
            cannot be used as they are; the error names the site and the remedy.
        InitializationError: if no initial point has a finite log density and gradient.
        DiagnosticWarning: with ``warnings="raise"``, if the diagnostics find a fault.
        CheckpointError: if the checkpoint cannot be written, is in use, damaged, or of another run.
    """
    _check_types(bound, method)
    _refuse_unknown(unknown, method)
    pure = "mcx.program(bound, method) gives a pure function for jit and vmap; mcx.infer runs outside of them"
    refuse_tracing("infer", pure, bound, key, init)
    validated("infer", "warnings", warnings, one_of("warn", "raise", "ignore"))
    key = as_key(key)
    check_coords({} if coords is None else coords, model_sites(bound))
    refuse_unknown_sites(init, model_sites(bound))
    refuse_values(bound)
    chains = _num_chains("infer", method, num_chains)
    with gradients_explained(bound.name):
        found = exact_posterior(bound, method, key=key, num_chains=chains, coords=coords or {})
        if found is not None:
            return found
        posterior = method.infer(
            bound,
            key=key,
            num_chains=chains,
            init=init,
            coords=coords or {},
            progress=progress,
            while_compiling=_load_diagnostics if warnings != "ignore" else None,
            checkpoint=saved_to(checkpoint, bound, method),
            devices=devices,
            batch_size=validated("infer", "batch_size", batch_size, optional(integer(1))),
        )
    report_advice(posterior, warnings, method.diagnose)
    return posterior


def program(bound: BoundModel, method: Method, *, num_chains: int | None = None) -> Callable[..., Posterior]:
    """The pure function behind :func:`infer`, for ``jit``, ``vmap`` over keys and data sets.

    Args:
        bound: a model with data; the function takes other data of the same shapes.
        method: the inference method.
        num_chains: number of independent chains; by default as many as suit the method, 4 for most.

    Returns:
        ``fn(key, bound) -> Posterior``, whose draws are NaN for a chain that found no finite initial point.
        It checks nothing, shows nothing, and does not warn.
    """
    _check_types(bound, method)
    return method.program(bound, _num_chains("program", method, num_chains))


def _num_chains(verb: str, method: Method, asked: int | None) -> int:
    """The number of chains that the user gave, or the method's default."""
    chosen: int | None = validated(verb, "num_chains", asked, optional(integer(1)))
    return method.default_chains if chosen is None else chosen


def _check_types(bound: object, method: object) -> None:
    check_bound(bound)
    if isinstance(method, type):
        raise MethodError("the method is a class", expected=f"{method.__name__}()", found=method.__name__)
    if not isinstance(method, Method):
        raise MethodError(
            "the second argument is no inference method", expected="e.g. mcx.NUTS()", found=repr(method)
        )


def _refuse_unknown(unknown: Mapping[str, object], method: Method) -> None:
    """Raise on arguments that ``infer`` does not have, with a word on those that are settings of methods."""
    known = [n for n, p in inspect.signature(infer).parameters.items() if p.kind is p.KEYWORD_ONLY]
    settings = {
        name: f"it is a setting of the method: mcx.{method.name}({name}=...)"
        for name in getattr(method, "__dataclass_fields__", {})
    }
    refuse_unknown_arguments("infer", unknown, known, settings)


def _load_diagnostics() -> None:
    """Import ArviZ's statistics while XLA compiles, which saves about a second."""
    import arviz_stats.base  # noqa: F401
