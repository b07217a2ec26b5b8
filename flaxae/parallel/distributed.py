"""Several devices and several processes, with JAX's own means: the mesh, and how arrays are placed on it."""

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
    """The mesh of a text such as "data=4" or "population=2,data=4".

    Members of a population are spread along "population", and the batches of each along "data".

    Raises:
        ConfigError: an axis is unknown, a size is not a whole number above 0, there are fewer devices than that, or
            several processes don't use all of theirs.
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
    """With several processes, all devices along "data". With one, None, which means its first device."""
    return _mesh(jax.devices(), [1, jax.device_count()]) if jax.process_count() > 1 else None


def _mesh(devices: list[Any], shape: list[int]) -> Mesh:
    return Mesh(np.reshape(np.array(devices), shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe(mesh: Mesh | None) -> dict[str, int | str]:
    """The hardware of a mesh: `devices` (how many), `device`, `processes`, `hosts`. All processes must call this."""
    return {
        "devices": 1 if mesh is None else mesh.size,
        "device": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "hosts": ", ".join(sorted(set(processes.share(socket.gethostname())))),
    }


@contextlib.contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """Compute on a mesh, or on JAX's default device if it is None."""
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield


def along_data(batch: PyTree) -> PyTree:
    """The batch, an array or a tree, split over the "data" axis of the current mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return batch
    return lax.with_sharding_constraint(batch, PartitionSpec("data"))


def whole(tree: PyTree) -> PyTree:
    """The arrays, replicated on every device of the current mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return lax.with_sharding_constraint(tree, PartitionSpec())


def axis(name: str) -> str | None:
    """The axis of that name of the current mesh; None if there is no mesh."""
    return None if jax.sharding.get_abstract_mesh().empty else name


def place(tree: PyTree, mesh: Mesh | None, *axes: str | None) -> PyTree:
    """Arrays, which are the same in each process, sharded along the axes of a mesh; by default replicated."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put(leaf: Array | np.ndarray) -> Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return keyed(functools.partial(jax.tree.map, put), tree)


def local(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Arrays gathered from a mesh, however they are sharded, to this process' first device. All processes call this."""
    return tree if mesh is None else keyed(lambda tree: jax.device_put(numbers(tree)), tree)


def keyed(function: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """`function` applied to a tree whose random keys are unwrapped to their numbers before, and wrapped again after."""

    def wrap(new: Any, old: Any) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(new)) if is_key(old) else new

    return jax.tree.map(wrap, function(without_keys(tree)), tree)


def without_keys(tree: PyTree) -> PyTree:
    """The tree with its random keys unwrapped to their numbers."""

    def unwrap(leaf: Any) -> Any:
        if not is_key(leaf):
            return leaf
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)

    return jax.tree.map(unwrap, tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds random keys, which have no numeric dtype."""
    return jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jax.dtypes.prng_key)


def numbers(tree: PyTree) -> PyTree:
    """Arrays gathered from a mesh, however they are sharded, to the host. All processes call this."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)
