"""The training data, given to the device one window of steps at a time.

Examples are an array, or a tree of arrays of one length. For data in memory, a window is an epoch. For a stream, it is
as many batches as fit in `WINDOW_BYTES`; a thread reads the next window while this one is trained on. For an iterator,
it is the next few of its batches. The order of the examples depends on (seed, epoch, window) only. So it does not
depend on where a run was interrupted, nor on how many devices and processes share the work.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int, PyTree, Shaped

from flaxae import batches, errors
from flaxae.batches import Batch
from flaxae.data.stream import Stream
from flaxae.parallel import distributed

WINDOW_BYTES = 16 * 2**20  # of float32; malloc reuses blocks of this size, while larger ones cost a page fault per page
LEAST_ROOM = 8  # batches, of short trainings
MOST_LANES = 128  # the most chunks that a window is made of

Order = Int[Array | np.ndarray, "*lanes examples"]
Window = tuple[PyTree[Array], Order]  # the arguments x and order of `batch`


def batch(x: PyTree[Array], order: Order, batch_size: int, step: int | Int[Array, ""]) -> PyTree[Array]:
    """The batch of a step: the next examples, by order, of x [n, *shape] or of each lane of x [lanes, n, *shape]."""
    lanes = order.shape[:-1]
    each = batch_size // math.prod(lanes)
    start = (step % (order.shape[-1] // each)) * each
    index = lax.dynamic_slice_in_dim(order, start, each, axis=-1)

    def take(x: Shaped[Array, " examples *shape"], index: Int[Array, " each"]) -> Shaped[Array, " each *shape"]:
        return jnp.take(x, index, axis=0, mode="clip")

    def of(x: Shaped[Array, "..."]) -> Shaped[Array, " batch *shape"]:
        return jax.vmap(take)(x, index).reshape(batch_size, *x.shape[2:]) if lanes else take(x, index)

    return distributed.along_data(jax.tree.map(of, x))


def shuffle(seed: int, epoch: int, examples: int) -> Int[np.ndarray, " examples"]:
    """The order of an epoch. NumPy draws it, because JAX would sort random numbers, which is far slower on a CPU."""
    return np.random.default_rng([seed, epoch]).permutation(examples).astype(np.int32)


def power_of_two(least: int) -> int:
    """The first power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()


@runtime_checkable
class Source(Protocol):
    """Gives the windows of a run by their number."""

    windows: int  # per epoch
    steps: int  # per window
    waited: float  # seconds spent waiting for data so far

    def __call__(self, window: int) -> tuple[Any, ...]: ...

    def close(self) -> None: ...


class Resident:
    """Examples that fit on the device; every device of a mesh holds all of them. A window is an epoch."""

    windows = 1  # per epoch
    waited = 0.0  # seconds spent waiting for data so far

    def __init__(self, x: PyTree[Array], batch_size: int, seed: int):
        self.x = x
        self.seed, self.batch_size = seed, batch_size
        self.examples = batches.count(x)
        self.steps = self.examples // batch_size  # per window
        self.room: int | None = None  # batches that an order has a place for; None: an order has all examples

    def with_room(self) -> "Resident":
        """The same batches from arrays of one of a few lengths, so that few programs are compiled for many data.

        Data that would take more than `WINDOW_BYTES` so stay as they are.
        """
        made = Resident(self.x, self.batch_size, self.seed)
        made.room = max(LEAST_ROOM, power_of_two(self.steps))
        rows = max(made.room * self.batch_size, power_of_two(self.examples))
        if sum(leaf.nbytes for leaf in jax.tree.leaves(self.x)) / self.examples * rows > WINDOW_BYTES:
            return self
        made.x = jax.tree.map(lambda leaf: jnp.asarray(np.resize(leaf, (rows, *leaf.shape[1:]))), self.x)
        return made

    def __call__(self, window: int) -> Window:
        order = shuffle(self.seed, window, self.examples)
        if self.room is None:
            return self.x, order
        # `batch` takes step s from place s modulo the room
        places = (window * self.steps + np.arange(self.steps)) % self.room
        roomy = np.zeros((self.room, self.batch_size), np.int32)
        roomy[places] = order[: self.steps * self.batch_size].reshape(self.steps, -1)
        return self.x, roomy.reshape(-1)

    def close(self) -> None:
        """Do nothing: nothing runs in the background."""


