"""The front door: one call for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

from mcx.errors import MethodError, ModelError
from mcx.model.bound import BoundModel, Model
from mcx.model.check import static_problems
from mcx.model.compile import fingerprint_model, model_sites
from mcx.ops.keys import as_key
from mcx.ops.tracing import is_traced
from mcx.results.datatree import check_coords
from mcx.results.diagnose import check_mode, report_advice
from mcx.results.posterior import Posterior
from mcx.run.checkpoint import Checkpoint, identified
from mcx.run.devices import Devices

if TYPE_CHECKING:
    from mcx.inference.particle_gibbs.score_ascent import Maximum, ScoreAscent
    from mcx.inference.particle_gibbs.score_climbing import ScoreClimbing
    from mcx.inference.particle_gibbs.smooth import Smoother
    from mcx.inference.smc.filtered import Filtered
    from mcx.inference.smc.particle_filter import ParticleFilter
    from mcx.results.approximation import Approximation
    from mcx.results.estimate import Estimate

_CHAINS = 4

__all__ = ["Method", "filter", "infer", "maximize", "program", "smooth"]


@runtime_checkable
class Method(Protocol):
    """An inference method: a frozen dataclass of settings that knows how to run itself."""

    def infer(self, bound: BoundModel, **options: Any) -> Posterior:
        """Draw from the posterior; options are those of :func:`infer`, checked."""
        ...

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function behind :meth:`infer`."""
        ...


def infer(
    bound: BoundModel,
    method: Method,
    *,
    key: Any,
    num_chains: int | None = None,
    progress: Any = True,
    warnings: str = "warn",
    coords: Mapping[str, Any] | None = None,
    init: Any = None,
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
    batch_size: int | None = None,
) -> Posterior:
    """Draw from the posterior of a model.

    Args:
        bound: a model with its data, ``model(data)``.
        method: how, e.g. ``mcx.NUTS()``.
        key: a typed JAX key or an int.
        num_chains: independent chains, vectorised; by default as many as suit the method, 4 for most.
        progress: True (a bar in terminals and notebooks, lines elsewhere), False, "bar" or "lines".
        warnings: "warn" (one block after the run), "raise" (for CI; the posterior is attached to the
            error) or "ignore".
        coords: labels of the results' dimensions (plates), ``{"school": [...]}``.
        init: starting points: None (uniform on (-2, 2) in unconstrained space), "prior", a radius, or a
            dictionary of constrained values (of shape (num_chains, ...) or of one chain).
        checkpoint: a directory to save the run to as it goes, made if it is not there; or
            ``mcx.Checkpoint(path, interval=seconds)``. The same call again goes on from there, with the same
            bits as if it had not been interrupted (on the same machine, with the same versions).
        devices: that share the chains evenly, side by side: a number of them, "all", some of
            ``jax.devices()``, or a mesh; the default device alone if None.
        batch_size: chains that move at once, where all of them would need too much memory for intermediate
            values.

    Returns:
        The posterior. Interrupted by Ctrl-C, it holds what was drawn, with ``complete=False``.

    Raises:
        CapabilityError, ModelError, DataError, BroadcastError, SupportError: if the model or its data
            cannot be used as they are; the error names the site and the remedy.
        InitializationError: if no starting point has a finite log density and gradient.
        DiagnosticWarning: with ``warnings="raise"``, if the diagnostics find fault.
        CheckpointError: if the checkpoint cannot be written, is in use, damaged, or of another run.
    """
    _check_types(bound, method)
    pure = "mcx.program(bound, method) gives a pure function for jit and vmap; mcx.infer runs outside of them"
    _refuse_tracing("infer", pure, bound, key, init)
    check_mode(warnings)
    key = as_key(key)
    check_coords(coords or {}, model_sites(bound))
    posterior = method.infer(
        bound,
        key=key,
        num_chains=_num_chains(method, num_chains),
        init=init,
        coords=coords or {},
        progress=progress,
        while_compiling=_load_diagnostics if warnings != "ignore" else None,
        checkpoint=_saved_to(checkpoint, bound, method),
        devices=devices,
        batch_size=batch_size,
    )
    report_advice(posterior, warnings)
    return posterior


