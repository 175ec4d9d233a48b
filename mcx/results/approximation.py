"""A fitted distribution in place of a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution

from mcx.ops.keys import as_key
from mcx.ops.validation import integer, validated
from mcx.results.posterior import RunInfo
from mcx.target import Target
from mcx.types import Key, KeyLike, PyTree

_KHAT = 0.7


class Quality(NamedTuple):
    """How well a distribution serves as a proposal for the posterior.

    khat: shape of the weights' tail; above 0.7 importance sampling, and this judgement, cannot be trusted
        (Vehtari, Simpson, Gelman, Yao and Gabry 2024).
    ess: effective sample size, as a share of the draws.
    log_evidence, log_evidence_se: by importance sampling.
    """

    khat: float
    ess: float
    log_evidence: float
    log_evidence_se: float

    @property
    def notes(self) -> list[str]:
        """What there is to say against the fit."""
        if self.khat < _KHAT:
            return []
        return [f"k-hat is {self.khat:.2f}: the fit lacks what the posterior has, do not weight by it"]


@dataclass(frozen=True, eq=False)
class Approximation:
    """A distribution fitted to a posterior.

    Attributes:
        distribution: on unconstrained space, of event shape (d,); sites in program order, each flattened.
        params: of the family.
        target: the posterior, for its sites.
        quality: as a proposal for the posterior; None where that has no density to compare with.
        stats: by name, (steps,).
        info: how the run went.
        notes: reasons not to rely on the fit.
    """

    distribution: Distribution
    params: PyTree
    target: Target
    quality: Quality | None
    stats: dict[str, Any]
    info: RunInfo
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """False where the fit was stopped before its end."""
        return self.info.complete

    def sample(self, *, key: KeyLike, num: int = 1000) -> dict[str, Any]:
        """Draw from the fitted distribution.

        Args:
            key: a typed JAX key or an int.
            num: number of draws.

        Returns:
            Constrained draws by site, (num, ...) each, deterministic sites too. Costs one run of the model a
            draw.

        Raises:
            MethodError: if ``num`` is no int of at least 1.
            KeyTypeError: if ``key`` is neither a typed key nor an int.
        """
        num = validated("Approximation.sample", "num", num, integer(1))
        values: dict[str, Any] = _constrained(self.target, self.distribution.sample(as_key(key), (num,)))
        return values

    def __repr__(self) -> str:
        steps = len(self.stats["log_density"])
        head = f"{self.info.method}: {steps} steps, {self.info.run_time:.1f} s"
        lines = [f"{head} (compile {self.info.compile_time:.1f} s)"]
        draws = jax.device_get(self.sample(key=0, num=4000))
        for name, _ in self.target.shapes:
            mean, sd = draws[name].mean(0), draws[name].std(0)
            for index in list(np.ndindex(mean.shape))[:4]:
                label = name + (f"[{', '.join(map(str, index))}]" if index else "")
                lines.append(f"  {label}: mean {mean[index]:.4g}, sd {sd[index]:.3g}")
            if mean.size > 4:
                lines.append(f"  ... and {mean.size - 4} more of {name}")
        if self.quality is not None:
            q = self.quality
            lines.append(f"  as a proposal: k-hat {q.khat:.2f}, effective share of draws {q.ess:.2f}, ")
            lines[-1] += f"log evidence {q.log_evidence:.3f} +- {q.log_evidence_se:.2g}"
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@jax.jit
def _constrained(target: Target, z: Array) -> PyTree:
    return jax.vmap(lambda z: target.constrain(target.unravel(z)))(z)


@partial(jax.jit, static_argnums=2)
def _log_weights(key: Key, distribution: Distribution, num: int, target: Target) -> Array:
    z = distribution.sample(key, (num,))
    log_p = jax.vmap(lambda z: target.log_density(target.unravel(z)))(z)
    return jnp.where(jnp.isnan(log_p), -jnp.inf, log_p) - distribution.log_prob(z)


def quality(key: Key, distribution: Distribution, target: Target, num: int) -> Quality:
    """Judge a distribution by ``num`` draws, weighted to the posterior; costs as many densities."""
    from arviz_stats.base import array_stats

    log_w = np.asarray(_log_weights(key, distribution, num, target), float)
    # ArviZ takes the negative of what it weighs by, as in leave-one-out
    khat = float(array_stats.psislw(-log_w)[1])
    top = log_w.max()
    w = np.exp(log_w - top)
    return Quality(
        khat,
        float(w.sum() ** 2 / (w**2).sum() / num),
        float(top + np.log(w.mean())),
        float(w.std() / w.mean() / np.sqrt(num)),
    )
