"""Hypothesis strategies: models, and points to evaluate them at.

A generated model is a :class:`Program`: a tuple of :class:`Statement` records that says what the model is,
and a callable that runs it. Programs are values: they compare, hash and print as the code that makes them,
so a failing example reads ``bind(Program(...))`` and can be pasted into a session.

Use with the Hypothesis profile "mcx", which importing this module registers::

    hypothesis.settings.load_profile("mcx")
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

from mcx.errors import MissingExtraError
from mcx.model.bound import BoundModel, Model
from mcx.model.primitives import deterministic, factor, plate, sample
from mcx.target import Target
from mcx.testing.families import DATA, LATENT_FAMILIES, OBSERVED_FAMILIES

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError(
        "mcx.testing.strategies needs Hypothesis", remedy="pip install 'mcx[testing]'"
    ) from error

__all__ = [
    "LATENT_FAMILIES",
    "OBSERVED_FAMILIES",
    "Program",
    "Statement",
    "bind",
    "models",
    "points",
    "programs",
]

# Compiling takes longer than Hypothesis' deadline of 200 ms, and the first example far longer than the rest.
hypothesis.settings.register_profile(
    "mcx",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


_REPARAMETERIZED = {
    "normal": ("centered", "decentered"),
    "student_t": ("decentered",),
    "cauchy": ("decentered",),
    "log_normal": ("transform",),
    "affine": ("transform",),
}

PLATES: Mapping[str, tuple[int, int]] = {"p": (-1, 2), "q": (-2, 3)}
"""Dimension and size of the plates that generated models use."""


# --- programs --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Statement:
    """One statement of a generated model.

    Attributes:
        kind: what it is.
        name: of the site.
        family: of its distribution, a key of :data:`LATENT_FAMILIES` or :data:`OBSERVED_FAMILIES`;
            "likelihood" or "prior" for a factor.
        parent: an earlier statement, whose value the distribution's parameters depend on.
        plates: the plates around it, some of "p" and "q".
        declared: whether the plates are entered; without, the shape is there, but nobody says what it means.
        scale: of ``handlers.scale`` around it.
        mask: of ``handlers.mask`` around it, cycled over the plates' elements.
        reparam: "centered" or "decentered" (``LocScaleReparam``), "transform" (``TransformReparam``).
        data: quarters of the values (before they are mapped into the support), cycled over the elements.
        program: of a submodel.
    """

    kind: Literal["latent", "observed", "deterministic", "factor", "submodel"]
    name: str
    family: str = ""
    parent: str | None = None
    plates: tuple[str, ...] = ()
    declared: bool = True
    scale: float | None = None
    mask: tuple[bool, ...] | None = None
    reparam: str = ""
    data: tuple[int, ...] = ()
    program: Program | None = None

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        arguments = ", ".join(f"{name}={value!r}" for name, value, default in shown if value != default)
        return f"Statement({arguments})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis would print every default of a dataclass

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plates around the statement."""
        dims = {PLATES[p][0]: PLATES[p][1] for p in self.plates}
        return tuple(dims.get(d, 1) for d in range(min(dims, default=0), 0))

    def values(self) -> np.ndarray:
        """The observed values."""
        event = OBSERVED_FAMILIES[self.family](jnp.zeros(())).event_shape
        raw = np.resize(np.asarray(self.data or (0,)) / 4, self.shape + event)
        found = DATA.get(self.family, lambda x: x)(raw)
        return found if found.dtype.kind == "i" else found.astype(jnp.result_type(float))


@dataclass(frozen=True)
class Program:
    """A generated model: call it under effect handlers, or :func:`bind` it."""

    statements: tuple[Statement, ...]

    @property
    def __name__(self) -> str:
        return repr(self)

    def data(self) -> dict[str, Any]:
        """The observed values by name; nested for submodels."""
        found: dict[str, Any] = {}
        for s in self.statements:
            if s.kind == "observed":
                found[s.name] = s.values()
            elif s.program is not None:
                found[s.name] = s.program.data()
        return found

    def __call__(self, data: Mapping[str, Any], base: ArrayLike = 0.0) -> Array:
        """Run the model with data as :meth:`data` gives them; returns a value in (-1, 1) for its children."""
        known: dict[str | None, Any] = {None: jnp.asarray(base)}
        for s in self.statements:
            with ExitStack() as around:
                for context in _contexts(s):
                    around.enter_context(context)
                known[s.name] = self._run(s, _fit(known[s.parent], s.shape), data)
        return known[self.statements[-1].name] if self.statements else known[None]

    def _run(self, s: Statement, u: Array, data: Mapping[str, Any]) -> Array:
        batch = len(s.shape)
        if s.kind == "latent":
            return _squash(sample(s.name, LATENT_FAMILIES[s.family](u)), batch)
        if s.kind == "observed":
            sample(s.name, OBSERVED_FAMILIES[s.family](u), obs=data[s.name])
            return u
        if s.kind == "deterministic":
            return _squash(deterministic(s.name, jnp.sin(3.0 * u)), batch)
        if s.kind == "factor":
            term = -jnp.square(u - 0.3)
            if s.family == "prior":
                factor(s.name, term, kind="prior")
            else:
                numpyro.factor(s.name, term)
            return u
        assert s.program is not None
        return _fit(sample(s.name, Model(s.program).bind(data[s.name], u)), s.shape)


