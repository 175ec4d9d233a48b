"""``mcx.ScorePrior``: a diffusion model as the law of a site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpy.typing import ArrayLike

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.models.arguments import (
    DENOISER,
    EVENT_SHAPE,
    ByLevel,
    Level,
    Point,
    Points,
    noise_levels,
)
from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.diffusion.models.reverse_process import ReverseProcess
from mcx.inference.diffusion.models.schedules import Schedule, levels
from mcx.inference.diffusion.models.scores import Denoiser, GaussianMixture, Score
from mcx.ops.validation import either, instance, integer, number, optional, validated
from mcx.types import Key, Scalar

_FAR, _NEAR = 30.0, 300.0  # the largest level over the data's spread; the smallest sd over the smallest level


class ScorePrior(dist.Distribution):
    """The law that a diffusion model has learned, as a distribution of NumPyro.

    ``x = mcx.sample("x", mcx.ScorePrior(score, mcx.diffusion.vp(), event_shape=(8, 8)))`` is a latent site
    like any other: what follows may use x, and observe what depends on it. Draws come from the reverse
    process. Where the model has a density (a :class:`~mcx.diffusion.GaussianMixture`, or an energy), so has
    the prior, and gradient methods such as ``mcx.NUTS`` run; for scores alone there is
    ``mcx.GuidedDiffusion``. Priors multiply and take powers: ``prior ** 2``, ``one * other``.

    Args:
        model: a function ``(x, t) -> array`` of one point, a :class:`~mcx.diffusion.Score`,
            :class:`~mcx.diffusion.GaussianMixture` or :class:`~mcx.diffusion.Composition`, or any object with
            ``denoise(y, rho)``. A network's parameters are data if they are leaves of the model
            (``jax.tree_util.Partial(apply, params)``) and come in by an argument of the program.
        schedule: the schedule that a function was trained with; for other models, the source of the range of
            levels.
        event_shape: shape of x; needed unless the model is a mixture, which knows it.
        kind: what a function returns, see :class:`~mcx.diffusion.Score`.
        num_steps: K, the number of reverse steps.
        levels: noise levels ``sigma / alpha``, strictly falling and positive, (K + 1,). By default they are
            geometric, over the schedule's range, or from 30 times a mixture's spread to a 300th of its least
            standard deviation.
        noise_gain: noise strength of a composition's steps, see :func:`mcx.diffusion.corrector`.
        validate_args: whether NumPyro checks arguments and values, as for any of its distributions.

    A draw costs K calls of the model and K directional derivatives. The law of draws is off by an error that
    falls with K, and noise of the smallest level remains. The density is that at the smallest level, up to a
    constant for compositions and energies. A draw from a composition is chosen among 128 weighted particles.

    Raises:
        MethodError: if levels do not fall, or the model, its shape or its levels are not known.

    Source: Ho, Jain and Abbeel (2020), Denoising diffusion probabilistic models, for the reverse process.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("model", "rho")
    pytree_aux_fields = ("noise_gain",)
    checks_support = True
    is_diffusion = True
    model: Denoiser | Composition
    rho: ByLevel
    noise_gain: float | None

    def __init__(
        self,
        model: Denoiser | Composition | Callable[[Point, Level], Point],
        schedule: Schedule | None = None,
        event_shape: tuple[int, ...] | int | None = None,
        *,
        kind: str = "score",
        num_steps: int = 100,
        levels: ArrayLike | None = None,
        noise_gain: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(model, ScorePrior):
            raise MethodError("ScorePrior(...) of a ScorePrior", remedy="use it as it is, or its .model")
        rule = optional(instance(Schedule, "a Schedule, such as mcx.diffusion.vp()"))
        schedule = validated("ScorePrior", "schedule", schedule, rule)
        self.model = _model(model, schedule, kind)
        if event_shape is None:
            event_shape = _event_shape(self.model)
        shape = either(integer(1), EVENT_SHAPE)
        event_shape = validated("ScorePrior", "event_shape", event_shape, shape)
        event_shape = (event_shape,) if isinstance(event_shape, int) else event_shape
        num_steps = validated("ScorePrior", "num_steps", num_steps, integer(1))
        gain = optional(number(0), "for the sum of the powers")
        self.noise_gain = validated("ScorePrior", "noise_gain", noise_gain, gain)
        self.rho = _levels(self.model, schedule, levels, num_steps)
        super().__init__(batch_shape=(), event_shape=event_shape, validate_args=validate_args)

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        """Names of the leaves, in the same order in every process: NumPyro's is that of a set of strings."""
        return ("rho", "model")

    @property
    def support(self) -> dist.constraints.Constraint:
        """All arrays of the event's shape."""
        real = dist.constraints.real
        return dist.constraints.independent(real, self.event_dim) if self.event_dim else real

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` can be called."""
        return bool(self.model.has_density)

    @property
    def no_density(self) -> str:
        """Why there is no density; empty where there is one."""
        return "" if self.has_density else "its diffusion model is a score alone"

    def reverse_process(self, copies: tuple[int, ...] = ()) -> ReverseProcess:
        """The reverse process of an array of independent copies, of shape (*copies, *event_shape)."""
        shape = (*copies, *self.event_shape)
        return ReverseProcess(self.model, self.rho, None, shape, self.event_shape, self.noise_gain)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Points:
        """Draw by the reverse process, (*sample_shape, *event_shape)."""
        keys = jax.random.split(key, sample_shape).reshape(-1) if sample_shape else key[None]
        return _drawn(self.reverse_process(), keys).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Points, intermediates: Any = None) -> Points:
        """The log density at the smallest level, of arrays (..., *event_shape).

        Raises:
            CapabilityError: if the model is a score alone.
        """
        if not self.has_density:
            raise CapabilityError(
                "this ScorePrior has no density: its diffusion model is a score alone",
                expected="a GaussianMixture, or Score(..., kind='energy')",
                remedy="mcx.GuidedDiffusion() samples from its posteriors without one",
            )
        value = jnp.asarray(value)
        batch = value.shape[: value.ndim - self.event_dim]
        flat = value.reshape(-1, *self.event_shape)
        return jax.vmap(lambda x: self.model.log_density(x, self.rho[-1]))(flat).reshape(batch)

    def stand_in(self, value: Points) -> Scalar:
        """A number that depends on what the model computes, to tell models without a density apart."""
        flat = jnp.asarray(value).reshape(-1, *self.event_shape)
        return jnp.sum(jax.vmap(lambda y: self.reverse_process().denoise(y, self.rho[-1]))(flat))

    def __pow__(self, power: Level) -> ScorePrior:
        """The law whose density is a power of this one's."""
        return self._with(_composition(self.model) ** power, self.rho)

    def __mul__(self, other: ScorePrior) -> ScorePrior:
        """The law whose density is the product, at the levels of the first factor."""
        if not isinstance(other, ScorePrior):
            return NotImplemented
        if other.event_shape != self.event_shape:
            raise MethodError(
                "a product of priors of different shapes",
                expected=f"event shape {self.event_shape}",
                found=f"{other.event_shape}",
            )
        return self._with(_composition(self.model) * _composition(other.model), self.rho)

    def _with(self, model: Composition, rho: ByLevel) -> ScorePrior:
        return ScorePrior(model, event_shape=self.event_shape, levels=rho, noise_gain=self.noise_gain)


@jax.jit
def _drawn(process: ReverseProcess, keys: Key) -> Points:
    return jax.vmap(process.draw)(keys)


def _model(model: Any, schedule: Schedule | None, kind: str) -> Denoiser | Composition:
    """The model as it is, or a function as a score."""
    if isinstance(model, Composition):
        return model
    if hasattr(model, "denoise"):
        return validated("ScorePrior", "model", model, DENOISER)
    if not callable(model):
        raise MethodError(
            "ScorePrior(model) is no diffusion model",
            expected="a function (x, t), a Score, a GaussianMixture, or a Composition of those",
            found=type(model).__name__,
        )
    if schedule is None:
        raise MethodError(
            "ScorePrior(function) does not say how much noise there is at a time",
            expected="the schedule that the function was trained with",
            remedy="ScorePrior(function, mcx.diffusion.vp(), ...)",
        )
    return Score(model, schedule, kind)


def _composition(model: Denoiser | Composition) -> Composition:
    return model if isinstance(model, Composition) else Composition((model,), (1.0,))


def _parts(model: Denoiser | Composition) -> tuple[Denoiser, ...]:
    return model.models if isinstance(model, Composition) else (model,)


def _event_shape(model: Denoiser | Composition) -> tuple[int, ...]:
    for part in _parts(model):
        if isinstance(part, GaussianMixture):
            return tuple(jnp.shape(part.means)[1:])
    raise MethodError(
        "ScorePrior(...) does not know the shape of its draws", expected="event_shape=(...)", found="None"
    )


def _levels(
    model: Denoiser | Composition, schedule: Schedule | None, rho: ArrayLike | None, num_steps: int
) -> ByLevel:
    if rho is not None:
        if not isinstance(rho, jax.core.Tracer):  # those of another prior are traced within a program
            noise_levels("ScorePrior", "levels", rho)
        return jnp.asarray(rho, float)
    parts = _parts(model)
    if schedule is None:
        schedule = next((part.schedule for part in parts if isinstance(part, Score)), None)
    if schedule is not None:
        with jax.ensure_compile_time_eval():  # within a model all that JAX computes is traced
            low, high = schedule.rho_range
        return jnp.asarray(levels(high, low, num_steps), float)
    mixtures = [part for part in parts if isinstance(part, GaussianMixture)]
    if not mixtures:
        raise MethodError(
            "ScorePrior(...) does not know the noise levels of this model",
            expected="schedule=, or levels= such as mcx.diffusion.levels(80.0, 0.002, 100)",
        )
    least, most = zip(*(_spread(part) for part in mixtures), strict=True)
    return jnp.geomspace(_FAR * jnp.max(jnp.stack(most)), jnp.min(jnp.stack(least)) / _NEAR, num_steps + 1)


def _spread(mixture: GaussianMixture) -> tuple[Scalar, Scalar]:
    """The least standard deviation of a component, and the extent of the whole about its mean."""
    centre = mixture.weights @ mixture.means
    reach = jnp.max(jnp.linalg.norm(mixture.means - centre, axis=-1))
    return jnp.sqrt(jnp.min(mixture.variances)), reach + jnp.sqrt(jnp.max(mixture.variances))
