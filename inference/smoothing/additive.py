"""Additive functionals of a path: what smoothing computes expectations of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, override

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mcx.errors import CapabilityError, DataError, MethodError
from mcx.ops.arrays import numbers_of
from mcx.target import FeynmanKac
from mcx.types import Array, Float, Int, PyTree, Scalar, Vector


@dataclass(frozen=True)
class AdditiveFunctional:
    """A function of a path that is a sum over its steps: ``h_0(x_0) + sum_t h(x_{t-1}, x_t, t)``.

    States are what the model's own functions see: an array, or a dictionary of them; of NumPyro's scan, a
    dictionary of site values.

    Attributes:
        step: ``h(x_prev, x, t)``, any pytree of arrays; t = 1 .. T-1 is a traced integer.
        initial: ``h_0(x_0)``, of the same structure; None is zero.
        by_time: keep the T terms apart, with a leading axis of T, rather than add them up. Costs particle
            methods T times the memory and the copying.
        finish: applied to the expectation; for what is no expectation itself, such as a covariance.
    """

    step: Callable[[PyTree, PyTree, Int[Array, ""]], PyTree]
    initial: Callable[[PyTree], PyTree] | None = None
    by_time: bool = False
    finish: Callable[[PyTree], PyTree] | None = None


@dataclass(frozen=True)
class Score:
    """The derivative of the log likelihood in the parameters: see :func:`score`."""


Functional = AdditiveFunctional | Score
type Pair = tuple[PyTree, PyTree]
type Time = Int[Array, ""]


def as_functional(functional: Any) -> Functional:
    """An :class:`AdditiveFunctional` as it is; a bare function ``h(x_prev, x, t)`` made one."""
    if isinstance(functional, AdditiveFunctional | Score):
        return functional
    if callable(functional):
        return AdditiveFunctional(functional)
    raise MethodError(
        "not an additive functional",
        expected="a function h(x_prev, x, t), an mcx.AdditiveFunctional, or one of mcx.functionals",
        found=repr(functional),
    )


def means() -> AdditiveFunctional:
    """Smoothed means of the state at every time, (T, ...)."""
    return _MEANS


def covariances() -> AdditiveFunctional:
    """Smoothed covariance matrices of the state at every time, (T, d, d); a structured state is raveled."""
    return _COVARIANCES


def cross_products() -> AdditiveFunctional:
    """``sum_t x_{t-1} x_t'``, (d, d): with sums of squares, what EM needs of a linear model."""
    return _CROSS


def score() -> Score:
    """Derivative of the log likelihood in every parameter, a dictionary by site (constrained values).

    By Fisher's identity it is the smoothed expectation of the derivative of the joint log density, which is
    additive: no derivative is taken of a resampling step.

    Source: Cappé, Moulines and Rydén (2005), chapter 10; Poyiadjis, Doucet and Singh (2011).
    """
    return Score()


def _float(x: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), x)


def _returned(what: str, value: PyTree) -> PyTree:
    """What a user's function returned, as floats; raises DataError if there is no number among it."""
    wrong = "the functional returns no number"
    expected = f"{what}(...) -> a number, an array or a pytree of them"
    if not jax.tree.leaves(value, is_leaf=lambda x: x is None):
        raise DataError(wrong, expected=expected, found=f"a {type(value).__name__} without an entry")
    arrays = jax.tree.map(
        lambda x: numbers_of(x, wrong, expected=expected), value, is_leaf=lambda x: x is None
    )
    return _float(arrays)


def _moments(x: PyTree) -> tuple[Vector, Float[Array, "d d"]]:
    flat = ravel_pytree(_float(x))[0]
    return flat, jnp.outer(flat, flat)


_MEANS = AdditiveFunctional(lambda x_prev, x, t: _float(x), _float, by_time=True)
_COVARIANCES = AdditiveFunctional(
    lambda x_prev, x, t: _moments(x),
    _moments,
    by_time=True,
    finish=lambda m: m[1] - m[0][..., :, None] * m[0][..., None, :],
)
_CROSS = AdditiveFunctional(
    lambda x_prev, x, t: jnp.outer(ravel_pytree(_float(x_prev))[0], ravel_pytree(_float(x))[0])
)


