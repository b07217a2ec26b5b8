"""What a value is predicted from: the values around it that are coded before it, as whole numbers.

Images are coded plane by plane (the channels, one after the other), and a plane in wavefronts: pixel (i, j) belongs to
step j + (reach + 1) i, so that all it is predicted from is known when its step comes, and the pixels of a step, in all
images of one shape, are coded together.

All arithmetic here is of whole numbers that float64 holds exactly, and so the same on every machine.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from flaxae import errors, specs

ONE = 2**16  # the whole number that stands for 1 in features, activations and parameters
STEEP = 8  # differences are given in eighths of the range, as few are large


class Step(NamedTuple):
    """Pixels of a plane that are coded at one time: their places in the flat frame, their rows and columns."""

    at: Int[np.ndarray, " pixels"]
    rows: Int[np.ndarray, " pixels"]
    columns: Int[np.ndarray, " pixels"]
    plane: int

    def take(self, index: Int[np.ndarray, " _"]) -> "Step":
        """Those of its pixels at that index."""
        return Step(self.at[index], self.rows[index], self.columns[index], self.plane)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Which values a value is predicted from.

    Args:
        planes: channels of the images.
        bits: of a value, 1 to 16.
        reach: rows above, and columns on either side, that are looked at in the value's own plane.
        across: rows and columns around that are looked at in the two planes before.
        side: (height, width), where all images have that size and what is likely depends on the place; or None.
    """

    planes: int = 1
    bits: int = 8
    reach: int = 3
    across: int = 2
    side: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        specs.check_sizes(self, "planes", "bits", "reach", "across")
        if self.bits > 16:
            raise errors.ConfigError(f"Contexts.bits is {self.bits}; it has to be 16 at most.")
        if self.across < 2:
            raise errors.ConfigError(f"Contexts.across is {self.across}; it has to be 2 at least.")

    @property
    def own(self) -> list[tuple[int, int]]:
        """(row, column) of the neighbours in the value's own plane: the nearest first."""
        reach = self.reach
        around = [(i, j) for i in range(-reach, 1) for j in range(-reach, reach + 1) if i < 0 or j < 0]
        return sorted(around, key=lambda place: (place[0] ** 2 + place[1] ** 2, place))

    @property
    def others(self) -> list[tuple[int, int]]:
        """(row, column) of the neighbours in each of the two planes before: those within `across` steps."""
        steps = range(-self.across, self.across + 1)
        return [(i, j) for i in steps for j in steps if 0 < abs(i) + abs(j) <= self.across]

    @property
    def before(self) -> int:
        """How many planes before a value's own are looked at."""
        return min(2, self.planes - 1)

    @property
    def features(self) -> int:
        """How many numbers a value is predicted from. The first is the guess that they are differences to."""
        differences = len(self.own) + self.before * len(self.others)
        return 1 + 2 * differences + 3 + self.planes + (6 if self.side else 0)

    def frame(self, images: int, height: int, width: int, planes: int) -> Int[np.ndarray, "planes images rows columns"]:
        """Room for the values of so many images and for the margins around them, which are 0 at first."""
        rows, columns = height + self.reach + self.across, width + 2 * self.reach
        return np.zeros((planes, images, rows, columns), np.int32)

    def framed(
        self, values: Shaped[np.ndarray, "images height width planes"]
    ) -> Int[np.ndarray, "planes images rows columns"]:
        """Images in a frame, with the margins as they are when the images are decoded."""
        frame = self.frame(*values.shape)
        height, width = values.shape[1:3]
        reach = self.reach
        inside = frame[:, :, reach : reach + height, reach : reach + width]
        inside[...] = np.moveaxis(values, -1, 0)
        frame[:, :, reach + 1 : reach + height, :reach] = inside[:, :, :-1, :1]
        frame[:, :, reach : reach + height, reach + width :] = inside[:, :, :, -1:]
        for plane in range(len(frame)):
            self.finish(frame, plane)
        return frame

    def put(self, frame: Int[np.ndarray, "planes images rows columns"], step: Step, values: np.ndarray) -> None:
        """Write the values of a step into the frame, and repeat those at the sides in the margins."""
        flat, columns, reach = frame.reshape(-1), frame.shape[3], self.reach
        flat[step.at] = values
        last = step.columns == columns - 2 * reach - 1
        flat[step.at[last][:, None] + np.arange(1, reach + 1)] = values[last][:, None]
        first = (step.columns == 0) & (step.rows < frame.shape[2] - reach - self.across - 1)
        flat[step.at[first][:, None] + columns + np.arange(-reach, 0)] = values[first][:, None]

    def finish(self, frame: Int[np.ndarray, "planes images rows columns"], plane: int) -> None:
        """Once a plane is whole, repeat its last row in the margin below, for the planes after it."""
        frame[plane, :, -self.across :] = frame[plane, :, -self.across - 1, None]

    def steps(self, frame: Int[np.ndarray, "planes images rows columns"]) -> Iterator[Step]:
        """All pixels in the order in which they are coded."""
        planes, images, rows, columns = frame.shape
        reach = self.reach
        height, width = rows - reach - self.across, columns - 2 * reach
        i, j = (x.reshape(-1) for x in np.indices((height, width)))
        time = j + (reach + 1) * i
        order = np.argsort(time, kind="stable")
        ends = np.flatnonzero(np.diff(time[order])) + 1
        image = np.arange(images)[:, None] * rows * columns
        for plane in range(planes):
            for part in np.split(order, ends):
                place = (i[part] + reach) * columns + j[part] + reach + plane * images * rows * columns
                at = (image + place).reshape(-1)
                yield Step(at, np.tile(i[part], images), np.tile(j[part], images), plane)
            self.finish(frame, plane)

    def of(
        self, frame: Int[np.ndarray, "planes images rows columns"], step: Step
    ) -> Float[np.ndarray, "pixels features"]:
        """The features of the pixels of a step: whole numbers, in units of 1 / `ONE`."""
        flat, (_, images, rows, columns), size = frame.reshape(-1), frame.shape, 2**self.bits
        plane_size = images * rows * columns
        own = flat[step.at[:, None] + self._offsets(self.own, columns)]
        names = {place: k for k, place in enumerate(self.own)}
        west, north, corner = (own[:, names[place]] for place in ((0, -1), (-1, 0), (-1, -1)))
        near = [self._offsets([(0, 0), *self.others], columns) - back * plane_size for back in (1, 2)[: self.before]]
        seen = [flat[step.at[:, None] + offsets] for offsets in near[: step.plane]]
        if seen:  # guess how far this plane is from the one before
            level = seen[0]
            there = {place: k + 1 for k, place in enumerate(self.others)}
            shift = [level[:, there[place]] for place in ((0, -1), (-1, 0), (-1, -1))]
            guess = level[:, 0] + _median(west - shift[0], north - shift[1], corner - shift[2])
        else:
            guess = _median(west, north, corner)
        guess = np.clip(guess, 0, size - 1)
        parts = [own - guess[:, None], *(level[:, 1:] - level[:, :1] for level in seen)]
        found = np.zeros((len(step.at), self.features))
        found[:, 0] = guess * (ONE // size)
        end = 1 + len(self.own) + self.before * len(self.others)
        differences = np.concatenate(parts, axis=1)
        found[:, 1 : 1 + differences.shape[1]] = differences * (STEEP * ONE // size)
        roots = np.floor(np.sqrt(np.abs(differences) * float(ONE * ONE // size)))  # exactly rounded, by IEEE 754
        found[:, end : end + differences.shape[1]] = 2 * np.copysign(roots, differences)
        self._places(found[:, 2 * end - 1 :], step, rows - self.reach - self.across, columns - 2 * self.reach)
        return found

    def is_flat(self, frame: Int[np.ndarray, "planes images rows columns"], step: Step) -> Bool[np.ndarray, " pixels"]:
        """Of which pixels all that they are predicted from is of one level. None of a later plane is told so."""
        if step.plane:
            return np.zeros(len(step.at), bool)
        own = frame.reshape(-1)[step.at[:, None] + self._offsets(self.own, frame.shape[3])]
        return (own == own[:, :1]).all(axis=1)

    def _places(self, found: np.ndarray, step: Step, height: int, width: int) -> None:
        """How near the margins are, which plane it is, and with `side` where in the image."""
        reach, i, j = self.reach, step.rows, step.columns
        for k, distance in enumerate((i, j, width - 1 - j)):
            found[:, k] = np.minimum(distance, reach) * (ONE // reach)
        found[:, 3 + step.plane] = ONE
        if self.side:
            down, right = i * (2 * ONE // height) - ONE, j * (2 * ONE // width) - ONE
            down, right = (np.asarray(x, np.float64) for x in (down, right))
            products = (down * down, right * right, down * right)
            for k, values in enumerate((down, right, *(np.floor(x / ONE) for x in products))):
                found[:, 3 + self.planes + k] = values
            found[:, 3 + self.planes + 5] = np.minimum(height - 1 - i, reach) * (ONE // reach)

    @staticmethod
    def _offsets(places: list[tuple[int, int]], columns: int) -> Int[np.ndarray, " places"]:
        return np.array([i * columns + j for i, j in places])


def _median(west: np.ndarray, north: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The median of west, north and west + north − corner, which is the guess of JPEG-LS (Weinberger et al. 2000)."""
    low, high = np.minimum(west, north), np.maximum(west, north)
    return np.clip(west + north - corner, low, high)
