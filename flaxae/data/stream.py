"""Examples that don't fit in memory: read from where they are, a chunk at a time, never whole."""

import bisect
import contextlib
import dataclasses
import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped

from flaxae.errors import DataError

HELD_OUT_BYTES = 256 * 2**20  # the most bytes of a part that is split off, which has to fit in memory
PASS_BYTES = 32 * 2**20  # read at once in a pass over all examples
_BLOCKS = 64  # how many blocks, spread over the stream, a part that is split off consists of


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Examples of a source, in the source's order, read when they are asked for: `stream[lo:hi]`.

    A tree of streams of one length, such as `{"x": Stream(noisy), "target": Stream(clean)}`, can be trained on like a
    tree of arrays. Streams of one number per example, such as labels, are only for trees.

    Args:
        source: a memory-mapped array (`np.load(path, mmap_mode="r")`), or anything with a length that gives a list of
            examples for a list of numbers by `__getitems__` (an array_record, TFDS or Grain data source) or an array
            by `source[lo:hi]`.
        scaling: applied to what is read: a function of arrays on the host or on the device, elementwise and increasing.
        spans: the parts of the source that belong to the stream, as (start, stop) in increasing order; by default all.

    Raises:
        DataError: the examples are not arrays of numbers, all of one shape.
    """

    source: Any
    scaling: Callable[[Any], Any] | None = None
    spans: tuple[tuple[int, int], ...] = ()
    example: Shaped[np.ndarray, "1 *shape"] = dataclasses.field(init=False, repr=False)
    ends: list[int] = dataclasses.field(init=False, repr=False)  # each span's end, counted in this stream's examples

    def __post_init__(self) -> None:
        spans = self.spans or ((0, len(self.source)),)
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "ends", list(itertools.accumulate(stop - start for start, stop in spans)))
        if len(self) == 0:
            raise DataError("The stream is empty: expected a source of at least one example.")
        first = spans[0][0]
        object.__setattr__(self, "example", _converted(self._raw(first, first + 1)))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an array of all examples."""
        return (len(self), *self.example.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the examples that are read."""
        return self.example.dtype if self.scaling is None else np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """The number of axes of an array of all examples."""
        return self.example.ndim

    def __getitem__(self, part: slice) -> Shaped[np.ndarray, " examples *shape"]:
        """The examples of a slice without a step."""
        lo, hi, _ = part.indices(len(self))
        x = self.stored(lo, hi)
        return x if self.scaling is None else self.scaling(x)

    def stored(self, lo: int, hi: int) -> Shaped[np.ndarray, " examples *shape"]:
        """Examples `lo` to `hi` before the scaling: images as uint8, uint16 or float32, the rest as float32."""
        if lo >= hi:
            return self.example[:0]
        out = np.empty((1, hi - lo, *self.example.shape[1:]), self.example.dtype)
        (chunk,) = self.chunks([lo], out)
        return chunk

    def chunks(
        self, starts: Iterable[int], out: Shaped[np.ndarray, "starts length *shape"]
    ) -> Iterator[Shaped[np.ndarray, " length *shape"]]:
        """The chunks that begin at `starts`, unscaled as from `stored`, read into `out` one after the other."""
        with self._reader() as read:
            for start, chunk in zip(starts, out, strict=True):
                done = 0
                for first, last in self._located(start, start + len(chunk)):
                    read(first, chunk[done : done + last - first])
                    done += last - first
                yield chunk

    def passes(self) -> Iterator[Shaped[np.ndarray, " examples *shape"]]:
        """All examples, in arrays that fit in memory, before the scaling.

        Raises:
            DataError: a value is not finite.
        """
        step = max(1, PASS_BYTES // self.example.nbytes)
        for lo in range(0, len(self), step):
            x = self.stored(lo, min(lo + step, len(self)))
            if not np.isfinite(x).all():
                raise DataError(
                    f"The stream has values that are missing or not finite among examples {lo} to {lo + len(x)}."
                )
            yield x

    def scaled(self, scaling: Callable[[Any], Any]) -> "Stream":
        """The same stream with that scaling."""
        return dataclasses.replace(self, scaling=scaling)

    def split(
        self, fraction: float, seed: int, bytes_each: int | None = None
    ) -> tuple["Stream", Shaped[np.ndarray, " held_out *shape"]]:
        """Split off a part: the stream without it, and the part in memory. It is made of random blocks, evenly spread.

        The part is that fraction of all examples, or HELD_OUT_BYTES of them if that is less. `bytes_each` are the bytes
        of an example of the whole tree, if this stream is one of a tree: with the same value, all streams of the tree
        are split at the same places.
        """
        bytes_each = 4 * self.example.size if bytes_each is None else bytes_each
        held = min(max(1, round(fraction * len(self))), HELD_OUT_BYTES // bytes_each, len(self) - 1)
        blocks = min(_BLOCKS, held)
        bounds = np.linspace(0, len(self), blocks + 1).astype(int)
        # computed from the sizes of what is kept, so that no part is larger than the block that it is taken from
        sizes = np.diff(bounds) - np.diff(np.linspace(0, len(self) - held, blocks + 1).astype(int))
        rng = np.random.default_rng(seed)
        starts = [int(rng.integers(lo, hi - size + 1)) for lo, hi, size in zip(bounds, bounds[1:], sizes, strict=False)]
        stops = [start + int(size) for start, size in zip(starts, sizes, strict=True)]
        kept = [
            span for lo, hi in zip([0, *stops], [*starts, len(self)], strict=True) for span in self._located(lo, hi)
        ]
        return (
            dataclasses.replace(self, spans=tuple(kept)),
            np.concatenate([self[start:stop] for start, stop in zip(starts, stops, strict=True)]),
        )

    def sample(self, most_bytes: int) -> Shaped[np.ndarray, " examples *shape"]:
        """As many examples as fit in that many bytes, from all over the stream; or all of them, if they fit."""
        count = most_bytes // (4 * self.example.size)
        if count >= len(self):
            return self[:]
        starts = np.linspace(0, len(self), _BLOCKS, endpoint=False).astype(int)
        return np.concatenate([self[start : start + max(1, count // _BLOCKS)] for start in starts.tolist()])

    def _located(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """Where examples `lo` to `hi` are in the source."""
        i = bisect.bisect_right(self.ends, lo)
        while lo < hi:
            stop = self.spans[i][1]
            first = stop - (self.ends[i] - lo)
            last = min(stop, first + hi - lo)
            yield first, last
            lo, i = lo + last - first, i + 1

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """A function `read(start, out)` that fills an array with the examples of the source from `start` on."""
        source = self.source
        is_file = isinstance(source, np.memmap) and isinstance(source.base, mmap.mmap) and source.flags.c_contiguous
        path = source.filename if is_file else None  # None if the mapped file has no name
        if path is None:

            def read(start: int, out: np.ndarray) -> None:
                out[...] = _converted(self._raw(start, start + len(out)))

            yield read
            return
        # Takes a quarter of the time of copying from the map, whose pages would also count as this process' memory.
        with open(path, "rb", buffering=0) as file:

            def read(start: int, out: np.ndarray) -> None:
                as_is = out.dtype == source.dtype
                raw: Any = out if as_is else np.empty((len(out), *source.shape[1:]), source.dtype)
                file.seek(source.offset + start * source.strides[0])
                if file.readinto(raw) < raw.nbytes:
                    raise DataError(f"{path} became shorter while it was read.")
                if not as_is:
                    out[...] = _converted(raw)

            yield read

    def _raw(self, start: int, stop: int) -> np.ndarray:
        if hasattr(self.source, "__getitems__"):
            return np.stack(self.source.__getitems__(list(range(start, stop))))
        return np.array(self.source[start:stop])


def _converted(x: np.ndarray) -> Shaped[np.ndarray, " examples *shape"]:
    """Images as uint8, uint16 or float32 with an axis of channels, labels as int32, the rest as float32."""
    if x.dtype.kind in "iu" and x.ndim == 1:
        return x.astype(np.int32, copy=False)
    if x.dtype.kind not in "buif" or x.ndim not in (1, 2, 3, 4):
        raise DataError(
            f"The stream's examples are {x.dtype} of shape {x.shape[1:]}; expected numbers, [columns], "
            "[height, width] or [height, width, channels]."
        )
    if x.ndim < 3 or x.dtype not in (np.uint8, np.uint16):
        x = x.astype(np.float32, copy=False)
    return x[..., None] if x.ndim == 3 else x
