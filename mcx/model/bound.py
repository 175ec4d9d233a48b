"""Models, and models with their data: what can be done with them before any inference."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

from mcx.errors import ModelError
from mcx.model.capture import inside_model
from mcx.model.check import Report, check
from mcx.model.compile import log_density, model_sites, numbers_by_site, simulate
from mcx.model.program import BoundProgram
from mcx.model.render import render
from mcx.ops.keys import as_key
from mcx.sites import SiteTable
from mcx.types import KeyLike, Scalar


class Model:
    """A NumPyro program that can be bound to data and given to any inference method.

    Called outside of a running model it binds its arguments (nothing runs); called inside one, which is
    how NumPyro's own algorithms and other models call it, it runs there.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise ModelError("mcx.model needs a function", expected="a callable", found=type(fn).__name__)
        self.fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run inside a model; bind outside of one."""
        return self.fn(*args, **kwargs) if inside_model() else self.bind(*args, **kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> BoundModel:
        """Bind arguments; nothing runs.

        Array arguments become data (leaves of the returned pytree); Python numbers, strings and
        functions stay static.

        Raises:
            ModelError: if the arguments do not fit the function's signature.
        """
        try:
            bound = inspect.signature(self.fn).bind(*args, **kwargs)
        except TypeError as error:
            name = getattr(self.fn, "__name__", "model")
            raise ModelError(
                f"{name}: {error}", expected=f"{name}{inspect.signature(self.fn)}", remedy="fix the arguments"
            ) from None
        except ValueError:  # callables without a signature take what they are given
            return BoundModel.of(self.fn, args, kwargs)
        return BoundModel.of(self.fn, bound.args, bound.kwargs)

    def __repr__(self) -> str:
        try:
            signature = str(inspect.signature(self.fn))
        except ValueError:
            signature = "(...)"
        return f"<mcx model {getattr(self.fn, '__name__', self.fn)}{signature}>"


def model(fn: Callable[..., Any]) -> Model:
    """Make a model of a NumPyro program (a function with ``sample`` statements).

    Args:
        fn: the function; any NumPyro model serves, unchanged.

    Returns:
        A :class:`Model`: call it with data, outside of any model, to get a :class:`BoundModel`.
    """
    return fn if isinstance(fn, Model) else Model(fn)


@jax.tree_util.register_pytree_node_class
class BoundModel(BoundProgram):
    """A model together with its data. A pytree: array arguments are leaves, the rest is static.

    Made by :meth:`Model.bind`, or by calling a model outside of any running model.
    """

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


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, whole) == whole
    except ValueError:
        return False
