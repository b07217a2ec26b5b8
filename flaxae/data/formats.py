"""The table of file formats, which reading, writing, the messages and the flags' help all use.

To add a format, add an entry and the functions that it names. Nothing heavy is imported before a file is read.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

from flaxae.errors import DataError, missing

Kind = Literal["array", "signal", "table", "image"]


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Its kind says what a file holds: an array, read as `Parts` (which may be several arrays); a `Signal`; a table, read
    as a DataFrame; or an image, [height, width, channels].

    Args:
        suffixes: the endings of file names, in lower case.
        kind: what its files hold.
        reader: `reader(path)` returns the content of the file.
        writer: `writer(file, path, content)` writes the content (for arrays, one array) into an open binary file;
            `path` is where the file will be. None if the format is only read.
        mapper: `mapper(path)` returns a memory-mapped array, for files larger than memory.
        extra: the extra in pyproject.toml with the packages that only this format needs.
        compressed: endings that may follow those of the format, such as .gz, of compressed files.
    """

    suffixes: tuple[str, ...]
    kind: Kind
    reader: Callable[[pathlib.Path], Any]
    writer: Callable[[IO[bytes], pathlib.Path, Any], None] | None
    mapper: Callable[[pathlib.Path], Any] | None = None
    extra: str | None = None
    compressed: tuple[str, ...] = ()

    def read(self, path: pathlib.Path) -> Any:
        """The content of the file. Any error of a library becomes one error with the file and the reason.

        Raises:
            DataError: it can't be read, or a package that the format needs is missing.
        """
        from flaxae.data.arrays import reading

        with self._packages(path), reading(path):
            return self.reader(path)

    def write(self, file: IO[bytes], path: pathlib.Path, content: Any) -> None:
        """Write content as `read` returns it (for arrays, one array) into an open binary file that will be at `path`.

        Raises:
            DataError: the format can't hold the content, or a package that it needs is missing.
        """
        if self.writer is None:
            raise DataError(f"{path.suffix} files are only read; write .csv or .npy.")
        with self._packages(path):
            self.writer(file, path, content)

    @contextlib.contextmanager
    def _packages(self, path: pathlib.Path) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            if self.extra is None:
                raise
            raise DataError(missing(str(path), self.extra, error)) from error


def _later(name: str) -> Callable[..., Any]:
    """A function of a module of `flaxae.data`, such as "tables.read_text", imported when it is called."""
    module, _, function = name.partition(".")
    return lambda *arguments: getattr(importlib.import_module(f"flaxae.data.{module}"), function)(*arguments)


FORMATS = (
    Format((".npy",), "array", _later("arrays.load_npy"), _later("arrays.write_npy"), _later("arrays.map_npy")),
    Format((".npz",), "array", _later("arrays.load_npz"), _later("arrays.write_npz")),
    Format(
        (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"),
        "signal",
        _later("sound.read_sound"),
        _later("sound.write_sound"),
    ),
    Format((".mat",), "array", _later("arrays.load_mat"), _later("arrays.write_mat"), extra="mat"),
    Format(
        (".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".out"),
        "table",
        _later("tables.read_text"),
        _later("tables.write_text"),
        compressed=(".gz", ".zip", ".xz", ".bz2"),
    ),
    Format((".xlsx", ".xlsm"), "table", _later("tables.read_excel"), _later("tables.write_excel"), extra="excel"),
    Format((".json", ".jsonl", ".ndjson"), "table", _later("tables.read_json"), _later("tables.write_json")),
    Format((".arff",), "table", _later("tables.read_arff"), None),
    Format((".feather",), "table", _later("tables.read_feather"), _later("tables.write_feather"), extra="parquet"),
    Format((".parquet",), "table", _later("tables.read_parquet"), _later("tables.write_parquet"), extra="parquet"),
    Format(
        (
            *(
                ".png",
                ".jpg",
                ".jpeg",
                ".jfif",
                ".bmp",
                ".tif",
                ".tiff",
                ".webp",
                ".gif",
                ".pbm",
                ".pgm",
                ".ppm",
                ".pnm",
            ),
            *(".jp2", ".j2k", ".avif", ".heic", ".heif", ".dcm"),
        ),
        "image",
        _later("images.read_image"),
        _later("images.write_image"),
    ),
)


def find(path: str | os.PathLike[str]) -> Format | None:
    """The format of a file by the ending of its name; None if it is not in the table."""
    *before, suffix = ("", "", *(part.lower() for part in pathlib.Path(path).suffixes))
    for known in FORMATS:
        if suffix in known.suffixes or (suffix in known.compressed and before[-1] in known.suffixes):
            return known
    return None


def of(path: str | os.PathLike[str]) -> Format:
    """The format of a file by the ending of its name.

    Raises:
        DataError: it is not in the table.
    """
    known = find(path)
    if known is None:
        ending = pathlib.Path(path).suffix
        raise DataError(
            f"{path} ends in {ending!r}; the known formats are {', '.join(suffixes())}, and folders of images."
        )
    return known


def suffixes(*kinds: Kind) -> tuple[str, ...]:
    """The endings of the formats of those kinds; of all, if none is given."""
    return tuple(suffix for known in FORMATS if not kinds or known.kind in kinds for suffix in known.suffixes)


def listed(*kinds: Kind) -> str:
    """The endings of the formats of those kinds for a sentence, such as ".csv or .parquet"."""
    *others, last = suffixes(*kinds)
    return f"{', '.join(others)} or {last}" if others else last