class Windows:
    """The batches of a stream, or of a tree of streams.

    A stream is cut into chunks, which are assigned to windows at random in each epoch. Each chunk of a window is a
    lane. A batch takes equally many examples from every lane, in an order shuffled within the lane. Devices and
    processes share the work by lanes: each process reads its own. The examples left over, fewer than a batch per
    window, are at the two ends of the stream; how many at which end is random.

    Args:
        streams: a stream, or a tree of streams of one length.
        check: called before a window is trained on, once for x and once for the target if there is one. It gets the
            lowest and the highest value, and `wanted`: whether the likelihood is of these values. Once an epoch has
            been read, only windows with examples that were not in it are checked, if the streams are arrays or files.

    Raises:
        ConfigError: the devices of the mesh can't share the lanes evenly.
    """

    def __init__(
        self, streams: PyTree[Stream], batch_size: int, seed: int, mesh: Mesh | None, check: Callable[..., None]
    ):
        self.streams, self.tree = jax.tree.flatten(streams)
        self.batch_size, self.seed, self.check = batch_size, seed, check
        self.examples = batches.count(streams)
        bytes_each = sum(4 * stream.example.size for stream in self.streams)
        self.windows = min(math.ceil(self.examples * bytes_each / WINDOW_BYTES), self.examples // batch_size)
        self.steps = self.examples // self.windows // batch_size
        self.lanes = max(n for n in range(1, MOST_LANES + 1) if batch_size % n == 0)
        self.length = self.steps * batch_size // self.lanes  # examples in a chunk
        self.waited = 0.0
        self._last, self._in_a_row = -1, 0  # the window that was read last, and how many came in order up to it
        self._checked = range(0)  # examples
        if mesh is None:
            self.sharding = SingleDeviceSharding(jax.devices()[0])
        else:
            self.sharding = NamedSharding(mesh, PartitionSpec("data"))
            if self.lanes % mesh.shape["data"]:
                raise errors.ConfigError(
                    f"{mesh.shape['data']} devices can't share a stream's batches of {batch_size} examples: choose a "
                    "batch_size and a number of devices that are powers of 2."
                )
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="flaxae-reader")
        self._next: tuple[int, Future] | None = None

    def __call__(self, window: int) -> Window:
        began = time.perf_counter()
        waiting = self._next
        stored = waiting[1].result() if waiting and waiting[0] == window else self._read(window)
        self.waited += time.perf_counter() - began
        self._next = window + 1, self._reader.submit(self._read, window + 1)
        read, order = stored
        scalings = tuple(stream.scaling for stream in self.streams)
        if not any(scalings) and Batch.of(self.tree.unflatten(read)).observed is None:
            return self.tree.unflatten(read), order  # as it is: what XLA gives back would be a copy
        return _scaled(self.tree, scalings, read), order

    def close(self) -> None:
        """Stop the reader, after the window that it is reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch: int, place: int) -> Int[np.ndarray, "lanes length"]:
        """The order of a window's examples within each lane."""
        within = np.broadcast_to(np.arange(self.length, dtype=np.int32), (self.lanes, self.length))
        return np.random.default_rng([self.seed, epoch, place]).permuted(within, axis=1)

    def _read(self, window: int) -> tuple[list[Array], Order]:
        """A window on the devices, not yet scaled, and its order. Each process reads what its own devices train on."""
        epoch, place = divmod(window, self.windows)
        left_over = self.examples - self.windows * self.lanes * self.length
        rng = np.random.default_rng([self.seed, epoch])
        offset = int(rng.integers(left_over + 1))
        chunks = rng.permutation(self.windows * self.lanes)[place * self.lanes : (place + 1) * self.lanes]

        @functools.cache
        def read(first: int, last: int) -> list[np.ndarray]:
            return self._read_lanes((offset + chunks[first:last] * self.length).tolist())

        def shard(number: int, index: Any) -> Shaped[np.ndarray, "lanes length *shape"]:
            first, last, _ = index[0].indices(self.lanes)
            return read(first, last)[number]

        on_devices: list[Array] = [
            jax.make_array_from_callback(
                (self.lanes, self.length, *stream.shape[1:]), self.sharding, functools.partial(shard, number)
            )
            for number, stream in enumerate(self.streams)
        ]
        self._in_a_row = self._in_a_row + 1 if window == self._last + 1 else 1
        self._last = window
        if place == self.windows - 1 and self._in_a_row >= self.windows:
            self._epoch_is_checked(offset)
        return on_devices, self._order(epoch, place)

    def _epoch_is_checked(self, offset: int) -> None:
        """An epoch of the examples from `offset` on was read, and none was refused."""
        if all(isinstance(stream.source, np.ndarray) for stream in self.streams):  # others may change what they give
            stop = offset + self.windows * self.lanes * self.length
            known = self._checked or range(offset, stop)
            self._checked = range(min(known.start, offset), max(known.stop, stop))

    def _read_lanes(self, starts: list[int]) -> list[np.ndarray]:
        """The chunks that begin at `starts`, [lanes, length, ...] of each stream, checked but not yet scaled."""
        known = self._checked.start <= min(starts) and max(starts) + self.length <= self._checked.stop
        which = Batch.of(self.tree.unflatten(range(len(self.streams))))  # the numbers of the streams
        wanted = which.x if which.target is None else which.target
        read: dict[int, np.ndarray] = {}
        for number in sorted(range(len(self.streams)), key=lambda number: number != which.observed):
            stream = self.streams[number]
            shape = (len(starts), self.length, *stream.shape[1:])
            read[number] = out = _aligned(shape, stream.example.dtype)
            lanes = stream.chunks(starts, out)
            if known or number not in (which.x, which.target):
                for _ in lanes:
                    pass
                continue
            masks: Any = which.observed if number == which.x else None
            low, high = _range(lanes, stream.scaling, None if masks is None else read[masks] != 0)
            self.check(low, high, wanted=number == wanted)
        return [read[number] for number in range(len(self.streams))]


