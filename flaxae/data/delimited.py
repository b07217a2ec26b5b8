"""Tables as text, of whatever dialect: separators, decimal commas, encodings, comments, rows of units, compressed.

What is found is settled by the first lines: which lines are no table, what separates fields, whether a comma is a
decimal point, and whether the table has a header. Cells that are numbers to people become numbers: 1,234.50, 12 %,
€ 3.20.
"""

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, NamedTuple

from flaxae.data import memory
from flaxae.data.arrays import check_size, reading
from flaxae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 200  # lines that settle the dialect
SAMPLE_BYTES = 2**18
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}  # and .zip, of one member
SEPARATORS = ("\t", ";", "|", ",")  # in this order: what is consistent and comes first is it
WHITESPACE = r"\s+"
CELL_BYTES, TEXT_BYTES = 24, 200  # that pandas takes at most while it reads a cell, and a text unlike others
MISSING = ("", "?", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "null", "#N/A", "#DIV/0!", "#VALUE!")
MISSING_AMONG_NUMBERS = (
    *MISSING,
    "-",
    "--",
    "None",
    "none",
    "missing",
    ".",
)  # texts, such as the name of a class, elsewhere
_BOMS = {b"\xff\xfe\x00\x00": "utf-32", b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?inf(inity)?", re.IGNORECASE)
_GROUPED = {  # numbers as people write them: the separator of thousands, the decimal point
    (",", "."): re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?([eE][-+]?\d+)?|[-+]?\.\d+"),
    (".", ","): re.compile(r"[-+]?(\d{1,3}(\.\d{3})+|\d+)(,\d*)?([eE][-+]?\d+)?|[-+]?,\d+"),
    (" ", ","): re.compile(r"[-+]?(\d{1,3}([ \u00a0\u202f]\d{3})+|\d+)([,.]\d*)?"),
    ("'", "."): re.compile(r"[-+]?(\d{1,3}(['’]\d{3})+|\d+)(\.\d*)?"),
}
_SIGNS = re.compile(r"[€$£¥₹%]|\b(EUR|USD|GBP|CHF|JPY)\b")
_DECIMAL_COMMA = re.compile(r"[-+]?(\d{1,3}(\.\d{3})+|\d+),\d+([eE][-+]?\d+)?")
_MAYBE_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+")


class _Dialect(NamedTuple):
    separator: str
    decimal: str
    names: tuple[str, ...] | None  # of the columns; None: no line has them
    skipped: tuple[int, ...]  # lines, counted from 0, that are no rows
    width: int  # fields of a line


def is_number(value: object) -> bool:
    """Whether it is a number, or the text of one."""
    try:
        float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return False
    return True


def read(path: pathlib.Path) -> "pd.DataFrame":
    """The table of a text file. One without a line of names has the columns x0, x1, …

    A line says what was left out (comments, a row of units), and which other than the usual spelling of numbers was
    read.

    Raises:
        DataError: the file is unreadable, ragged or too large, or its first line seems to be data.
    """
    with reading(path):
        check_size(path.stat().st_size, path)
        with opened(path) as file:
            start = file.read(SAMPLE_BYTES)
        encoding = _encoding(start)
        try:
            return _parsed(path, encoding)
        except UnicodeDecodeError:
            warnings.warn(f"{path} isn't {encoding.upper()}: it is read as Windows-1252 (Latin-1).", stacklevel=3)
        try:
            return _parsed(path, "cp1252")
        except UnicodeDecodeError:
            return _parsed(path, "latin-1")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if its name ends in .gz, .xz, .bz2 or .zip.

    Raises:
        DataError: an archive holds more than one file.
    """
    ending = path.suffix.lower()
    if ending == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(members) != 1:
                raise DataError(f"{path} holds {len(members)} files; expected one table. Unpack it, and give one.")
            with archive.open(members[0]) as file:
                yield file
    else:
        with COMPRESSED.get(ending, open)(path, "rb") as file:
            yield file


@contextlib.contextmanager
def packing(file: IO[bytes], path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The open file, or what is written into it packed, by the ending of the name it will have: see `opened`."""
    ending = path.suffix.lower()
    if ending == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(path.stem, "w") as inside:
            yield inside
    elif ending in COMPRESSED:
        with COMPRESSED[ending](file, "wb") as inside:
            yield inside
    else:
        yield file


def text_of(frame: "pd.DataFrame") -> io.BytesIO:
    """Rows of cells as delimited text, for `parse`: a sheet has comments, units and headers just as a text file."""
    return io.BytesIO(frame.to_csv(header=False, index=False).encode())


def as_numbers(column: "pd.Series", source: object) -> "pd.Series":
    """The numbers that a column of text spells, if all of it does, or the column.

    Raises:
        DataError: most but not all of the cells are numbers; the message has the first other one and its row.
    """
    import pandas as pd

    name = f"{source}: the column {column.name!r} of texts"
    memory.check(4 * int(column.memory_usage(deep=True)) + TEXT_BYTES * int(column.nunique()), name)
    text = column.astype(str).str.strip()
    text = text.mask(column.isna() | text.isin(MISSING))
    known = pd.Series(text.dropna().unique())
    if known.empty:
        return text
    spelled = known.str.replace(_SIGNS, "", regex=True).str.strip().str.replace(r"^\((.*)\)$", r"-\1", regex=True)
    numbers = (spelled.str.fullmatch(_NUMBER) | known.isin(MISSING_AMONG_NUMBERS)).to_numpy(bool)
    gaps = known.isin(MISSING_AMONG_NUMBERS).to_numpy()
    for (thousands, point), pattern in _GROUPED.items():
        fits = spelled.str.fullmatch(pattern).to_numpy(bool) | gaps
        if thousands == ",":
            numbers = numbers | fits
        if fits.all() and not gaps.all():
            between = {" ": r"[ \u00a0\u202f]", "'": "['’]"}.get(thousands, re.escape(thousands))
            plain = spelled.str.replace(between, "", regex=True).str.replace(point, ".", regex=False)
            values = plain.mask(gaps).astype(float).tolist()
            changed = (known != plain).to_numpy(bool) & ~gaps
            if changed.any():
                first = int(changed.argmax())
                said = f"{source}: {column.name!r} is read as numbers, {known.tolist()[first]} as {values[first]:g}."
                warnings.warn(said, stacklevel=3)
            return text.map(dict(zip(known.tolist(), values, strict=True))).astype(float)
    if len(known) > 10 and numbers.mean() > 0.5:
        other = known.tolist()[int(numbers.argmin())]
        raise DataError(
            f"{source}: the column {column.name!r} holds numbers, but also {other!r}, in row "
            f"{int((text == other).to_numpy().argmax())} (counted from 0). Write numbers as 1234.5, and nothing where "
            "one is missing; if they are codes of categories, put a letter before each."
        )
    return text


def _encoding(start: bytes) -> str:
    for mark, encoding in _BOMS.items():
        if start.startswith(mark):
            return encoding
    if start[1:200:2].count(0) > len(start[:200]) / 4:
        return "utf-16-le"
    return "utf-16-be" if start[:200:2].count(0) > len(start[:200]) / 4 else "utf-8"


def _parsed(path: pathlib.Path, encoding: str) -> "pd.DataFrame":
    return parse(lambda: opened(path), path, encoding)


def parse(
    opening: Callable[[], contextlib.AbstractContextManager[IO[bytes]]], source: object, encoding: str = "utf-8"
) -> "pd.DataFrame":
    """The table of a text that `opening` opens, at its beginning each time. Raises what `read` does."""
    import pandas as pd

    with opening() as file, io.TextIOWrapper(file, encoding, newline="") as text:
        dialect = _dialect(text.read(SAMPLE_BYTES), source)
    if dialect is None:
        raise DataError(f"{source} is empty: it has no rows.")
    _check_memory(opening, dialect, source)
    settings = {
        "sep": dialect.separator,
        "decimal": dialect.decimal,
        "header": None,
        "skiprows": list(dialect.skipped),
        "index_col": False,
        "skipinitialspace": True,
        "na_values": list(MISSING),
        "keep_default_na": False,
        "encoding": encoding,
        "low_memory": False,
    }
    try:
        with warnings.catch_warnings(), opening() as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cut a long row short
            frame = pd.read_csv(file, **settings)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{source} is empty: it has a line of names and no rows.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        _refuse_ragged(opening, encoding, dialect, source)
        raise DataError(f"{source} can't be read as a table: {error}") from error
    if frame.shape[1] != dialect.width or frame.isna().to_numpy().any():  # pandas fills a short row
        _refuse_ragged(opening, encoding, dialect, source)
    frame.columns = list(dialect.names) if dialect.names else [f"x{i}" for i in range(frame.shape[1])]
    texts = [i for i in range(frame.shape[1]) if not pd.api.types.is_numeric_dtype(frame.dtypes.iloc[i])]
    if dialect.names and (twice := [frame.columns[i] for i in texts if (frame.iloc[:, i] == frame.columns[i]).any()]):
        raise DataError(
            f"{source}: its first line seems to be data, for {twice[0]!r} is also a value of that column. Put a line "
            "of names above it."
        )
    for i in texts:
        frame.isetitem(i, as_numbers(frame.iloc[:, i], source))
    return frame


def _check_memory(
    opening: Callable[[], contextlib.AbstractContextManager[IO[bytes]]], dialect: _Dialect, source: object
) -> None:
    """Refuses a text, unpacked, that would take too much memory while pandas reads it."""
    marks = (b" ", b"\t", b"\n") if dialect.separator == WHITESPACE else (dialect.separator.encode(), b"\n")
    size = cells = 0
    with opening() as file:
        while block := file.read(memory.BLOCK):
            size, cells = size + len(block), cells + sum(map(block.count, marks))
            memory.check(2 * size + CELL_BYTES * cells, source)


def _dialect(start: str, source: object) -> _Dialect | None:
    """The dialect of a text by its beginning; None of one without lines."""
    lines = re.split(r"\r\n|\r|\n", start)[:SAMPLE]
    if len(start) >= SAMPLE_BYTES - 1 and len(lines) > 1:
        lines = lines[:-1]  # may be cut short
    comments = [i for i, line in enumerate(lines) if line.lstrip().startswith(("#", "%", "//"))]
    if len(comments) == len(lines) or any(i > 30 for i in comments):  # then they are cells
        comments = []
    body = [(i, line) for i, line in enumerate(lines) if line.strip() and i not in comments]
    if not body:
        return None
    separator, width = _separator([line for _, line in body])
    rows = {i: _fields(line, separator) for i, line in body}
    skipped = [i for i in range(len(lines)) if i in comments]
    if width > 1:  # titles above the table
        titles = []
        for i in rows:
            if len(rows[i]) != 1:
                break
            titles.append(i)
        if len(titles) < min(20, len(rows)):
            skipped += titles
            rows = {i: fields for i, fields in rows.items() if i not in titles}
    first = next(iter(rows))
    names: tuple[str, ...] | None = None
    cells = list(rows.values())
    decimal = _decimal(cells, separator)
    width = len(cells[0])
    counted = [str(i) for i in range(width)]
    plain = [[field.replace(",", ".") if decimal == "," else field for field in fields] for fields in cells]
    if not all(is_number(cell) or not cell for cell in plain[0]) or cells[0] in (counted, ["", *counted[:-1]]):
        names = _names(cells[0])
        skipped.append(first)
        if len(cells) > 2 and len(cells[1]) == width and _is_units(plain[1], plain[2:]):
            skipped.append(list(rows)[1])
            warnings.warn(f"{source}: left out line {list(rows)[1] + 1}, units: {', '.join(cells[1])}.", stacklevel=5)
    else:  # NumPy writes the names as a comment
        for i in comments:
            fields = _fields(lines[i].lstrip(" #%/"), separator)
            if i == first - 1 and len(fields) == width and not any(map(is_number, fields)):
                names = _names(fields)
    left_out = [i for i in skipped if i in comments or (i < first and names is not None)]
    if said := [lines[i].strip() for i in left_out]:
        more = f" and {len(said) - 1} more lines" if len(said) > 1 else ""
        warnings.warn(f"{source}: left out {said[0][:60]!r}{more} above the table.", stacklevel=5)
    return _Dialect(separator, decimal, names, tuple(sorted(skipped)), width)


def _fields(line: str, separator: str) -> list[str]:
    if separator == WHITESPACE:
        line, separator = re.sub(WHITESPACE, " ", line.strip()), " "
    return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _separator(lines: list[str]) -> tuple[str, int]:
    """What separates fields, and into how many: what does so alike in every line, or in most."""
    found = []
    for separator in (*SEPARATORS, WHITESPACE):
        counts = [len(_fields(line, separator)) for line in lines]
        usual = max(set(counts), key=lambda count: (counts.count(count), count))
        found.append((counts.count(usual) / len(counts), separator, usual))
    for share, separator, usual in found:
        if share == 1 and usual > 1:
            return separator, usual
    share, separator, usual = max(found[:-1], key=lambda one: (one[2] > 1 and one[0] > 0.5, one[0]))
    return (separator, usual) if usual > 1 else (",", 1)


def _decimal(rows: list[list[str]], separator: str) -> str:
    """Whether a comma is the decimal point: where it separates nothing, and isn't one of thousands everywhere."""
    if separator == ",":
        return "."
    cells = [cell for row in rows for cell in row if cell]
    points = any(re.fullmatch(r"[-+]?\d+\.\d+", cell) and not re.fullmatch(r"\d{1,3}\.\d{3}", cell) for cell in cells)
    commas = [cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell)]
    if not commas or points:
        return "."
    return ","


