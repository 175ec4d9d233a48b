"""Updates of parameters along smoothed scores, for the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, override

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from mcx.inference.conditional_smc.initial_path import starting_path
from mcx.inference.smoothing.additive import Score, summand_of
from mcx.inference.smoothing.recursion import Recursion
from mcx.inference.smoothing.smoother import Smoother
from mcx.run.kernel import Kernel
from mcx.target import FeynmanKac, Target
from mcx.types import Array, Key, PyTree, Scalar, Stats, Vector


class AscentState(NamedTuple):
    """State of the ascent: unconstrained parameters, (d,), the optimizer's state, and a path a smoother.

    ``paths`` is None for smoothers that do not go on from one.
    """

    z: Vector
    optimizer: PyTree
    paths: PyTree


@dataclass(frozen=True)
class AscentKernel(Kernel):
    """The ascent for the driver; its data are the parameters' target, and the Feynman-Kac model."""

    smoother: Smoother
    optimizer: optax.GradientTransformation
    num_smoothers: int
    params: tuple[str, ...]

    @override
    def init(self, data: PyTree, key: Key, start: Vector) -> AscentState:
        target, fk = data
        paths = None
        if self.smoother.has_path:
            num = self.smoother.num_particles
            ctx = self.context(target, fk, start)
            keys = jax.random.split(key, self.num_smoothers)
            paths = jax.vmap(lambda k: starting_path(k, fk, ctx, num, backward=False)[0])(keys)
        return AscentState(start, self.optimizer.init(start), paths)

    def context(self, target: Target, fk: FeynmanKac, z: Vector) -> PyTree:
        """The model's context at a point of unconstrained space."""
        return fk.prepare(constrained(target, self.params, z))

    @override
    def step(self, data: PyTree, key: Key, state: AscentState, u: PyTree) -> tuple[AscentState, PyTree]:
        target, fk = data
        smoother = self.smoother
        summand = summand_of(Score(), fk, lambda x: x)
        of_z = replace(fk, prepare=Partial(partial(self.context, target, fk)))
        extra = summand.extra_context(of_z, state.z)
        recursion = Recursion(fk, of_z.prepare(state.z), extra, summand, smoother.smoothing)

        def one(key: Key, path: PyTree) -> tuple[PyTree, Vector, Scalar]:
            def sweep(path: PyTree, key: Key) -> tuple[PyTree, tuple[Vector, Scalar]]:
                swept = smoother.sweep(key, recursion, path)
                return swept.path, (swept.value, jnp.sum(swept.info.log_increment))

            if not smoother.has_path:
                return None, *sweep(None, key)[1]
            path, (scores, log_z) = jax.lax.scan(sweep, path, jax.random.split(key, smoother.num_sweeps))
            return path, jnp.mean(scores[smoother.num_warmup :], 0), log_z[-1]

        paths, scores, log_z = jax.vmap(one)(jax.random.split(key, self.num_smoothers), state.paths)
        score = jnp.mean(scores, 0)
        # a score that is no number leaves the parameters where they are; the statistics tell
        bad = ~jnp.all(jnp.isfinite(score))
        down, optimizer = self.optimizer.update(-jnp.where(bad, 0.0, score), state.optimizer, state.z)
        z = jnp.where(bad, state.z, optax.apply_updates(state.z, down))
        stats = {"score_norm": jnp.linalg.norm(score), "log_evidence": jnp.mean(log_z), "nonfinite": bad}
        return AscentState(z, optimizer, paths), (score, stats)

    @override
    def collect(self, state: AscentState, info: PyTree) -> tuple[PyTree, Mapping[str, Scalar]]:
        return (state.z, info[0]), info[1]

    @override
    def emit(self, data: PyTree, draw: PyTree) -> PyTree:
        return constrained(data[0], self.params, draw[0]), draw

    @override
    def report(self, stats: Stats) -> Mapping[str, float]:
        return {
            "log evidence": float(np.mean(stats["log_evidence"][-1])),
            "score": float(np.mean(stats["score_norm"][-1])),
        }

    @override
    def stop(self, stats: Stats) -> bool:
        return bool(np.all(stats["nonfinite"]))


def constrained(target: Target, params: tuple[str, ...], z: Vector) -> dict[str, Array]:
    """Parameters by site at a point of unconstrained space."""
    values = target.constrain(target.unravel(z))
    return {name: values[name] for name in params}
