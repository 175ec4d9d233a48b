"""What touches NumPyro's private parts: here, in ``capture_scan.py`` and in ``handler_stack.py``.

What these files rely on is pinned by ``tests/test_numpyro_contract.py``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import primitives
from numpyro.distributions import Distribution
from numpyro.distributions.distribution import Unit

from mcx.errors import CapabilityError, ModelError, SiteNameError
from mcx.model.bijections import bijection
from mcx.model.handler_stack import alone
from mcx.ops.arrays import numbers_of
from mcx.types import Key, SiteValues

type Message = dict[str, Any]
"""A site as NumPyro's effect handlers see it."""

type SiteTrace = Mapping[str, Message]
"""Recorded sites, by name."""

_REPEATED = ("param", "mutable")  # statements that may be made more than once
JACOBIAN = "jacobian"  # infer["mcx_kind"] of the factors that hold log Jacobians
_FIXED = "fixed"  # infer["mcx_kind"] of latent sites that have their values from a handler of the user's

_ASSIGNED = "_mcx_assigned"  # marks messages that have their values from us


def is_factor(site: Message) -> bool:
    """Whether a site is a ``factor`` statement (NumPyro writes it as an observed ``Unit``)."""
    return isinstance(unwrapped(site["fn"]), Unit)


def is_improper(fn: Distribution) -> bool:
    """Whether a distribution is an ``ImproperUniform``, wrapped or not."""
    return isinstance(unwrapped(fn), dist.ImproperUniform)


def is_jacobian(site: Message) -> bool:
    """Whether a replayed site is the log Jacobian of a latent site's bijection; it has a mark."""
    return site["infer"].get("mcx_kind") == JACOBIAN


class _DefaultKey(primitives.Messenger):
    """Give ``numpyro.prng_key()`` a fixed key where nothing seeds the model, as NumPyro's own MCMC does."""

    def process_message(self, msg: Message) -> None:
        # a seed handler further in has put its key into the message by now
        if msg["type"] == "prng_key" and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            msg["value"] = jax.random.key(0)


class _Asked(primitives.Messenger):
    """Note whether the program within asks for a key that it does not have."""

    def __init__(self, recorder: Recorder, fn: Callable[[], Any]) -> None:
        super().__init__(fn)
        self.recorder = recorder

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "prng_key" and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            self.recorder.asks_for_key = True


