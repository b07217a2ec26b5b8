"""Images: of any size, depth and format, in folders, archives and memory, read one by one.

images = flaxae.data.images.open("photos/")           # decodes nothing yet
images[0], images.names[0], images.shape_of(0)         # float32 [height, width, channels] in [0, 1]
images.write(0, images[0], "out.jpg")                  # as the file was: depth, colour profile, EXIF, resolution
batches = flaxae.data.images.crops(images, size=64, count=32, seed=0)   # random pieces, without end
"""

import pathlib
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped

from flaxae.data.arrays import check_size
from flaxae.data.images import codec, sources
from flaxae.data.images.codec import MAX_PIXELS
from flaxae.data.images.collection import Images, open
from flaxae.data.images.crops import crops
from flaxae.data.parts import Parts
from flaxae.errors import DataError
from flaxae.printing import say

__all__ = [
    "MAX_PIXELS",
    "Images",
    "crops",
    "load",
    "open",
    "pages",
    "read_all",
    "read_image",
    "write_image",
]

SMALL = 64  # pixels a side, up to which images of one size are kept in memory, whole, and not cut into pieces


def load(source: Any, *, size: int | None = None, max_pixels: int = MAX_PIXELS) -> Parts:
    """The parts of images to train on: small ones of one size as arrays, all others as `Images`.

    A folder or archive may hold images alone, a folder for each class, or `train` and `test` (`val`, in any case) of
    these, however deep. What was read, converted and left out is printed.

    Args:
        source: see `open`.
        size: in pixels, that all are brought to, so that they are arrays.
        max_pixels: that one image may have.

    Raises:
        DataError: no images, or none that can be read; folders that are pairs and not classes.
    """
    found = sources.Layout([])

    def choose(names: list[str]) -> list[str]:
        nonlocal found
        found = sources.layout(names, source)
        return [*found.train, *found.test]

    images = open(source, size=size, max_pixels=max_pixels, choose=choose)
    say(images.with_notes(found.notes).summary())
    tested = set(found.test)
    is_test = np.array([item.file in tested for item in images.items])
    parts = [images.select(np.flatnonzero(chosen)) for chosen in (~is_test, is_test) if chosen.any()]
    if is_test.all():
        raise DataError(f"{images.source} has no image to train on that can be read.")
    stacked = _stacked if size is not None or _are_small(images) else lambda images: (images, images)
    values, kept = zip(*map(stacked, parts), strict=True)
    labels = [np.array([found.classes[item.file] for item in part.items]) for part in kept] if found.classes else []
    files = [np.array(part.names, object) for part in kept]
    return Parts(
        train=values[0],
        test=values[1] if len(parts) > 1 else None,
        train_labels=labels[0] if labels else None,
        test_labels=labels[1] if len(labels) > 1 else None,
        images=images,
        files=files[0],
        test_files=files[1] if len(parts) > 1 else None,
    )


def _are_small(images: Images) -> bool:
    """Whether all have one size, of at most `SMALL` pixels a side, and one type."""
    about = {(images.shape_of(i), images.stored_type(i)) for i in range(len(images))}
    return len(about) == 1 and max(images.shape_of(0)[:2]) <= SMALL


def _stacked(images: Images) -> tuple[np.ndarray, Images]:
    """All that can be read, as one array of what is stored, and which they are."""
    check_size(images.stored(0).nbytes * len(images), images.source)
    kept, numbers = [], []
    for i in range(len(images)):
        try:
            kept.append(images.stored(i))
            numbers.append(i)
        except DataError as error:
            images.leave_out(i, error)
    return np.stack(kept), images.select(numbers)


def read_image(path: pathlib.Path) -> Shaped[np.ndarray, " height width channels"]:
    """The pixels of an image file, of the first page if it has several: uint8, uint16, int32 or float32, upright.

    Raises:
        DataError: the file is unreadable, damaged, or has more than `MAX_PIXELS`.
    """
    files = sources.Files(path)
    with files.open(path.name) as file:
        content = codec.Content(file, str(path))
        return codec.decode(content, codec.headers(content)[0])


def pages(path: pathlib.Path) -> int:
    """How many images an image file holds.

    Raises:
        DataError: the file is unreadable, damaged, or has more than `MAX_PIXELS`.
    """
    with sources.Files(path).open(path.name) as file:
        return len(codec.headers(codec.Content(file, str(path))))


def read_all(source: pathlib.Path) -> dict[str, np.ndarray]:
    """Every image of a folder, archive or file by its name, as `read_image` gives it; all are in memory.

    Raises:
        DataError: there is none, or one can't be read.
    """
    images = open(source, colours="own")
    read = {name: images.original(i) for i, name in enumerate(images.names) if name not in images.unreadable}
    images.check()
    return read


def write_image(file: IO[bytes], path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes [height, width, channels] (or [height, width]) into an open binary file, in the format of `path`.

    JPEG loses a little (quality 95); most others keep every pixel.

    Raises:
        DataError: the format can't hold such pixels.
    """
    codec.encode([pixels[..., None] if pixels.ndim == 2 else pixels], file, str(path), path.suffix)
