"""Tables and their files: each row is an example, or a moment of a signal."""

import csv
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from flaxae.data.arrays import check_size, reading
from flaxae.data.encoding import is_number
from flaxae.errors import DataError, unknown

if TYPE_CHECKING:
    import pandas as pd


def checked(frame: "pd.DataFrame", source: object, *, label: str | None) -> tuple["pd.DataFrame", np.ndarray | None]:
    """A table with its columns named and without the label column, and the labels.

    Raises:
        DataError: the table is empty, two columns have the same name, or the label column or one of its values is
            missing.
    """
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    if label is not None and label not in frame.columns:
        raise DataError(f"{source}: " + unknown("column", label, frame.columns))
    if frame.empty:
        raise DataError(f"{source} is empty: it has {len(frame)} rows and {len(frame.columns)} columns.")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{source} has two columns {twice!r}; expected a name of its own for each.")
    if label is None:
        return frame, None
    if frame[label].isna().to_numpy().any():
        raise DataError(f"{source}: the label column {label!r} has missing values. Leave those rows out.")
    if len(frame.columns) == 1:
        raise DataError(f"{source} holds nothing beside the label column {label!r}.")
    return frame.drop(columns=label), np.array(frame[label].tolist())


def write_parquet(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file."""
    import pyarrow.parquet  # noqa: F401 (pandas' own message names no extra)

    frame.to_parquet(file, index=False)


def write_csv(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file, with a header line.

    Text that a spreadsheet would take for a formula and compute, such as =HYPERLINK(…), has a ' before it, which
    `read_csv` takes away again.
    """
    _with_texts(frame, _no_formula).to_csv(file, index=False)


_FORMULA = re.compile(r"\s*[=+\-@]\s*\S", re.DOTALL)


def _is_formula(text: str) -> bool:
    """Whether text begins as formulas do, and is neither a number nor that one sign."""
    return _FORMULA.match(text) is not None and not is_number(text)


def _with_texts(frame: "pd.DataFrame", change: Callable[[Any], Any]) -> "pd.DataFrame":
    """A table with its texts and the names of its columns changed; numbers as they are."""
    changed = frame.rename(columns=change)
    for i, (_, column) in enumerate(frame.items()):
        if column.dtype.kind not in "biuf":
            changed.isetitem(i, column.map(change))
    return changed


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def _as_written(value: Any) -> Any:
    """The inverse of `_no_formula`."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _is_formula(value[1:]) else value


def read_parquet(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a `.parquet` file.

    Raises:
        DataError: the file is unreadable, damaged or too large.
    """
    import pandas as pd
    import pyarrow.parquet

    with reading(path):
        with pyarrow.parquet.ParquetFile(path) as file:
            check_size(file.metadata.num_rows * file.metadata.num_columns * 8, path)
        return pd.read_parquet(path)


def read_csv(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a `.csv` file, with fields separated by commas.

    If the first line is all numbers, other than 0, 1, 2, … as pandas writes them, the file has no header; its columns
    are then called x0, x1, …

    Raises:
        DataError: the file is unreadable, ragged or too large, or its first line seems to be data.
    """
    import pandas as pd

    with reading(path):
        check_size(path.stat().st_size, path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next((row for row in csv.reader(file) if row), [])
        header = not all(map(is_number, first)) or first == [str(i) for i in range(len(first))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # cut a long row short
                frame = pd.read_csv(
                    path, header=0 if header else None, index_col=False, encoding="utf-8-sig", low_memory=False
                )
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            _refuse_ragged(path)
            raise DataError(f"{path} can't be read as a table: {error}") from error
        frame = _with_texts(frame, _as_written)
        if frame.isna().to_numpy().any():  # pandas fills a short row
            _refuse_ragged(path)
    if len(frame.columns) == 1 and (other := re.search(r"[;\t|]", str(frame.columns[0]))):
        raise DataError(f"{path}: its fields are separated by {other[0]!r}; expected commas.")
    if not header:
        return frame.rename(columns="x{}".format)
    if twice := [name for name, values in frame.items() if (values == name).any()]:
        raise DataError(
            f"{path}: its first line seems to be data, for {twice[0]!r} is also a value of that column. Put a line of "
            "names above it."
        )
    return frame


def _refuse_ragged(path: pathlib.Path) -> None:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        width = None
        for row in rows:
            width = width or len(row)
            if row and len(row) != width:
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} fields; the first line has {width}. "
                    "Every line needs as many, separated by commas."
                )