class Recorder(primitives.Messenger):
    """Collect every site in program order; report a repeated name instead of asserting."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Message] = {}
        self.duplicates: list[str] = []
        self.clashes: list[str] = []  # names of both a plate and a site
        self.scanned: set[str] = set()  # names of the sites in bodies of scans
        self.asks_for_key = False  # by numpyro.prng_key(), outside of sites
        self._after_scan = False  # whether sites that are repeated now come from a scan, not a cond

    def process_message(self, msg: Message) -> None:
        """Check a statement."""
        if msg["type"] == "sample" and not _is_done(msg):
            _check_statement(msg)
        elif msg["type"] == "plate":
            check_plate(msg["name"], *msg["args"])

    def postprocess_message(self, msg: Message) -> None:
        """Record it."""
        if msg["type"] == "control_flow":
            self._after_scan = is_scan(msg)
        if "name" not in msg or msg["type"] in ("control_flow", "prng_key", "inspect"):
            return
        name = msg["name"]
        if name in self.sites and msg["type"] == self.sites[name]["type"] and msg["type"] in _REPEATED:
            self.sites[name] = msg.copy()  # NumPyro's modules look first whether there is a value
            return
        if name in self.sites:
            plates = (msg["type"] == "plate") + (self.sites[name]["type"] == "plate")
            # plates may be entered many times; only sites that carry values must be unique
            if plates < 2:
                (self.clashes if plates else self.duplicates).append(name)
            return
        self.sites[name] = msg.copy()
        if _is_done(msg) and self._after_scan:
            self.scanned.add(name)


def check_name(name: object) -> None:
    """Raise SiteNameError unless a site has a name."""
    if not isinstance(name, str) or not name:
        raise SiteNameError("a site needs a name", expected="a string that is not empty", found=repr(name))


def no_distribution(name: str, fn: object, remedy: str | None = None) -> ModelError:
    """The error about a site whose distribution is something else."""
    is_class = isinstance(fn, type) and issubclass(fn, Distribution)
    return ModelError(
        "there is no distribution to sample from",
        site=name,
        expected="a distribution such as dist.Normal(0, 1), or a bound model",
        found=f"the class {fn.__name__}" if isinstance(fn, type) else f"a {type(fn).__name__}",
        remedy=f"dist.{fn.__name__}(...), with its parameters"
        if is_class and isinstance(fn, type)
        else remedy,
    )


def _check_statement(msg: Message) -> None:
    """Refuse a sample statement that is none, and make an array of what it observes."""
    name, fn = msg["name"], msg["fn"]
    check_name(name)
    if not isinstance(fn, Distribution):
        raise no_distribution(name, fn)
    if msg["is_observed"] and not is_factor(msg):
        what = "the observed value is no array of numbers"
        msg["value"] = numbers_of(msg["value"], what, site=name, expected="numbers, of one type")


def check_plate(name: str, size: Any, subsample_size: Any = None) -> None:
    """Raise ModelError unless the numbers of a plate's items are integers that a machine can hold."""
    check_name(name)
    for what, value in (("size", size), ("subsample_size", subsample_size)):
        if value is None and what == "subsample_size":
            continue
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not 0 < value < 2**31:
            raise ModelError(
                f"the plate's {what} is no number of items",
                site=name,
                expected="an int >= 1",
                found=f"{value!r} of type {type(value).__name__}",
                remedy="take it from a shape: len(y), y.shape[0]",
            )


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record the sites of what runs within; other threads wait."""
    recorder = Recorder()
    try:
        with alone(), recorder, _DefaultKey():
            yield recorder
    except AssertionError as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or frames[-1].name != "_subs_wrapper":
            raise
        raise CapabilityError(
            "a scan has values for its first steps only, and the others have no density",
            expected="a value at every step",
            remedy="infer the model without the steps to come, and predict with them: "
            "mcx.predict(posterior, model(y, future=...), key=0)",
        ) from error
    except NotImplementedError as error:
        if "control flow primitive under a `plate`" not in str(error):
            raise
        raise ModelError(
            "a scan or cond within a plate",
            expected="the plate within the body",
            remedy="def body(carry, x):\n    with numpyro.plate(...):\n        ...\nscan(body, init, xs)",
        ) from error


def record(
    fn: Callable[[], Any],
    *,
    key: jax.Array | None = None,
    values: SiteValues | None = None,
    substitute_fn: Callable[[Message], Array | None] | None = None,
    resample_observed: bool = False,
) -> Recorder:
    """Run a program once and record its sites.

    ``key`` seeds sites that have no value in ``values`` (constrained); without it such sites are an error.
    ``substitute_fn`` is called with each sample site, and returns its value or None. With
    ``resample_observed`` observed sites are drawn afresh, while factor statements keep their value.
    """
    with recording() as recorder:
        program: Callable[[], Any] = _Asked(recorder, fn)
        if resample_observed:
            program = _Uncondition(program)
        if values is not None:
            program = Assign(program, data=dict(values))
        if substitute_fn is not None:
            program = Assign(program, substitute_fn=unless_fixed(substitute_fn))
        if key is not None:
            program = numpyro.handlers.seed(program, rng_seed=key)
        program()
    return recorder


def is_fixed(site: Message) -> bool:
    """Whether a handler of the user's gave a latent site its value, as ``substitute`` does; it has a mark."""
    return site["infer"].get("mcx_kind") == _FIXED


class Assign(numpyro.handlers.substitute):
    """``numpyro.handlers.substitute`` that leaves the values alone which handlers of the user's gave."""

    def process_message(self, msg: Message) -> None:
        """Give a site its value."""
        if msg["type"] != "sample":
            super().process_message(msg)
        elif (value := _only_value(msg)) is not None:
            msg["value"] = value
        elif not _fixed(msg):
            super().process_message(msg)
            msg[_ASSIGNED] = msg["value"] is not None


def unless_fixed(assign: Callable[[Message], Array | None]) -> Callable[[Message], Array | None]:
    """:class:`Assign` for the sites of a scan, which are assigned one at a time."""

    def value(site: Message) -> Array | None:
        if site["type"] == "sample" and _fixed(site):
            return None
        if site["type"] == "sample" and (only := _only_value(site)) is not None:
            return only
        found = assign(site)
        site[_ASSIGNED] = found is not None
        return found

    return value


