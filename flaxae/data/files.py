"""Read new data for a trained model, and write what it makes of them."""

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from flaxae.data import arrays, images, signals, tables
from flaxae.data.encoding import Encoding
from flaxae.data.parts import as_examples
from flaxae.data.signals import Signal
from flaxae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_ARRAYS = (".npy", ".npz", ".wav")
TABLES = (".csv", ".parquet")


def read(
    path: str | os.PathLike, *, columns: Sequence[str] | None = None, encoding: Encoding | None = None
) -> Shaped[np.ndarray, " *shape"] | dict[str, np.ndarray]:
    """New data, in stored units.

    Args:
        path: an image file gives [height, width, channels]; a folder of images a dict from file names, relative to
            it, to such arrays, whose sizes may differ; `.npy` and `.npz` (key x, or one array alone) and `.csv` and
            `.parquet` give examples as `load` has them, [n, columns] or [n, height, width, channels].
        columns: the columns of a table to take, in this order, such as those that a model was trained on;
            None is all of them.
        encoding: of a table that a model was trained on, instead of `columns`, where it is not all numbers.

    Raises:
        DataError: there is no such file, or it can't be used: see the message.
    """
    path = existing(path)
    if path.is_dir():
        return images.read_folder(path)
    suffix = path.suffix.lower()
    if suffix in images.SUFFIXES:
        return images.read_image(path)
    if suffix in TABLES:
        frame, _ = tables.read_table(path)
        return (encoding or Encoding.of_numbers(tuple(columns or frame.columns)))(frame, path)
    if suffix == ".npy":
        return as_examples(arrays.read_npy(path), path)
    if suffix == ".npz":
        return as_examples(arrays.load_npz(path).train, path)
    if suffix == ".wav":
        raise DataError(f"{path} is a signal; expected images, arrays or a table. `read_signal` reads it.")
    raise unknown_format(path)


def read_signal(path: str | os.PathLike, *, columns: Sequence[str] | None = None) -> Signal:
    """A recording: `.wav`, `.npy` or `.npz` of [time] or [time, channels], or a `.csv` or `.parquet` of the moments.

    Args:
        path: of the file.
        columns: the channels to take from a table, in this order; None is all of its columns.

    Raises:
        DataError: there is no such file, or it can't be used: see the message.
    """
    path = existing(path)
    suffix = path.suffix.lower()
    if suffix == ".wav":
        return signals.read_wav(path)
    if suffix in TABLES:
        return Signal(signals.as_signal(tables.read_table(path)[0], path, columns))
    if suffix in _ARRAYS:
        return Signal(
            signals.as_signal(arrays.read_npy(path) if suffix == ".npy" else arrays.load_npz(path).train, path)
        )
    raise DataError(f"{path} is no signal; expected {', '.join((*_ARRAYS, *TABLES))}.")


def write(
    path: str | os.PathLike,
    data: Shaped[np.ndarray, " *shape"] | Mapping[str, np.ndarray] | Signal,
    *,
    columns: Sequence[str] | None = None,
    encoding: Encoding | None = None,
) -> None:
    """Write what `read` and `read_signal` read, in the format of the path's ending; the folders on the way are made.

    Each file appears whole or not at all: it is written under another name beside it, then renamed.

    Args:
        path: an image file, `.npy`, `.npz` (key x), `.csv`, `.parquet` or `.wav`; a folder if `data` is a dict.
        data: an array, a dict from file names relative to the folder to images, or a signal.
        columns: names of a table's columns; None is x0, x1, …
        encoding: undone in a table, instead of `columns`, so that it has the columns that the model was trained on.

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


def existing(path: str | os.PathLike, *, also: tuple[str, ...] = ()) -> pathlib.Path:
    """The path, if something is there; `also` are the names that the caller would have taken as well.

    Raises:
        DataError: nothing is; the message names the nearest file or name.
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


def unknown_format(path: pathlib.Path) -> DataError:
    """The error for an ending that flaxae neither reads nor writes."""
    known = ", ".join((*_ARRAYS, *TABLES, *images.SUFFIXES))
    return DataError(f"{path} ends in {path.suffix!r}; the known formats are {known}, and folders of images.")


def replacing(path: pathlib.Path, fill: Callable[[io.BufferedIOBase], None]) -> None:
    """Write a file whole or not at all: `fill` gets a binary file, which then takes the place of `path`.

    Raises:
        DataError: the place can't be written, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            fill(file)
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or f"{error} (is the disk full?)"  # NumPy's own errors carry no strerror
        raise DataError(f"{path} can't be written: {reason}. Nothing was left of it.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _write_file(
    path: pathlib.Path,
    data: np.ndarray | Signal,
    columns: Sequence[str] | None,
    encoding: Encoding | None,
) -> None:
    suffix = path.suffix.lower()
    array = data.values if isinstance(data, Signal) else data
    if suffix in images.SUFFIXES:
        replacing(path, lambda file: images.write_image(file, path, array))
    elif suffix in TABLES:
        frame = encoding.undo(array) if encoding else _frame(path, array, columns)
        replacing(path, lambda file: tables.write_table(file, path, frame))
    elif suffix == ".npy":
        replacing(path, lambda file: np.save(file, array, allow_pickle=False))
    elif suffix == ".npz":
        replacing(path, lambda file: np.savez(file, allow_pickle=False, x=array))
    elif suffix == ".wav" and isinstance(data, Signal):
        replacing(path, lambda file: signals.write_wav(file, path, data))
    elif suffix == ".wav":
        raise DataError(f"{path}: given was an array of shape {array.shape}; a .wav holds a signal and its rate.")
    else:
        raise unknown_format(path)


def _frame(path: pathlib.Path, array: np.ndarray, columns: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

    if array.ndim != 2 or (columns is not None and len(columns) != array.shape[1]):
        named = "" if columns is None else f" with {len(columns)} named columns"
        raise DataError(f"{path}: a table is [rows, columns]; given was shape {array.shape}{named}.")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])] if columns is None else list(columns))
