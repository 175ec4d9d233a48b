"""``vmap`` a part of the axis at a time, where all of it at once would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["vmap_in_batches"]


def vmap_in_batches(
    fn: Callable[..., Any], in_axes: tuple[int | None, ...], batch_size: int | None, axis_name: Any = None
) -> Callable[..., Any]:
    """``jax.vmap`` over leading axes, ``batch_size`` entries at once.

    Args:
        fn: a function of one entry.
        in_axes: 0 or None for every argument.
        batch_size: entries at once; None is all of them. The last batch may be smaller.
        axis_name: for collectives over the entries, where they are all there at once.

    Returns:
        A function of the same arguments and results as ``jax.vmap(fn, in_axes)``. Intermediate values take
        memory for ``batch_size`` entries; batches run one after the other.
    """
    if batch_size is None:
        return jax.vmap(fn, in_axes, axis_name=axis_name)

    def run(*args: Any) -> Any:
        def one(own: list[Any]) -> Any:
            left = iter(own)
            return fn(*(arg if axis is None else next(left) for arg, axis in zip(args, in_axes, strict=True)))

        mapped = [arg for arg, axis in zip(args, in_axes, strict=True) if axis is not None]
        return jax.lax.map(one, mapped, batch_size=None if batch_size == 1 else batch_size)

    return run
