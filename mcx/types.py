"""Names of the types that signatures use.

Shapes are jaxtyping's, such as ``Float[Array, "chain draw d"]``: *chain* independent chains or replicates,
*draw* draws of each, *N* particles, *T* times, *d* coordinates. They are for readers and type checkers, and
jaxtyping is needed for checking alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array as Array
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import Num as Num
    from jaxtyping import Shaped as Shaped
    from jaxtyping import UInt32 as UInt32
else:
    from jax import Array

    class _Shape:
        """What jaxtyping's types are outside of type checkers: an array of any shape and dtype."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Num = Shaped = UInt32 = _Shape

type Key = jax.Array
"""A typed random key of JAX, of shape ()."""

type Keys = jax.Array
"""Typed random keys with leading axes, such as one a chain."""

type KeyLike = jax.Array | int
"""What users give as ``key=``: a typed key or an int."""

type IntLike = Int[Array, ""] | int
"""An integer, on the device or the host."""

type PyTree = Any
"""Any pytree of arrays: states, particles, data."""

type Scalar = Float[Array, ""]
"""A single number, on the device."""

type Vector = Float[Array, " d"]
"""A point of unconstrained space, (d,)."""

type Covariance = Float[Array, " d"] | Float[Array, "d d"]
"""Variances (d,) or a covariance matrix (d, d); as an inverse mass matrix, a metric."""

type LogWeights = Float[Array, " N"]
"""Log weights of N particles; normalised where the docstring says so."""

type Index = Int[Array, " N"]
"""Indices of particles, int32: ancestors of N particles."""

type Flags = Bool[Array, "..."]
"""Truth values."""

type SiteValues = Mapping[str, Array]
"""Values by site name."""

type SiteFunctions = Mapping[str, Callable[[SiteValues], PyTree]]
"""Functions of the sites' values, by name."""

type Draws = Mapping[str, np.ndarray]
"""Draws by site, chain x draw x event, on the host."""

type Stats = Mapping[str, np.ndarray]
"""Statistics by name, chain x step, on the host."""
