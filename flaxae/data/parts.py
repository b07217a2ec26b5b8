"""The form in which every source gives its data, and the one check that its arrays pass."""

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from flaxae.data.stream import Stream
from flaxae.errors import DataError
from flaxae.printing import say

if TYPE_CHECKING:
    import pandas as pd

    from flaxae.data.images import Images
    from flaxae.data.roles import Roles
    from flaxae.data.signals import Signal


class Parts(NamedTuple):
    """What a source holds, before it is split, checked and scaled."""

    train: "np.ndarray | pd.DataFrame | Stream | Images | Signal"
    test: "np.ndarray | Images | None" = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None  # if given, the labels are codes into it; None: the labels are any values
    columns: tuple[str, ...] | None = None
    test_rows: np.ndarray | None = None  # the source's rows that are the test examples, or that they begin at
    train_rows: np.ndarray | None = None
    roles: "Roles | None" = None  # of a table's columns
    carried: "pd.DataFrame | None" = None  # of all rows of the source, the columns that say what they are about
    images: "Images | None" = None  # the images of the examples; some may turn out to be unreadable
    files: np.ndarray | None = None  # the names of the images of `train`
    test_files: np.ndarray | None = None


def with_gaps(x: Any) -> np.ndarray:
    """x as an array. The masked values of an array of `numpy.ma` become missing: NaN."""
    if not np.ma.is_masked(x):
        return np.asarray(x)
    return np.where(np.ma.getmaskarray(x), np.nan, x.data.astype(np.float64))


def as_examples(
    x: np.ndarray, source: str | os.PathLike[str], columns: tuple[str, ...] | None = None
) -> Shaped[np.ndarray, " examples *shape"]:
    """Checked examples: tables as float32 [n, columns], images as uint8, uint16 or float32 [n, h, w, channels].

    Images without a channel axis, [n, h, w], get one. For torch's order, [n, channels, h, w], the channels are moved to
    the last axis, and a printed line says so. `source` and `columns` are for the messages.

    Raises:
        DataError: they are not numbers, empty, not finite in float32, or have a wrong number of axes.
    """
    x = with_gaps(x)
    if x.dtype.kind not in "buif":
        raise DataError(f"{source} holds values of type {x.dtype}; expected integers or real numbers.")
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{source} has shape {x.shape}; expected [n, columns] for a table, "
            "[n, height, width] or [n, height, width, channels] for images."
        )
    if x.size == 0:
        raise DataError(f"{source} is empty: its shape is {x.shape}.")
    if x.ndim == 3 and x.shape[2] in (3, 4) and min(x.shape[:2]) >= 16:
        raise DataError(
            f"{source} has shape {x.shape}, which looks like one image of {x.shape[2]} channels, not like {x.shape[0]} "
            f"images. Give several, [n, height, width, channels]; or of images {x.shape[2]} pixels wide "
            "[n, height, width, 1]."
        )
    if x.ndim == 4 and is_channel_first(x.shape):
        say(f"{source}: images of shape {x.shape[1:]} have their channels first; they are moved to the last axis.")
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    if x.ndim == 2 or x.dtype not in (np.uint8, np.uint16):
        with np.errstate(over="ignore"):  # overflows are found below
            x = x.astype(np.float32, copy=False)
        finite = np.isfinite(x)
        if not finite.all():
            first = tuple(int(i) for i in np.unravel_index(np.argmin(finite), x.shape))
            where = f"row {first[0]}, column {columns[first[1]]!r}" if columns else f"index {first}"
            raise DataError(
                f"{source} has {x.size - np.count_nonzero(finite)} values that are missing or not finite in float32, "
                f"the first, {x[first]}, at {where} (counted from 0). Fill them or leave those examples out."
            )
    elif not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    return x[..., None] if x.ndim == 3 else x


def channels_last(x: np.ndarray) -> np.ndarray:
    """Images with their channels on the last axis, from torch's order, [..., channels, height, width], if need be."""
    return np.moveaxis(x, -3, -1) if is_channel_first(x.shape) else x


def is_channel_first(shape: tuple[int, ...]) -> bool:
    """Whether images of that shape, [(n,) channels, height, width], have 1, 3 or 4 channels before their pixels."""
    return len(shape) >= 3 and shape[-3] in (1, 3, 4) and min(shape[-2:]) > 4
