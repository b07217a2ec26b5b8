"""Read new data for a trained model, and write what it makes of them."""

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from flaxae.data import arrays, images, tables
from flaxae.data.parts import as_examples
from flaxae.errors import DataError

_ARRAYS = (".npy", ".npz")
TABLES = (".csv", ".parquet")


def read(
    path: str | os.PathLike, *, columns: Sequence[str] | None = None
) -> Shaped[np.ndarray, " *shape"] | dict[str, np.ndarray]:
    """New data, in stored units.

    Args:
        path: an image file gives [height, width, channels]; a folder of images a dict from file names, relative to
            it, to such arrays, whose sizes may differ; `.npy` and `.npz` (key x, or one array alone) and `.csv` and
            `.parquet` give examples as `load` has them, [n, columns] or [n, height, width, channels].
        columns: the columns of a table to take, in this order, such as those that a model was trained on;
            None is all of them.

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
        return tables.read_table(path, columns=columns).values
    if suffix == ".npy":
        return as_examples(arrays.read_npy(path), path)
    if suffix == ".npz":
        return as_examples(arrays.load_npz(path).train, path)
    raise unknown_format(path)


def write(
    path: str | os.PathLike,
    data: Shaped[np.ndarray, " *shape"] | Mapping[str, np.ndarray],
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Write what `read` reads, in the format of the path's ending; the folders on the way are made.

    Each file appears whole or not at all: it is written under another name beside it, then renamed.

    Args:
        path: an image file, `.npy`, `.npz` (key x), `.csv` or `.parquet`; a folder if `data` is a dict.
        data: an array, or a dict from file names relative to the folder to images.
        columns: names of a table's columns; None is x0, x1, …

    Raises:
        DataError: an unknown format, one that can't hold such an array, or a place that can't be written.
    """
    path = pathlib.Path(path)
    if not isinstance(data, Mapping):
        _write_file(path, data, columns)
        return
    for name, image in data.items():
        if pathlib.PurePosixPath(name).is_absolute() or ".." in pathlib.PurePosixPath(name).parts:
            raise DataError(f"{name!r} leaves the folder {path}; expected names relative to it.")
        _write_file(path / name, image, None)


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


def _write_file(path: pathlib.Path, array: np.ndarray, columns: Sequence[str] | None) -> None:
    suffix = path.suffix.lower()
    if suffix in TABLES and (array.ndim != 2 or (columns is not None and len(columns) != array.shape[1])):
        named = "" if columns is None else f" with {len(columns)} named columns"
        raise DataError(f"{path}: a table is [rows, columns]; given was shape {array.shape}{named}.")
    if suffix in images.SUFFIXES:
        replacing(path, lambda file: images.write_image(file, path, array))
    elif suffix in TABLES:
        replacing(path, lambda file: tables.write_table(file, path, array, columns))
    elif suffix == ".npy":
        replacing(path, lambda file: np.save(file, array, allow_pickle=False))
    elif suffix == ".npz":
        replacing(path, lambda file: np.savez(file, allow_pickle=False, x=array))
    else:
        raise unknown_format(path)