def filter(
    bound: BoundModel,
    *,
    params: Mapping[str, Any] | None = None,
    num_particles: int = 1000,
    method: ParticleFilter | None = None,
    key: Any,
    num_chains: int = 1,
    history: str = "moments",
    quantiles: Sequence[float] = (),
    name: str | None = None,
    coords: Mapping[str, Any] | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
) -> Filtered:
    """Filter a state-space model: the law of the state given the observations so far, and the evidence.

    Args:
        bound: a model with a Markov chain (:func:`mcx.markov`, or NumPyro's ``scan``) and its data.
        params: constrained values of every other latent site, ``{"phi": 0.9}``.
        num_particles: N.
        method: how; :class:`mcx.ParticleFilter` by default.
        key: a typed JAX key or an int.
        num_chains: independent replicates, vectorised.
        history: what to keep of every time: "moments", "none" (evidence and effective sample size alone),
            "ancestors" (and parents and weights, T x N) or "full" (and the particles).
        quantiles: probabilities of weighted quantiles to keep along with the moments; a sort a step.
        name: of the Markov chain, where the model has several.
        coords: labels of the dimensions, ``{"time": dates}``.
        progress: see :func:`infer`.
        checkpoint: see :func:`infer`.
        devices: see :func:`infer`.

    Returns:
        Moments over time, log evidence with its standard error, effective sample sizes; see
        :class:`~mcx.inference.smc.filtered.Filtered`. Stopped by Ctrl-C, it holds the times up to there, with
        ``complete=False``. Costs O(T N).

    Raises:
        CapabilityError: if the model has no Markov chain, or a likelihood on its path outside of it.
        ModelError, SupportError, DataError: if ``params`` or data cannot be used as they are.
        WeightCollapse: if no particle explains an observation; what was there before is in ``.result``.
        NonFiniteError: if too many potentials are NaN or +inf.
    """
    pure = "mcx.smc runs a Feynman-Kac model as a pure function; mcx.filter runs outside of jit and vmap"
    _refuse_tracing("filter", pure, bound, key, params)
    _check_state_space(bound, "filter", {"num_particles": num_particles, "num_chains": num_chains}, coords)
    from mcx.inference.smc.particle_filter import ParticleFilter

    method = ParticleFilter() if method is None else method
    if not isinstance(method, ParticleFilter):
        raise MethodError(
            "filter needs a particle filter", expected="mcx.ParticleFilter()", found=repr(method)
        )
    return method.filter(
        bound,
        params=params,
        num_particles=num_particles,
        key=as_key(key),
        num_chains=num_chains,
        history=history,
        quantiles=tuple(quantiles),
        block=name,
        coords=coords or {},
        progress=progress,
        checkpoint=_saved_to(
            checkpoint,
            bound,
            method,
            chain=name,
            particles=num_particles,
            history=history,
            quantiles=quantiles,
        ),
        devices=devices,
    )


def program(bound: BoundModel, method: Method, *, num_chains: int | None = None) -> Callable[..., Posterior]:
    """The pure function behind :func:`infer`, for ``jit``, ``vmap`` over keys and data sets.

    Args:
        bound: a model with data; the function takes other data of the same shapes.
        method: how.
        num_chains: independent chains; by default as many as suit the method, 4 for most.

    Returns:
        ``fn(key, bound) -> Posterior``, whose draws are NaN for a chain that found no finite starting
        point. Nothing is checked, shown or warned about.
    """
    _check_types(bound, method)
    return method.program(bound, _num_chains(method, num_chains))


def smooth(
    bound: BoundModel,
    functional: Any,
    *,
    params: Mapping[str, Any] | None = None,
    method: Smoother | None = None,
    key: Any,
    num_chains: int = 4,
    name: str | None = None,
    coords: Mapping[str, Any] | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
    batch_size: int | None = None,
) -> Estimate:
    """Smooth a state-space model: the expectation of a functional of the path given all observations.

    Args:
        bound: a model with a Markov chain (:func:`mcx.markov`, or NumPyro's ``scan``) and its data.
        functional: ``h(x_prev, x, t)``, summed over the transitions t = 1 .. T-1; an
            :class:`mcx.AdditiveFunctional`; or one of :mod:`mcx.functionals`.
        params: constrained values of every other latent site, ``{"phi": 0.9}``.
        method: :class:`mcx.PPG` (the default), :class:`mcx.PaRIS` or :class:`mcx.FFBS`.
        key: a typed JAX key or an int.
        num_chains: independent chains or runs, vectorised; from 4 on they give the standard error.
        name: of the Markov chain, where the model has several.
        coords: labels of the dimensions.
        progress: see :func:`infer`.
        checkpoint: see :func:`infer`.
        devices: see :func:`infer`.
        batch_size: see :func:`infer`.

    Returns:
        Value and standard error, pytrees of the functional's structure.

    Raises:
        CapabilityError: if the model has no Markov chain, or its steps have no density.
        ModelError, SupportError, DataError: if ``params`` or data cannot be used as they are.
        WeightCollapse: if no particle explains an observation.
        NonFiniteError: if too many potentials are NaN or +inf.
    """
    _refuse_tracing("smooth", "call it outside of jit and vmap", bound, key, params)
    _check_state_space(bound, "smooth", {"num_chains": num_chains}, coords)
    from mcx.inference.particle_gibbs.additive import as_functional
    from mcx.inference.particle_gibbs.ppg import PPG
    from mcx.inference.particle_gibbs.smooth import smooth_model

    method = PPG() if method is None else method
    return smooth_model(
        bound,
        as_functional(functional),
        params=params,
        method=method,
        key=as_key(key),
        num_chains=num_chains,
        block=name,
        coords=coords or {},
        progress=progress,
        checkpoint=_saved_to(checkpoint, bound, method, chain=name),
        devices=devices,
        batch_size=batch_size,
    )


@overload
def maximize(
    bound: BoundModel,
    *,
    method: ScoreAscent | None = None,
    init: Mapping[str, Any] | None = None,
    key: Any,
    num_chains: int = 8,
    name: str | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
) -> Maximum: ...