def _range(
    lanes: Iterable[np.ndarray], scaling: Callable | None, observed: Shaped[np.ndarray, "..."] | None
) -> tuple[float, float]:
    """The lowest and the highest of the observed values, after scaling."""
    if observed is not None:
        seen = [(x if scaling is None else scaling(x))[there] for x, there in zip(lanes, observed, strict=True)]
        values = np.concatenate(seen) if any(map(len, seen)) else np.zeros(1, np.float32)
        return float(values.min()), float(values.max())
    over = None if scaling is None else 0  # a scaling may differ between the values of an example
    low, high, dtype = np.inf, -np.inf, np.dtype(np.float32)
    for x in lanes:
        low, high, dtype = np.minimum(low, x.min(axis=over)), np.maximum(high, x.max(axis=over)), x.dtype
    bounds = np.stack([low, high]).astype(dtype)
    bounds = bounds if scaling is None else scaling(bounds)
    return float(bounds[0].min()), float(bounds[1].max())


class Drawn:
    """Empty windows, for blocks of steps that draw their own batches from data that they hold.

    Args:
        steps: of the whole training.
        about: how many steps an epoch should have; it gets the largest divisor of `steps` up to that.
    """

    windows = 1
    waited = 0.0

    def __init__(self, steps: int, about: int):
        self.steps = max(n for n in range(1, steps + 1) if steps % n == 0 and (n <= about or n == 1))

    def __call__(self, window: int) -> tuple[()]:
        return ()

    def close(self) -> None:
        """Do nothing: nothing runs in the background."""