class Summand:
    """An additive functional as particle methods compute it. Hashable by value."""

    by_time = False

    def extra_context(self, fk: FeynmanKac, params: PyTree) -> PyTree:
        """What it needs of the parameters, besides ``fk.prepare(params)``."""
        return None

    def initial(self, fk: FeynmanKac, ctx: PyTree, extra: PyTree, x: PyTree, u: PyTree) -> PyTree:
        """The term of time 0."""
        raise NotImplementedError

    def step(self, fk: FeynmanKac, ctx: PyTree, extra: PyTree, pair: Pair, u: PyTree, t: Time) -> PyTree:
        """The term of time t, of states ``(x_prev, x)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class PathFunctional(Summand):
    """A user's functional of states as ``view`` shows them."""

    functional: AdditiveFunctional
    view: Callable[[PyTree], PyTree]

    @property
    @override
    def by_time(self) -> bool:  # type: ignore[override]
        return self.functional.by_time

    @override
    def initial(self, fk: FeynmanKac, ctx: PyTree, extra: PyTree, x: PyTree, u: PyTree) -> PyTree:
        seen = self.view(x)
        later = jax.eval_shape(lambda x: _returned("step", self.functional.step(x, x, jnp.int32(1))), seen)
        if self.functional.initial is None:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), later)
        first = _returned("initial", self.functional.initial(seen))
        here, there = (jax.tree.map(lambda a: tuple(a.shape), tree) for tree in (first, later))
        if here != there:
            raise MethodError(
                "AdditiveFunctional(initial=...) and (step=...) do not add up",
                expected=f"what step returns, of shapes {there}",
                found=f"shapes {here}",
                remedy="return the same structure of the same shapes from both",
            )
        return first

    @override
    def step(self, fk: FeynmanKac, ctx: PyTree, extra: PyTree, pair: Pair, u: PyTree, t: Time) -> PyTree:
        return _returned("step", self.functional.step(self.view(pair[0]), self.view(pair[1]), t))


@dataclass(frozen=True)
class ScoreSummand(Summand):
    """Derivative of ``log m_t(x_prev, x) + log G_t(x_prev, x)`` in the parameters.

    Parameters act through the context. Its derivative in each of them is taken once, and a term is the
    gradient in the context (one reverse pass) times these: derivatives of the summand alone.
    """

    @override
    def extra_context(self, fk: FeynmanKac, params: PyTree) -> PyTree:
        """The parameters, and derivatives of the context in each of them."""
        flat, unravel = ravel_pytree(params)

        def context(flat: Vector) -> list[Array]:
            return _split(fk.prepare(unravel(flat)))[0]

        def along(direction: Vector) -> list[Array]:
            return jax.jvp(context, (flat,), (direction,))[1]

        return params, jax.vmap(along)(jnp.eye(flat.shape[0], dtype=flat.dtype))

    @override
    def initial(self, fk: FeynmanKac, ctx: PyTree, extra: PyTree, x: PyTree, u: PyTree) -> PyTree:
        assert fk.log_initial is not None
        density = fk.log_initial
        return _along(extra, ctx, lambda c: density(c, x, u) + fk.log_potential(c, None, x, u))

    @override
    def step(self, fk: FeynmanKac, ctx: PyTree, extra: PyTree, pair: Pair, u: PyTree, t: Time) -> PyTree:
        assert fk.log_transition is not None
        density = fk.log_transition
        return _along(extra, ctx, lambda c: density(c, *pair, u) + fk.log_potential(c, *pair, u))


def summand_of(functional: Functional, fk: FeynmanKac, view: Callable[[PyTree], PyTree]) -> Summand:
    """A functional as particle methods compute it; the score needs a model with a density of x_0."""
    if isinstance(functional, AdditiveFunctional):
        return PathFunctional(functional, view)
    if fk.log_initial is None:
        raise CapabilityError(
            "the score needs the density of the first state",
            expected="FeynmanKac(log_initial=...); a scan's, if no latent site reaches its initial carry",
            remedy="write the chain with mcx.markov(initial=...)",
        )
    return ScoreSummand()


def _split(ctx: PyTree) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """Floating-point leaves, and how to put others in their place."""
    leaves, tree = jax.tree.flatten(ctx)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]

    def join(floats: list[Array]) -> PyTree:
        new = list(leaves)
        for i, x in zip(places, floats, strict=True):
            new[i] = x
        return jax.tree.unflatten(tree, new)

    return [jnp.asarray(leaves[i]) for i in places], join


def _along(extra: PyTree, ctx: PyTree, log_joint: Callable[[PyTree], Scalar]) -> PyTree:
    params, directions = extra
    floats, join = _split(ctx)
    slopes = jax.grad(lambda floats: log_joint(join(floats)))(floats)
    total = sum(
        (jnp.tensordot(d, s, s.ndim, precision="highest") for d, s in zip(directions, slopes, strict=True)),
        start=jnp.zeros(()),
    )
    return ravel_pytree(params)[1](total)