def _contexts(s: Statement) -> list[AbstractContextManager[Any]]:
    reparam: Any = {
        "centered": LocScaleReparam(1.0),
        "decentered": LocScaleReparam(0.0, shape_params=("df",) if s.family == "student_t" else ()),
        "transform": TransformReparam(),
    }.get(s.reparam)
    mask = None if s.mask is None else np.resize(np.asarray(s.mask), s.shape)
    return [
        nullcontext() if s.scale is None else handlers.scale(scale=s.scale),
        nullcontext() if mask is None else handlers.mask(mask=mask),
        *(plate(name, PLATES[name][1], dim=PLATES[name][0]) for name in s.plates if s.declared),
        nullcontext() if reparam is None else handlers.reparam(config={s.name: reparam}),
    ]


def _squash(value: ArrayLike, batch_ndim: int) -> Array:
    """A smooth function of a site's value onto (-1, 1), one number an element of the plates."""
    value = jnp.asarray(value)
    weights = 1.0 + jnp.arange(math.prod(value.shape[batch_ndim:]), dtype=value.dtype)
    return jnp.tanh(value.reshape(*value.shape[:batch_ndim], -1) @ (weights / weights.sum() / 2))


def _fit(value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """A parent's value in the plates of its child: averaged over plates that the child is not in."""
    value = jnp.asarray(value)
    while value.ndim > len(shape):
        value = value.mean(0)
    for axis in range(-value.ndim, 0):
        if value.shape[axis] > shape[axis]:
            value = value.mean(axis, keepdims=True)
    return jnp.broadcast_to(value, shape)


def bind(program: Program, base: ArrayLike = 0.0) -> BoundModel:
    """The bound model of a program and its data."""
    return Model(program).bind(program.data(), base)


# --- strategies ------------------------------------------------------------------------------------

_SCALES = (0.5, 2.0)
_NAMES = "abcdefgh"


@st.composite
def programs(draw: Any, max_latent: int = 5, nested: bool = False) -> Program:
    """Programs with one to ``max_latent`` latent statements, those of submodels not counted.

    A ``nested`` one is to be a submodel, and holds none itself.
    """
    count = draw(st.integers(1, max_latent))
    statements: list[Statement] = []
    for i in range(count):
        statements.append(draw(_latents(_NAMES[i], statements)))
    if not nested and draw(st.booleans()):
        inner = draw(programs(max_latent=2, nested=True))
        plates = () if any(s.plates for s in inner.statements) else draw(_plates)
        statements.append(
            Statement("submodel", "sub", parent=draw(_parents(statements)), plates=plates, program=inner)
        )
    if draw(st.booleans()):
        statements.append(Statement("deterministic", "det", parent=draw(_parents(statements))))
    for kind in ("likelihood", "prior"):
        if draw(st.integers(0, 3)) == 3:
            statements.append(
                Statement(
                    "factor",
                    f"{kind}_factor",
                    family=kind,
                    parent=draw(_parents(statements)),
                    plates=draw(_plates),
                    **draw(_weights()),
                )
            )
    for i in range(draw(st.integers(0, 2))):
        statements.append(draw(_observed(f"y{i}", statements)))
    return Program(tuple(statements))


def models(max_latent: int = 5) -> st.SearchStrategy[BoundModel]:
    """Bound models of many kinds, with their data and at most ``max_latent`` latent statements.

    Latent sites of all of :data:`LATENT_FAMILIES`, hierarchies, plates, event dimensions, deterministic
    sites, factors of both kinds, scaled and masked sites, submodels, reparameterisation, continuous and
    discrete observations. Sizes come from a small bucket, so that examples share compiled operations.
    """
    return programs(max_latent=max_latent).map(bind)


def points(target: Target) -> st.SearchStrategy[dict[str, Any]]:
    """Unconstrained points, ``{site: array}``, within (-2, 2) on a grid of 1/256 (exact in float32)."""
    dim = target.dim
    coordinates = st.lists(st.integers(-511, 511), min_size=dim, max_size=dim)
    return coordinates.map(
        lambda x: target.unravel(jnp.asarray(np.asarray(x, float).reshape(dim) / 256, jnp.result_type(float)))
    )


@st.composite
def _latents(draw: Any, name: str, earlier: list[Statement]) -> Statement:
    family = draw(st.sampled_from(list(LATENT_FAMILIES)))
    return Statement(
        "latent",
        name,
        family=family,
        parent=draw(_parents(earlier)),
        plates=draw(_plates),
        declared=draw(st.integers(0, 3)) < 3,
        reparam=draw(st.sampled_from(("", *_REPARAMETERIZED.get(family, ())))),
        **draw(_weights()),
    )


@st.composite
def _observed(draw: Any, name: str, earlier: list[Statement]) -> Statement:
    return Statement(
        "observed",
        name,
        family=draw(st.sampled_from(list(OBSERVED_FAMILIES))),
        parent=draw(_parents(earlier)),
        plates=draw(_plates),
        declared=draw(st.integers(0, 3)) < 3,
        data=tuple(draw(st.lists(st.integers(-8, 8), max_size=4))),
        **draw(_weights()),
    )


@st.composite
def _weights(draw: Any) -> dict[str, Any]:
    """Sometimes a scale, sometimes a mask."""
    which = draw(st.integers(0, 7))
    if which == 6:
        return {"scale": draw(st.sampled_from(_SCALES))}
    if which == 7:
        return {"mask": tuple(draw(st.lists(st.booleans(), min_size=1, max_size=3)))}
    return {}


def _parents(earlier: list[Statement]) -> st.SearchStrategy[str | None]:
    return st.sampled_from([None, *(s.name for s in earlier)])


_plates = st.sampled_from([(), ("p",), ("q",), ("q", "p")])