@overload
def maximize(
    bound: BoundModel,
    *,
    method: ScoreClimbing,
    init: Any = None,
    key: Any,
    num_chains: int = 8,
    name: str | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
) -> Approximation: ...


def maximize(
    bound: BoundModel,
    *,
    method: ScoreAscent | ScoreClimbing | None = None,
    init: Any = None,
    key: Any,
    num_chains: int = 8,
    name: str | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
) -> Maximum | Approximation:
    """Climb along scores: to the maximum likelihood of parameters, or to a family's best fit to a posterior.

    With :class:`mcx.ScoreAscent`, the parameters of a state-space model move along smoothed scores; priors
    only say where parameters live. With :class:`mcx.ScoreClimbing`, a family of distributions on
    unconstrained space is fitted to the posterior of any model.

    Args:
        bound: a model and its data; for ``ScoreAscent`` one with a Markov chain, every other latent site
            being a parameter.
        method: :class:`mcx.ScoreAscent` by default.
        init: constrained values to start from, ``{"phi": 0.5}``; zeros of unconstrained space by default. For
            ``ScoreClimbing``, where chains start, see :func:`infer`.
        key: a typed JAX key or an int.
        num_chains: chains of ``ScoreClimbing``; ``ScoreAscent(num_smoothers=...)`` has its own.
        name: of the Markov chain, where the model has several.
        progress: see :func:`infer`.
        checkpoint: see :func:`infer`; the runs for the standard errors have directories within.

    Returns:
        Estimates, standard errors from the observed information, and the way there; or the fitted
        distribution and how well it fits. Interrupted by Ctrl-C, what was reached, with ``complete=False``.

    Raises:
        CapabilityError: if the chain's steps have no density, or a parameter is discrete.
        InitializationError: if ``init`` does not fit the model.
        NonFiniteError: if the score is no number.
    """
    from mcx.inference.particle_gibbs.score_ascent import ScoreAscent, maximize_model
    from mcx.inference.particle_gibbs.score_climbing import ScoreClimbing, climb

    _refuse_tracing("maximize", "call it outside of jit and vmap", bound, key, init)
    method = ScoreAscent() if method is None else method
    if isinstance(method, ScoreClimbing):
        _check_counts({"num_chains": num_chains})
        _check_bound(bound, "maximize")
        return climb(
            bound,
            method=method,
            init=init,
            key=as_key(key),
            num_chains=num_chains,
            progress=progress,
            checkpoint=_saved_to(checkpoint, bound, method, moving_chains=num_chains),
        )
    _check_state_space(bound, "maximize", {}, None)
    if not isinstance(method, ScoreAscent):
        raise MethodError(
            "maximize needs a method of its own",
            expected="mcx.ScoreAscent() or mcx.ScoreClimbing()",
            found=repr(method),
        )
    return maximize_model(
        bound,
        method=method,
        init=init,
        key=as_key(key),
        block=name,
        progress=progress,
        checkpoint=_saved_to(checkpoint, bound, method, chain=name),
    )


def _refuse_tracing(verb: str, remedy: str, *given: Any) -> None:
    """Raise within ``jit``, ``vmap`` or ``grad``: runs compile programs of their own, and look at results."""
    if is_traced(given):
        raise MethodError(
            f"mcx.{verb} was called within a function that JAX traces (jit, vmap, grad)",
            expected="concrete arrays and keys",
            remedy=remedy,
        )


def _num_chains(method: Method, asked: int | None) -> int:
    """The number of chains that was asked for, or the method's own: ``default_chains`` where it has one."""
    return int(getattr(method, "default_chains", _CHAINS)) if asked is None else asked


def _saved_to(
    checkpoint: str | Path | Checkpoint | None, bound: BoundModel, method: Any, **identity: Any
) -> Checkpoint | None:
    """The checkpoint with what the run is: a method on a model, and further arguments."""
    if checkpoint is None:
        return None
    return identified(checkpoint, model=fingerprint_model(bound), method=repr(method), **identity)


def _check_bound(bound: Any, verb: str = "infer") -> None:
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


def _check_state_space(
    bound: Any, verb: str, counts: Mapping[str, int], coords: Mapping[str, Any] | None
) -> None:
    _check_bound(bound, verb)
    _check_counts(counts)
    sites = model_sites(bound)
    for problem in static_problems(sites):
        raise problem
    check_coords(coords or {}, sites)


def _check_counts(counts: Mapping[str, int]) -> None:
    for argument, value in counts.items():
        if value < 1:
            raise MethodError(f"{argument} is out of range", expected="an int >= 1", found=repr(value))


def _check_types(bound: Any, method: Any) -> None:
    _check_bound(bound)
    if isinstance(method, type):
        raise MethodError("the method is a class", expected=f"{method.__name__}()", found=method.__name__)
    if not isinstance(method, Method):
        raise MethodError(
            "the second argument is no inference method", expected="e.g. mcx.NUTS()", found=repr(method)
        )


def _load_diagnostics() -> None:
    """Import ArviZ's statistics while XLA compiles: a second that nobody then waits for."""
    import arviz_stats.base  # noqa: F401
