"""Models, and models with their data: what can be done with them before any inference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from numpyro.primitives import Messenger

from mcx.errors import ModelError
from mcx.model.callables import Static, around, bind_arguments, checked, name_of, runnable, signature_of
from mcx.model.check import Report, check
from mcx.model.compile import log_density, model_sites, numbers_by_site, simulate
from mcx.model.handler_stack import handlers_without_run, inside_model
from mcx.model.program import BoundProgram
from mcx.model.render import render
from mcx.ops.keys import as_key
from mcx.ops.lru_cache import LRUCache
from mcx.sites import SiteTable
from mcx.types import KeyLike, Scalar


class Model:
    """A NumPyro program that can be bound to data and given to any inference method.

    Called outside of a running model it binds its arguments (nothing runs); called inside one, which is
    how NumPyro's own algorithms and other models call it, it runs there.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = checked(fn)
        functools.update_wrapper(self, fn, updated=())  # names and documentation, but no attributes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run inside a model; bind outside of one, with the effect handlers around it if there are any."""
        if not inside_model():
            return self.bind(*args, **kwargs)
        if (outer := handlers_without_run()) is not None:
            return Model(_within(outer, self.fn)).bind(*args, **kwargs)
        return runnable(self.fn)(*args, **kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> BoundModel:
        """Bind arguments; nothing runs.

        Array arguments become data (leaves of the returned pytree); Python numbers, strings and
        functions stay static.

        Raises:
            ModelError: if the arguments do not fit the function's signature.
        """
        bound = bind_arguments(self.fn, args, kwargs)
        if bound is None:  # callables without a signature take what they are given
            return BoundModel.of(self.fn, args, kwargs)
        return BoundModel.of(self.fn, bound.args, bound.kwargs)

    def __repr__(self) -> str:
        return f"<mcx model {name_of(self.fn)}{signature_of(self.fn) or '(...)'}>"


def model(fn: Callable[..., Any]) -> Model:
    """Make a model of a NumPyro program (a function with ``sample`` statements).

    Args:
        fn: the function; any NumPyro model serves, unchanged, and so does any callable: a function under
            effect handlers (``handlers.reparam(f, ...)``), a method, a ``functools.partial``, an object with
            ``__call__`` (an Equinox module, say, whose arrays then count as data). ``jax.jit`` around it is
            taken off.

    Returns:
        A :class:`Model`: call it with data, outside of any model, to get a :class:`BoundModel`.
    """
    return fn if isinstance(fn, Model) else Model(fn)


@jax.tree_util.register_pytree_node_class
class BoundModel(BoundProgram):
    """A model together with its data. A pytree: array arguments are leaves, the rest is static.

    Made by :meth:`Model.bind`, or by calling a model outside of any running model.
    """

    def __call__(self) -> Any:
        """Run inside a model; bind once more, with the effect handlers around it.

        That is how handlers are put around a bound model: ``handlers.reparam(model(y), config)()``.
        """
        if not inside_model():
            raise ModelError(
                f"{self.name} has its data already",
                expected="one call, with the data",
                remedy="pass the bound model on: mcx.infer(model(data), ...)",
            )
        if (outer := handlers_without_run()) is not None:
            return BoundModel.of(_within(outer, _Named(self.name)), (self,))
        return self.run()

    def condition(self, data: Mapping[str, Any]) -> BoundModel:
        """Observe further sites.

        Args:
            data: values by site name, of the sites' shapes.

        Returns:
            A new bound model in which these sites are observed.

        Raises:
            ModelError: if a name is no sample site of the model, or a value has the wrong shape.
        """
        known = model_sites(self)
        values = numbers_by_site("condition(data)", data)
        for name, value in values.items():
            if name not in known or known[name].kind not in ("latent", "discrete", "observed"):
                raise ModelError(
                    "cannot condition on what is no sample site",
                    site=name,
                    expected="one of " + ", ".join(s.name for s in known if s.kind in ("latent", "discrete")),
                    remedy="see .sites() for the model's sites",
                )
            site = known[name]
            whole = np.broadcast_shapes(site.shape, site.batch_shape + site.event_shape)
            if not _broadcasts(np.shape(value), whole):
                raise ModelError(
                    "the value does not have the shape of the site",
                    site=name,
                    expected=f"shape {whole}",
                    found=f"shape {np.shape(value)}",
                )
        return self.observing(values)

    def simulate(self, *, key: KeyLike) -> dict[str, Array]:
        """Draw every site from the prior, observed sites included.

        Args:
            key: a typed JAX key or an int.

        Returns:
            Values by site name, each of its site's shape: latent, deterministic and (drawn afresh) observed
            sites. Costs one run of the model.

        Raises:
            CapabilityError: if a site has an improper prior.
            KeyTypeError: if ``key`` is neither a typed key nor an int.
        """
        return simulate(self, as_key(key))

    def log_density(self, values: Mapping[str, Any]) -> Scalar:
        """Log joint density at constrained values, without Jacobians.

        Args:
            values: constrained values of every latent site (discrete sites too).

        Returns:
            A scalar: log prior + log likelihood. Costs one run of the model.

        Raises:
            ModelError: if a latent site has no value, or a value belongs to no latent site.
            CapabilityError: if the law of a site has no density, or a plate takes a random part of its items.
        """
        return log_density(self, values)

    def sites(self) -> SiteTable:
        """Table of the model's sites; prints one line a site. Runs the model abstractly, once."""
        return model_sites(self)

    def check(self, *, key: KeyLike = 0) -> Report:
        """Look for mistakes in the model and its data; none is raised.

        Args:
            key: seeds the trial starting points.

        Returns:
            A printable report; ``report.ok`` says whether ``infer`` would start. Costs 20 gradients.

        Raises:
            KeyTypeError: if ``key`` is neither a typed key nor an int.
        """
        return check(self, as_key(key))

    def render(self, format: str = "mermaid") -> str:
        """Picture of the model as text.

        Args:
            format: "mermaid" (Markdown viewers draw it) or "dot" (Graphviz).

        Returns:
            The text of the diagram: an edge for every direct dependence, a box for every plate.

        Raises:
            MethodError: on an unknown format.
        """
        return render(self, format)


class _Named:
    """Run a bound model; it has its name."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, bound: BoundModel) -> Any:
        return bound.run()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.__name__ == other.__name__

    def __hash__(self) -> int:
        return hash((_Named, self.__name__))


_MADE: LRUCache[tuple[Sequence[Messenger], Callable[..., Any]]] = LRUCache(64)


def _within(outer: Sequence[Messenger], fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function under copies of effect handlers, the outermost first; the same one for the same handlers."""

    def make() -> tuple[Sequence[Messenger], Callable[..., Any]]:
        made = fn
        for handler in reversed(outer):
            made = around(handler, made)
        return outer, made

    return _MADE.get((tuple(map(id, outer)), Static(fn)), make)[1]


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, whole) == whole
    except ValueError:
        return False