def _names(cells: list[str]) -> tuple[str, ...]:
    """Names of columns, each its own: as pandas has it, the second `a` is `a.1`."""
    names: list[str] = []
    for i, cell in enumerate(cells):
        name, wanted, count = cell or f"Unnamed: {i}", cell or f"Unnamed: {i}", 0
        while name in names:
            count += 1
            name = f"{wanted}.{count}"
        names.append(name)
    return tuple(names)


def _is_units(row: list[str], others: list[list[str]]) -> bool:
    """Whether a row under the names holds units: no number in it, where other rows have nothing but numbers."""
    if any(is_number(cell) for cell in row) or not any(row):
        return False
    numeric = [
        all(is_number(other[i]) or other[i] in MISSING_AMONG_NUMBERS for other in others if i < len(other))
        and any(is_number(other[i]) for other in others if i < len(other))
        for i in range(len(row))
    ]
    return any(number and cell not in MISSING_AMONG_NUMBERS for number, cell in zip(numeric, row, strict=True))


def _refuse_ragged(opening: Callable, encoding: str, dialect: _Dialect, source: object) -> None:
    if dialect.separator == WHITESPACE:
        return
    with opening() as file, io.TextIOWrapper(file, encoding, newline="") as lines:
        rows = csv.reader(lines, delimiter=dialect.separator, skipinitialspace=True)
        following = 0
        for row in rows:
            number, following = following, rows.line_num
            if row and number not in dialect.skipped and len(row) != dialect.width:
                raise DataError(
                    f"{source}, line {rows.line_num}: {len(row)} fields; the first line has {dialect.width}. "
                    f"Every line needs as many, separated by {_NAMED.get(dialect.separator, dialect.separator)}."
                )


_NAMED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}
