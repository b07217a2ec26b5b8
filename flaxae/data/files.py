"""Read new data for a trained model, and write its results."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from flaxae import atomic
from flaxae.data import formats, images, recordings, tables
from flaxae.data.arrays import reading
from flaxae.data.encoding import Encoding
from flaxae.data.parts import as_examples
from flaxae.data.signals import Signal
from flaxae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def read(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, encoding: Encoding | None = None
) -> Shaped[np.ndarray, " *shape"] | dict[str, np.ndarray]:
    """New data, in stored units.

    Args:
        path: a file in one of the `formats`, or a folder. An image gives [height, width, channels]. A folder, zip or
            tar of images, or a file of several pages, gives a dict from names, relative to it, to such arrays, whose
            sizes may differ; all are in memory (`images.open` reads them one by one). Arrays (in an `.npz`, the key x
            or the only array) and tables give examples, [n, columns] or [n, height, width, channels].
        columns: the columns of a table to take, in this order, such as those that a model was trained on;
            None is all of them.
        encoding: that of the table that a model was trained on, instead of `columns`, if the table is not all numbers.

    Raises:
        DataError: there is no such file, or it can't be used: see the message.
    """
    path = existing(path)
    with reading(path):
        return _read(path, columns, encoding)


def _read(
    path: pathlib.Path, columns: Sequence[str] | None, encoding: Encoding | None
) -> Shaped[np.ndarray, " *shape"] | dict[str, np.ndarray]:
    if path.is_dir() or (images.sources.is_archive(path) and formats.find(path) is None):
        return images.read_all(path)
    known = formats.of(path)
    if known.kind == "signal":
        raise DataError(f"{path} is a signal; expected images, arrays or a table. `read_signal` reads it.")
    content = known.read(path)
    if known.kind == "table":
        frame = tables.checked(content, path)
        return (encoding or Encoding.of_numbers(tuple(columns or frame.columns)))(frame, path)
    if known.kind != "image":
        return as_examples(content.train, path)
    if images.pages(path) > 1:
        return images.read_all(path)
    return content


def read_table(path: str | os.PathLike[str]) -> "pd.DataFrame":
    """A table of any format, as it is.

    Raises:
        DataError: there is no such file, it can't be used, or it holds no table.
    """
    path = existing(path)
    known = None if path.is_dir() else formats.of(path)
    if known is None or known.kind != "table":
        raise DataError(f"{path} is no table; expected {', '.join(formats.suffixes('table'))}.")
    return tables.checked(known.read(path), path)


def read_signal(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, step: float | None = None
) -> Signal:
    """A recording, or a folder of them: sound, an array of [time] or [time, channels], or a table of the moments.

    Args:
        path: of the file or folder.
        columns: the channels to take from a table, in this order; None is all of its columns of numbers.
        step: of a table's clock, between moments; None is its own.

    Raises:
        DataError: there is no such file, or it can't be used: see the message.
    """
    path = existing(path)
    with reading(path):
        return recordings.read(path, columns=columns, step=step)


def write(
    path: str | os.PathLike[str],
    data: Shaped[np.ndarray, " *shape"] | Mapping[str, np.ndarray] | Signal,
    *,
    columns: Sequence[str] | None = None,
    encoding: Encoding | None = None,
) -> None:
    """Write data as `read` and `read_signal` give them, in the format of the path's ending.

    Missing folders are made. Each file appears whole or not at all.

    Args:
        path: of a format in `formats` (an `.npz` has the key x); a folder if `data` is a dict.
        data: an array, a dict from file names relative to the folder to images, or a signal.
        columns: names of a table's columns; None is x0, x1, …
        encoding: that of a table, instead of `columns`. It is undone, so that the file has the columns that the model
            was trained on.

    Raises:
        DataError: an unknown format, one that can't hold such an array, or a place that can't be written.
    """
    path = pathlib.Path(path)
    if not isinstance(data, Mapping):
        _write_file(path, data, columns, encoding)
        return
    for name, image in data.items():
        if pathlib.PurePosixPath(name).is_absolute() or ".." in pathlib.PurePosixPath(name).parts:
            raise DataError(f"{name!r} leaves the folder {path}; expected names relative to it.")
        _write_file(path / name, image, None, None)


def existing(path: str | os.PathLike[str], *, also: tuple[str, ...] = ()) -> pathlib.Path:
    """The path, if it exists; `also` are other names that the caller would have accepted.

    Raises:
        DataError: it doesn't exist; the message suggests the nearest file or name.
    """
    import difflib

    path = pathlib.Path(path).expanduser()
    try:
        if path.exists():
            return path
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} can't be used as a path: {error}.") from error
    near = difflib.get_close_matches(path.name, [*also, *beside], n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    expected = f" Expected a path or {' or '.join(map(repr, also))}." if also else ""
    raise DataError(f"There is no file or folder {str(path)!r}.{suggestion}{expected}")


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A binary file to write to. It replaces `path` when the block ends, whole or not at all.

    Raises:
        DataError: the place can't be written, or the disk is full.
    """
    try:
        with atomic.replacing(path) as unfinished, unfinished.open("wb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or f"{error} (is the disk full?)"  # NumPy's own errors carry no strerror
        raise DataError(f"{path} can't be written: {reason}. Nothing was left of it.") from error


def _write_file(
    path: pathlib.Path,
    data: np.ndarray | Signal,
    columns: Sequence[str] | None,
    encoding: Encoding | None,
) -> None:
    known = formats.of(path)
    content = array = data.values if isinstance(data, Signal) else data
    if known.kind == "table":
        content = encoding.undo(array) if encoding else _frame(path, array, columns)
        if isinstance(data, Signal) and data.times is not None:
            content.insert(0, "time", data.times)
    elif known.kind == "signal":
        if not isinstance(data, Signal):
            raise DataError(
                f"{path}: given was an array of shape {array.shape}; a {path.suffix} holds a signal and its rate."
            )
        content = data
    with writing(path) as file:
        known.write(file, path, content)


def _frame(path: pathlib.Path, array: np.ndarray, columns: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

    if array.ndim != 2 or (columns is not None and len(columns) != array.shape[1]):
        named = "" if columns is None else f" with {len(columns)} named columns"
        raise DataError(f"{path}: a table is [rows, columns]; given was shape {array.shape}{named}.")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])] if columns is None else list(columns))
