"""Grids of whole numbers as bytes and back, with probabilities in whole numbers: what a lossy file holds.

As in `integers`, all that decides a probability is exact on every machine: the network from the second grid to the
means and scales of the first has whole numbers for weights and activations, whose products float64 adds up exactly;
and each scale has a table of whole numbers, which is a part of the codec.
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import special

from flaxae import errors
from flaxae.compression import transforms
from flaxae.compression.container import most_bits
from flaxae.compression.contexts import ONE
from flaxae.compression.integers import EXACT, MOST, PRECISION, WEIGHT
from flaxae.compression.transforms import BLOCK, KNOTS, SCALES

QUALITIES = 100  # 1 to 100, at which gains and biases are those of the first and of the last knot
DEVIATIONS = 5  # to which tables reach; what is farther off is written apart
FARTHEST = 2**15 - 1  # that a number of the first grid is clipped to
FARTHEST_HYPER = 2**10  # that one of the second is clipped to
PLACES = 2**16  # of the first grid, about, that are coded together; files depend on it

Numbers = Int[np.ndarray, "height width channels"]

stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue] (of a module without stubs)


def masses() -> Int[np.ndarray, "scales symbols"]:
    """For each scale, the masses of −reach, …, reach and of all that is beyond, in 2^-`PRECISION`; then zeros."""
    scales = transforms.LEAST_SCALE * np.exp(transforms.STEP * np.arange(SCALES))
    made = np.zeros((SCALES, 2 * reach_of(scales[-1]) + 2), np.int64)
    for row, spread in zip(made, scales, strict=True):
        reach = reach_of(spread)
        edges = special.ndtr((np.arange(-reach, reach + 2) - 0.5) / spread)
        row[: 2 * reach + 1] = np.maximum(np.floor(np.diff(edges) * 2**PRECISION), 1)
        row[2 * reach + 1] = max(1, math.floor(2 * edges[0] * 2**PRECISION))
        row[reach] += 2**PRECISION - row.sum()
    return made


def reach_of(scale: float) -> int:
    """The farthest number in a scale's table."""
    return math.ceil(DEVIATIONS * scale) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Probabilities:
    """What decides the probabilities of both grids, in whole numbers.

    Weights are in units of 1 / `WEIGHT`, biases in units of 1 / (`WEIGHT` × `ONE`), offsets and scales in 1 / `ONE`.

    Raises:
        DataError: the numbers are such that sums may not be exact, or do not go together.
    """

    first: Float[np.ndarray, "3 3 hyper width"]
    bias: Int[np.ndarray, "knots width"]
    up: Float[np.ndarray, "block block width width"]
    up_bias: Int[np.ndarray, " width"]
    last: Float[np.ndarray, "3 3 width parameters"]
    offset: Int[np.ndarray, "knots parameters"]  # of the means, and of the scales
    prior: Int[np.ndarray, "knots hyper"]  # the scales of the second grid
    masses: Int[np.ndarray, "scales symbols"]

    def __post_init__(self) -> None:
        layers = ((self.first, self.bias, FARTHEST_HYPER * ONE), (self.up, self.up_bias, MOST), (self.last, 0, MOST))
        for weights, bias, inputs in layers:
            sums = np.abs(weights).sum(axis=(0, 1, 2)).max() * inputs + np.abs(bias).max()
            if not sums < EXACT or (weights != np.rint(weights)).any():
                raise errors.DataError("The codec's weights are too large to be added up exactly.")
        if (self.masses < 0).any() or (self.masses.sum(axis=1) != 2**PRECISION).any():
            raise errors.DataError("The codec's tables are not those of probabilities.")

    def of_second(self, quality: int) -> UInt8[np.ndarray, " hyper"]:
        """Which table the numbers of each channel of the second grid have."""
        return _tables(_at(self.prior, quality))

    def least_bits(self, quality: int) -> float:
        """That a place of the second grid takes, with those of the first that belong to it."""
        least = -np.log2(self.masses.max(axis=1) * 2.0**-PRECISION)
        first = BLOCK**2 * self.offset.shape[1] // 2
        return float(least[self.of_second(quality)].sum() + first * least.min())

    def taken(self, rows: int, columns: int) -> int:
        """The bytes of memory that decoding both grids takes at least, of so many places of the second."""
        numbers = BLOCK**2 * columns * self.offset.shape[1] // 2
        seen = max(part.stop - part.start for part, _, _ in itertools.islice(strips(rows, columns), 3))
        return (4 * rows + 2 * 8 * seen) * numbers + 4 * rows * columns * self.prior.shape[1]

    def of_first(
        self, z: Int[np.ndarray, "rows columns hyper"], quality: int
    ) -> tuple[Int[np.ndarray, "height width channels"], UInt8[np.ndarray, "height width channels"]]:
        """The means of the first grid's numbers, in units of 1 / `ONE`, and which table each has."""
        h = _activated(_convolved(z * float(ONE), self.first) + _at(self.bias, quality))
        h = _activated(_doubled(h, self.up) + self.up_bias)
        out = np.floor(_convolved(h, self.last) * (1 / WEIGHT)).astype(np.int64) + _at(self.offset, quality)
        means, scales = np.split(out, 2, axis=-1)
        return means, _tables(scales)


