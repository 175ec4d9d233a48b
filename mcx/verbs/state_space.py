"""The front door for Markov blocks in models: filter, smooth, maximise the likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mcx.errors import ModelError
from mcx.model.bound import BoundModel
from mcx.model.check import gradients_explained
from mcx.ops.keys import as_key
from mcx.ops.validation import instance, integer, optional, validated
from mcx.results.posterior import Posterior
from mcx.run.checkpoint import Checkpoint
from mcx.run.devices import Devices
from mcx.types import KeyLike, PyTree, SiteValues
from mcx.verbs.argument_checks import check_bound, check_state_space, refuse_tracing, saved_to

if TYPE_CHECKING:
    from mcx.inference.filtering.filtered import Filtered
    from mcx.inference.filtering.forecast import Forecast
    from mcx.inference.filtering.particle_filter import ParticleFilter
    from mcx.inference.maximize.maximum import Maximum
    from mcx.inference.maximize.score_ascent import ScoreAscent
    from mcx.inference.maximize.score_climbing import ScoreClimbing
    from mcx.inference.smoothing.additive import Functional
    from mcx.inference.smoothing.smoother import Smoother
    from mcx.results.approximation import Approximation
    from mcx.results.estimate import Estimate


def filter(
    bound: BoundModel,
    *,
    params: SiteValues | None = None,
    num_particles: int = 1000,
    method: ParticleFilter | None = None,
    key: KeyLike,
    num_chains: int = 1,
    history: Literal["none", "moments", "ancestors", "full"] = "moments",
    quantiles: Sequence[float] = (),
    name: str | None = None,
    coords: Mapping[str, Any] | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
    devices: Devices = None,
) -> Filtered:
    """Filter a state-space model: the law of the state given the observations so far, and the evidence.

    Args:
        bound: a model with a Markov block (:func:`mcx.markov`, or NumPyro's ``scan``) and its data.
        params: constrained values of every other latent site, ``{"phi": 0.9}``.
        num_particles: N.
        method: how; :class:`mcx.ParticleFilter` by default.
        key: a typed JAX key or an int.
        num_chains: independent replicates, vectorised.
        history: what to keep of every time: "moments", "none" (evidence and effective sample size alone),
            "ancestors" (and parents and weights, T x N) or "full" (and the particles).
        quantiles: probabilities of weighted quantiles to keep along with the moments; a sort a step.
        name: of the Markov block, where the model has several.
        coords: labels of the dimensions, ``{"time": dates}``.
        progress: see :func:`mcx.infer`.
        checkpoint: see :func:`mcx.infer`.
        devices: see :func:`mcx.infer`.

    Returns:
        Moments over time, log evidence with its standard error, effective sample sizes; see
        :class:`~mcx.inference.filtering.filtered.Filtered`. Stopped by Ctrl-C, it holds the times up to
        there, with ``complete=False``. Costs O(T N).

    Raises:
        CapabilityError: if the model has no Markov block, or a likelihood on its path outside of it.
        ModelError, SupportError, DataError: if ``params`` or data cannot be used as they are.
        WeightCollapse: if no particle explains an observation; what was there before is in ``.result``.
        NonFiniteError: if too many potentials are NaN or +inf.
    """
    pure = "mcx.smc runs a Feynman-Kac model as a pure function; mcx.filter runs outside of jit and vmap"
    refuse_tracing("filter", pure, bound, key, params)
    check_state_space(bound, "filter", coords)
    num_particles = validated("filter", "num_particles", num_particles, integer(1))
    num_chains = validated("filter", "num_chains", num_chains, integer(1))
    from mcx.inference.filtering.filter import filter_model
    from mcx.inference.filtering.particle_filter import ParticleFilter
    from mcx.inference.smc.history import HISTORY, QUANTILES

    method = ParticleFilter() if method is None else method
    validated("filter", "method", method, instance(ParticleFilter, "mcx.ParticleFilter(...)"))
    keep = validated("filter", "history", history, HISTORY)
    probabilities = validated("filter", "quantiles", quantiles, QUANTILES)
    identity = {"chain": name, "particles": num_particles, "history": history, "quantiles": quantiles}
    checkpoint = saved_to(checkpoint, bound, method, **identity)
    return filter_model(
        bound,
        method,
        params=params,
        num_particles=num_particles,
        key=as_key(key),
        num_chains=num_chains,
        history=keep,
        quantiles=probabilities,
        block=name,
        coords=coords or {},
        progress=progress,
        checkpoint=checkpoint,
        devices=devices,
    )


def forecast(
    posterior: Posterior, horizon: int, *, key: KeyLike, inputs: PyTree = None, name: str | None = None
) -> Forecast:
    """Draw states and observations of the times after the last, each draw with its own parameters.

    Args:
        posterior: of a model with a Markov block, with draws of parameters and paths: by
            :class:`mcx.PMMH`, :class:`mcx.SMC2`, :class:`mcx.ParticleGibbs`, :class:`mcx.NUTS`.
        horizon: number of times ahead.
        key: a typed JAX key or an int.
        inputs: the chain's inputs for these times, with a leading axis of ``horizon``; None where it has
            none.
        name: of the Markov block, where the model has several.

    Returns:
        Draws by site, (chains x draws, horizon, ...), chain after chain, with ``.quantiles(levels)``. Costs
        O(chains draws (T + horizon)). To forecast with given parameters, see :func:`filter`.

    Raises:
        ModelError: if inputs are missing or of another structure, or the draws have no path.
        CapabilityError: if the model has no Markov block, or its observations to come cannot be drawn.
    """
    from mcx.inference.filtering.forecast import forecast_draws

    if not isinstance(posterior, Posterior):
        raise ModelError(
            "mcx.forecast goes on from draws",
            expected="what mcx.infer gives",
            found=type(posterior).__name__,
            remedy="of mcx.filter: filtered.forecast(...)",
        )
    refuse_tracing("forecast", "call it outside; it compiles a program of its own", posterior, key, inputs)
    return forecast_draws(
        posterior.bound, posterior.draws, horizon=horizon, key=as_key(key), inputs=inputs, block=name
    )


def smooth(
    bound: BoundModel,
    functional: Functional | Callable[..., PyTree],
    *,
    params: SiteValues | None = None,
    method: Smoother | None = None,
    key: KeyLike,
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
        bound: a model with a Markov block (:func:`mcx.markov`, or NumPyro's ``scan``) and its data.
        functional: ``h(x_prev, x, t)``, summed over the transitions t = 1 .. T-1; an
            :class:`mcx.AdditiveFunctional`; or one of :mod:`mcx.functionals`.
        params: constrained values of every other latent site, ``{"phi": 0.9}``.
        method: :class:`mcx.PPG` (the default), :class:`mcx.PaRIS` or :class:`mcx.FFBS`.
        key: a typed JAX key or an int.
        num_chains: independent chains or runs, vectorised; from 4 on they give the standard error.
        name: of the Markov block, where the model has several.
        coords: labels of the dimensions.
        progress: see :func:`mcx.infer`.
        checkpoint: see :func:`mcx.infer`.
        devices: see :func:`mcx.infer`.
        batch_size: see :func:`mcx.infer`.

    Returns:
        Value and standard error, pytrees of the functional's structure.

    Raises:
        CapabilityError: if the model has no Markov block, or its steps have no density.
        ModelError, SupportError, DataError: if ``params`` or data cannot be used as they are.
        WeightCollapse: if no particle explains an observation.
        NonFiniteError: if too many potentials are NaN or +inf.
    """
    refuse_tracing("smooth", "call it outside of jit and vmap", bound, key, params)
    check_state_space(bound, "smooth", coords)
    num_chains = validated("smooth", "num_chains", num_chains, integer(1))
    batch_size = validated("smooth", "batch_size", batch_size, optional(integer(1)))
    from mcx.inference.smoothing.additive import as_functional
    from mcx.inference.smoothing.ppg import PPG
    from mcx.inference.smoothing.smooth import smooth_model
    from mcx.inference.smoothing.smoother import Smoother

    method = PPG() if method is None else method
    validated("smooth", "method", method, instance(Smoother, "mcx.PPG(), mcx.PaRIS() or mcx.FFBS()"))
    return smooth_model(
        bound,
        as_functional(functional),
        method,
        params=params,
        key=as_key(key),
        num_chains=num_chains,
        block=name,
        coords=coords or {},
        progress=progress,
        checkpoint=saved_to(checkpoint, bound, method, chain=name),
        devices=devices,
        batch_size=batch_size,
    )


@overload
def maximize(
    bound: BoundModel,
    *,
    method: ScoreAscent | None = None,
    init: SiteValues | None = None,
    key: KeyLike,
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
    init: PyTree = None,
    key: KeyLike,
    num_chains: int = 8,
    name: str | None = None,
    progress: Any = True,
    checkpoint: str | Path | Checkpoint | None = None,
) -> Approximation: ...


def maximize(
    bound: BoundModel,
    *,
    method: ScoreAscent | ScoreClimbing | None = None,
    init: PyTree = None,
    key: KeyLike,
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
        bound: a model and its data; for ``ScoreAscent`` one with a Markov block, every other latent site
            being a parameter.
        method: :class:`mcx.ScoreAscent` by default.
        init: constrained values to start from, ``{"phi": 0.5}``; zeros of unconstrained space by default. For
            ``ScoreClimbing``, where chains start, see :func:`mcx.infer`.
        key: a typed JAX key or an int.
        num_chains: chains of ``ScoreClimbing``; ``ScoreAscent(num_smoothers=...)`` has its own.
        name: of the Markov block, where the model has several.
        progress: see :func:`mcx.infer`.
        checkpoint: see :func:`mcx.infer`; the runs for the standard errors have directories within.

    Returns:
        Estimates, standard errors from the observed information, and the way there; or the fitted
        distribution and how well it fits. Interrupted by Ctrl-C, what was reached, with ``complete=False``.

    Raises:
        CapabilityError: if the chain's steps have no density, or a parameter is discrete.
        InitializationError: if ``init`` does not fit the model.
        NonFiniteError: if the score is no number.
    """
    from mcx.inference.maximize.score_ascent import ScoreAscent, maximize_model
    from mcx.inference.maximize.score_climbing import ScoreClimbing, climb

    refuse_tracing("maximize", "call it outside of jit and vmap", bound, key, init)
    method = ScoreAscent() if method is None else method
    ways = instance((ScoreAscent, ScoreClimbing), "mcx.ScoreAscent() or mcx.ScoreClimbing()")
    validated("maximize", "method", method, ways)
    num_chains = validated("maximize", "num_chains", num_chains, integer(1))
    if isinstance(method, ScoreClimbing):
        check_bound(bound, "maximize")
        with gradients_explained(bound.name):
            return climb(
                bound,
                method,
                init=init,
                key=as_key(key),
                num_chains=num_chains,
                progress=progress,
                checkpoint=saved_to(checkpoint, bound, method, moving_chains=num_chains),
            )
    check_state_space(bound, "maximize", None)
    return maximize_model(
        bound,
        method,
        init=init,
        key=as_key(key),
        block=name,
        progress=progress,
        checkpoint=saved_to(checkpoint, bound, method, chain=name),
    )
