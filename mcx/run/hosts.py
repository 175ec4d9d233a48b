"""The processes of a run that spans several (``jax.distributed``), and how they agree."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from mcx.errors import MethodError
from mcx.types import Array, PyTree


@dataclass(frozen=True)
class Hosts:
    """The ``count`` processes of a run, all of which call these methods in the same order."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows progress and keeps the manifest."""
        return self.index == 0

    def gather(self, value: ArrayLike) -> np.ndarray:
        """Every process's value, stacked."""
        if self.count == 1:
            return np.asarray(value)[None]
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(np.asarray(value)))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.gather(np.int32(flag)).any())

    def lead(self, value: int) -> int:
        """The value of process 0."""
        return int(self.gather(np.int32(value))[0])

    def share(self, size: int) -> slice:
        """This process's part of ``size`` items."""
        bounds = np.linspace(0, size, self.count + 1).astype(int)
        return slice(int(bounds[self.index]), int(bounds[self.index + 1]))

    def fetch(self, tree: PyTree) -> PyTree:
        """Arrays that are spread over the devices of all processes, made readable for this one."""
        return tree if self.count == 1 else jax.tree.map(_fetched, tree)


ALONE = Hosts()


def hosts_of(mesh: Mesh | None) -> Hosts:
    """The processes whose devices are in a mesh, which has those of this process alone or of all."""
    if mesh is None:
        return ALONE
    processes = {device.process_index for device in mesh.devices.flat}
    if processes == {jax.process_index()}:
        return ALONE
    if len(processes) < jax.process_count():
        raise MethodError(
            "devices= belong to some of the processes only",
            expected=f"devices of all {jax.process_count()} processes, or this one's jax.local_devices()",
            found="devices of processes " + ", ".join(map(str, sorted(processes))),
        )
    return Hosts(jax.process_index(), jax.process_count())


def _fetched(x: Array) -> Array:
    from jax.experimental.multihost_utils import process_allgather

    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = process_allgather(jax.random.key_data(x), tiled=True)
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(x))
    return jnp.asarray(process_allgather(x, tiled=True))
