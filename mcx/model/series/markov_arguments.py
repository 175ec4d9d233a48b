"""What ``mcx.markov`` is given, checked and in a plain form; errors name the site and the argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution

from mcx.errors import BroadcastError, CapabilityError, ModelError
from mcx.model.path_law import Laws, components
from mcx.ops.arrays import numbers_of
from mcx.ops.validation import integer
from mcx.types import PyTree

_ARGUMENTS = {
    "initial": "u",
    "transition": "x_prev, u",
    "emission": "x, u",
    "proposal": "x_prev, u, y",
    "initial_proposal": "u, y",
    "lookahead": "x, u, y",
}


def check_function(name: str, argument: str, fn: object) -> None:
    """Raise ModelError unless an argument of a Markov block is a function."""
    if not callable(fn):
        raise ModelError(
            f"{argument}= is no function",
            site=name,
            expected="a function, not what it returns",
            found=repr(fn) if fn is None else f"a {type(fn).__name__}",
            remedy=f"{argument}=lambda {_ARGUMENTS[argument]}: ...",
        )


def laws_of(name: str, argument: str, fn: Callable[..., Any]) -> Laws:
    """A user's function with distributions by component."""

    def laws(*args: Any) -> dict[str, Distribution]:
        found = components(fn(*args))
        for key, law in found.items():
            if not isinstance(law, Distribution):
                part = f"{argument}, component {key!r}" if key else argument
                raise ModelError(
                    f"{part}, returns no distribution",
                    site=name,
                    expected="a distribution such as dist.Normal(x, 1), or a dictionary of them",
                    found=f"a {type(law).__name__}",
                )
            _check_rebuilds(name, law)
        return found

    return laws


def _check_rebuilds(name: str, law: Distribution) -> None:
    """Raise CapabilityError on a class of distributions that JAX cannot take apart and put together again."""
    try:
        jax.tree_util.tree_map(lambda x: x, law)
    except (AttributeError, TypeError, ValueError) as error:
        raise CapabilityError(
            f"{type(law).__name__.lstrip('_')} cannot be carried from step to step: as a pytree it is broken",
            site=name,
            expected="a distribution that survives jax.tree_util.tree_map(lambda x: x, law)",
            found=str(error),
            remedy="mend its tree_flatten and tree_unflatten, or write the law with other distributions",
        ) from error


def by_key(name: str, argument: str, values: PyTree) -> dict[str, Any]:
    """Arrays by the emission's keys; those that are None are not there."""
    given = values if isinstance(values, Mapping) else {"": values}
    return {key: _numbers(name, argument, key, x) for key, x in given.items() if x is not None}


def _numbers(name: str, argument: str, key: str, value: Any) -> Any:
    """An array from what a user gave for all times."""
    what = f"{argument}[{key!r}] is no array of numbers" if key else f"{argument}= is no array of numbers"
    return numbers_of(value, what, site=name, expected="an array with a leading axis of times")


def as_inputs(name: str, inputs: PyTree) -> PyTree:
    """Inputs as arrays: a list of numbers is one input, other structures stay as they are."""

    def whole(x: Any) -> bool:
        return isinstance(x, list | tuple) and all(isinstance(i, int | float) for i in x)

    def leaf(x: Any) -> Any:
        return x if isinstance(x, jax.Array) else _numbers(name, "inputs", "", x)

    return jax.tree.map(leaf, inputs, is_leaf=whole)


def check_keys(name: str, observations: dict[str, Any], masks: dict[str, Any], emitted: bool) -> None:
    """Raise unless there is an emission for the observations, and an observation for each mask."""
    if observations and not emitted:
        raise ModelError(
            "there are observations but no emission", site=name, remedy="give emission=lambda x, u: ..."
        )
    for key in masks:
        if key not in observations:
            raise ModelError(
                "missing= masks an observation that is not among obs=",
                site=name,
                expected=", ".join(map(repr, observations)) or "obs=",
                found=repr(key),
            )


def check_emission(name: str, laws: dict[str, Distribution], observations: dict[str, Any]) -> None:
    """Raise unless the emission has a distribution for every observation."""
    unknown = [key for key in observations if key not in laws]
    if unknown:
        raise ModelError(
            "obs= and emission do not name the same sites",
            site=name,
            expected="the emission's keys: " + ", ".join(repr(k) if k else "one bare array" for k in laws),
            found=", ".join(repr(k) if k else "one bare array" for k in observations),
            remedy="an emission that returns a dictionary takes a dictionary of observations, and a bare one "
            "an array",
        )


def as_mask(site: str, mask: Any, shape: tuple[int, ...]) -> Array:
    """A mask of missing observations, one entry a time or for each of its components."""
    found = jnp.asarray(mask)
    if not 0 < found.ndim <= len(shape) or found.shape != shape[: found.ndim]:
        raise BroadcastError(
            "missing= does not fit the observations",
            site=site,
            expected=" or ".join(str(shape[: i + 1]) for i in range(len(shape))),
            found=str(found.shape),
        )
    if found.dtype.kind not in "biu":
        raise ModelError(
            "missing= is no mask", site=site, expected="booleans, True where missing", found=str(found.dtype)
        )
    return found.astype(bool)


def num_times(name: str, observations: dict[str, Any], inputs: PyTree, length: int | None) -> int:
    """T, on which observations, inputs and ``length`` have to agree."""
    lengths: dict[str, int] = {}
    for key, value in observations.items():
        if jnp.ndim(value) == 0:
            raise ModelError("an observation without a time axis", site=name, found="a scalar")
        lengths[f"obs[{key!r}]" if key else "obs"] = jnp.shape(value)[0]
    for path, leaf in jax.tree_util.tree_flatten_with_path(inputs)[0]:
        if jnp.ndim(leaf) == 0:
            raise ModelError("an input without a time axis", site=name, found="a scalar")
        lengths["inputs" + jax.tree_util.keystr(path)] = jnp.shape(leaf)[0]
    if length is not None:
        try:
            lengths["length"] = integer(1).plain(length)
        except ValueError:
            raise ModelError(
                "length= is no number of times", site=name, expected="an int >= 1", found=repr(length)
            ) from None
    if not lengths:
        raise ModelError("the number of times is unknown", site=name, remedy="give obs=, inputs= or length=")
    if len(set(lengths.values())) > 1 or min(lengths.values()) < 1:
        raise ModelError(
            "the numbers of times disagree",
            site=name,
            expected="one length of at least 1",
            found=", ".join(f"{k}: {v}" for k, v in lengths.items()),
        )
    return int(next(iter(lengths.values())))
