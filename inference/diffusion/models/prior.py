"""``mcx.ScorePrior``: a diffusion model as the law of a site."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from mcx.errors import CapabilityError, MethodError
from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.diffusion.models.reverse_chain import ReverseChain
from mcx.inference.diffusion.models.schedules import Schedule, levels
from mcx.inference.diffusion.models.scores import GaussianMixture, Score

__all__ = ["ScorePrior"]

_NUM_STEPS = 100
_FAR, _NEAR = 30.0, 300.0  # largest and smallest level, over and under the data's spread


class ScorePrior(dist.Distribution):
    """The law that a diffusion model has learned, as a distribution of NumPyro.

    ``x = mcx.sample("x", mcx.ScorePrior(score, mcx.diffusion.vp(), event_shape=(8, 8)))`` is a latent site
    like any other: what follows may use x, and observe what depends on it. Draws come from the reverse
    process. There is a density, and gradient methods such as ``mcx.NUTS`` run, where the model has one (a
    :class:`~mcx.diffusion.GaussianMixture`, or an energy); for scores alone there is ``mcx.GuidedDiffusion``.
    Priors multiply and take powers: ``prior ** 2``, ``one * other``.

    Args:
        model: a function ``(x, t) -> array`` of one point, :class:`~mcx.diffusion.Score`,
            :class:`~mcx.diffusion.GaussianMixture`, :class:`~mcx.diffusion.Composition`, or any object with
            ``denoise(y, rho)``. A network's parameters are data where they are leaves of the model
            (``jax.tree_util.Partial(apply, params)``) and come in by an argument of the program.
        schedule: that a function was trained with; of other models, where to take the range of levels from.
        event_shape: of x; a mixture knows it.
        kind: what a function gives, see :class:`~mcx.diffusion.Score`.
        num_steps: K, of the reverse process.
        levels: noise levels ``sigma / alpha``, strictly falling, (K + 1,), in place of those: geometric over
            the schedule's range, or from 30 times the spread of a mixture to a 300th of its least sd.
        noise_gain: of the steps of a composition, see :func:`mcx.diffusion.corrector`.

    A draw costs K calls of the model and K directional derivatives. The law of draws is off by an error that
    falls with K, and noise of the smallest level is left; the density is that at the smallest level, up to a
    constant for compositions and energies. A draw from a composition is chosen among 128 weighted particles.

    Raises:
        MethodError: if levels do not fall, or what is needed is not given.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("model", "rho")
    pytree_aux_fields = ("noise_gain",)
    checks_support = True
    is_diffusion = True
    model: Any
    rho: Any
    noise_gain: float | None

    def __init__(
        self,
        model: Any,
        schedule: Schedule | None = None,
        event_shape: tuple[int, ...] | int | None = None,
        *,
        kind: str = "score",
        num_steps: int = _NUM_STEPS,
        levels: Any = None,
        noise_gain: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(model, ScorePrior):
            raise MethodError("ScorePrior(...) of a ScorePrior", remedy="use it as it is, or its .model")
        if not (hasattr(model, "denoise") or isinstance(model, Composition)):
            model = _score(model, schedule, kind)
        if event_shape is None:
            event_shape = _event_shape(model)
        event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.model, self.noise_gain = model, noise_gain
        self.rho = _levels(model, schedule, levels, num_steps)
        super().__init__(batch_shape=(), event_shape=event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """All arrays of the event's shape."""
        real = dist.constraints.real
        return dist.constraints.independent(real, self.event_dim) if self.event_dim else real

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` is there."""
        return bool(self.model.has_density)

    @property
    def no_density(self) -> str:
        """Why there is no density; empty where there is one."""
        return "" if self.has_density else "its diffusion model is a score alone"

    def chain(self, copies: tuple[int, ...] = ()) -> ReverseChain:
        """The reverse process of independent copies, side by side."""
        shape = (*copies, *self.event_shape)
        return ReverseChain(self.model, self.rho, None, shape, self.event_shape, self.noise_gain)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw by the reverse process."""
        keys = jax.random.split(key, sample_shape).reshape(-1) if sample_shape else key[None]
        return _drawn(self.chain(), keys).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log density at the smallest level, of arrays (..., *event_shape).

        Raises:
            CapabilityError: of a score alone.
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

    def stand_in(self, value: Any) -> Any:
        """A number by what the model computes at a point: in place of a density, to tell models apart."""
        flat = jnp.asarray(value).reshape(-1, *self.event_shape)
        return jnp.sum(jax.vmap(lambda y: self.chain().denoise(y, self.rho[-1]))(flat))

    def __pow__(self, power: Any) -> ScorePrior:
        """The law whose density is a power of this one's."""
        return self._with(_composition(self.model) ** power, self.rho)

    def __mul__(self, other: ScorePrior) -> ScorePrior:
        """The law whose density is the product; at this one's levels."""
        if not isinstance(other, ScorePrior):
            return NotImplemented
        if other.event_shape != self.event_shape:
            raise MethodError(
                "a product of priors of different shapes",
                expected=f"event shape {self.event_shape}",
                found=f"{other.event_shape}",
            )
        return self._with(_composition(self.model) * _composition(other.model), self.rho)

    def _with(self, model: Composition, rho: Any) -> ScorePrior:
        return ScorePrior(model, event_shape=self.event_shape, levels=rho, noise_gain=self.noise_gain)


@jax.jit
def _drawn(chain: ReverseChain, keys: Any) -> Any:
    return jax.vmap(chain.draw)(keys)


def _score(model: Any, schedule: Schedule | None, kind: str) -> Score:
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


def _composition(model: Any) -> Composition:
    return model if isinstance(model, Composition) else Composition((model,), (1.0,))


def _event_shape(model: Any) -> tuple[int, ...]:
    parts = model.models if isinstance(model, Composition) else (model,)
    for part in parts:
        if isinstance(part, GaussianMixture):
            return tuple(jnp.shape(part.means)[1:])
    raise MethodError(
        "ScorePrior(...) does not know the shape of its draws", expected="event_shape=(...)", found="None"
    )


def _levels(model: Any, schedule: Schedule | None, given: Any, num_steps: int) -> Any:
    if given is not None:
        if not isinstance(given, jax.core.Tracer):
            found = np.asarray(given, float)
            if not (found.ndim == 1 and len(found) > 1 and (np.diff(found) < 0).all() and found[-1] > 0):
                raise _no_levels(given)
        return jnp.asarray(given, float)
    parts = model.models if isinstance(model, Composition) else (model,)
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


def _spread(mixture: GaussianMixture) -> tuple[Any, Any]:
    """The least sd of a component, and the size of the whole about its mean."""
    centre = mixture.weights @ mixture.means
    reach = jnp.max(jnp.linalg.norm(mixture.means - centre, axis=-1))
    return jnp.sqrt(jnp.min(mixture.variances)), reach + jnp.sqrt(jnp.max(mixture.variances))


def _no_levels(found: Any) -> MethodError:
    return MethodError(
        "ScorePrior(levels=...) has no noise levels to go down along",
        expected="(K + 1,) positive numbers, strictly falling, K >= 1",
        found=repr(found),
    )