def rounded(head: transforms.HyperpriorHead) -> Probabilities:
    """The probabilities of a trained head."""
    hyper = head.hyper

    def whole(parameter: Any, unit: int) -> np.ndarray:
        return np.rint(np.asarray(parameter[...], np.float64) * unit)

    def knots(parameter: Any, unit: int) -> np.ndarray:
        return whole(parameter, unit)[:, 0].astype(np.int64)

    return Probabilities(
        whole(hyper.first.kernel, WEIGHT),
        knots(hyper.bias, WEIGHT * ONE),
        whole(hyper.up.kernel, WEIGHT),
        whole(hyper.up.bias, WEIGHT * ONE).astype(np.int64),
        whole(hyper.last.kernel, WEIGHT),
        knots(hyper.offset, ONE),
        knots(head.prior, ONE),
        masses(),
    )


def _at(table: Int[np.ndarray, "knots channels"], quality: int) -> Int[np.ndarray, " channels"]:
    """See `transforms.at`."""
    steps = QUALITIES - 1
    place = (quality - 1) * (KNOTS - 1)
    knot = min(place // steps, KNOTS - 2)
    share = place - steps * knot
    return (table[knot] * (steps - share) + table[knot + 1] * share) // steps


def _tables(scales: Int[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """See `transforms.scale`."""
    steps = scales * int(transforms.SCALE_UNIT) + int(transforms.MIDDLE) * ONE + ONE // 2
    return np.clip(steps // ONE, 0, SCALES - 1).astype(np.uint8)


def _activated(sums: Float[np.ndarray, "_ _ _"]) -> Float[np.ndarray, "_ _ _"]:
    return np.clip(np.floor(sums * (1 / WEIGHT)), 0, MOST)


def _convolved(x: Float[np.ndarray, "_ _ _"], weights: Float[np.ndarray, "3 3 _ _"]) -> Float[np.ndarray, "_ _ _"]:
    height, width, channels = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    made = np.zeros((height * width, weights.shape[3]))
    for i, j in np.ndindex(3, 3):
        made += padded[i : i + height, j : j + width].reshape(-1, channels) @ weights[i, j]
    return made.reshape(height, width, -1)


def _doubled(x: Float[np.ndarray, "_ _ _"], weights: Float[np.ndarray, "_ _ _ _"]) -> Float[np.ndarray, "_ _ _"]:
    height, width, channels = x.shape
    made = np.empty((height, BLOCK, width, BLOCK, weights.shape[3]))
    for i, j in np.ndindex(BLOCK, BLOCK):
        made[:, i, :, j] = (x.reshape(-1, channels) @ weights[BLOCK - 1 - i, BLOCK - 1 - j]).reshape(height, width, -1)
    return made.reshape(BLOCK * height, BLOCK * width, -1)


def strips(rows: int, columns: int) -> Iterator[tuple[slice, slice, slice]]:
    """The second grid, some rows at a time: these, those with what their neighbours are needed for, and the first's."""
    each, around = max(1, PLACES // (BLOCK**2 * columns)), 2
    for start in range(0, rows, each):
        end = min(rows, start + each)
        yield (
            slice(max(0, start - around), min(rows, end + around)),
            slice(BLOCK * min(start, around), BLOCK * (min(start, around) + end - start)),
            slice(BLOCK * start, BLOCK * end),
        )


class Coder:
    """Writes or reads numbers, each by the table of its scale, and keeps the CRC-32 of `about` and all of them."""

    def __init__(self, probabilities: Probabilities, about: bytes):
        self.shares = probabilities.masses * 2.0**-PRECISION
        self.models = [stream.model.Categorical(row[row > 0], perfect=False) for row in self.shares]
        self.reach = ((probabilities.masses > 0).sum(axis=1) - 2) // 2
        self.far = stream.model.Uniform(2 * FARTHEST + 1)
        self.crc = zlib.crc32(about)

    def _groups(self, tables: UInt8[np.ndarray, " numbers"]) -> Iterator[tuple[int, np.ndarray]]:
        """Each table in use, and the places of its numbers."""
        order = np.argsort(tables, kind="stable")
        ends = np.cumsum(np.bincount(tables, minlength=SCALES)).tolist()
        for table, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end > start:
                yield table, order[start:end]

    def _check(self, numbers: Int[np.ndarray, " numbers"]) -> None:
        self.crc = zlib.crc32(numbers.astype("<i2").tobytes(), self.crc)


class Encoder(Coder):
    """Writes numbers."""

    def __init__(self, probabilities: Probabilities, about: bytes = b""):
        super().__init__(probabilities, about)
        self.queue = stream.queue.RangeEncoder()

    def put(self, numbers: Int[np.ndarray, " numbers"], tables: UInt8[np.ndarray, " numbers"]) -> None:
        """Write numbers of −`FARTHEST` to `FARTHEST`."""
        self._check(numbers)
        for table, places in self._groups(tables):
            part, reach = numbers[places], int(self.reach[table])
            is_far = np.abs(part) > reach
            symbols = np.where(is_far, 2 * reach + 1, part + reach)
            self.queue.encode(symbols.astype(np.int32), self.models[table])
            if is_far.any():
                self.queue.encode((part[is_far] + FARTHEST).astype(np.int32), self.far)

    def bytes(self) -> bytes:
        """What was written."""
        return self.queue.get_compressed().astype("<u4").tobytes()


class Decoder(Coder):
    """Reads numbers: none past the end, where the range coder would go on for ever."""

    def __init__(self, probabilities: Probabilities, content: bytes, about: bytes = b""):
        super().__init__(probabilities, about)
        self.left = most_bits(content)
        self.queue = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))

    def get(self, tables: UInt8[np.ndarray, " numbers"]) -> Int[np.ndarray, " numbers"]:
        """The numbers that were written with those tables."""
        numbers = np.empty(len(tables), np.int32)
        for table, places in self._groups(tables):
            reach = int(self.reach[table])
            symbols = self.queue.decode(self.models[table], len(places))
            part = symbols - reach
            is_far = part > reach
            self.left += np.log2(self.shares[table, symbols]).sum() - math.log2(2 * FARTHEST + 1) * is_far.sum()
            if self.left < 0:
                raise ValueError("it holds fewer numbers than it claims")
            if is_far.any():
                part[is_far] = self.queue.decode(self.far, int(is_far.sum())) - FARTHEST
            numbers[places] = part
        self._check(numbers)
        return numbers
