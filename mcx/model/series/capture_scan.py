"""NumPyro's ``scan`` statements, taken out of a program as functions; see ``capture.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import primitives
from numpyro.ops.pytree import PytreeTrace

from mcx.errors import CapabilityError
from mcx.model.capture import Message, SiteTrace, SubmodelScope, is_factor, is_scan, unconstrained_prototype
from mcx.types import PyTree


class ScanStatement(NamedTuple):
    """A ``scan`` of a program, taken before it ran, with its arguments.

    body: ``(carry, x) -> (carry, y)``, with the scopes of submodels.
    prefix: what scopes put before the names of the body's sites.
    latent: names of the body's latent sites, with the prefix.
    carry: shapes and dtypes of the carry.
    assigned: ``(kind, values)`` of the handlers that assign values to the body's sites; see NumPyro's
        ``substitute_stack``.
    handlers: names of the handlers around it that would change its sites' densities.
    """

    body: Callable[..., Any]
    init: PyTree
    xs: PyTree
    length: int
    reverse: bool
    history: int
    prefix: str
    latent: tuple[str, ...]
    carry: PyTree
    assigned: tuple[tuple[str, Any], ...]
    handlers: tuple[str, ...]


_HARMLESS = (
    numpyro.handlers.seed,
    numpyro.handlers.trace,
    numpyro.handlers.condition,
    numpyro.handlers.substitute,
    numpyro.handlers.infer_config,
    numpyro.handlers.scope,
)


class scans_taken(primitives.Messenger):
    """Take the scans out of the program that runs within; the scans themselves do not run.

    The program gets ``outputs`` in their place, ``(carry, ys)`` by number; zeros by default. ``scans`` are
    the statements in program order, ``results`` shapes and dtypes of their results.
    """

    def __init__(self, outputs: Mapping[int, Any] | None = None) -> None:
        super().__init__()
        self.outputs = outputs or {}
        self.scans: list[ScanStatement] = []
        self.results: list[Any] = []

    def process_message(self, msg: Message) -> None:
        """Record a scan, and give the program a result in its place."""
        if msg["type"] != "control_flow" or not is_scan(msg):
            return
        within = primitives._PYRO_STACK[primitives._PYRO_STACK.index(self) + 1 :]
        scopes = [
            h for h in within if isinstance(h, numpyro.handlers.scope) and not isinstance(h, SubmodelScope)
        ]
        prefix = "".join(f"{h.prefix}{h.divider}" for h in scopes)
        others = [type(h).__name__ for h in within if not isinstance(h, _HARMLESS)]
        result, latent = _scan_shapes(msg)
        body, init, xs, length, reverse = msg["args"]
        number = len(self.scans)
        self.results.append(result)
        self.scans.append(
            ScanStatement(
                body,
                init,
                xs,
                jnp.shape(jax.tree_util.tree_leaves(xs)[0])[0] if length is None else int(length),
                reverse,
                msg["kwargs"]["history"],
                prefix,
                tuple(prefix + name for name in latent),
                result[0],
                tuple(msg["kwargs"]["substitute_stack"]),
                tuple(others),
            )
        )
        if number in self.outputs:
            carry, ys = self.outputs[number]
        else:
            carry, ys = jax.tree_util.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), result)
        msg["value"] = ((0, None, carry), (PytreeTrace({}), ys))
        msg["stop"] = True


def _scan_shapes(msg: Message) -> tuple[Any, list[str]]:
    """Shapes of a scan's results, and the names of its latent sites."""
    latent: list[str] = []
    kwargs = {
        **msg["kwargs"],
        "rng_key": jax.random.key(0),
        "substitute_stack": [*msg["kwargs"]["substitute_stack"], ("substitute", unconstrained_prototype)],
    }

    def run() -> PyTree:
        with numpyro.handlers.block():
            (_, _, carry), (trace, ys) = msg["fn"](*msg["args"], **kwargs)
        for name, site in trace.trace.items():
            if site["type"] == "sample" and not site["is_observed"]:
                latent.append(name)
        return carry, ys

    return jax.eval_shape(run), latent


class _Body(primitives.Messenger):
    """Assign values to the sites of a scan's body, record the sites, and hide them from other handlers."""

    def __init__(self, prefix: str, assign: Callable[[str, Message], Array | None]) -> None:
        super().__init__()
        self.prefix, self.assign = prefix, assign
        self.sites: dict[str, Message] = {}

    def process_message(self, msg: Message) -> None:
        msg["stop"] = True
        name = self.prefix + msg["name"] if "name" in msg else None
        if msg["type"] == "control_flow":
            kind = "scan" if is_scan(msg) else "cond"
            raise CapabilityError(
                f"a {kind} within the body of a scan",
                expected="a body whose sites are statements of its own",
                remedy="write inner loops with a plate, or with jax.lax (scan, cond) around code without "
                "sites; draw the sites before and choose among their values",
            )
        if msg["type"] == "prng_key":
            raise CapabilityError(
                "the body of a scan asks for a random key",
                remedy="draw random numbers by numpyro.sample sites",
            )
        if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
            raise CapabilityError(
                f"the plate takes {msg['args'][1]} of {msg['args'][0]} items at random in every step",
                site=name,
                expected="the full plate",
                remedy="drop subsample_size=",
            )
        if msg["type"] == "sample" and not is_factor(msg):
            assert name is not None
            value = self.assign(name, msg)
            if value is not None:
                msg["value"] = value

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "sample":
            self.sites[self.prefix + msg["name"]] = msg.copy()


def run_body(
    scan: ScanStatement, carry: PyTree, x: PyTree, assign: Callable[[str, Message], Array | None]
) -> tuple[Any, SiteTrace]:
    """Run the body of a scan for one step; returns the new carry, and the body's sites.

    ``assign`` is called with the name and message of every site but factors, and returns its value, or None
    to leave an observed one as it is. Raises CapabilityError if the body holds a scan, a cond, a subsampled
    plate, or asks for a key.
    """
    body = _Body(scan.prefix, assign)
    with body:
        carry, _ = scan.body(carry, x)
    return carry, body.sites
