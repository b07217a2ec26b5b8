"""Images of any size by a detector of small ones: looked at in tiles that overlap by half."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from flaxae.anomaly.detector import Detector
from flaxae.data.images import Images
from flaxae.errors import DataError
from flaxae.printing import say

AT_ONCE = 256  # images, or tiles, that are looked at together

Looked = tuple[int, np.ndarray, float, np.ndarray]  # number, image, score, heat


def look(detector: Detector, images: Images, *, show: bool = False) -> Iterator[Looked]:
    """Number, pixels, score and heat of each image that can be read, in order; memory doesn't grow with their number.

    The score of an image that is larger than those of training is its strangest tile's. Where the detector has no heat
    maps, each pixel's share in the score stands for them.
    """
    batch: list[tuple[int, np.ndarray]] = []
    for i, image in images.each(show=show):
        if image.shape[-1] != detector.references.shape[-1]:
            images.leave_out(i, f"{images.names[i]} has {image.shape[-1]} channels; the detector was trained on "
                                f"{detector.references.shape[-1]}.")  # fmt: skip
            continue
        height, width = detector.references.shape[1:3]
        size = f"{images.names[i]} has {image.shape[0]} × {image.shape[1]} pixels"
        if 2 * image.shape[0] <= height or 2 * image.shape[1] <= width:
            images.leave_out(i, f"{size}; the detector was trained on {height} × {width}.")
            continue
        if image.shape[0] < height or image.shape[1] < width:
            say(f"{size} and is mirrored at its edges to {height} × {width}, as the detector was trained on.")
        if image.shape == detector.references.shape[1:]:
            batch.append((i, image))
            if len(batch) == AT_ONCE:
                yield from _together(detector, batch)
                batch = []
            continue
        yield from _together(detector, batch)
        batch = []
        yield i, image, *_in_tiles(detector, image)
    yield from _together(detector, batch)


def calibrated(detector: Detector, images: Images) -> Detector:
    """The detector, its scores compared with those of whole normal images instead of pieces.

    Raises:
        DataError: none of the images can be read.
    """
    looked = [(score, heat.max()) for _, _, score, heat in look(detector, images)]
    if not looked:
        raise DataError("None of the normal images that were kept to compare with can be read.")
    scores, peaks = np.sort(np.array(looked, np.float32), axis=0).T
    return dataclasses.replace(detector, calibration=scores, peaks=None if detector.local is None else peaks)


def heat_of(
    detector: Detector, x: Float[np.ndarray, " images height width channels"]
) -> Float[np.ndarray, "images height width"]:
    """Heat maps; without `local`, each pixel's share in the score, times the number of pixels."""
    if detector.local is not None:
        return detector.heat(x)
    shares = np.concatenate([detector.contributions(x[i : i + AT_ONCE]) for i in range(0, len(x), AT_ONCE)])
    return shares.sum(axis=-1) * np.prod(x.shape[1:3])


def _together(detector: Detector, batch: list[tuple[int, np.ndarray]]) -> Iterator[Looked]:
    if batch:
        numbers, x = [i for i, _ in batch], np.stack([image for _, image in batch])
        yield from zip(numbers, x, detector.score(x).tolist(), heat_of(detector, x), strict=True)


def _in_tiles(detector: Detector, image: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest score of the tiles, and their heat, the mean where they overlap."""
    tile, size = detector.references.shape[1:3], image.shape[:2]
    missing = [max(0, side - given) for side, given in zip(tile, size, strict=True)]
    padded = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    corners = list(itertools.product(*map(_starts, padded.shape[:2], tile)))
    total, times, highest = np.zeros(padded.shape[:2], np.float32), np.zeros(padded.shape[:2], np.float32), -np.inf
    for first in range(0, len(corners), AT_ONCE):
        some = corners[first : first + AT_ONCE]
        x = np.stack([padded[y : y + tile[0], x : x + tile[1]] for y, x in some])
        highest = max(highest, float(detector.score(x).max()))
        for (y, left), heat in zip(some, heat_of(detector, x), strict=True):
            total[y : y + tile[0], left : left + tile[1]] += heat
            times[y : y + tile[0], left : left + tile[1]] += 1
    return highest, (total / times)[: size[0], : size[1]]


def _starts(extent: int, tile: int) -> list[int]:
    return sorted({*range(0, extent - tile, max(1, tile // 2)), extent - tile})
