"""`.csv` and `.parquet` files of numbers, one row an example."""

import csv
import io
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flaxae.data.arrays import check_size, reading
from flaxae.data.parts import as_examples
from flaxae.errors import DataError, unknown

if TYPE_CHECKING:
    import pandas as pd


class Table(NamedTuple):
    """Numbers float32 [rows, columns], the columns' names, and the values of the label column if one was asked for."""

    values: np.ndarray
    columns: tuple[str, ...]
    labels: np.ndarray | None


def read_table(path: pathlib.Path, *, label: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """The numbers of a table; `columns` picks and orders them, None is all but the label column.

    A `.csv` whose first line is all numbers has no header, unless they count 0, 1, 2, … as pandas writes them;
    its columns are then called x0, x1, …

    Raises:
        DataError: the file is unreadable, ragged or empty; a column is missing or not numeric; a value is missing
            or not finite.
    """
    frame = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    frame.columns = [str(column) for column in frame.columns]
    for name in [*(columns or ()), *([label] if label is not None else [])]:
        if name not in frame.columns:
            raise DataError(f"{path}: " + unknown("column", name, frame.columns))
    if frame.empty:
        raise DataError(f"{path} is empty: it has {len(frame)} rows and {len(frame.columns)} columns.")
    labels = None
    if label is not None:
        if frame[label].isna().any():
            raise DataError(f"{path}: the label column {label!r} has missing values. Leave those rows out.")
        labels = np.array(frame.pop(label).tolist())
    if columns is not None:
        frame = frame[list(columns)]
    _check_numeric(frame, path)
    names = tuple(frame.columns)
    return Table(as_examples(frame.to_numpy(np.float64, na_value=np.nan), path, names), names, labels)


def write_table(file: io.BufferedIOBase, path: pathlib.Path, values: np.ndarray, columns: Sequence[str] | None) -> None:
    """Writes [rows, columns] into an open binary file; `path` says the format, None names the columns x0, x1, …"""
    import pandas as pd

    names = [f"x{i}" for i in range(values.shape[1])] if columns is None else list(columns)
    frame = pd.DataFrame(values, columns=names)
    if path.suffix.lower() == ".parquet":
        frame.to_parquet(file, index=False)
    else:
        frame.to_csv(file, index=False)


def _read_parquet(path: pathlib.Path) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow.parquet

    with reading(path):
        with pyarrow.parquet.ParquetFile(path) as file:
            check_size(file.metadata.num_rows * file.metadata.num_columns * 8, path)
        return pd.read_parquet(path)


def _read_csv(path: pathlib.Path) -> "pd.DataFrame":
    import pandas as pd

    with reading(path):
        check_size(path.stat().st_size, path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next((row for row in csv.reader(file) if row), [])
        header = not all(map(_is_number, first)) or first == [str(i) for i in range(len(first))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # cut a long row short
                frame = pd.read_csv(
                    path, header=0 if header else None, index_col=False, encoding="utf-8-sig", low_memory=False
                )
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            _refuse_ragged(path)
            raise DataError(f"{path} can't be read as a table: {error}") from error
        if frame.isna().to_numpy().any():  # pandas fills a short row
            _refuse_ragged(path)
    return frame if header else frame.rename(columns="x{}".format)


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


def _check_numeric(frame: "pd.DataFrame", path: pathlib.Path) -> None:
    import pandas as pd

    bad = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    if bad:
        shown = ", ".join(f"{name!r} ({_first_non_number(frame[name])})" for name in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{path}: these columns are not numeric: {shown}{more}. Turn dates and categories into numbers or leave "
            f"the columns out; if one of them is the class of each row, name it: label={bad[0]!r}."
        )


def _first_non_number(column: "pd.Series") -> str:
    value = next((value for value in column if not _is_number(value)), None)
    return f"such as {str(value)!r}"


def _is_number(value: object) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