def _only_value(msg: Message) -> Array | None:
    """The value of a latent site that can have no other (``dist.Delta``), which fixes it; else None."""
    fn = unwrapped(msg["fn"])
    if not isinstance(fn, dist.Delta) or msg["value"] is not None or _is_done(msg):
        return None
    msg["infer"] = {**msg["infer"], "mcx_kind": _FIXED}
    return jnp.broadcast_to(fn.v, tuple(msg["kwargs"].get("sample_shape", ())) + tuple(msg["fn"].shape()))


def _fixed(msg: Message) -> bool:
    if msg["value"] is None or msg["is_observed"] or _is_done(msg) or msg.get(_ASSIGNED):
        return False
    msg["infer"] = {**msg["infer"], "mcx_kind": _FIXED}
    return True


class _Uncondition(numpyro.handlers.uncondition):
    """``numpyro.handlers.uncondition`` that reaches into scans and draws values of the observed shape.

    Conditions on a scan's sites are lifted as well, as the carry has to see the draw. Several observed values
    of one distribution, outside of any plate, become as many independent draws. Factors are left alone.
    """

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "control_flow":
            _enter_bodies(msg, _Uncondition)
            stack = msg["kwargs"]["substitute_stack"]
            msg["kwargs"]["substitute_stack"] = [entry for entry in stack if entry[0] != "condition"]
        elif msg["type"] == "sample" and msg["is_observed"] and not (_is_done(msg) or is_factor(msg)):
            fn, shape = msg["fn"], jnp.shape(msg["value"])
            batch = jnp.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
            if batch != tuple(fn.batch_shape):
                msg["fn"] = fn.expand(batch)
            super().process_message(msg)


class SubmodelScope(numpyro.handlers.scope):
    """``numpyro.handlers.scope`` that names the sites inside scans too, while the scan runs.

    Handlers further out look them up by full name: a prefix put before them afterwards comes too late.
    """

    def process_message(self, msg: Message) -> None:
        """Put the prefix before the names of a message."""
        if msg["type"] == "control_flow":
            _enter_bodies(msg, partial(SubmodelScope, prefix=self.prefix, divider=self.divider))
        elif not _is_done(msg):
            super().process_message(msg)


def _enter_bodies(msg: Message, handler: Callable[[Any], Any]) -> None:
    """Apply a handler to the function of a ``scan`` message, or to the two of a ``cond`` message."""
    args = list(msg["args"])
    for i in (0,) if is_scan(msg) else (1, 2):
        args[i] = handler(args[i])
    msg["args"] = tuple(args)


class StandIns(primitives.Messenger):
    """Stand-ins for missing densities: numbers that depend on everything that a density would depend on."""

    def process_message(self, msg: Message) -> None:
        """Replace a distribution that has no density."""
        if msg["type"] == "sample" and getattr(unwrapped(msg["fn"]), "no_density", ""):
            msg["fn"] = _StandIn(msg["fn"])


class _StandIn(dist.Distribution):
    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("law",)

    def __init__(self, law: Any) -> None:
        self.law = law
        super().__init__(law.batch_shape, law.event_shape)

    @property
    def support(self) -> Any:
        return self.law.support

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.law.sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        return jnp.broadcast_to(unwrapped(self.law).stand_in(value), self.batch_shape)


def unwrapped(fn: Distribution) -> Distribution:
    """A distribution without the wrappers that expand it, mask it or declare its axes."""
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def is_scan(msg: Message) -> bool:
    """Whether a ``control_flow`` message is that of a scan: its first argument is the body."""
    return callable(msg["args"][0])


def _is_done(msg: Message) -> bool:
    """Whether a message only repeats a site that ran inside a scan or cond, for handlers outside."""
    return bool(msg.get("_control_flow_done"))


def unconstrained_prototype(site: Message) -> Array | None:
    """Value of a continuous latent site at the origin of unconstrained space; None for other sites."""
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support is None:
        return None
    fn = site["fn"]
    if fn.support.is_discrete:
        return None
    to_value = bijection(fn.support)
    shape = tuple(site["kwargs"].get("sample_shape", ())) + tuple(fn.shape())
    return to_value(jnp.zeros(to_value.inverse_shape(shape)))
