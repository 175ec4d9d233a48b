"""Checks of arguments that the public verbs share, made before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcx.errors import ModelError
from mcx.model.bound import BoundModel, Model
from mcx.model.check import static_problems
from mcx.model.compile import fingerprint_model, model_sites
from mcx.model.observed_values import refuse_values
from mcx.ops.tracing import refuse_tracing
from mcx.ops.validation import Settings
from mcx.results.datatree import check_coords
from mcx.run.checkpoint import Checkpoint, identified

__all__ = ["check_bound", "check_state_space", "refuse_tracing", "saved_to"]


def saved_to(
    checkpoint: str | Path | Checkpoint | None, bound: BoundModel, method: Settings, **identity: object
) -> Checkpoint | None:
    """The checkpoint with what identifies the run: the method, the model, and further arguments."""
    if checkpoint is None:
        return None
    return identified(checkpoint, model=fingerprint_model(bound), method=method.identity(), **identity)


def check_bound(bound: object, verb: str = "infer") -> None:
    """Raise unless the first argument is a model with its data."""
    if not isinstance(bound, BoundModel):
        hint = f"call the model with its data first: {verb}(model(data), ...)"
        if callable(bound) and not isinstance(bound, Model):
            hint = f"wrap the function and call it with its data: {verb}(mcx.model(f)(data), ...)"
        raise ModelError(
            "the first argument is no bound model",
            expected="model(data)",
            found=type(bound).__name__,
            remedy=hint,
        )


def check_state_space(bound: BoundModel, verb: str, coords: Mapping[str, Sequence[object]] | None) -> None:
    """Raise if no method for Markov blocks could use the model or the coordinates."""
    check_bound(bound, verb)
    sites = model_sites(bound)
    for problem in static_problems(sites):
        raise problem
    check_coords({} if coords is None else coords, sites)
    refuse_values(bound)
