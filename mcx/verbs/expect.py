"""The front door for expectations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcx.errors import MethodError
from mcx.model.bound import BoundModel
from mcx.ops.keys import as_key
from mcx.results.posterior import Posterior
from mcx.types import KeyLike, SiteFunctions
from mcx.verbs.argument_checks import check_bound, refuse_tracing

if TYPE_CHECKING:
    from mcx.estimators.control_variates.posterior_controls import SteinControls
    from mcx.estimators.importance.adaptive_importance import AdaptiveImportance
    from mcx.methods.method import Method
    from mcx.results.estimate import Estimate


def expect(
    of: BoundModel | Posterior,
    functions: SiteFunctions,
    *,
    method: SteinControls | AdaptiveImportance | Method | None = None,
    key: KeyLike | None = None,
    **options: Any,
) -> dict[str, Estimate]:
    """Estimate expectations under a posterior, with standard errors, using control variates.

    Args:
        of: a :class:`~mcx.Posterior`, whose draws, weighted or not, are used again; or a model with its data.
        functions: by name; each takes the values of latent and deterministic sites, a dictionary, and returns
            a number, an array or a pytree. They are traced by JAX.
        method: for draws, :class:`mcx.SteinControls` (the default). For a model,
            :class:`mcx.AdaptiveImportance` (the default), which estimates the evidence as well, or a method
            of :func:`mcx.infer`, whose draws are post-processed with Stein control variates.
        key: a typed JAX key or an int; needed for a model.
        **options: further arguments of :func:`mcx.infer`.

    Returns:
        Estimates by name. Where the evidence is estimated, it is in their ``stats`` as ``log_evidence`` and
        ``log_evidence_se``. Control variates cost a gradient of the log density for each draw.

    Raises:
        CapabilityError: if draws or model lack what the method needs.
        MethodError: if the method does not fit draws, or a model; or without a key for a model.
        WeightCollapse: if importance samples do not find the posterior.

    Sources: see the methods.

    Example:
        >>> import mcx, mcx.dist as dist
        >>> @mcx.model
        ... def model():
        ...     mcx.sample("x", dist.Gamma(3.0, 1.0))
        >>> mcx.expect(
        ...     model(), {"mean": lambda v: v["x"], "big": lambda v: v["x"] > 5}, key=0
        ... )  # doctest: +SKIP
    """
    from mcx.estimators.control_variates.posterior_controls import SteinControls
    from mcx.estimators.importance.adaptive_importance import AdaptiveImportance
    from mcx.estimators.importance.posterior_importance import expect_by_importance
    from mcx.verbs.infer import infer

    refuse_tracing("expect", "call it outside of jit and vmap", of, key)
    if not all(callable(f) for f in getattr(functions, "values", lambda: [None])()):
        raise MethodError(
            "functions are passed by name",
            expected='{"name": function of the sites\' values}',
            found=repr(functions)[:100],
        )
    if isinstance(of, Posterior):
        method = SteinControls() if method is None else method
        if not isinstance(method, SteinControls):
            raise MethodError(
                "draws can only be post-processed", expected="method=mcx.SteinControls()", found=repr(method)
            )
        return method.estimate(of, functions)
    check_bound(of, "expect")
    if key is None:
        raise MethodError("expect needs a key for a model", expected="key=, a typed key or an int")
    method = AdaptiveImportance() if method is None else method
    if isinstance(method, AdaptiveImportance):
        return expect_by_importance(of, functions, method, key=as_key(key))
    if isinstance(method, SteinControls):
        raise MethodError(
            "control variates need draws", expected="a posterior, or a method that draws", found=repr(method)
        )
    return SteinControls().estimate(infer(of, method, key=key, **options), functions)
