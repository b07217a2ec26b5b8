"""More devices and more processes, on JAX's own engine: the mesh, what lies where on it, what processes agree on."""

import contextlib
import functools
import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from flaxae import errors
from flaxae.parallel import processes

AXES = ("population", "data")


def mesh(shape: str) -> Mesh:
    """The mesh of a text such as "data=4" or "population=2,data=4": members of a population, and each one's batches.

    Raises:
        ConfigError: another axis, not a whole number, or other than all devices of more than one process.
    """
    sizes = {}
    for part in shape.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) == 0:
            raise errors.ConfigError(f"The mesh is {shape!r}; expected such as data=4, or population=2,data=4.")
        sizes[name] = int(size)
    devices = jax.devices()
    wanted = math.prod(sizes.values())
    if wanted > len(devices) or (jax.process_count() > 1 and wanted < len(devices)):
        raise errors.ConfigError(
            f"The mesh {shape} is of {wanted} devices; there are {len(devices)}, in {jax.process_count()} process(es)."
        )
    return _mesh(devices[:wanted], [sizes.get(axis, 1) for axis in AXES])


def default_mesh() -> Mesh | None:
    """All devices along "data" where there are several processes; None, which is the first device, in one."""
    return _mesh(jax.devices(), [1, jax.device_count()]) if jax.process_count() > 1 else None


def _mesh(devices: list[Any], shape: list[int]) -> Mesh:
    return Mesh(np.reshape(np.array(devices), shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe(mesh: Mesh | None) -> dict[str, int | str]:
    """What computes on a mesh: `devices` (how many), `device`, `processes`, `hosts`. Called by all processes."""
    return {
        "devices": 1 if mesh is None else mesh.size,
        "device": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "hosts": ", ".join(sorted(set(processes.share(socket.gethostname())))),
    }


@contextlib.contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """Compute on a mesh, or where nothing is said."""
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield


def along_data(batch: PyTree) -> PyTree:
    """The batch, an array or a tree, each device of the mesh that is computed on having its part of it."""
    if jax.sharding.get_abstract_mesh().empty:
        return batch
    return lax.with_sharding_constraint(batch, PartitionSpec("data"))


def whole(tree: PyTree) -> PyTree:
    """Arrays of which each device of the mesh that is computed on has all."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return lax.with_sharding_constraint(tree, PartitionSpec())


def axis(name: str) -> str | None:
    """The axis of that name of the mesh that is computed on; None where there is no mesh."""
    return None if jax.sharding.get_abstract_mesh().empty else name


def place(tree: PyTree, mesh: Mesh | None, *axes: str | None) -> PyTree:
    """Arrays, the same in each process, laid along the axes of a mesh, by default whole on every device."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put(leaf: Array | np.ndarray) -> Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return keyed(functools.partial(jax.tree.map, put), tree)


def local(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays that lie on a mesh in whatever way, whole on this process' first device. Called by all processes."""
    return tree if mesh is None else keyed(lambda tree: jax.device_put(numbers(tree)), tree)


def keyed(function: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """`function` of a tree in which random keys are given as the numbers that they are made of, and made keys again."""

    def wrap(new: Any, old: Any) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(new)) if is_key(old) else new

    return jax.tree.map(wrap, function(without_keys(tree)), tree)


def without_keys(tree: PyTree) -> PyTree:
    """Random keys as the numbers that they are made of."""

    def unwrap(leaf: Any) -> Any:
        if not is_key(leaf):
            return leaf
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)

    return jax.tree.map(unwrap, tree)


def is_key(leaf: Any) -> bool:
    """Whether it holds random keys, which are no numbers."""
    return jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jax.dtypes.prng_key)


def numbers(tree: PyTree) -> PyTree:
    """Arrays that lie on a mesh in whatever way, whole on the host. Called by all processes."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)
