"""Tables: their files (text of any dialect is `delimited`), and what of a table is learnt from (`prepare`)."""

import json
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flaxae.data import arrow, delimited, roles
from flaxae.data.arrays import check_size, reading
from flaxae.data.delimited import is_number
from flaxae.data.roles import Roles
from flaxae.errors import DataError, unknown

if TYPE_CHECKING:
    import pandas as pd


EXCEL_TAKES, JSON_TAKES = 6, 20  # times the bytes of its XML, or of its text, while a file is read


class Table(NamedTuple):
    """A table, taken apart."""

    frame: "pd.DataFrame"  # the columns to learn from
    labels: np.ndarray | None  # of each row, None where a row has none; or None without a label column
    carried: "pd.DataFrame"  # the columns that say what a row is about: its time, its names
    roles: Roles


def prepare(
    frame: "pd.DataFrame",
    source: object = "The table",
    *,
    label: str | None = None,
    time: str | None = None,
    ids: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Table:
    """What to learn from of a table, the labels, and the columns that are carried along: see `roles.find`.

    Raises:
        DataError: the table is empty, two columns have one name, or a column that is named is missing.
    """
    frame = checked(frame, source)
    frame, labels = without_label(frame, source, label)
    found = roles.find(frame, source, time=time, ids=ids, drop=drop, keep=keep)
    return Table(frame.drop(columns=list(found.left_out)), labels, frame.filter(items=list(found.carried)), found)


def checked(frame: "pd.DataFrame", source: object) -> "pd.DataFrame":
    """A table with texts for the names of its columns.

    Raises:
        DataError: the table is empty, or two columns have one name.
    """
    frame = frame.set_axis(frame.columns.map(str).map(str.strip), axis=1)
    if frame.empty:
        raise DataError(f"{source} is empty: it has {len(frame)} rows and {len(frame.columns)} columns.")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{source} has two columns {twice!r}; expected a name of its own for each.")
    return frame


def without_label(frame: "pd.DataFrame", source: object, label: str | None) -> tuple["pd.DataFrame", np.ndarray | None]:
    """A table without its label column, and the labels, None where a row has none.

    Raises:
        DataError: there is no such column, nothing beside it, or nothing in it.
    """
    if label is None:
        return frame, None
    if label not in frame.columns:
        raise DataError(f"{source}: " + unknown("column", label, frame.columns))
    if len(frame.columns) == 1:
        raise DataError(f"{source} holds nothing beside the label column {label!r}.")
    missing = frame[label].isna().to_numpy()
    if missing.all():
        raise DataError(f"{source}: the label column {label!r} is empty.")
    if not missing.any():
        return frame.drop(columns=label), np.array(frame[label].tolist())
    labels = np.full(len(frame), None, object)
    present = np.array(frame[label][~missing].tolist())
    if present.dtype.kind == "f" and (present == np.rint(present)).all():  # 1, in a column with gaps
        present = present.astype(int)
    labels[~missing] = present.tolist()
    return frame.drop(columns=label), labels


def write_parquet(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file."""
    import pyarrow.parquet  # noqa: F401 (pandas' own message names no extra)

    frame.to_parquet(file, index=False)


def write_feather(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file."""
    import pyarrow.feather

    pyarrow.feather.write_feather(pyarrow.Table.from_pandas(frame, preserve_index=False), file)


def write_text(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file, with a line of names: tabs in a .tsv, commas in others.

    Text that a spreadsheet would take for a formula and compute, such as =HYPERLINK(…), has a ' before it, which
    `read_text` takes away again.
    """
    with delimited.packing(file, path) as inside:
        name = path.with_suffix("") if inside is not file else path
        _mapped(frame, _no_formula).to_csv(
            inside, index=False, sep="\t" if name.suffix.lower() in (".tsv", ".tab") else ","
        )


def write_excel(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file, as its only sheet."""
    import openpyxl  # noqa: F401 (pandas' own message names no extra)

    frame.to_excel(file, index=False, engine="openpyxl")


def write_json(file: IO[bytes], path: pathlib.Path, frame: "pd.DataFrame") -> None:
    """Writes a table into an open binary file, as a list of records, or one a line."""
    frame.to_json(file, orient="records", lines=path.suffix.lower() != ".json")


def _mapped(frame: "pd.DataFrame", function: Callable[[Any], Any]) -> "pd.DataFrame":
    """The table with texts, and the names of columns, as the function makes them."""
    texts = [name for name, column in frame.items() if column.dtype.kind not in "biuf"]
    made = frame.copy(deep=False)
    made[texts] = frame[texts].map(function)
    return made.rename(columns=function)


_FORMULA = re.compile(r"\s*[=+\-@]\s*\S", re.DOTALL)


def _is_formula(text: str) -> bool:
    """Whether text begins as formulas do, and is neither a number nor that one sign."""
    return _FORMULA.match(text) is not None and not is_number(text)


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
            known = file.metadata
            check_size(known.num_rows * known.num_columns * 8, path)
            check_size(sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups)), path)
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        size = 0
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:  # where each text is kept once
            for i in range(known.num_row_groups if texts else 0):
                size += sum(map(_text_bytes, file.read_row_group(i, texts).columns))
                check_size(size, path)
        return pd.read_parquet(path)


def _is_text(kind: Any) -> bool:
    import pyarrow

    is_one = (pyarrow.types.is_string, pyarrow.types.is_binary, pyarrow.types.is_large_string)
    return any(is_this(kind) for is_this in is_one)


def _text_bytes(column: Any) -> int:
    """What the texts of a column take, each written out, whose chunks keep each one once."""
    import pyarrow.compute

    compute: Any = pyarrow.compute  # whose functions are made when it is imported
    total = 0
    for chunk in column.chunks:
        lengths = compute.binary_length(chunk.dictionary).cast("int64").take(chunk.indices)
        total += compute.sum(lengths).as_py() or 0
    return total


def read_feather(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a `.feather` file. Raises what `read_parquet` does."""
    import pandas as pd
    import pyarrow.feather

    with reading(path):
        check_size(path.stat().st_size, path)
        check_size(arrow.unpacked(path), path)
        texts = 0
        with pyarrow.ipc.open_file(path) as file:
            for i in range(file.num_record_batches):
                batch = file.get_batch(i)
                batch.validate(full=True)  # or damaged offsets of texts would end the process
                texts += sum(map(_viewed_bytes, batch.columns))
                check_size(texts, path)
        return pd.read_feather(path)


def _viewed_bytes(column: Any) -> int:
    """What the texts of a column take, each written out, of which many may be views of one; 0 of another column."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary
    if not (pyarrow.types.is_string_view(column.type) or pyarrow.types.is_binary_view(column.type)):
        return 0
    views = np.frombuffer(column.buffers()[1], "<i4").reshape(-1, 4)  # of which the first is the length
    lengths = views[column.offset : column.offset + len(column), 0].astype(np.int64)
    return int(lengths[column.is_valid().to_numpy(zero_copy_only=False)].sum())


def read_text(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a text file of any dialect: see `delimited.read`."""
    return _mapped(delimited.read(path), _as_written)


def read_excel(path: pathlib.Path) -> "pd.DataFrame":
    """The table on the first sheet of a workbook, read as if it were text: see `delimited.read`.

    Raises:
        DataError: the file is unreadable, damaged or too large, or the sheet empty.
    """
    import openpyxl  # noqa: F401 (pandas' own message names no extra)
    import pandas as pd

    with reading(path):
        check_size(path.stat().st_size, path)
        with zipfile.ZipFile(path) as archive:
            check_size(EXCEL_TAKES * sum(member.file_size for member in archive.infolist()), path)
        with pd.ExcelFile(path, engine="openpyxl") as book:
            sheets = book.sheet_names
            cells = pd.read_excel(book, sheet_name=sheets[0], header=None, dtype=object, na_filter=False)
        check_size(2 * sum(len(cell) for cell in cells.to_numpy().flat if isinstance(cell, str)), path)
        if len(sheets) > 1:
            others = ", ".join(repr(name) for name in sheets[1:])
            warnings.warn(f"{path}: its first sheet, {sheets[0]!r}, is read; not {others}.", stacklevel=3)
        return delimited.parse(lambda: delimited.text_of(cells), path)


def read_json(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a `.json` file, a list of records or a dict of columns, or of a `.jsonl` one, a record a line.

    Raises:
        DataError: the file is unreadable or too large.
    """
    import pandas as pd

    with reading(path):
        check_size(JSON_TAKES * path.stat().st_size, path)
        text = path.read_text(encoding="utf-8-sig")
        lines = path.suffix.lower() != ".json"
        made = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
        frame = pd.DataFrame(made)
    return _spelled(frame, path)


def read_arff(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a Weka file of numbers, categories and dates.

    Raises:
        DataError: the file is unreadable, damaged, too large, or holds strings or sparse rows.
    """
    import pandas as pd
    from scipy.io import arff

    with reading(path):
        check_size(path.stat().st_size, path)
        with path.open(encoding="utf-8") as file:
            rows = longest = 0
            for line in file:  # of categories, a cell is as long as the longest
                rows += 1
                if line.lstrip()[:10].lower() == "@attribute" and "{" in line:
                    longest += max(map(len, line.partition("{")[2].split(",")))
            check_size(rows * longest, path)
            file.seek(0)
            try:
                rows, _ = arff.loadarff(file)
            except (arff.ArffError, StopIteration) as error:
                raise ValueError(str(error) or "it holds no data") from error
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if frame[name].dtype == object:
            frame[name] = frame[name].str.decode("utf-8")
    return _spelled(frame, path)


def _spelled(frame: "pd.DataFrame", source: object) -> "pd.DataFrame":
    """The table, its columns of text being numbers where they spell them."""
    import pandas as pd

    def spelled(column: "pd.Series") -> Any:
        kind = pd.api.types.infer_dtype(column, skipna=True)
        return delimited.as_numbers(column, source) if kind == "string" else column

    return pd.DataFrame({name: spelled(column) for name, column in frame.items()})
