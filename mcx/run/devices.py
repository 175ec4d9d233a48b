"""Which devices the chains of a run live on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcx.errors import MethodError
from mcx.ops import collectives
from mcx.ops.validation import either, instance, integer, one_of, refuse, tuple_of
from mcx.types import Array, PyTree

Devices = int | str | Sequence[jax.Device] | Mesh | None

_AXIS, _ENTRIES = collectives.MESH_AXIS, "particle"
CHAINS = PartitionSpec(_AXIS)
STEPS_CHAINS = PartitionSpec(None, _AXIS)
REPLICATED = PartitionSpec()


def as_mesh(devices: Devices, num_chains: int, size: int | None = None) -> Mesh | None:
    """The mesh that chains are spread over, or one chain's ``size`` entries; None for the default device.

    Raises:
        MethodError: if there are fewer devices, or if they cannot share the chains or entries evenly.
    """
    if devices is None:
        return None
    chosen = _chosen(devices)
    if num_chains == 1 and size is not None and len(chosen) > 1:
        if size % len(chosen):
            raise MethodError(
                f"{size} particles cannot be shared evenly by {len(chosen)} devices",
                expected=f"a multiple of {len(chosen)} particles",
                remedy=f"num_particles={len(chosen) * max(1, round(size / len(chosen)))} (SMC2: num_params)",
            )
        return jax.make_mesh((len(chosen),), (_ENTRIES,), (jax.sharding.AxisType.Auto,), devices=chosen)
    if len(chosen) > num_chains or num_chains % len(chosen):
        raise MethodError(
            f"num_chains={num_chains} cannot be shared evenly by {len(chosen)} devices",
            expected=f"a multiple of {len(chosen)} chains, or a divisor of {num_chains} devices",
            remedy=f"num_chains={len(chosen) * max(1, round(num_chains / len(chosen)))}",
        )
    if len(chosen) == 1 and chosen[0] == jax.devices()[0]:
        return None
    return jax.make_mesh((len(chosen),), (_AXIS,), (jax.sharding.AxisType.Auto,), devices=chosen)


def _chosen(devices: Devices) -> list[jax.Device]:
    there = jax.devices()
    if isinstance(devices, Mesh):
        devices = list(devices.devices.flat)
    several = tuple_of(instance(jax.Device, "a device"), "devices", least=1)
    try:
        chosen = either(integer(1, len(there)), one_of("all"), several).plain(devices)
        if isinstance(chosen, tuple) and len(set(chosen)) < len(chosen):
            raise ValueError
    except ValueError:
        refuse(
            "run",
            "devices",
            devices,
            f"a number from 1 to {len(there)}, 'all', different devices of JAX, or a jax.sharding.Mesh",
            "on a CPU, jax.config.update('jax_num_cpu_devices', n) before anything else makes n devices",
        )
    if chosen == "all":
        return there
    return there[:chosen] if isinstance(chosen, int) else list(chosen)


def over_devices[F: Callable[..., PyTree]](
    fn: F, mesh: Mesh | None, in_specs: PyTree, out_specs: PyTree
) -> F:
    """A function of all chains, which every device runs on its own chains; no device waits for another."""
    if mesh is None or _ENTRIES in mesh.axis_names:
        return fn
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def place(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec) -> PyTree:
    """Arrays where a run over ``mesh`` expects them."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec if _AXIS in mesh.axis_names else REPLICATED)

    def put(x: Array) -> Array:
        if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            return jax.device_put(x, sharding)
        return jax.random.wrap_key_data(
            jax.device_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x)
        )

    return jax.tree.map(put, tree)


def placed(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec, size: int | None = None) -> PyTree:
    """Shapes and dtypes with a sharding: chains by ``spec``, or one chain's axes of ``size`` entries."""
    if mesh is None:
        return tree

    def where(x: Array) -> jax.ShapeDtypeStruct:
        own = spec if _AXIS in mesh.axis_names else _entries(x.shape, size, len(spec))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, own))

    return jax.tree.map(where, tree)


def spread(tree: PyTree, mesh: Mesh | None, size: int) -> PyTree:
    """Keep arrays whose first axis has ``size`` entries spread over the mesh; for traced functions."""
    if mesh is None:
        return tree

    def keep(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _entries(x.shape, size, 0)))

    return jax.tree.map(keep, tree)


def _entries(shape: tuple[int, ...], size: int | None, axis: int) -> PartitionSpec:
    """Sharding along ``axis`` if that has ``size`` entries, and none otherwise."""
    if len(shape) > axis and shape[axis] == size:
        return PartitionSpec(*(None,) * axis, _ENTRIES)
    return REPLICATED