class Iterated:
    """The batches of the user's own iterable, one after the other: a generator, a list, a data loader.

    Args:
        source: gives batches of one size. Smaller ones, such as the last of an epoch, are left out. Or a function of a
            step, which gives the batches from that step on.
        steps: per epoch. A source that ends before is started again, if it can be.
        check: called with each window before it is trained on; returns the window to train on.

    Raises:
        DataError: the source gives nothing, can't be started again, or gives larger batches than its first.
    """

    waited = 0.0

    def __init__(
        self,
        source: Iterable[Any] | Callable[[int], Iterable[Any]],
        steps: int,
        mesh: Mesh | None,
        check: Callable[[Any], Any],
    ):
        self.source, self.check, self.mesh = source, check, mesh
        self.iterator = self._from(0)
        self.first = self._examples(self._next())
        self.batch_size = batches.count(self.first)
        each = sum(leaf.nbytes for leaf in jax.tree.leaves(self.first))
        fitting = max(1, WINDOW_BYTES // max(1, each))
        self.steps = max(n for n in range(1, steps + 1) if steps % n == 0 and n <= fitting)
        self.windows = steps // self.steps
        self.given = 0

    def __call__(self, window: int) -> Window:
        began = time.perf_counter()
        parts = []
        if gives_from_step(self.source) and self.given != window * self.steps:
            self.given, self.iterator = window * self.steps, self._from(window * self.steps)
        while len(parts) < self.steps:
            part = self.first if self.given == 0 else self._examples(self._next())
            self.given += 1
            size = batches.count(part)
            if size == self.batch_size:
                parts.append(part)
            elif size > self.batch_size:
                raise errors.DataError(
                    f"The batches to train on have to have one size: after {self.batch_size} came {size} examples."
                )
        x = self.check(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))
        self.waited += time.perf_counter() - began
        return distributed.place(x, self.mesh), np.arange(self.steps * self.batch_size, dtype=np.int32)

    def close(self) -> None:
        """Do nothing: nothing runs in the background."""

    def _next(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = self._from(self.given)
        try:
            return next(self.iterator)
        except StopIteration:
            raise errors.DataError(
                "What gives the batches to train on ended before the training did. Give something that can be begun "
                "anew, such as a list or a torch DataLoader, or a generator that does not end."
            ) from None

    def _from(self, step: int) -> Iterator[Any]:
        source: Any = self.source
        return iter(source(step) if gives_from_step(source) else source)

    @staticmethod
    def _examples(batch: Any) -> Any:
        """A batch in NumPy. It may be an array, a mapping of arrays, or a list of one, as torch's DataLoader gives."""
        if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
            if len(batch) != 1:
                raise errors.DataError(
                    f"A batch is a list of {len(batch)} arrays, whose meaning is not known. Give an array, or a "
                    'mapping such as {"x": …, "label": …}.'
                )
            (batch,) = batch
        return jax.tree.map(np.asarray, dict(batch) if isinstance(batch, Mapping) else batch)


def gives_from_step(source: Any) -> bool:
    """Whether it is a function of a step, which gives the batches from that step on."""
    return callable(source) and not isinstance(source, Iterable)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
    """An empty array, aligned so that JAX on CPU uses its memory instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@functools.partial(jax.jit, static_argnames=("tree", "scalings"))
def _scaled(tree: Any, scalings: tuple[Callable | None, ...], stored: list[Array]) -> PyTree[Array]:
    """A window to train on: scaled, with values that are not observed as 0."""
    parts = [x if scaling is None else scaling(x) for scaling, x in zip(scalings, stored, strict=True)]
    which = Batch.of(tree.unflatten(range(len(parts))))
    if which.observed is not None:
        x, observed = parts[which.x], parts[which.observed].astype(bool)
        parts[which.observed], parts[which.x] = observed, jnp.where(observed, x, jnp.zeros((), x.dtype))
    return tree.unflatten(parts)
