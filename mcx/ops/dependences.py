"""What results of a function depend on, found by an abstract run in which nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from numpyro.ops.provenance import eval_provenance

from mcx.types import PyTree

type Dependences = frozenset[str]


def sources(fn: Callable[..., Any], **shapes: Any) -> Dependences:
    """The keyword arguments, given by shapes and dtypes, that a function's results depend on."""
    return union(eval_provenance(fn, **shapes))


def union(found: PyTree) -> Dependences:
    """What anything depends on among the results of ``eval_provenance``."""
    return frozenset().union(*jax.tree_util.tree_leaves(found, is_leaf=lambda x: isinstance(x, frozenset)))
