"""Image files, and folders of them."""

import pathlib
import warnings
from typing import IO

import numpy as np
from jaxtyping import Shaped

from flaxae.data import formats
from flaxae.data.arrays import check_size, reading
from flaxae.data.parts import Parts
from flaxae.errors import DataError

_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I", "F")  # those whose arrays are what the file stores


def read_image(path: pathlib.Path) -> Shaped[np.ndarray, " height width channels"]:
    """The pixels of one image: uint8 (16-bit grey: uint16; floating-point TIFF: float32), upright.

    Raises:
        DataError: the file is unreadable, damaged, or larger than Pillow's limit on pixels (89 million).
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings(), reading(path):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I;16"):
                    image = image.convert("I;16")
                elif image.mode not in _MODES:
                    grey, transparent = image.mode == "1", image.has_transparency_data
                    image = image.convert("L" if grey else "RGBA" if transparent else "RGB")
                pixels = np.array(ImageOps.exif_transpose(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is too large: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every image in a folder, at any depth, by its name relative to the folder; sizes may differ.

    Raises:
        DataError: there is none, or one can't be read.
    """
    images = {path.relative_to(folder).as_posix(): read_image(path) for path in _images_in(folder, depth="**/*")}
    if not images:
        raise DataError(f"{folder} holds no images; expected files ending in {', '.join(formats.suffixes('image'))}.")
    return images


def write_image(file: IO[bytes], path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes [height, width, channels] (or [height, width]) into an open binary file, in the format of `path`.

    JPEG loses a little (quality 95); the rest keep every pixel.

    Raises:
        DataError: the format can't hold such pixels.
    """
    from PIL import Image

    squeezed = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    image_format = Image.registered_extensions()[path.suffix.lower()]
    try:
        Image.fromarray(squeezed).save(file, image_format, quality=95, lossless=True)
    except (TypeError, ValueError, KeyError) as error:
        raise _cannot_hold(path, pixels) from error
    except OSError as error:
        if error.errno is None:  # Pillow's own refusal of a mode, not the disk's
            raise _cannot_hold(path, pixels) from error
        raise


def load_folder(folder: pathlib.Path) -> Parts:
    """The parts of a folder of images of one size: the images, a folder for each class, or `train` and `test` of these.

    Raises:
        DataError: no images, images beside folders of images, sizes that differ, or a file that can't be read.
    """
    if not (folder / "train").is_dir():
        train, labels = _load_part(folder)
        return Parts(train=train, train_labels=labels)
    train, train_labels = _load_part(folder / "train")
    if not (folder / "test").is_dir():
        return Parts(train=train, train_labels=train_labels)
    test, test_labels = _load_part(folder / "test")
    return Parts(train, test, train_labels, test_labels)


def _load_part(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
    flat, classed = _images_in(folder, depth="*"), _images_in(folder, depth="*/*")
    if flat and classed:
        raise DataError(f"{folder} holds images beside folders of images. Put all of them in folders, one a class.")
    paths = flat or classed
    if not paths:
        raise DataError(f"{folder} holds no images; expected files ending in {', '.join(formats.suffixes('image'))}.")
    first = read_image(paths[0])
    check_size(first.nbytes * len(paths), folder)
    images = np.empty((len(paths), *first.shape), first.dtype)
    for i, path in enumerate(paths):
        image = read_image(path)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"{path} is {_described(image)}, but {paths[0].name} is {_described(first)}. Training needs "
                "images of one size and depth: resize or convert it, or take it out of the folder."
            )
        images[i] = image
    return images, np.array([path.parent.name for path in paths]) if classed else None


def _images_in(folder: pathlib.Path, *, depth: str) -> list[pathlib.Path]:
    found = (path for path in folder.glob(depth) if path.suffix.lower() in formats.suffixes("image") and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _described(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{height} × {width} pixels with {channels} channels of {image.dtype}"


def _cannot_hold(path: pathlib.Path, pixels: np.ndarray) -> DataError:
    return DataError(
        f"{path}: {path.suffix} can't hold pixels of shape {pixels.shape} and type {pixels.dtype}. "
        "Write .png for 8-bit or grey 16-bit images, .npy for all else."
    )
