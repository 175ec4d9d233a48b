"""The statements a model is written with: ``sample``, ``plate``, ``deterministic``, ``factor``.

They are NumPyro's, so that a model written with them is a NumPyro model; mcx adds submodels in
:func:`sample` and the kind of a :func:`factor`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
import numpyro
from numpyro.distributions import Distribution
from numpyro.distributions.distribution import Unit

from mcx.errors import ModelError
from mcx.model.bound import BoundModel, Model
from mcx.model.capture import SubmodelScope, check_name, check_plate, no_distribution
from mcx.model.handler_stack import inside_model
from mcx.ops.arrays import numbers_of
from mcx.types import PyTree

FACTOR_KINDS = ("likelihood", "prior")


def sample(name: str, fn: Any, obs: Any = None, **kwargs: Any) -> Any:
    """Draw a random variable, or observe it; or run a submodel.

    Args:
        name: name of the site; unique within the model.
        fn: a distribution, or a bound model (``submodel.bind(...)``), whose sites then join this model
            as ``name.site`` and whose return value is returned.
        obs: observed value; integers only where the distribution is discrete.
        **kwargs: further options of ``numpyro.sample`` (``infer=``, ``obs_mask=``, ...).

    Returns:
        The value of the site, of shape ``batch_shape + event_shape``.

    Raises:
        ModelError: outside of a running model, or with ``obs=`` on a submodel.
    """
    if isinstance(fn, BoundModel):
        if obs is not None or kwargs:
            raise ModelError(
                "a submodel takes no obs= and no options",
                site=name,
                remedy="pass the data to the submodel: sample(name, submodel.bind(..., y=y))",
            )
        if not inside_model():
            raise _outside("sample", name)
        with SubmodelScope(prefix=name, divider="."):
            return fn.run()
    check_name(name)
    if not isinstance(fn, Distribution):
        remedy = "inside a model, calling a submodel runs it; bind it: sample(name, submodel.bind(...))"
        raise no_distribution(name, fn, remedy if fn is None or isinstance(fn, Model | jax.Array) else None)
    if not inside_model() and kwargs.get("rng_key") is None and obs is None:
        raise _outside("sample", name)
    return numpyro.sample(name, fn, obs=obs, **kwargs)


class plate(numpyro.plate):
    """Declare conditionally independent members; NumPyro's ``plate``.

    Args:
        name: name of the plate, which labels the dimension in results.
        size: number of members, at least 1.
        subsample_size, dim: as in NumPyro.

    Raises:
        ModelError: if there are no members.
    """

    def __init__(
        self, name: str, size: int, subsample_size: int | None = None, dim: int | None = None
    ) -> None:
        if type(size) is int and size == 0:
            raise ModelError(
                f"plate {name!r} has no members",
                expected="a size of at least 1",
                found="0",
                remedy="leave the plate out where there is nothing in it: if len(y): ...",
            )
        check_plate(name, size, subsample_size)
        super().__init__(name, size, subsample_size, dim)


def deterministic(name: str, value: PyTree) -> PyTree:
    """Keep a value that follows from others among the draws.

    Args:
        name: name of the site; unique within the model.
        value: an array, of any shape.

    Returns:
        The value.

    Raises:
        SiteNameError, DataError: if the name is empty, or the value no array of numbers.
    """
    check_name(name)
    if isinstance(value, jax.Array | np.ndarray | np.generic) and value.dtype.kind == "c":
        return numpyro.deterministic(name, value)
    return numpyro.deterministic(
        name, numbers_of(value, "the value of a deterministic site is no number", site=name)
    )


def factor(name: str, value: Any, kind: Literal["likelihood", "prior"] = "likelihood") -> None:
    """Add a term to the log density.

    Args:
        name: name of the site.
        value: the term(s); an array is summed (within plates: one entry an element).
        kind: whether the term belongs to the likelihood (tempered by SMC samplers, counted by
            ``psense``) or to the prior. A plain ``numpyro.factor`` counts as likelihood.

    Raises:
        ModelError: on an unknown kind, or outside of a running model.
    """
    if kind not in FACTOR_KINDS:
        raise ModelError(
            "unknown kind of factor",
            site=name,
            expected=" or ".join(map(repr, FACTOR_KINDS)),
            found=repr(kind),
        )
    if not inside_model():
        raise _outside("factor", name)
    check_name(name)
    unit = Unit(numbers_of(value, "the value of a factor is no number", site=name))
    # the auxiliary mark is NumPyro's own for factors: its tools then leave the site out of predictions
    numpyro.sample(
        name, unit, obs=unit.sample(jax.random.key(0)), infer={"is_auxiliary": True, "mcx_kind": kind}
    )


def _outside(primitive: str, name: str) -> ModelError:
    return ModelError(
        f"mcx.{primitive} was called outside of a model",
        site=name,
        remedy="write it in a function decorated with @mcx.model; then model(data) binds, and "
        "mcx.infer or .simulate(key=...) runs it",
    )
