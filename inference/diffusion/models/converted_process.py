"""Closure conversion of a reverse process: code and values of its functions apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from mcx.inference.diffusion.models.arguments import Level, Point
from mcx.inference.diffusion.models.composition import Composition
from mcx.inference.diffusion.models.reverse_process import ReverseProcess
from mcx.inference.diffusion.models.scores import Denoiser
from mcx.ops.closure_conversion import ConvertedClosure, convert_closure
from mcx.types import PyTree, Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Function:
    """A function after closure conversion: its code is static, the values it closed over are leaves."""

    code: ConvertedClosure = field(metadata={"static": True})
    values: tuple[PyTree, ...]

    def __call__(self, *args: PyTree) -> Any:
        return self.code(list(self.values), *args)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Model:
    """A denoiser of converted functions."""

    denoiser: _Function
    density: _Function | None

    @property
    def has_density(self) -> bool:
        return self.density is not None

    def denoise(self, y: Point, rho: Level) -> Point:
        return self.denoiser(y, rho)

    def log_density(self, y: Point, rho: Level) -> Scalar:
        assert self.density is not None
        return self.density(y, rho)


def closure_converted(process: ReverseProcess) -> ReverseProcess:
    """The process with code and values of its functions apart.

    Functions written within a model may close over traced values, such as a network's parameters. Called
    there, this takes the values out, so that other programs can be given them.
    """
    y, rho = jnp.zeros(process.event_shape, process.rho.dtype), process.rho[0]

    def model(found: Denoiser) -> _Model:
        density = _converted(found.log_density, y, rho) if found.has_density else None
        return _Model(_converted(found.denoise, y, rho), density)

    old = process.model
    if not isinstance(old, Composition):
        return replace(process, model=model(old))
    reward = None if old.reward is None else _converted(old.reward, y)
    models = tuple(model(m) for m in old.models)
    powers = tuple(jnp.asarray(p, process.rho.dtype) for p in old.powers)
    strength = jnp.asarray(old.strength, process.rho.dtype)
    new = replace(old, models=models, powers=powers, reward=reward, strength=strength)
    return replace(process, model=new)


def _converted(fn: Callable[..., PyTree], *like: PyTree) -> _Function:
    return _Function(*convert_closure(fn, *like))
