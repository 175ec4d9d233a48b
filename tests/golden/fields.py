"""What is recorded of each kind of result: names in ``golden.json``, and where to find them.

A value is an attribute's path, or a function of the result. Where an attribute is renamed, edit it here: the
stored name stays. Times, prose and file names are no part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

FIELDS: dict[str, dict[str, str | Callable[[Any], Any]]] = {
    "posterior": {
        "draws": "draws",
        "unconstrained": "unconstrained",
        "stats": "stats",
        "warmup_stats": "warmup_stats",
        "smc_stats": "smc_stats",
        "weights": "weights",
        "log_evidence": "log_evidence",
        "log_evidence_se": "log_evidence_se",
        "complete": "complete",
        "num_nonfinite": "info.num_nonfinite",
    },
    "filtered": {
        "log_evidence": "log_evidence",
        "log_evidence_se": "log_evidence_se",
        "mean": "mean",
        "sd": "sd",
        "quantiles": "quantiles",
        "ess": "ess",
        "stats": "stats",
        "particles": "state.particles",
        "log_w": "state.log_w",
        "complete": "complete",
    },
    "history": {
        "ancestors": "record.ancestors",
        "log_w": "record.log_w",
        "particles": "record.particles",
    },
    "smc": {
        "log_evidence": "log_evidence",
        "log_evidence_se": "log_evidence_se",
        "particles": lambda result: list_of(result.state.particles),
        "log_w": "state.log_w",
        "ancestors": "history.ancestors",
    },
    "online": {
        "log_evidence": "log_evidence",
        "log_evidence_se": "log_evidence_se",
        "ess": "ess",
    },
    "online smoothing": {"value": "value", "log_evidence": "log_evidence"},
    "estimate": {"value": "value", "se": "se", "draws": "draws", "stats": lambda found: _known(found.stats)},
    "maximum": {
        "params": "params",
        "se": "se",
        "mc_se": "mc_se",
        "trace": "trace",
        "stats": "stats",
        "covariance": "covariance",
        "information": "information",
    },
    "approximation": {
        "params": "params",
        "stats": "stats",
        "quality": lambda fit: None if fit.quality is None else tuple(fit.quality),
    },
    "corrections": {
        "x": "x",
        "weights": "weights",
        "log_evidence": "log_evidence",
        "log_evidence_se": "log_evidence_se",
        "stats": "stats",
        "unique_starts": "unique_starts",
    },
    "denoised": {
        "x": "x",
        "noisy": "noisy",
        "rho": "rho",
        "acceptance": "acceptance",
        "step_size": "step_size",
        "nfe": "nfe",
        "nfe_start": "nfe_start",
    },
    "two samples": {
        "value": "value",
        "p_value": "p_value",
        "null": "null",
        "floor": "floor",
        "sizes": "sizes",
    },
    "direction": {"value": "value", "direction": "direction"},
    "run": {"draws": "draws", "stats": "stats", "num_steps": "num_steps"},
}


def _known(stats: Any) -> Any:
    """Statistics under the names that they were recorded by."""
    return {{"num_iterations": "num_stages"}.get(name, name): value for name, value in stats.items()}


def list_of(tree: Any) -> list[Any]:
    """The leaves of a pytree whose own names are no public ones."""
    import jax

    return jax.tree_util.tree_leaves(tree)


def taken(kind: str, result: Any) -> dict[str, Any]:
    """The recorded fields of a result."""
    return {
        name: where(result) if callable(where) else attrgetter(where)(result)
        for name, where in FIELDS[kind].items()
    }
